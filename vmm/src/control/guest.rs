//! What happens when the guest, or KVM under it, reports something.

use std::rc::Rc;

use ferry_api::EventKind;
use ferry_api::command::{ErrorAction as QmpErrorAction, IoOperation, PanicAction, ShutdownCause};
use ferry_api::event::{BlockIoErrorData, GuestPanickedData};
use ferry_block::ErrorKind as BlockErrorKind;
use ferry_devices::virtio::blk::{ErrorAction, FailedRequest};

use super::Control;
use crate::config::OnReboot;
use crate::exit::Ending;
use crate::lifecycle::RunState;
use crate::machine::MachineEvent;

impl Control {
    /// Acts on a report of the machine.
    pub(crate) fn on_machine_event(self: &Rc<Self>, event: MachineEvent) {
        match event {
            MachineEvent::PowerOff => {
                self.guest_ends(ShutdownCause::GuestShutdown, Ending::PowerOff);
            }
            MachineEvent::Reset => match self.config.on_reboot {
                OnReboot::Exit => self.guest_ends(ShutdownCause::GuestReset, Ending::Reboot),
                OnReboot::Reset => self.guest_reboots(),
            },
            MachineEvent::Panicked => {
                let action = PanicAction::Poweroff;
                self.event(EventKind::GuestPanicked(GuestPanickedData { action }));
                self.guest_ends(ShutdownCause::GuestPanic, Ending::Panic);
            }
            MachineEvent::CrashLoaded => {
                let action = PanicAction::Run;
                self.event(EventKind::GuestPanicked(GuestPanickedData { action }));
            }
            MachineEvent::TripleFault(vcpu) => {
                self.guest_ends(ShutdownCause::GuestReset, Ending::TripleFault(vcpu));
            }
            MachineEvent::VcpuFailed(vcpu, why) => {
                self.guest_ends(ShutdownCause::HostError, Ending::Internal(vcpu, why));
            }
            MachineEvent::Disk { id, failed, action } => self.disk_failed(id, &failed, action),
            MachineEvent::Serial(notice) => {
                self.console.notice(&self.executor, &self.machine.shared_serial(), notice);
            }
            MachineEvent::Clock => self.clock.look_again(),
        }
    }

    /// A disk failed a request; with the policy that says so, the guest stops until somebody has made
    /// room, and the request is tried again at `cont`.
    fn disk_failed(self: &Rc<Self>, device: String, failed: &FailedRequest, action: ErrorAction) {
        let stop = action == ErrorAction::Stop;
        self.event(EventKind::BlockIoError(BlockIoErrorData {
            device,
            node_name: None,
            operation: if failed.is_write { IoOperation::Write } else { IoOperation::Read },
            action: if stop { QmpErrorAction::Stop } else { QmpErrorAction::Report },
            nospace: Some(failed.kind == BlockErrorKind::NoSpace),
            reason: failed.message.clone(),
        }));
        if !stop {
            return;
        }
        let this = Rc::clone(self);
        drop(self.executor.spawn(async move {
            let change = this.change().await;
            if this.machine.run_state() == RunState::Running
                && let Err(error) = this.halt(&change, RunState::IoError).await
            {
                tracing::warn!("{}", error.line());
            }
        }));
    }

    fn guest_ends(self: &Rc<Self>, reason: ShutdownCause, ending: Ending) {
        self.announce_shutdown(reason != ShutdownCause::HostError, reason);
        let this = Rc::clone(self);
        drop(self.executor.spawn(async move { this.wind_up(ending).await }));
    }

    fn guest_reboots(self: &Rc<Self>) {
        let this = Rc::clone(self);
        drop(self.executor.spawn(async move {
            if let Err(error) = this.reset(true, ShutdownCause::GuestReset).await {
                // Its vCPUs have stopped at the reset and cannot go on without it.
                tracing::error!("the guest wants to reboot and cannot: {}", error.line());
                this.wind_up(Ending::Reboot).await;
            }
        }));
    }
}
