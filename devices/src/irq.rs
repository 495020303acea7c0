//! How devices reach the interrupt controller and how their doorbells reach the kernel.
//!
//! The device crate knows nothing of KVM: the machine implements these traits over `KVM_IRQ_LINE`,
//! irqfd with GSI routes, and `KVM_IOEVENTFD`.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// One input of the interrupt controller.
pub trait IrqLine: Send + Sync {
    /// Drives the line high (`true`) or low. Setting the level it already has is harmless.
    fn set_level(&self, level: bool);

    /// One rising edge, for edge-triggered lines. A machine with a cheaper way (an irqfd) overrides
    /// it.
    fn pulse(&self) {
        self.set_level(true);
        self.set_level(false);
    }
}

/// What a device writes to memory to raise a message-signalled interrupt (PCI 3.0, section 6.8.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsiMessage {
    /// Where the write goes: on x86 it selects the target CPU.
    pub address: u64,
    /// What is written: on x86 it holds vector and delivery mode.
    pub data: u32,
}

/// Delivers the message-signalled interrupts of one device.
pub trait MsiSink: Send + Sync {
    /// Says what `fire(vector)` shall send from now on; `None` takes the route away. Called before
    /// the first `fire` of the vector, and again whenever the guest has changed the message.
    fn route(&self, vector: u16, message: Option<MsiMessage>);

    /// Sends the routed message once. Callable from any thread; must not block.
    fn fire(&self, vector: u16);
}

/// Turns guest writes to an address into eventfd signals without an exit to user space.
pub trait NotifyBinder: Send + Sync {
    /// From now on a guest write of `len` bytes (0 means any length) at `addr` signals `fd`.
    ///
    /// # Errors
    /// Whatever the kernel answers; the device then sees the writes through its bus instead.
    fn bind(&self, addr: u64, len: u32, fd: &EventFd) -> io::Result<()>;

    /// Undoes the `bind` with the same arguments.
    ///
    /// # Errors
    /// Whatever the kernel answers, for example that there was no such binding.
    fn unbind(&self, addr: u64, len: u32, fd: &EventFd) -> io::Result<()>;
}

/// Several level-triggered devices on one line: the line is high while any of them asserts it.
///
/// PCI INTx pins share lines this way (PCI 3.0, section 2.2.6).
pub struct SharedLine {
    line: Arc<dyn IrqLine>,
    asserted: Mutex<usize>,
}

impl SharedLine {
    /// Shares `line`, which is low at the start.
    pub fn new(line: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new(Self { line, asserted: Mutex::new(0) })
    }

    /// A further input; it starts low.
    pub fn input(self: &Arc<Self>) -> Arc<dyn IrqLine> {
        Arc::new(SharedInput { shared: Arc::clone(self), level: Mutex::new(false) })
    }

    fn change(&self, level: bool) {
        let mut asserted = self.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        *asserted = if level { *asserted + 1 } else { asserted.saturating_sub(1) };
        // The lock is held across the call, so that two devices cannot deliver their levels out of
        // order.
        self.line.set_level(*asserted > 0);
    }
}

struct SharedInput {
    shared: Arc<SharedLine>,
    level: Mutex<bool>,
}

impl IrqLine for SharedInput {
    fn set_level(&self, level: bool) {
        let mut current = self.level.lock().unwrap_or_else(PoisonError::into_inner);
        if *current != level {
            *current = level;
            self.shared.change(level);
        }
    }
}

impl Drop for SharedInput {
    fn drop(&mut self) {
        self.set_level(false);
    }
}

#[cfg(test)]
#[path = "irq_tests.rs"]
mod tests;
