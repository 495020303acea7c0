//! The driver's side of a split virtqueue (virtio 1.2, section 2.7), polled.

use core::sync::atomic::{Ordering, compiler_fence, fence};

use crate::memory::Memory;

/// The device may follow a table of descriptors (bit of the features).
pub const INDIRECT: u64 = 1 << 28;
/// Both sides say at which index they want to hear of news (bit of the features).
pub const EVENT_INDEX: u64 = 1 << 29;

const NO_INTERRUPT: u16 = 1;
const NO_NOTIFY: u16 = 1;
/// Another descriptor follows.
pub const NEXT: u16 = 1;
/// The device writes here.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const TABLE: u16 = 4;

/// One descriptor.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Descriptor {
    /// Where the buffer is.
    pub at: u64,
    /// Its length in bytes.
    pub len: u32,
    /// `NEXT`, `WRITE`, `TABLE`.
    pub flags: u16,
    /// The index of the one that follows.
    pub next: u16,
}

/// One queue. Heads are pushed, then published together; completions are popped.
pub struct Queue {
    /// Address of the descriptor table.
    pub descriptors: u64,
    /// Address of the available ring.
    pub available: u64,
    /// Address of the used ring.
    pub used: u64,
    /// Entries.
    pub size: u16,
    index: u16,
    bell: u64,
    event_index: bool,
    pushed: u16,
    published: u16,
    popped: u16,
    /// Notifications sent so far.
    pub kicks: u64,
}

impl Queue {
    /// Lays the three areas out in fresh memory.
    pub fn new(index: u16, size: u16, bell: u64, features: u64, memory: &mut Memory) -> Queue {
        let queue = Queue {
            descriptors: memory.take(16 * u64::from(size)) as u64,
            available: memory.take(6 + 2 * u64::from(size)) as u64,
            used: memory.take(6 + 8 * u64::from(size)) as u64,
            size,
            index,
            bell,
            event_index: features & EVENT_INDEX != 0,
            pushed: 0,
            published: 0,
            popped: 0,
            kicks: 0,
        };
        queue.put16(queue.available, NO_INTERRUPT);
        queue.want_no_interrupt();
        queue
    }

    /// Writes a descriptor.
    pub fn describe(&mut self, slot: u16, descriptor: Descriptor) {
        let table = self.descriptors as *mut Descriptor;
        assert!(slot < self.size, "descriptor {slot} of {}", self.size);
        // SAFETY: the table has `size` entries.
        unsafe { table.add(usize::from(slot)).write_volatile(descriptor) };
    }

    /// Makes a chain available; the device hears of it at `publish`.
    pub fn push(&mut self, head: u16) {
        let slot = u64::from(self.pushed % self.size);
        self.put16(self.available + 4 + 2 * slot, head);
        self.pushed = self.pushed.wrapping_add(1);
    }

    /// Shows everything pushed to the device and rings the bell when it wants to hear it.
    pub fn publish(&mut self) {
        if self.pushed == self.published {
            return;
        }
        compiler_fence(Ordering::Release);
        let before = core::mem::replace(&mut self.published, self.pushed);
        self.put16(self.available + 2, self.pushed);
        // The index must be seen before we look whether the device sleeps.
        fence(Ordering::SeqCst);
        let wanted = if self.event_index {
            let event = self.get16(self.used + 4 + 8 * u64::from(self.size));
            self.pushed.wrapping_sub(event).wrapping_sub(1) < self.pushed.wrapping_sub(before)
        } else {
            self.get16(self.used) & NO_NOTIFY == 0
        };
        if wanted {
            self.kicks += 1;
            self.put16(self.bell, self.index);
        }
    }

    /// The head of the next completed chain and the bytes that the device wrote.
    pub fn pop(&mut self) -> Option<(u16, u32)> {
        if self.get16(self.used + 2) == self.popped {
            return None;
        }
        compiler_fence(Ordering::Acquire);
        let element = self.used + 4 + 8 * u64::from(self.popped % self.size);
        let (head, len) = (self.get32(element), self.get32(element + 4));
        self.popped = self.popped.wrapping_add(1);
        if self.popped.is_multiple_of(64) {
            self.want_no_interrupt();
        }
        Some((head as u16, len))
    }

    /// With the event index, an index that was just passed is the one that is not reached soon.
    fn want_no_interrupt(&self) {
        self.put16(self.available + 4 + 2 * u64::from(self.size), self.popped.wrapping_sub(1));
    }

    fn put16(&self, at: u64, value: u16) {
        // SAFETY: every caller names a field of this queue's areas or its bell.
        unsafe { (at as *mut u16).write_volatile(value) }
    }

    fn get16(&self, at: u64) -> u16 {
        // SAFETY: every caller names a field of this queue's areas.
        unsafe { (at as *const u16).read_volatile() }
    }

    fn get32(&self, at: u64) -> u32 {
        // SAFETY: every caller names a field of this queue's areas.
        unsafe { (at as *const u32).read_volatile() }
    }
}
