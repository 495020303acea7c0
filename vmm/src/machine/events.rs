//! What a machine reports to whoever controls it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ferry_devices::power::PowerEvent;
use ferry_devices::serial::SerialNotice;
use ferry_devices::virtio::blk::{ErrorAction, FailedRequest};

use super::platform::Reports;
use crate::vcpu::{VcpuEvent, VcpuEvents};

/// Something happened that the control thread has to decide about.
#[derive(Debug, Clone)]
pub enum MachineEvent {
    /// The guest switched itself off. Its vCPUs are on their way to a stop.
    PowerOff,
    /// The guest asked for a reset. Its vCPUs are on their way to a stop.
    Reset,
    /// The guest's kernel reported a panic. Its vCPUs are on their way to a stop.
    Panicked,
    /// The guest's kernel panicked and its crash kernel takes over; the guest runs on.
    CrashLoaded,
    /// A vCPU triple-faulted and has stopped; its number.
    TripleFault(u32),
    /// KVM cannot go on with a vCPU: its number and why.
    VcpuFailed(u32, String),
    /// A disk failed a request. With [`ErrorAction::Stop`] the vCPUs are on their way to a stop, and the request
    /// is tried again when the machine resumes.
    Disk {
        /// The disk's id.
        id: String,
        /// What failed.
        failed: FailedRequest,
        /// What the guest is told.
        action: ErrorAction,
    },
    /// The serial port wants attention: [`crate::machine::Machine::shared_serial`].
    Serial(SerialNotice),
    /// The CMOS clock has something new to wait for: [`crate::machine::Machine::shared_clock`].
    Clock,
}

/// Where a machine reports. Called from vCPU threads, and with devices locked: it must only pass the event on
/// (to `Remote::post`) and come back.
pub type MachineEvents = Arc<dyn Fn(MachineEvent) + Send + Sync>;

/// Keeps every vCPU from entering the guest once it is set. A device sets it together with an event that may
/// be the guest's last, so that the vCPU that caused it does not run past it.
pub(crate) type Brake = Arc<AtomicBool>;

/// The devices' reports as machine events.
pub(super) fn device_reports(events: &MachineEvents, brake: &Brake) -> Reports {
    let (power_events, brake) = (events.clone(), Arc::clone(brake));
    let (serial_events, clock_events) = (events.clone(), events.clone());
    Reports {
        power: Arc::new(move |event| {
            let event = match event {
                PowerEvent::PowerOff => MachineEvent::PowerOff,
                PowerEvent::Reset => MachineEvent::Reset,
                PowerEvent::Panicked => MachineEvent::Panicked,
                PowerEvent::CrashLoaded => MachineEvent::CrashLoaded,
            };
            if !matches!(event, MachineEvent::CrashLoaded) {
                brake.store(true, Ordering::SeqCst);
            }
            power_events(event);
        }),
        serial: Arc::new(move |notice| serial_events(MachineEvent::Serial(notice))),
        clock: Arc::new(move || clock_events(MachineEvent::Clock)),
    }
}

/// The vCPUs' reports as machine events.
pub(super) fn vcpu_reports(events: &MachineEvents) -> VcpuEvents {
    let events = events.clone();
    Arc::new(move |index, event| {
        events(match event {
            VcpuEvent::PowerOff => MachineEvent::PowerOff,
            VcpuEvent::Reset => MachineEvent::Reset,
            VcpuEvent::TripleFault => MachineEvent::TripleFault(index),
            VcpuEvent::Failed(why) => MachineEvent::VcpuFailed(index, why),
        });
    })
}
