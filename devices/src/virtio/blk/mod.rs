//! The virtio block device (virtio 1.2, section 5.2): a guest's disk.
//!
//! [`VirtioBlk`] is the half that vCPUs reach through the transport; it answers configuration accesses and
//! gives orders. `worker` and `queue` are the half on the I/O thread; `request` reads descriptor chains.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use ferry_block::{BlockHandle, Error, ErrorKind, Limits};
use ferry_migration::Result as StateResult;
use ferry_migration::state::Sections;

use super::{
    DeviceLink, Interrupt, Pending, QueuePosition, QueueSetup, VirtioDevice, features, reply,
};

mod config;
mod queue;
mod request;
mod served;
mod shared;
pub mod state;
#[cfg(test)]
mod testing;
mod worker;

pub use config::{ConfigError, ErrorAction, ErrorPolicy, FailedRequest, VirtioBlkConfig};
pub use served::BlkQueues;

use request::SECTOR_LEN;
use shared::Shared;
use state::{ParkedState, VirtioBlkState};
use worker::{Mailbox, Order, Stopped, Worker};

/// Device type (section 5.2.1).
const TYPE_BLOCK: u16 = 2;
/// Mass storage, as QEMU's virtio disks say.
const CLASS_STORAGE: [u8; 3] = [0x01, 0x00, 0x00];

/// Why a disk device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// The configuration cannot be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no such disk, or its I/O thread is gone.
    #[error(transparent)]
    Disk(#[from] ferry_block::Error),
}

/// A disk device, as its transport holds it.
pub struct VirtioBlk {
    shared: Arc<Shared>,
    limits: Limits,
    mailbox: Mailbox,
    control: BlkControl,
    features: u64,
    /// From the last quiesce or restore: what the saved state says of parked requests.
    parked: Arc<Mutex<Vec<ParkedState>>>,
}

/// A door to a disk device for the control thread.
#[derive(Clone)]
pub struct BlkControl {
    shared: Arc<Shared>,
    interrupt: Arc<OnceLock<Arc<Interrupt>>>,
}

impl BlkControl {
    /// The disk has another length now: tells the driver (section 5.2.6.2). `len` is in bytes; a last part
    /// of less than a sector is not seen by the guest.
    pub fn set_capacity(&self, len: u64) {
        let len = whole_sectors(len);
        if self.shared.set_len(len) == len {
            return;
        }
        if let Some(interrupt) = self.interrupt.get() {
            interrupt.config();
        }
    }

    /// The length in bytes that the guest sees.
    pub fn capacity(&self) -> u64 {
        self.shared.len()
    }
}

impl VirtioBlk {
    /// A device over the root called `backend` of the graph behind `disk`.
    ///
    /// # Errors
    /// [`BlkError`] when the configuration cannot be or there is no such root.
    pub async fn new(
        config: VirtioBlkConfig,
        backend: &str,
        disk: &BlockHandle,
    ) -> Result<Self, BlkError> {
        config.check()?;
        let mailbox = Mailbox::default();
        let (name, orders) = (backend.to_owned(), mailbox.clone());
        let interrupt: Arc<OnceLock<Arc<Interrupt>>> = Arc::default();
        let told = Arc::clone(&interrupt);
        let made = disk.call(move |graph| async move {
            let missing = || Error::new(ErrorKind::NotFound, format!("there is no disk '{name}'"));
            let backend = graph.backend(&name).ok_or_else(missing)?;
            let (len, limits) = (backend.len(), backend.node().limits());
            let shared = Arc::new(Shared::new(config, whole_sectors(len)));
            let control = BlkControl { shared: Arc::clone(&shared), interrupt: told };
            backend.on_resize(move |len| control.set_capacity(len));
            let executor = graph.executor().clone();
            let worker = Worker::new(executor.clone(), backend, Arc::clone(&shared));
            executor.spawn(worker.work(orders));
            Ok::<_, Error>((shared, limits))
        });
        let (shared, limits) = made.await??;
        let control = BlkControl { shared: Arc::clone(&shared), interrupt };
        let features = shared.config().features(&limits);
        Ok(Self { shared, limits, mailbox, control, features, parked: Arc::default() })
    }

    /// A door for the control thread.
    pub fn control(&self) -> BlkControl {
        self.control.clone()
    }

    /// The worker knows them better, once it goes on.
    fn forget_parked(&self) {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn parked(&self) -> Vec<ParkedState> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for VirtioBlk {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

impl VirtioDevice for VirtioBlk {
    fn device_type(&self) -> u16 {
        TYPE_BLOCK
    }

    fn pci_class(&self) -> [u8; 3] {
        CLASS_STORAGE
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let config = self.shared.config();
        vec![config.queue_size; usize::from(config.queues)]
    }

    fn attach(&mut self, link: DeviceLink) {
        if self.control.interrupt.set(Arc::clone(&link.interrupt)).is_err() {
            tracing::error!("a disk device was attached twice");
        }
        self.mailbox.send(Order::Attach(link));
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.shared.read_config(&self.limits, offset, data);
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        self.shared.write_config(offset, data);
    }

    fn negotiated(&mut self, features: u64) {
        // Section 5.2.5.2: a driver that can switch the cache but not flush it starts without.
        if features & features::BLK_CONFIG_WCE != 0 && features & features::BLK_FLUSH == 0 {
            self.shared.set_writeback(false);
        }
    }

    fn reset(&mut self) {
        self.shared.set_writeback(self.shared.config().write_cache);
    }

    fn start(&mut self, features: u64, queues: Vec<QueueSetup>) {
        let parked =
            std::mem::take(&mut *self.parked.lock().unwrap_or_else(PoisonError::into_inner));
        self.mailbox.send(Order::Start { features, queues, parked });
    }

    fn stop(&mut self, done: Box<dyn FnOnce() + Send>) {
        self.forget_parked();
        self.mailbox.send(Order::Stop(done));
    }

    fn quiesce(&mut self) -> Pending<Vec<QueuePosition>> {
        let (answer, stopped) = reply::channel();
        self.mailbox.send(Order::Quiesce(answer));
        let keep = Arc::clone(&self.parked);
        Box::pin(async move {
            // No answer means that the I/O thread ended, and all queues with it.
            let nothing = Stopped { positions: Vec::new(), parked: Vec::new() };
            let stopped = stopped.await.unwrap_or(nothing);
            *keep.lock().unwrap_or_else(PoisonError::into_inner) = stopped.parked;
            stopped.positions
        })
    }

    fn resume(&mut self) {
        self.forget_parked();
        self.mailbox.send(Order::Resume);
    }

    fn save(&self, instance: &str, out: &mut Sections) -> StateResult<()> {
        let state = VirtioBlkState {
            capacity: self.shared.len() / SECTOR_LEN,
            write_cache: self.shared.writeback(),
            parked: self.parked(),
        };
        out.save(instance, &state)
    }

    fn restore(
        &mut self,
        instance: &str,
        from: &mut Sections,
        _features: u64,
        queues: &[QueueSetup],
    ) -> StateResult<()> {
        let state: VirtioBlkState = from.load(instance)?;
        state.check(instance, self.shared.len(), queues)?;
        self.shared.set_len(state.capacity * SECTOR_LEN);
        self.shared.set_writeback(state.write_cache);
        *self.parked.lock().unwrap_or_else(PoisonError::into_inner) = state.parked;
        Ok(())
    }
}

fn whole_sectors(len: u64) -> u64 {
    len - len % SECTOR_LEN
}

#[cfg(test)]
#[path = "blk_tests.rs"]
mod tests;

#[cfg(test)]
mod doorbell_tests;
#[cfg(test)]
mod model_tests;
