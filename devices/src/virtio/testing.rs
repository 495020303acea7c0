//! A driver's side of a split virtqueue, for tests: it does what it is told, right or wrong.

#![expect(clippy::cast_possible_truncation, reason = "tests count small things")]

use std::sync::atomic::Ordering;

use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::GuestMemory;

/// More follows.
pub(super) const NEXT: u16 = 1;
/// The device writes here.
pub(super) const WRITE: u16 = 2;
/// A table of descriptors.
pub(super) const INDIRECT: u16 = 4;

/// Memory of tests: two mappings that adjoin, and a third one above a hole.
pub(super) const LOW: u64 = 1 << 20;
pub(super) const HOLE: u64 = 2 << 20;
pub(super) const HIGH: u64 = 4 << 20;
pub(super) const END: u64 = 5 << 20;

pub(super) fn memory() -> GuestMemory {
    let mebibyte = 1 << 20;
    GuestMemoryMmap::from_ranges(&[
        (GuestAddress(0), mebibyte),
        (GuestAddress(LOW), mebibyte),
        (GuestAddress(HIGH), mebibyte),
    ])
    .unwrap()
}

/// One descriptor as it lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Desc {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Desc {
    pub(super) fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: 0, next: 0 }
    }

    pub(super) fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, flags: WRITE, next: 0 }
    }

    fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A queue as its driver sees it.
pub(super) struct Driver {
    pub(super) memory: GuestMemory,
    pub(super) size: u16,
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
    pub(super) event_idx: bool,
    next_avail: u16,
    pub(super) next_used: u16,
    next_desc: u16,
}

impl Driver {
    /// A queue whose parts start at `base`.
    pub(super) fn new(memory: &GuestMemory, base: u64, size: u16, event_idx: bool) -> Self {
        let avail = base + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        Self {
            memory: memory.clone(),
            size,
            desc: base,
            avail,
            used,
            event_idx,
            next_avail: 0,
            next_used: 0,
            next_desc: 0,
        }
    }

    pub(super) fn state(&self) -> QueueState {
        QueueState {
            max_size: 1024,
            next_avail: 0,
            next_used: 0,
            event_idx_enabled: self.event_idx,
            size: self.size,
            ready: true,
            desc_table: self.desc,
            avail_ring: self.avail,
            used_ring: self.used,
        }
    }

    pub(super) fn put(&self, table: u64, index: u16, desc: Desc) {
        let at = GuestAddress(table + 16 * u64::from(index));
        self.memory.write_slice(&desc.bytes(), at).unwrap();
    }

    /// Puts a chain into the next free descriptors and links them; returns its head.
    pub(super) fn chain(&mut self, descs: &[Desc]) -> u16 {
        let slots: Vec<u16> =
            (0..descs.len()).map(|n| (self.next_desc + n as u16) % self.size).collect();
        self.next_desc = (self.next_desc + descs.len() as u16) % self.size;
        for (n, desc) in descs.iter().enumerate() {
            let mut desc = *desc;
            if let Some(next) = slots.get(n + 1) {
                desc.flags |= NEXT;
                desc.next = *next;
            }
            self.put(self.desc, slots[n], desc);
        }
        slots[0]
    }

    /// Puts a chain into an indirect table at `table`; returns the head of the one descriptor for it.
    pub(super) fn indirect(&mut self, table: u64, descs: &[Desc]) -> u16 {
        for (n, desc) in descs.iter().enumerate() {
            let mut desc = *desc;
            if n + 1 < descs.len() {
                desc.flags |= NEXT;
                desc.next = n as u16 + 1;
            }
            self.put(table, n as u16, desc);
        }
        let len = 16 * descs.len() as u32;
        self.chain(&[Desc { addr: table, len, flags: INDIRECT, next: 0 }])
    }

    /// Makes a head available.
    pub(super) fn offer(&mut self, head: u16) {
        let slot = self.avail + 4 + 2 * u64::from(self.next_avail % self.size);
        self.store(slot, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.set_avail_index(self.next_avail);
    }

    pub(super) fn set_avail_index(&self, index: u16) {
        self.store(self.avail + 2, index);
    }

    /// Whether the device asked to be told of the last `count` offers.
    pub(super) fn must_kick(&self, count: u16) -> bool {
        if self.event_idx {
            let event = self.load(self.used + 4 + 8 * u64::from(self.size));
            let old = self.next_avail.wrapping_sub(count);
            self.next_avail.wrapping_sub(event).wrapping_sub(1) < self.next_avail.wrapping_sub(old)
        } else {
            self.load(self.used) & 1 == 0
        }
    }

    /// Asks for an interrupt when the device passes `index` (with the event index).
    pub(super) fn set_used_event(&self, index: u16) {
        self.store(self.avail + 4 + 2 * u64::from(self.size), index);
    }

    pub(super) fn set_avail_flags(&self, flags: u16) {
        self.store(self.avail, flags);
    }

    pub(super) fn used_index(&self) -> u16 {
        self.load(self.used + 2)
    }

    /// The next used entry: head and length.
    pub(super) fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.next_used {
            return None;
        }
        let at = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        self.next_used = self.next_used.wrapping_add(1);
        let id: u32 = self.memory.read_obj(GuestAddress(at)).unwrap();
        let len: u32 = self.memory.read_obj(GuestAddress(at + 4)).unwrap();
        Some((u16::try_from(id).unwrap(), len))
    }

    fn store(&self, addr: u64, value: u16) {
        self.memory.store(value, GuestAddress(addr), Ordering::SeqCst).unwrap();
    }

    fn load(&self, addr: u64) -> u16 {
        self.memory.load(GuestAddress(addr), Ordering::SeqCst).unwrap()
    }
}
