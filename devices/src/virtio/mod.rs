//! Virtio 1.x devices: what a device is to a transport, and how the two find each other.
//!
//! A device has two halves. The half that implements [`VirtioDevice`] is owned by the transport and called
//! from vCPU threads with the transport locked: it answers configuration accesses and passes messages. The
//! other half lives on the I/O thread with the disk, owns the queues while they run, and reaches the guest
//! through guest memory and an [`Interrupt`]. It never takes the transport's lock, so that a vCPU may wait a
//! moment for it.
//!
//! ```text
//! guest --MMIO--> VirtioPci --VirtioDevice--> [message] --> queues on the I/O thread --> block graph
//!   \---ioeventfd------------------------------------------/        |
//!    <----------------- MSI-X through Interrupt --------------------/
//! ```
//!
//! Absent on purpose: the legacy and transitional interfaces, packed rings, `VIRTIO_F_RING_RESET` and
//! `VIRTIO_F_ACCESS_PLATFORM`.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use ferry_migration::Result as StateResult;
use ferry_migration::state::Sections;
use virtio_queue::QueueState;
use vmm_sys_util::eventfd::EventFd;

use crate::GuestMemory;

pub mod blk;
pub mod features;
mod guest_buf;
mod queue;
mod reply;
#[cfg(test)]
mod testing;
pub mod transport;

pub use queue::{MAX_CHAIN_LEN, MAX_QUEUE_SIZE, QueueError};
pub use transport::Interrupt;

/// A future of the control side: what it waits for happens on another thread.
pub type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How the half of a device that lives on the I/O thread reaches its driver.
pub trait DriverSignal {
    /// Queue `index` has used buffers, and the driver wants to know (virtio 1.2, section 2.7.7.2).
    fn queue(&self, index: u16);

    /// The driver broke the device, which does not go on until it is reset (section 2.1.2).
    fn needs_reset(&self);
}

/// What a device gets from its transport, once, before anything else.
#[derive(Debug)]
pub struct DeviceLink {
    /// The guest's memory.
    pub memory: GuestMemory,
    /// The way to interrupt the guest.
    pub interrupt: Arc<Interrupt>,
    /// One doorbell for each queue; the guest's notifications arrive here.
    pub kicks: Vec<EventFd>,
}

/// A queue that the driver has enabled, with the positions where the device shall go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSetup {
    /// Which of the device's queues.
    pub index: u16,
    /// Addresses, size and positions.
    pub ring: QueueState,
}

/// Where a stopped queue stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueuePosition {
    /// Which of the device's queues.
    pub index: u16,
    /// The next entry of the available ring that the device would take.
    pub next_avail: u16,
    /// The next entry of the used ring that the device would fill.
    pub next_used: u16,
}

/// The transport's half of a device.
///
/// The transport calls in this order: `attach` once; then any number of times `start` (the driver wrote
/// `DRIVER_OK`) followed by `stop` (it wrote status 0); `read_config` and `write_config` at any time.
/// Offsets, lengths and values of configuration accesses are the guest's. No method may block for long: a vCPU
/// waits.
///
/// Migration and `stop`/`cont` call `quiesce` and `resume` from the control thread with all vCPUs stopped,
/// also when the device was never started.
pub trait VirtioDevice: Send {
    /// The device type (virtio 1.2, section 5).
    fn device_type(&self) -> u16;

    /// PCI class, subclass and programming interface.
    fn pci_class(&self) -> [u8; 3];

    /// The feature bits of the device type; the transport adds its own.
    fn features(&self) -> u64;

    /// The largest size of each queue, a power of two up to [`MAX_QUEUE_SIZE`].
    fn queue_sizes(&self) -> Vec<u16>;

    /// Hands over memory, interrupt and doorbells.
    fn attach(&mut self, link: DeviceLink);

    /// The driver reads the device configuration. Beyond its end there are zeroes.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// The driver writes the device configuration; what is not writable is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// The driver and the transport agreed on `features` (section 3.1.1, step 6).
    fn negotiated(&mut self, features: u64);

    /// The driver reset the device: configuration fields it wrote are as after power-on. A started device has
    /// been stopped before.
    fn reset(&mut self);

    /// The driver is ready: serve these queues (section 3.1.1, step 8).
    fn start(&mut self, features: u64, queues: Vec<QueueSetup>);

    /// The driver resets a started device: take nothing more, let in-flight requests end, forget the queues,
    /// then call `done` (from any thread). Nothing of guest memory may be touched after `done`.
    fn stop(&mut self, done: Box<dyn FnOnce() + Send>);

    /// Take nothing more, let in-flight requests end, tell where the queues stand. They stay as they are
    /// until `resume`; a `start` meanwhile takes effect at `resume`.
    fn quiesce(&mut self) -> Pending<Vec<QueuePosition>>;

    /// Go on after `quiesce`: look at every available ring and interrupt every queue once, as notifications
    /// of either side may have been lost with the process or machine they were made in.
    fn resume(&mut self);

    /// Adds the device's own section. The device is quiesced.
    ///
    /// # Errors
    /// When the state cannot be encoded.
    fn save(&self, instance: &str, out: &mut Sections) -> StateResult<()>;

    /// Takes the device's own section. `start` follows, with the same `features` and `queues`, when there are
    /// any queues. The device is quiesced.
    ///
    /// # Errors
    /// When the section is missing or describes a device that this one cannot be.
    fn restore(
        &mut self,
        instance: &str,
        from: &mut Sections,
        features: u64,
        queues: &[QueueSetup],
    ) -> StateResult<()>;
}
