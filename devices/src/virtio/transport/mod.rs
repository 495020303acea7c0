//! Virtio over PCI, modern interface only (virtio 1.2, section 4.1).
//!
//! One 64-bit memory BAR holds everything:
//!
//! | offset | what |
//! |---|---|
//! | `0x0000` | common configuration (4.1.4.3) |
//! | `0x1000` | ISR status (4.1.4.5) |
//! | `0x2000` | device configuration (4.1.4.6) |
//! | `0x3000` | notifications, four bytes a queue (4.1.4.4) |
//! | `0x4000` | MSI-X table |
//! | `0x5000` | MSI-X pending bits |

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::features::{self, status};
use super::{DeviceLink, Pending, QueuePosition, QueueSetup, VirtioDevice};
use crate::GuestMemory;
use crate::irq::{IrqLine, MsiSink, NotifyBinder};
use crate::pci::{ConfigChange, ConfigSpace, Intx, MsixLayout, MsixTable, PciDevice, PciError};

mod capabilities;
mod common;
mod interrupt;
mod migrate;
pub mod state;
#[cfg(test)]
mod testing;

pub use interrupt::Interrupt;

use capabilities::{Window, config_space};
use common::{CommonConfig, DEVICE_STATUS};

const BAR: usize = 0;
const BAR_LEN: u64 = 0x8000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PBA: u32 = 0x5000;
const REGION_LEN: u64 = 0x1000;
/// Bytes between the notification addresses of two queues.
const NOTIFY_MULTIPLIER: u32 = 4;
/// As many as the MSI-X table has room for, less one for configuration changes.
const MAX_QUEUES: usize = 255;

/// How long a vCPU that resets a device waits for its requests to end before it goes on and polls. Most
/// drivers sleep between polls, so that a short wait here makes their resets faster; and some never poll.
const RESET_WAIT: Duration = Duration::from_millis(5);

/// What a transport needs from the machine.
pub struct VirtioPciResources {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// Delivers MSI-X messages.
    pub msi: Arc<dyn MsiSink>,
    /// The INTx line, for drivers without MSI-X.
    pub line: Arc<dyn IrqLine>,
    /// The interrupt controller input of `line`, which the guest is told.
    pub gsi: u8,
    /// Makes doorbells of eventfds.
    pub binder: Arc<dyn NotifyBinder>,
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    /// Names the device in saved state and in messages.
    id: String,
    config: ConfigSpace,
    msix: Arc<MsixTable>,
    interrupt: Arc<Interrupt>,
    common: CommonConfig,
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    kicks: Vec<EventFd>,
    binder: Arc<dyn NotifyBinder>,
    /// Where the BAR is, while doorbells are bound there.
    bound_at: Option<u64>,
    window: Window,
    /// The driver set `DRIVER_OK`, and the device was told so.
    started: bool,
    /// Set while a reset waits for the device's requests to end.
    resetting: Option<Arc<Gate>>,
    /// Where the queues stood when they were quiesced; `None` while they may run.
    positions: Option<Vec<QueuePosition>>,
}

/// Opens once.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn is_open(&self) -> bool {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, limit: Duration) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether it opened is asked by the caller anyway.
        drop(self.changed.wait_timeout_while(open, limit, |open| !*open));
    }
}

impl VirtioPci {
    /// Puts `device` behind a PCI function. `id` must be unique in the machine.
    ///
    /// # Errors
    /// [`PciError`] when the device has more queues than vectors fit, or eventfds are used up.
    pub fn new(
        id: &str,
        mut device: Box<dyn VirtioDevice>,
        machine: VirtioPciResources,
    ) -> Result<Arc<Mutex<Self>>, PciError> {
        let sizes = device.queue_sizes();
        if sizes.len() > MAX_QUEUES {
            return Err(PciError::Msix { why: "a virtio device has at most 255 queues" });
        }
        let vectors = u16::try_from(sizes.len() + 1).unwrap_or(u16::MAX);
        let layout = MsixLayout {
            table_bar: BAR,
            table_offset: u32::try_from(MSIX_TABLE).unwrap_or(u32::MAX),
            pba_bar: BAR,
            pba_offset: MSIX_PBA,
        };
        let msix = MsixTable::new(vectors, layout, machine.msi)?;
        let intx = Intx::new(machine.line);
        let (mut config, window) = config_space(&*device, sizes.len())?;
        config.add_msix(Arc::clone(&msix))?;
        config.set_intx(Arc::clone(&intx), machine.gsi);

        let interrupt = Arc::new(Interrupt::new(Arc::clone(&msix), intx, sizes.len()));
        let no_fds =
            |_error| PciError::Msix { why: "no eventfd for a queue: raise the open files limit" };
        let mut kicks = Vec::with_capacity(sizes.len());
        let mut device_kicks = Vec::with_capacity(sizes.len());
        for _queue in &sizes {
            let kick = EventFd::new(EFD_NONBLOCK).map_err(no_fds)?;
            device_kicks.push(kick.try_clone().map_err(no_fds)?);
            kicks.push(kick);
        }
        device.attach(DeviceLink {
            memory: machine.memory.clone(),
            interrupt: Arc::clone(&interrupt),
            kicks: device_kicks,
        });
        let offered = device.features() | features::TRANSPORT;
        let common = CommonConfig::new(offered, &sizes, Arc::clone(&interrupt));
        Ok(Arc::new(Mutex::new(Self {
            id: id.to_owned(),
            config,
            msix,
            interrupt,
            common,
            device,
            memory: machine.memory,
            kicks,
            binder: machine.binder,
            bound_at: None,
            window,
            started: false,
            resetting: None,
            positions: None,
        })))
    }

    /// The device's name.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Lets all requests end and stops the queues; the future is done when nothing of this device touches
    /// guest memory or its disk any more. To be called with all vCPUs stopped, before saving, before a
    /// machine reset and for `stop`. The queues stay stopped until [`VirtioPci::resume`].
    pub fn quiesce(device: &Arc<Mutex<Self>>) -> Pending<()> {
        let stopped = device.lock().unwrap_or_else(PoisonError::into_inner).device.quiesce();
        let device = Arc::clone(device);
        Box::pin(async move {
            let positions = stopped.await;
            let mut device = device.lock().unwrap_or_else(PoisonError::into_inner);
            // A reset that was under way is done by now, and nobody may have asked yet.
            device.settle_reset();
            device.positions = Some(positions);
        })
    }

    /// Goes on after [`VirtioPci::quiesce`] or a restore.
    pub fn resume(&mut self) {
        self.positions = None;
        self.device.resume();
    }

    fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        self.settle_reset();
        data.fill(0);
        match offset & !(REGION_LEN - 1) {
            0 => self.common.read(offset, data),
            ISR => {
                if let (ISR, Some(first)) = (offset, data.first_mut()) {
                    *first = self.interrupt.take_isr();
                }
            }
            DEVICE => {
                // Section 4.1.4.3.1: the generation changes when a read could otherwise tear.
                if self.interrupt.take_config_changed() {
                    self.common.generation = self.common.generation.wrapping_add(1);
                }
                self.device.read_config(offset - DEVICE, data);
            }
            _ => {}
        }
    }

    fn write_bar(&mut self, offset: u64, data: &[u8]) {
        self.settle_reset();
        match offset & !(REGION_LEN - 1) {
            0 if offset == DEVICE_STATUS => {
                if let [value] = data {
                    self.write_status(*value);
                }
            }
            // The driver must wait until its reset is done (section 4.1.4.3.2).
            0 if self.resetting.is_none() => self.common.write(offset, data, self.started),
            DEVICE if self.resetting.is_none() => self.device.write_config(offset - DEVICE, data),
            NOTIFY => {
                let queue = (offset - NOTIFY) / u64::from(NOTIFY_MULTIPLIER);
                let kick = usize::try_from(queue).ok().and_then(|queue| self.kicks.get(queue));
                if let Some(Err(error)) = kick.map(|kick| kick.write(1)) {
                    // Only a counter near 2^64 refuses, and then the doorbell is rung already.
                    tracing::debug!(device = self.id, "doorbell: {error}");
                }
            }
            _ => {}
        }
    }

    /// The driver writes the device status (sections 2.1 and 3.1.1). Bits only ever come: it takes a reset
    /// to clear one.
    fn write_status(&mut self, value: u8) {
        if value == 0 {
            return self.begin_reset();
        }
        if self.resetting.is_some() {
            return;
        }
        let before = self.interrupt.status();
        let mut after = before | (value & !status::NEEDS_RESET);
        if value & status::DRIVER_OK != 0 {
            // A driver that never asks whether its features will do, as those of old never had to, has still
            // said which they are.
            after |= status::FEATURES_OK;
        }
        let newly = |bit: u8| after & bit != 0 && before & bit == 0;
        if newly(status::FEATURES_OK) {
            if features::acceptable(self.common.offered, self.common.accepted) {
                self.device.negotiated(self.common.accepted);
            } else {
                // Section 2.2.2: the driver reads the bit back and finds it clear.
                after &= !status::FEATURES_OK;
            }
        }
        let start = after & status::DRIVER_OK != 0 && before & status::DRIVER_OK == 0;
        self.interrupt.set_status(after);
        if start {
            self.start();
        }
    }

    fn start(&mut self) {
        self.started = true;
        if self.interrupt.status() & status::FEATURES_OK == 0 {
            tracing::warn!(device = self.id, "the guest's driver starts without agreed features");
            return self.interrupt.needs_reset();
        }
        let accepted = self.common.accepted;
        let enabled = (0..).zip(&self.common.queues).filter(|(_, queue)| queue.enabled);
        let queues =
            enabled.map(|(index, queue)| QueueSetup { index, ring: queue.ring(accepted, 0, 0) });
        self.device.start(accepted, queues.collect());
    }

    /// Writing 0 to the status resets the device; it reads 0 when that is done (section 4.1.4.3.1).
    fn begin_reset(&mut self) {
        if self.resetting.is_some() {
            return;
        }
        if !self.started {
            return self.finish_reset();
        }
        let gate = Arc::new(Gate::default());
        let opener = Arc::clone(&gate);
        self.device.stop(Box::new(move || opener.open()));
        gate.wait(RESET_WAIT);
        self.resetting = Some(gate);
        self.settle_reset();
    }

    fn settle_reset(&mut self) {
        if self.resetting.as_ref().is_some_and(|gate| gate.is_open()) {
            self.resetting = None;
            self.finish_reset();
        }
    }

    fn finish_reset(&mut self) {
        self.started = false;
        self.common.reset();
        self.device.reset();
        self.interrupt.reset();
    }

    fn bind_doorbells(&mut self, base: Option<u64>) {
        if self.bound_at == base {
            return;
        }
        let address = |base: u64, index: u64| base + NOTIFY + index * u64::from(NOTIFY_MULTIPLIER);
        for (index, kick) in (0..).zip(&self.kicks) {
            if let Some(old) = self.bound_at
                && let Err(error) = self.binder.unbind(address(old, index), 0, kick)
            {
                tracing::debug!(device = self.id, "doorbell {index} stays bound: {error}");
            }
            if let Some(new) = base
                && let Err(error) = self.binder.bind(address(new, index), 0, kick)
            {
                // The guest's writes come through the BAR then, slower but as well.
                tracing::debug!(device = self.id, "doorbell {index} is not bound: {error}");
            }
        }
        self.bound_at = base;
    }
}

impl PciDevice for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_read(&mut self, offset: u16, data: &mut [u8]) {
        if self.window.is_touched(offset, data.len())
            && let Some((at, len)) = self.window.access(&self.config)
        {
            let mut bytes = [0; 4];
            let (bytes, _rest) = bytes.split_at_mut(len);
            self.read_bar(at, bytes);
            // The data field lies behind the header, so this moves no BAR.
            let _unmoved = self.config.write(self.window.data(), bytes);
        }
        self.config.read(offset, data);
    }

    fn config_write(&mut self, offset: u16, data: &[u8]) -> ConfigChange {
        let change = self.config.write(offset, data);
        if self.window.is_touched(offset, data.len())
            && let Some((at, len)) = self.window.access(&self.config)
        {
            let mut bytes = [0; 4];
            let (bytes, _rest) = bytes.split_at_mut(len);
            self.config.read(self.window.data(), bytes);
            self.write_bar(at, bytes);
        }
        change
    }

    fn bar_read(&mut self, bar: usize, offset: u64, data: &mut [u8]) {
        if !self.msix.bar_read(bar, offset, data) {
            self.read_bar(offset, data);
        }
    }

    fn bar_write(&mut self, bar: usize, offset: u64, data: &[u8]) {
        if !self.msix.bar_write(bar, offset, data) {
            self.write_bar(offset, data);
        }
    }

    fn bar_moved(&mut self, _bar: usize, base: Option<u64>) {
        self.bind_doorbells(base);
    }

    /// The machine quiesces devices before it resets them, so that this finds nothing in flight.
    fn reset(&mut self) {
        self.begin_reset();
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
