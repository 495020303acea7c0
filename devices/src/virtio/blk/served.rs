//! A disk whose driver does not reach it over a bus of ours: its queues are started and stopped one by one
//! on the I/O thread, by whoever speaks with the driver's side (vhost-user).

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::rc::Rc;
use std::sync::Arc;

use ferry_block::{BlockBackend, Executor, Limits, Notify, Task};

use super::config::{ConfigError, VirtioBlkConfig};
use super::queue::{BlkQueue, Disk, Parts};
use super::shared::Shared;
use super::whole_sectors;
use super::worker::answer_doorbell;
use crate::GuestMemory;
use crate::virtio::guest_buf::GuestBuffers;
use crate::virtio::queue::Ring;
use crate::virtio::{DriverSignal, QueueError, QueueSetup, features};

/// A disk and those of its queues that run.
pub struct BlkQueues {
    executor: Executor,
    backend: BlockBackend,
    shared: Arc<Shared>,
    limits: Limits,
    signal: Rc<dyn DriverSignal>,
    running: RefCell<BTreeMap<u16, Running>>,
    /// The driver broke one queue: none goes on until all have been stopped, which is a reset.
    broken: Rc<Cell<bool>>,
    idle: Rc<Notify>,
}

struct Running {
    queue: Rc<BlkQueue>,
    doorbell: Task<()>,
}

impl BlkQueues {
    /// A disk without queues that run. It must be [`stop`](BlkQueues::stop)ped before it goes.
    ///
    /// # Errors
    /// The configuration cannot be.
    pub fn new(
        config: VirtioBlkConfig,
        backend: BlockBackend,
        executor: Executor,
        signal: Rc<dyn DriverSignal>,
    ) -> Result<Self, ConfigError> {
        config.check()?;
        let shared = Arc::new(Shared::new(config, whole_sectors(backend.len())));
        Ok(Self {
            executor,
            limits: backend.node().limits(),
            backend,
            shared,
            signal,
            running: RefCell::default(),
            broken: Rc::default(),
            idle: Rc::default(),
        })
    }

    /// What the driver may negotiate.
    pub fn features(&self) -> u64 {
        self.shared.config().features(&self.limits) | features::TRANSPORT
    }

    /// The driver reads the device configuration (section 5.2.4). Beyond its end there are zeroes.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.shared.read_config(&self.limits, offset, data);
    }

    /// The driver writes the device configuration; what is not writable is ignored.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        self.shared.write_config(offset, data);
    }

    /// The disk has another length in bytes now; whether the driver can see a difference.
    pub fn set_capacity(&self, len: u64) -> bool {
        let len = whole_sectors(len);
        self.shared.set_len(len) != len
    }

    /// Serves a queue that does not run. Its driver rings `kick`, an eventfd that does not block.
    ///
    /// # Errors
    /// The setup does not describe a queue in `memory`.
    pub fn start(
        &self,
        setup: QueueSetup,
        features: u64,
        memory: &GuestMemory,
        kick: Rc<File>,
    ) -> Result<(), QueueError> {
        let mut running = self.running.borrow_mut();
        if running.is_empty() {
            self.broken.set(false);
        }
        let indirect = features & features::RING_INDIRECT_DESC != 0;
        let ring = Ring::new(setup.ring, indirect, memory)?;
        let queue = BlkQueue::new(Parts {
            index: setup.index,
            ring,
            buffers: GuestBuffers::new(memory.clone()),
            signal: Rc::clone(&self.signal),
            disk: Disk {
                backend: self.backend.clone(),
                shared: Arc::clone(&self.shared),
                features,
                broken: Rc::clone(&self.broken),
            },
            executor: self.executor.clone(),
            idle: Rc::clone(&self.idle),
        });
        let bell = answer_doorbell(self.executor.clone(), kick, hear);
        let doorbell = self.executor.spawn(bell);
        queue.run();
        running.insert(setup.index, Running { queue, doorbell });
        Ok(())
    }

    /// Takes nothing more from a queue and waits until nothing is in flight. Answers where it stands in the
    /// available ring; nothing if it did not run. Guest memory is not touched for it any more.
    pub async fn stop(&self, index: u16) -> Option<u16> {
        let Running { queue, doorbell } = self.running.borrow_mut().remove(&index)?;
        queue.pause();
        self.idle.wait_until(|| queue.is_idle()).await;
        queue.close();
        doorbell.cancel().await;
        Some(queue.position().next_avail)
    }
}

/// Takes the count out of an eventfd.
fn hear(kick: &Rc<File>) -> io::Result<u64> {
    let mut count = [0; 8];
    (&**kick).read_exact(&mut count)?;
    Ok(u64::from_ne_bytes(count))
}
