//! What each sector of a disk may hold after a power failure: what it held at the last flush, and everything
//! written since. And what every bitmap must have seen.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;

use super::simulated::{DISK, SECTOR, Shape};
use crate::bitmap::BitmapState;
use crate::node::BlockNode;

/// One value after the other, and up to where they are done.
#[derive(Clone, Default)]
struct Sector {
    values: Vec<u64>,
    done: usize,
    /// Which of them was written last by a request that has ended, well or not.
    ended: usize,
    /// How many values were forgotten.
    forgotten: usize,
}

#[derive(Clone, Default)]
struct State {
    sectors: Vec<Sector>,
    /// Sectors that were changed since the bitmap of this name was added. None is ever taken out:
    /// after a power failure one that was removed may be there again.
    bitmaps: BTreeMap<String, BTreeSet<u64>>,
}

/// The history of a disk. Clones are the same history.
#[derive(Clone)]
pub(super) struct History(Rc<RefCell<State>>);

impl History {
    /// Nothing was written yet.
    pub(super) fn new(shape: &Shape) -> History {
        let first = |sector| Sector { values: vec![shape.below(sector)], ..Sector::default() };
        let sectors = (0..DISK / SECTOR).map(first).collect();
        History(Rc::new(RefCell::new(State { sectors, ..State::default() })))
    }

    /// A copy that nobody changes who knows the original.
    pub(super) fn freeze(&self) -> History {
        History(Rc::new(RefCell::new(self.0.borrow().clone())))
    }

    /// A write of `value` begins.
    pub(super) fn begin(&self, sectors: Range<u64>, value: u64) {
        for sector in self.0.borrow_mut().get(sectors) {
            sector.values.push(value);
        }
    }

    /// The last write of these sectors has ended well.
    pub(super) fn done(&self, sectors: Range<u64>) {
        self.0.borrow_mut().change(sectors.clone());
        self.settled(sectors);
    }

    /// The last value of these sectors, which has ended already, is there.
    pub(super) fn settled(&self, sectors: Range<u64>) {
        for sector in self.0.borrow_mut().get(sectors) {
            sector.done = sector.values.len() - 1;
            sector.ended = sector.done;
        }
    }

    /// These sectors were discarded: they may have changed, or change later, and every bitmap has seen it.
    pub(super) fn discarded(&self, sectors: Range<u64>) {
        self.0.borrow_mut().change(sectors.clone());
        self.failed(sectors);
    }

    /// The last write of these sectors has failed.
    pub(super) fn failed(&self, sectors: Range<u64>) {
        for sector in self.0.borrow_mut().get(sectors) {
            sector.ended = sector.values.len() - 1;
        }
    }

    /// How many values of each sector are history when the flush that begins now has ended.
    pub(super) fn flushing(&self) -> Vec<usize> {
        let state = self.0.borrow();
        state.sectors.iter().map(|sector| sector.forgotten + sector.done).collect()
    }

    /// That flush has ended well.
    pub(super) fn flushed(&self, history: &[usize]) {
        for (sector, history) in self.0.borrow_mut().sectors.iter_mut().zip(history) {
            // A flush that began later may have ended before.
            let count = history.saturating_sub(sector.forgotten);
            sector.values.drain(..count);
            sector.done -= count;
            sector.ended -= count;
            sector.forgotten += count;
        }
    }

    /// A bitmap is there from now on.
    pub(super) fn add_bitmap(&self, name: &str) {
        self.0.borrow_mut().bitmaps.insert(name.to_owned(), BTreeSet::new());
    }

    /// What was read while the disk was in use: nothing older than what was done.
    pub(super) fn check_read(&self, sectors: Range<u64>, bytes: &[u8]) {
        let mut state = self.0.borrow_mut();
        for ((number, sector), bytes) in
            sectors.clone().zip(state.get(sectors)).zip(bytes.chunks(512))
        {
            check_sector(number, bytes, &sector.values[sector.done..], "read back");
        }
    }

    /// What is on the disk after a power failure. From now on that and nothing else was there.
    pub(super) fn check(&self, disk: &[u8], what: &str) {
        let mut state = self.0.borrow_mut();
        for (number, bytes) in (0..).zip(disk.chunks(512)) {
            let [sector] = state.get(number..number + 1) else { unreachable!() };
            let value = check_sector(number, bytes, &sector.values, what);
            // A write of which nobody heard the end has come this far.
            let late = !sector.values[..=sector.ended].contains(&value);
            *sector = Sector { values: vec![value], ..Sector::default() };
            if late {
                state.change(number..number + 1);
            }
        }
    }

    /// A bitmap that claims to be whole has seen what was changed.
    pub(super) fn check_bitmaps(&self, node: &BlockNode, what: &str) {
        let state = self.0.borrow();
        for bitmap in node.bitmaps() {
            let bits = bitmap.bits.borrow();
            let Some(name) =
                bitmap.name.as_ref().filter(|_| bits.state() != BitmapState::Inconsistent)
            else {
                continue;
            };
            let missed =
                state.bitmaps[name].iter().find(|sector| !bits.is_dirty(**sector * SECTOR));
            assert_eq!(missed, None, "{what}: bitmap {name} has not seen a sector");
        }
    }
}

impl State {
    fn change(&mut self, sectors: Range<u64>) {
        for seen in self.bitmaps.values_mut() {
            seen.extend(sectors.clone());
        }
    }

    fn get(&mut self, sectors: Range<u64>) -> &mut [Sector] {
        let place = |sector| usize::try_from(sector).unwrap();
        &mut self.sectors[place(sectors.start)..place(sectors.end)]
    }
}

/// The value that a whole sector holds.
fn check_sector(number: u64, bytes: &[u8], allowed: &[u64], what: &str) -> u64 {
    let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let whole = bytes.chunks(8).all(|word| word == value.to_le_bytes());
    assert!(whole, "{what}: sector {number} is torn");
    assert!(
        allowed.contains(&value),
        "{what}: sector {number} holds {value:#x}, not one of {allowed:x?}"
    );
    value
}
