//! What the front end has said of each ring, and which of them are served.
//!
//! A ring is served as soon as everything is known of it, it is enabled and there is memory. Whatever changes of
//! one that is served is changed with the ring at rest.

use std::fs::File;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use ferry_block::Result;
use ferry_devices::virtio::blk::BlkQueues;
use ferry_devices::virtio::{MAX_QUEUE_SIZE, QueueSetup, features};
use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::MemoryTable;
use crate::wire::{RingAddresses, bad};

/// Where the index is in a used ring (virtio 1.2, section 2.7.8).
const USED_INDEX: u64 = 2;

/// All rings of a device.
pub(crate) struct Rings {
    queues: Rc<BlkQueues>,
    setups: Vec<RingSetup>,
}

/// One ring, as far as it is known.
#[derive(Default)]
pub(crate) struct RingSetup {
    /// Entries.
    size: u16,
    /// The next entry of the available ring that we would take.
    pub(crate) base: u16,
    pub(crate) addresses: Option<RingAddresses>,
    /// What the driver rings. Without it a ring is stopped.
    pub(crate) kick: Option<Rc<File>>,
    pub(crate) enabled: bool,
    running: bool,
}

impl RingSetup {
    /// Sets the number of entries.
    ///
    /// # Errors
    /// There can be no such ring (virtio 1.2, section 2.7).
    pub(crate) fn set_size(&mut self, size: u32) -> Result<()> {
        let possible = u16::try_from(size).ok().filter(|size| size.is_power_of_two());
        let possible = possible.filter(|size| *size <= MAX_QUEUE_SIZE);
        self.size = possible.ok_or_else(|| {
            bad(format!("a ring cannot have {size} entries, a power of two up to {MAX_QUEUE_SIZE}"))
        })?;
        Ok(())
    }
}

impl Rings {
    /// So many rings of which nothing is known.
    pub(crate) fn new(queues: Rc<BlkQueues>, count: usize) -> Rings {
        Rings { queues, setups: (0..count).map(|_| RingSetup::default()).collect() }
    }

    /// The place of a ring of the front end.
    ///
    /// # Errors
    /// There is no such ring.
    pub(crate) fn place(&self, index: u32) -> Result<usize> {
        let place = usize::try_from(index).ok().filter(|place| *place < self.setups.len());
        let count = self.setups.len();
        place.ok_or_else(|| bad(format!("there is no ring {index}, only {count}")))
    }

    /// Changes a ring; one that is served rests meanwhile.
    ///
    /// # Errors
    /// There is no such ring, the change is refused, or the ring cannot be.
    pub(crate) async fn change(
        &mut self,
        index: u32,
        (features, memory): (u64, &MemoryTable),
        change: impl FnOnce(&mut RingSetup) -> Result<()>,
    ) -> Result<()> {
        let place = self.place(index)?;
        self.pause(place).await;
        change(&mut self.setups[place])?;
        self.start(place, features, memory)
    }

    /// Stops a ring; where it stands.
    ///
    /// # Errors
    /// There is no such ring.
    pub(crate) async fn stop(&mut self, index: u32) -> Result<u16> {
        let place = self.place(index)?;
        self.pause(place).await;
        let setup = &mut self.setups[place];
        setup.kick = None;
        Ok(setup.base)
    }

    /// Without the feature that has messages for it, rings are enabled from the beginning.
    pub(crate) fn enable_all(&mut self) {
        for setup in &mut self.setups {
            setup.enabled = true;
        }
    }

    /// Lets the requests of all rings end and takes no more.
    pub(crate) async fn pause_all(&mut self) {
        for place in 0..self.setups.len() {
            self.pause(place).await;
        }
    }

    /// Serves all rings of which everything is known.
    ///
    /// # Errors
    /// One cannot be.
    pub(crate) fn start_all(&mut self, features: u64, memory: &MemoryTable) -> Result<()> {
        (0..self.setups.len()).try_for_each(|place| self.start(place, features, memory))
    }

    async fn pause(&mut self, place: usize) {
        let setup = &mut self.setups[place];
        if std::mem::take(&mut setup.running)
            && let Some(base) = self.queues.stop(number(place)).await
        {
            setup.base = base;
        }
    }

    fn start(&mut self, place: usize, features: u64, table: &MemoryTable) -> Result<()> {
        let setup = &mut self.setups[place];
        let (Some(addresses), Some(kick)) = (setup.addresses, &setup.kick) else { return Ok(()) };
        if setup.running || !setup.enabled || table.is_empty() {
            return Ok(());
        }
        let memory = table.memory()?;
        let find = |part: &str, user: u64| {
            let outside =
                || bad(format!("the {part} of ring {place} at {user:#x} is in no region"));
            table.guest_address(user).ok_or_else(outside)
        };
        let used_ring = find("used ring", addresses.used)?;
        // What an earlier back end gave back is there; nobody tells it in another way.
        let next_used =
            memory.load(GuestAddress(used_ring.saturating_add(USED_INDEX)), Ordering::Acquire);
        let next_used =
            next_used.map_err(|error| bad(format!("the used ring of ring {place}: {error}")))?;
        let ring = QueueState {
            max_size: MAX_QUEUE_SIZE,
            next_avail: setup.base,
            next_used: u16::from_le(next_used),
            event_idx_enabled: features & features::RING_EVENT_IDX != 0,
            size: setup.size,
            ready: true,
            desc_table: find("descriptor table", addresses.desc)?,
            avail_ring: find("available ring", addresses.avail)?,
            used_ring,
        };
        let queue = QueueSetup { index: number(place), ring };
        let started = self.queues.start(queue, features, &memory, Rc::clone(kick));
        started.map_err(|error| bad(format!("ring {place} of {} entries: {error}", setup.size)))?;
        setup.running = true;
        Ok(())
    }
}

/// A device has at most 255 rings.
fn number(place: usize) -> u16 {
    u16::try_from(place).unwrap_or(u16::MAX)
}
