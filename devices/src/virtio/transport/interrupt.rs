//! How a device interrupts its driver, and the part of its registers that both threads share.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::pci::{Intx, MsixTable};
use crate::virtio::DriverSignal;
use crate::virtio::features::status;

/// No vector: events of this kind cause no interrupt (virtio 1.2, section 4.1.5.1.2).
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// ISR bit: a queue has used buffers (section 4.1.4.5).
const ISR_QUEUE: u8 = 1;
/// ISR bit: the device configuration changed.
const ISR_CONFIG: u8 = 2;

/// The device's way to its driver: MSI-X where the driver enabled it, else the INTx pin and ISR register.
///
/// Callable from any thread; takes no lock that is held for longer than an interrupt takes to fire.
pub struct Interrupt {
    msix: Arc<MsixTable>,
    intx: Arc<Intx>,
    /// Held while the pin is driven, so that pin and register cannot come to disagree.
    isr: Mutex<u8>,
    status: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    /// The configuration changed since the driver last read the generation.
    config_changed: AtomicBool,
}

impl Interrupt {
    /// An interrupt for `queues` queues, with nothing mapped.
    pub fn new(msix: Arc<MsixTable>, intx: Arc<Intx>, queues: usize) -> Self {
        Self {
            msix,
            intx,
            isr: Mutex::new(0),
            status: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            config_changed: AtomicBool::new(false),
        }
    }

    /// Tells the driver that queue `index` has used buffers (section 4.1.5.3).
    pub fn queue(&self, index: u16) {
        let vector = self.queue_vector(index);
        self.fire(vector, ISR_QUEUE);
    }

    /// Tells the driver that the device configuration changed (section 4.1.5.4).
    pub fn config(&self) {
        self.config_changed.store(true, Ordering::Release);
        if self.status() & status::DRIVER_OK == 0 {
            // Section 2.4.2: no notifications before DRIVER_OK; it reads the configuration then.
            return;
        }
        // Section 4.1.4.5.1: this bit is set also when MSI-X delivers the interrupt.
        *self.lock_isr() |= ISR_CONFIG;
        self.fire(self.config_vector.load(Ordering::Acquire), ISR_CONFIG);
    }

    /// The device cannot go on until the driver resets it (section 2.1.2).
    pub fn needs_reset(&self) {
        let before = self.status.fetch_or(status::NEEDS_RESET, Ordering::AcqRel);
        if before & status::NEEDS_RESET == 0 {
            self.config();
        }
    }

    /// The device status register.
    pub fn status(&self) -> u8 {
        self.status.load(Ordering::Acquire)
    }

    fn fire(&self, vector: u16, isr: u8) {
        if vector == NO_VECTOR && self.msix.is_enabled() {
            return;
        }
        if self.msix.fire(vector) || self.msix.is_enabled() {
            return;
        }
        let mut bits = self.lock_isr();
        *bits |= isr;
        self.intx.set(true);
    }

    fn lock_isr(&self) -> MutexGuard<'_, u8> {
        self.isr.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the status but keeps `NEEDS_RESET`, which only a reset clears.
    pub(super) fn set_status(&self, value: u8) {
        let keep = |now: u8| Some(value | (now & status::NEEDS_RESET));
        let _before = self.status.fetch_update(Ordering::AcqRel, Ordering::Acquire, keep);
    }

    /// The ISR register; reading it clears it and releases the pin (section 4.1.4.5).
    pub(super) fn take_isr(&self) -> u8 {
        let mut bits = self.lock_isr();
        self.intx.set(false);
        std::mem::take(&mut *bits)
    }

    /// Whether the configuration changed since this was last asked.
    pub(super) fn take_config_changed(&self) -> bool {
        self.config_changed.swap(false, Ordering::AcqRel)
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::Acquire)
    }

    pub(super) fn queue_vector(&self, index: u16) -> u16 {
        let vector = self.queue_vectors.get(usize::from(index));
        vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::Acquire))
    }

    /// Maps configuration changes to a vector, or to none when there is no such vector (4.1.5.1.2.1).
    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::Release);
    }

    /// Maps a queue to a vector, likewise.
    pub(super) fn set_queue_vector(&self, index: u16, vector: u16) {
        if let Some(slot) = self.queue_vectors.get(usize::from(index)) {
            slot.store(self.existing(vector), Ordering::Release);
        }
    }

    fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix.vector_count() { vector } else { NO_VECTOR }
    }

    /// As after power-on, with nothing mapped (sections 4.1.4.3.1, 4.1.5.1.2.1).
    pub(super) fn reset(&self) {
        self.status.store(0, Ordering::Release);
        self.config_vector.store(NO_VECTOR, Ordering::Release);
        for vector in &self.queue_vectors {
            vector.store(NO_VECTOR, Ordering::Release);
        }
        self.config_changed.store(false, Ordering::Release);
        self.take_isr();
    }

    pub(super) fn isr(&self) -> u8 {
        *self.lock_isr()
    }

    /// Puts a saved status and ISR in place. The pin's level is part of the PCI state.
    pub(super) fn restore(&self, status: u8, isr: u8) {
        self.status.store(status, Ordering::Release);
        *self.lock_isr() = isr;
    }
}

impl DriverSignal for Arc<Interrupt> {
    fn queue(&self, index: u16) {
        Interrupt::queue(self, index);
    }

    fn needs_reset(&self) {
        Interrupt::needs_reset(self);
    }
}

impl fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interrupt")
            .field("status", &self.status())
            .field("isr", &self.isr())
            .field("config_vector", &self.config_vector())
            .finish_non_exhaustive()
    }
}
