//! [`SliceCache`]: pieces of metadata tables in memory, no more of them than the user allowed.
//!
//! A table (L2 table or refcount block) is a cluster; it is kept in *slices* of a few KiB, because
//! changing one entry of a 2 MiB table should not write 2 MiB. A slice is known by its place in the
//! image file.
//!
//! Looking at a slice and changing it are plain calls without an await: what a request finds out
//! and does between two awaits is atomic for all others. A slice that is not there is loaded first,
//! and then looked for again.
//!
//! Writing out works on a snapshot: [`SliceCache::take_dirty`] hands the bytes out as they are at
//! that moment, and a change that comes while they are being written makes a copy of its own.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;
use std::rc::Rc;

use super::checksum::{Checksum, Piece, WORD};
use crate::error::Result;
use crate::notify::Notify;

/// A bounded cache of slices of one size.
pub(super) struct SliceCache {
    slice: usize,
    capacity: usize,
    state: RefCell<State>,
    loaded: Notify,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    index: HashMap<u64, usize, BuildHasherDefault<OffsetHasher>>,
    /// Where the search for a slice to give up goes on.
    hand: usize,
    /// Slices that somebody is reading from the file.
    loading: Vec<u64>,
    /// Slots that are not [`Condition::Clean`].
    unclean: usize,
}

struct Slot {
    key: u64,
    bytes: Rc<Vec<u8>>,
    checksum: Checksum,
    condition: Condition,
    /// Looked at since the hand passed it last.
    recent: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Condition {
    /// As in the file.
    Clean,
    /// Newer than in the file.
    Dirty,
    /// On its way to the file; stays until that has ended well.
    Writing,
}

/// Takes the loading mark away, also when whoever loads is given up.
struct Loading<'a> {
    cache: &'a SliceCache,
    key: u64,
}

impl SliceCache {
    /// A cache of at most `capacity` slices of `slice` bytes each.
    pub(super) fn new(slice: usize, capacity: usize) -> SliceCache {
        SliceCache { slice, capacity, state: RefCell::default(), loaded: Notify::new() }
    }

    /// Bytes of a slice.
    pub(super) fn slice_len(&self) -> usize {
        self.slice
    }

    /// The slice in which the byte at `at` of the image file lies, and where in it.
    pub(super) fn locate(&self, at: u64) -> (u64, usize) {
        let within = at & (self.slice as u64 - 1);
        (at - within, usize::try_from(within).unwrap_or(usize::MAX))
    }

    /// What `look` finds in the slice at `key`; `None` if it must be loaded first.
    pub(super) fn read<R>(&self, key: u64, look: impl FnOnce(&[u8]) -> R) -> Option<R> {
        let mut state = self.state.borrow_mut();
        let slot = *state.index.get(&key)?;
        let slot = &mut state.slots[slot];
        slot.recent = true;
        Some(look(&slot.bytes))
    }

    /// Changes some words of the slice at `key`; `None` if it must be loaded first.
    pub(super) fn modify<R>(
        &self,
        key: u64,
        words: Range<usize>,
        change: impl FnOnce(&mut [u8]) -> R,
    ) -> Option<R> {
        let mut state = self.state.borrow_mut();
        let index = *state.index.get(&key)?;
        let slot = &mut state.slots[index];
        slot.recent = true;
        let was = std::mem::replace(&mut slot.condition, Condition::Dirty);
        let bytes = &mut Rc::make_mut(&mut slot.bytes)[words.start * WORD..words.end * WORD];
        slot.checksum = slot.checksum.without(words.start, bytes);
        let result = change(bytes);
        slot.checksum = slot.checksum.with(words.start, bytes);
        state.unclean += usize::from(was == Condition::Clean);
        Some(result)
    }

    /// Puts the slice at `key` in with what `fetch` gives, unless it is there. Who comes while
    /// another one loads it waits for that.
    pub(super) async fn load(
        &self,
        key: u64,
        fetch: impl AsyncFnOnce() -> Result<Vec<u8>>,
    ) -> Result<()> {
        self.loaded.wait_until(|| !self.state.borrow().loading.contains(&key)).await;
        if self.contains(key) {
            return Ok(());
        }
        self.state.borrow_mut().loading.push(key);
        let mark = Loading { cache: self, key };
        let bytes = fetch().await?;
        self.insert(key, bytes);
        drop(mark);
        Ok(())
    }

    /// Whether the slice at `key` is there.
    pub(super) fn contains(&self, key: u64) -> bool {
        self.state.borrow().index.contains_key(&key)
    }

    /// Puts a clean slice in, in the place of one that is clean and has not been used for a while.
    /// Without such a one the cache is too large by one slice, until there is.
    pub(super) fn insert(&self, key: u64, bytes: Vec<u8>) {
        debug_assert_eq!(bytes.len(), self.slice);
        let mut state = self.state.borrow_mut();
        if state.index.contains_key(&key) {
            return;
        }
        while state.slots.len() >= self.capacity {
            match state.unused() {
                Some(slot) => state.remove(slot),
                None => break,
            }
        }
        let checksum = Checksum::of(&bytes);
        let (bytes, condition) = (Rc::new(bytes), Condition::Clean);
        let slot = Slot { key, bytes, checksum, condition, recent: true };
        let place = state.slots.len();
        state.slots.push(slot);
        state.index.insert(key, place);
    }

    /// Whether everything in it waits to be written, so that nothing can be loaded.
    pub(super) fn is_stuck(&self) -> bool {
        self.state.borrow().unclean >= self.capacity
    }

    /// Whether more than half of it waits to be written: time to begin.
    pub(super) fn is_crowded(&self) -> bool {
        self.state.borrow().unclean > self.capacity / 2
    }

    /// Whether anything waits to be written.
    pub(super) fn is_dirty(&self) -> bool {
        self.state.borrow().unclean != 0
    }

    /// All that waits to be written, as it is now, in the order of the file. Each slice stays
    /// until [`written`](Self::written) is called with what became of it.
    pub(super) fn take_dirty(&self) -> Vec<Piece> {
        let mut state = self.state.borrow_mut();
        let mut taken = Vec::with_capacity(state.unclean);
        for slot in &mut state.slots {
            if slot.condition == Condition::Dirty {
                slot.condition = Condition::Writing;
                let bytes = Rc::clone(&slot.bytes);
                taken.push(Piece { at: slot.key, bytes, checksum: slot.checksum });
            }
        }
        taken.sort_unstable_by_key(|piece| piece.at);
        taken
    }

    /// Slices of [`take_dirty`](Self::take_dirty) have been written, or not.
    pub(super) fn written(&self, slices: &[Piece], done: bool) {
        let mut state = self.state.borrow_mut();
        for slice in slices {
            let Some(index) = state.index.get(&slice.at).copied() else { continue };
            let slot = &mut state.slots[index];
            if slot.condition == Condition::Writing {
                slot.condition = if done { Condition::Clean } else { Condition::Dirty };
                state.unclean -= usize::from(done);
            }
        }
    }

    /// Forgets what lies in `range` of the image file, changed or not.
    pub(super) fn forget(&self, range: Range<u64>) {
        let mut state = self.state.borrow_mut();
        if (range.end.saturating_sub(range.start) / self.slice as u64) < state.slots.len() as u64 {
            for key in range.step_by(self.slice) {
                if let Some(slot) = state.index.get(&key).copied() {
                    state.remove(slot);
                }
            }
            return;
        }
        // More than is here: a disk may have been discarded as a whole.
        let mut place = 0;
        while let Some(slot) = state.slots.get(place) {
            match range.contains(&slot.key) {
                true => state.remove(place),
                false => place += 1,
            }
        }
    }

    /// Forgets everything, changed or not.
    pub(super) fn clear(&self) {
        let mut state = self.state.borrow_mut();
        state.slots.clear();
        state.index.clear();
        (state.hand, state.unclean) = (0, 0);
    }

    /// Gives up what is clean and was not looked at since the last call.
    pub(super) fn trim(&self) {
        let mut state = self.state.borrow_mut();
        let mut place = 0;
        while let Some(slot) = state.slots.get_mut(place) {
            let used = std::mem::take(&mut slot.recent);
            if used || slot.condition != Condition::Clean {
                place += 1;
            } else {
                state.remove(place);
            }
        }
    }

    /// Changes a bit of a slice as no program should.
    #[cfg(test)]
    pub(super) fn damage(&self, key: u64, byte: usize) {
        let state = &mut *self.state.borrow_mut();
        Rc::make_mut(&mut state.slots[state.index[&key]].bytes)[byte] ^= 1;
    }

    /// Slices in it.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.state.borrow().slots.len()
    }
}

impl State {
    /// A clean slot that was not used since the hand came by last ("clock" replacement).
    fn unused(&mut self) -> Option<usize> {
        // In two rounds the hand takes every mark away and comes back.
        for _ in 0..self.slots.len() * 2 {
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[self.hand];
            if slot.condition == Condition::Clean && !std::mem::take(&mut slot.recent) {
                return Some(self.hand);
            }
        }
        None
    }

    fn remove(&mut self, place: usize) {
        let slot = self.slots.swap_remove(place);
        self.index.remove(&slot.key);
        self.unclean -= usize::from(slot.condition != Condition::Clean);
        if let Some(moved) = self.slots.get(place) {
            self.index.insert(moved.key, place);
        }
    }
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        self.cache.state.borrow_mut().loading.retain(|key| *key != self.key);
        self.cache.loaded.notify_all();
    }
}

/// Offsets of slices differ in their middle bits; one multiplication spreads them. Nobody gains by
/// choosing offsets that collide: the cache is bounded.
#[derive(Default)]
struct OffsetHasher(u64);

impl Hasher for OffsetHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(self.0 ^ u64::from(*byte));
        }
    }

    fn write_u64(&mut self, offset: u64) {
        self.0 = (offset >> 9).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

#[cfg(test)]
#[path = "cache_tests.rs"]
mod tests;
