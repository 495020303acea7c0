//! The device's side of a split virtqueue (virtio 1.2, section 2.7).
//!
//! `virtio_queue::Queue` keeps addresses, sizes and ring positions and checks them. On top of it this file
//! walks descriptor chains so that every malformed one is told from a short one, finds the rings in host
//! memory once per batch instead of once per access, publishes a batch of used buffers with a single store,
//! and refuses a head that the driver offers a second time before we gave it back.

use std::sync::atomic::{Ordering, fence};

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::bitmap::BS;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileMemory, VolatileSlice,
};

use crate::GuestMemory;

/// Longest descriptor chain that we accept, indirect tables included.
///
/// Drivers keep to the queue size (section 2.7.5.3.1) or, as Linux does with indirect tables, to `seg_max`.
/// The bound is that of one vectored system call.
pub const MAX_CHAIN_LEN: usize = 1024;

/// Largest queue that we offer: with it a direct chain cannot exceed [`MAX_CHAIN_LEN`].
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// Offsets in the available and the used ring (sections 2.7.6 and 2.7.8).
const RING_FLAGS: usize = 0;
const RING_IDX: usize = 2;
const RING_ENTRIES: usize = 4;
const AVAIL_ENTRY_LEN: usize = 2;
const USED_ENTRY_LEN: usize = 8;
/// Available ring flag: the driver wants no interrupts (section 2.7.6).
const NO_INTERRUPT: u16 = 1;
const DESCRIPTOR_LEN: usize = 16;

type Slice<'a> =
    VolatileSlice<'a, BS<'a, <vm_memory::GuestRegionMmap<Bitmap> as GuestMemoryRegion>::B>>;
type Bitmap = vm_memory::bitmap::AtomicBitmap;

/// What a driver did to break its queue. The device answers with `DEVICE_NEEDS_RESET`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// A ring lies outside of guest memory or is not aligned.
    #[error("the rings are not in guest memory")]
    RingOutOfMemory,
    /// More heads are available than the queue has entries (section 2.7.6.1).
    #[error("available index {avail} is more than the queue size ahead of {next}")]
    AvailIndex {
        /// The driver's index.
        avail: u16,
        /// Where we stopped reading.
        next: u16,
    },
    /// A head or a `next` field points outside of its table.
    #[error("descriptor index {index} in a table of {size}")]
    DescriptorIndex {
        /// The index.
        index: u16,
        /// Entries in the table.
        size: usize,
    },
    /// A head was offered again before it was used.
    #[error("head {0} is already in flight")]
    HeadInFlight(u16),
    /// A chain is longer than its table or than [`MAX_CHAIN_LEN`]: it loops or is unreasonable.
    #[error("the chain of head {0} is too long or loops")]
    ChainTooLong(u16),
    /// The buffers of a chain are longer than 2^32 bytes together (section 2.7.5.2).
    #[error("the buffers of head {0} exceed 2^32 bytes")]
    BytesTooMany(u16),
    /// A device-readable buffer follows a device-writable one (section 2.7.4.2).
    #[error("a readable buffer follows a writable one in head {0}")]
    ReadableAfterWritable(u16),
    /// An indirect table is empty, of odd length, nested, not in memory, chained on or not negotiated
    /// (section 2.7.5.3.1).
    #[error("bad indirect table in head {0}")]
    Indirect(u16),
    /// A buffer lies outside of guest memory.
    #[error("a buffer of head {0} is not in guest memory")]
    BufferOutOfMemory(u16),
    /// The buffers are too short for what every request of the device consists of.
    #[error("head {0} is too short for a request")]
    Truncated(u16),
}

/// One buffer of a chain, not yet checked against guest memory; never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Guest-physical address.
    pub(super) addr: GuestAddress,
    /// Bytes.
    pub(super) len: u32,
}

/// One descriptor chain. Made to be used again, so that a busy queue allocates nothing.
#[derive(Debug, Default)]
pub(super) struct Chain {
    head: u16,
    segments: Vec<Segment>,
    readable: usize,
    readable_len: u64,
    writable_len: u64,
}

impl Chain {
    /// An empty chain to read into.
    pub(super) fn new() -> Self {
        Self { segments: Vec::with_capacity(MAX_CHAIN_LEN), ..Self::default() }
    }

    /// The index that names this chain in the used ring.
    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// The buffers the device may read, in order. Empty ones are left out.
    pub(super) fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable).unwrap_or_default()
    }

    /// The buffers the device may write, in order. Empty ones are left out.
    pub(super) fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable..).unwrap_or_default()
    }

    /// Bytes of all readable buffers.
    pub(super) fn readable_len(&self) -> u64 {
        self.readable_len
    }

    /// Bytes of all writable buffers.
    pub(super) fn writable_len(&self) -> u64 {
        self.writable_len
    }

    fn clear(&mut self, head: u16) {
        self.head = head;
        self.segments.clear();
        self.readable = 0;
        self.readable_len = 0;
        self.writable_len = 0;
    }

    /// Adds a buffer; an empty one counts for nothing, wherever it stands.
    fn push(&mut self, descriptor: &Descriptor) -> Result<(), QueueError> {
        let len = descriptor.len();
        if len == 0 {
            return Ok(());
        }
        if descriptor.is_write_only() {
            self.writable_len += u64::from(len);
        } else if self.writable_len > 0 {
            return Err(QueueError::ReadableAfterWritable(self.head));
        } else {
            self.readable_len += u64::from(len);
            self.readable += 1;
        }
        if self.readable_len + self.writable_len > 1 << 32 {
            return Err(QueueError::BytesTooMany(self.head));
        }
        self.segments.push(Segment { addr: descriptor.addr(), len });
        Ok(())
    }
}

/// A buffer that the device is done with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Used {
    /// The head of its chain.
    pub(super) head: u16,
    /// Bytes written, counted from the first writable byte without a gap (section 2.7.8.2).
    pub(super) len: u32,
}

/// A queue that the driver has set up and that the device serves.
#[derive(Debug)]
pub(super) struct Ring {
    queue: Queue,
    indirect: bool,
    in_flight: HeadSet,
}

impl Ring {
    /// Takes over a queue as the driver configured it, or as it was saved.
    ///
    /// # Errors
    /// [`QueueError::RingOutOfMemory`] when the configuration does not describe rings in `mem`.
    pub(super) fn new(
        state: QueueState,
        indirect: bool,
        mem: &GuestMemory,
    ) -> Result<Self, QueueError> {
        let queue = Queue::try_from(state).map_err(|_bad| QueueError::RingOutOfMemory)?;
        // An address of 0 is what an unset register holds; a driver that means it is not served.
        let set =
            [queue.desc_table(), queue.avail_ring(), queue.used_ring()].iter().all(|a| *a != 0);
        if !set || !queue.is_valid(mem) || queue.size() > MAX_QUEUE_SIZE {
            return Err(QueueError::RingOutOfMemory);
        }
        let in_flight = HeadSet::new(queue.size());
        let ring = Self { queue, indirect, in_flight };
        // A ring that spans two mappings passes the check above but cannot be reached as one slice.
        for (addr, len) in ring.parts() {
            mem.get_slice(addr, len).map_err(|_bad| QueueError::RingOutOfMemory)?;
        }
        Ok(ring)
    }

    /// Address and length of descriptor table, available ring and used ring (section 2.7).
    fn parts(&self) -> [(GuestAddress, usize); 3] {
        let size = usize::from(self.queue.size());
        [
            (GuestAddress(self.queue.desc_table()), DESCRIPTOR_LEN * size),
            (GuestAddress(self.queue.avail_ring()), RING_ENTRIES + AVAIL_ENTRY_LEN * size + 2),
            (GuestAddress(self.queue.used_ring()), RING_ENTRIES + USED_ENTRY_LEN * size + 2),
        ]
    }

    /// Addresses and positions, for saving.
    pub(super) fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Heads taken and not yet given back.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.count
    }

    /// Starts to take what is available: at most what the driver had offered at this moment, so at most one
    /// queue's worth.
    ///
    /// # Errors
    /// [`QueueError`] when the driver's index is impossible.
    pub(super) fn batch<'a>(&'a mut self, mem: &'a GuestMemory) -> Result<Batch<'a>, QueueError> {
        let [(desc_addr, desc_len), (avail_addr, avail_len), _] = self.parts();
        let slice =
            |addr, len| mem.get_slice(addr, len).map_err(|_bad| QueueError::RingOutOfMemory);
        let avail = slice(avail_addr, avail_len)?;
        let idx = load_u16(&avail, RING_IDX, Ordering::Acquire)?;
        let next = self.queue.next_avail();
        let waiting = idx.wrapping_sub(next);
        if waiting > self.queue.size() {
            return Err(QueueError::AvailIndex { avail: idx, next });
        }
        Ok(Batch { desc: slice(desc_addr, desc_len)?, avail, waiting, mem, ring: self })
    }

    /// Has the driver offered something that was not taken yet? Reads guest memory once.
    pub(super) fn has_available(&self, mem: &GuestMemory) -> bool {
        self.queue
            .avail_idx(mem, Ordering::Acquire)
            .is_ok_and(|idx| idx.0 != self.queue.next_avail())
    }

    /// Reads the chain of a head that is in flight once more: its request is tried again.
    ///
    /// # Errors
    /// [`QueueError`] when the chain is malformed (by now).
    pub(super) fn read_again(
        &mut self,
        head: u16,
        mem: &GuestMemory,
        chain: &mut Chain,
    ) -> Result<(), QueueError> {
        let [(desc_addr, desc_len), ..] = self.parts();
        let desc =
            mem.get_slice(desc_addr, desc_len).map_err(|_bad| QueueError::RingOutOfMemory)?;
        walk(mem, &desc, self.indirect, head, chain)
    }

    /// Marks a head as in flight that was when the queue was saved.
    ///
    /// # Errors
    /// [`QueueError`] when there is no such head or it is marked already.
    pub(super) fn adopt(&mut self, head: u16) -> Result<(), QueueError> {
        let size = usize::from(self.queue.size());
        if usize::from(head) >= size {
            return Err(QueueError::DescriptorIndex { index: head, size });
        }
        if self.in_flight.insert(head) { Ok(()) } else { Err(QueueError::HeadInFlight(head)) }
    }

    /// Takes a head for lost: its chain cannot be served and so will never be given back.
    pub(super) fn abandon(&mut self, head: u16) {
        let _was_in_flight = self.in_flight.remove(head);
    }

    /// Gives buffers back to the driver: all entries first, then one index store (section 2.7.8).
    /// Returns whether the driver wants to be interrupted for them (section 2.7.7.2).
    ///
    /// # Errors
    /// [`QueueError::RingOutOfMemory`], which [`Ring::new`] makes impossible unless memory vanished.
    pub(super) fn push_used(
        &mut self,
        mem: &GuestMemory,
        done: &[Used],
    ) -> Result<bool, QueueError> {
        let [_, (avail_addr, avail_len), (used_addr, used_len)] = self.parts();
        let gone = |_bad| QueueError::RingOutOfMemory;
        let used = mem.get_slice(used_addr, used_len).map_err(gone)?;
        let old = self.queue.next_used();
        let mut next = old;
        for buffer in done {
            let at = RING_ENTRIES + USED_ENTRY_LEN * usize::from(next % self.queue.size());
            let entry = u64::from(buffer.head) | u64::from(buffer.len) << 32;
            let slot = used.get_ref::<u64>(at).map_err(|_bad| QueueError::RingOutOfMemory)?;
            slot.store(entry.to_le());
            next = next.wrapping_add(1);
            let was_in_flight = self.in_flight.remove(buffer.head);
            debug_assert!(was_in_flight, "head {} was given back twice", buffer.head);
        }
        used.store(next.to_le(), RING_IDX, Ordering::Release)
            .map_err(|_bad| QueueError::RingOutOfMemory)?;
        self.queue.set_next_used(next);

        // The driver publishes what it waits for and then looks at the index; we do it the other way round.
        fence(Ordering::SeqCst);
        let avail = mem.get_slice(avail_addr, avail_len).map_err(gone)?;
        if !self.queue.event_idx_enabled() {
            return Ok(load_u16(&avail, RING_FLAGS, Ordering::Relaxed)? & NO_INTERRUPT == 0);
        }
        let event = load_u16(&avail, avail_len - 2, Ordering::Relaxed)?;
        Ok(event_passed(event, old, next))
    }

    /// Asks the driver for a notification at the next buffer. Returns whether one came in meanwhile: then
    /// there will be none, and the caller must look again.
    ///
    /// # Errors
    /// [`QueueError::RingOutOfMemory`], as for [`Ring::push_used`].
    pub(super) fn enable_kicks(&mut self, mem: &GuestMemory) -> Result<bool, QueueError> {
        self.queue.enable_notification(mem).map_err(|_bad| QueueError::RingOutOfMemory)
    }

    /// Asks the driver not to notify: we look by ourselves.
    ///
    /// # Errors
    /// [`QueueError::RingOutOfMemory`], as for [`Ring::push_used`].
    pub(super) fn disable_kicks(&mut self, mem: &GuestMemory) -> Result<(), QueueError> {
        self.queue.disable_notification(mem).map_err(|_bad| QueueError::RingOutOfMemory)
    }
}

/// What was available when [`Ring::batch`] was called.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    ring: &'a mut Ring,
    mem: &'a GuestMemory,
    desc: Slice<'a>,
    avail: Slice<'a>,
    waiting: u16,
}

impl Batch<'_> {
    /// Reads the next chain into `chain`; `false` when there is none left.
    ///
    /// # Errors
    /// [`QueueError`] when the head or its chain is malformed. The head counts as taken, and nothing more
    /// can be done with the queue.
    pub(super) fn next(&mut self, chain: &mut Chain) -> Result<bool, QueueError> {
        if self.waiting == 0 {
            return Ok(false);
        }
        self.waiting -= 1;
        let queue = &mut self.ring.queue;
        let next = queue.next_avail();
        let at = RING_ENTRIES + AVAIL_ENTRY_LEN * usize::from(next % queue.size());
        let head = load_u16(&self.avail, at, Ordering::Relaxed)?;
        queue.set_next_avail(next.wrapping_add(1));
        self.ring.adopt(head)?;
        if let Err(error) = walk(self.mem, &self.desc, self.ring.indirect, head, chain) {
            self.abandon(head);
            return Err(error);
        }
        Ok(true)
    }

    /// See [`Ring::abandon`].
    pub(super) fn abandon(&mut self, head: u16) {
        self.ring.abandon(head);
    }
}

/// Follows a chain from `head` through the descriptor table and at most one indirect table.
fn walk(
    mem: &GuestMemory,
    table: &Slice<'_>,
    indirect: bool,
    head: u16,
    chain: &mut Chain,
) -> Result<(), QueueError> {
    chain.clear(head);
    let mut left = table.len() / DESCRIPTOR_LEN;
    let mut descriptor = descriptor_at(table, head)?;
    let mut inner: Option<Slice<'_>> = None;
    let mut total = 0;
    loop {
        if left == 0 || total == MAX_CHAIN_LEN {
            return Err(QueueError::ChainTooLong(head));
        }
        if descriptor.refers_to_indirect_table() {
            if !indirect || inner.is_some() || descriptor.has_next() {
                return Err(QueueError::Indirect(head));
            }
            let len =
                usize::try_from(descriptor.len()).map_err(|_big| QueueError::Indirect(head))?;
            let bad = |_out| QueueError::Indirect(head);
            let nested = mem.get_slice(descriptor.addr(), len).map_err(bad)?;
            if len == 0 || !len.is_multiple_of(DESCRIPTOR_LEN) {
                return Err(QueueError::Indirect(head));
            }
            left = len / DESCRIPTOR_LEN;
            descriptor = descriptor_at(&nested, 0)?;
            inner = Some(nested);
            continue;
        }
        chain.push(&descriptor)?;
        left -= 1;
        total += 1;
        if !descriptor.has_next() {
            return Ok(());
        }
        descriptor = descriptor_at(inner.as_ref().unwrap_or(table), descriptor.next())?;
    }
}

/// Reads a descriptor once: the driver may change it at any moment.
fn descriptor_at(table: &Slice<'_>, index: u16) -> Result<Descriptor, QueueError> {
    let size = table.len() / DESCRIPTOR_LEN;
    table
        .get_ref::<Descriptor>(usize::from(index) * DESCRIPTOR_LEN)
        .map(|descriptor| descriptor.load())
        .map_err(|_outside| QueueError::DescriptorIndex { index, size })
}

fn load_u16(ring: &Slice<'_>, at: usize, order: Ordering) -> Result<u16, QueueError> {
    ring.load::<u16>(at, order).map(u16::from_le).map_err(|_bad| QueueError::RingOutOfMemory)
}

/// Did the used index pass `event` on its way from `old` to `new` (section 2.7.7.2)?
fn event_passed(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Which heads are in flight: one bit each.
#[derive(Debug)]
struct HeadSet {
    words: Vec<u64>,
    count: usize,
}

impl HeadSet {
    fn new(size: u16) -> Self {
        Self { words: vec![0; usize::from(size).div_ceil(64)], count: 0 }
    }

    fn word(&mut self, head: u16) -> Option<(&mut u64, u64)> {
        Some((self.words.get_mut(usize::from(head) / 64)?, 1 << (head % 64)))
    }

    /// Adds `head`; `false` when it was in the set or cannot be.
    fn insert(&mut self, head: u16) -> bool {
        let Some((word, bit)) = self.word(head) else { return false };
        let fresh = *word & bit == 0;
        *word |= bit;
        self.count += usize::from(fresh);
        fresh
    }

    /// Takes `head` out; `false` when it was not in the set.
    fn remove(&mut self, head: u16) -> bool {
        let Some((word, bit)) = self.word(head) else { return false };
        let present = *word & bit != 0;
        *word &= !bit;
        self.count -= usize::from(present);
        present
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
