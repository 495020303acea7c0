//! [`RootTable`]: the L1 table or the refcount table, all of it in memory.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use super::checksum::{Checksum, Piece, WORD};
use crate::error::{Error, ErrorKind, Result};

/// Entries in the pieces in which it is written: a sector.
const PIECE_ENTRIES: usize = 64;

/// A table whose entries are all in memory; the changed ones wait to be written.
#[derive(Default)]
pub(super) struct RootTable(RefCell<State>);

#[derive(Default)]
struct State {
    /// Where it is in the file.
    at: u64,
    entries: Vec<u64>,
    /// Of each piece.
    checksums: Vec<Checksum>,
    /// Pieces that wait to be written.
    dirty: BTreeSet<usize>,
}

impl RootTable {
    /// Begins anew with entries that are all in the file.
    pub(super) fn reset(&self, at: u64, entries: Vec<u64>) {
        let checksums = entries.chunks(PIECE_ENTRIES).map(Checksum::of_words).collect();
        self.0.replace(State { at, entries, checksums, dirty: BTreeSet::new() });
    }

    /// Where it is in the file.
    pub(super) fn at(&self) -> u64 {
        self.0.borrow().at
    }

    /// Number of entries.
    pub(super) fn len(&self) -> u64 {
        self.0.borrow().entries.len() as u64
    }

    /// An entry; `None` behind the last one.
    pub(super) fn get(&self, index: u64) -> Option<u64> {
        self.0.borrow().entries.get(usize::try_from(index).ok()?).copied()
    }

    /// Changes an entry.
    ///
    /// # Errors
    /// `Corrupt` behind the last one: the table has become shorter.
    pub(super) fn set(&self, index: u64, entry: u64) -> Result<()> {
        let done = self.0.borrow_mut().set(index, entry);
        done.ok_or_else(|| {
            let text = format!("the table at {:#x} has no entry {index} any more", self.at());
            Error::new(ErrorKind::Corrupt, text)
        })
    }

    /// All entries; `None` if they are not what was put there.
    pub(super) fn entries(&self) -> Option<Vec<u64>> {
        let state = self.0.borrow();
        let pieces = state.entries.chunks(PIECE_ENTRIES).zip(&state.checksums);
        let mut pieces = pieces.into_iter();
        let intact = pieces.all(|(piece, checksum)| Checksum::of_words(piece) == *checksum);
        intact.then(|| state.entries.clone())
    }

    /// Whether an entry is not in the file yet.
    pub(super) fn is_dirty(&self) -> bool {
        !self.0.borrow().dirty.is_empty()
    }

    /// The pieces that wait to be written, as they are now.
    pub(super) fn take_dirty(&self) -> Vec<Piece> {
        let mut state = self.0.borrow_mut();
        let dirty = std::mem::take(&mut state.dirty);
        dirty.into_iter().filter_map(|number| state.piece(number)).collect()
    }

    /// Pieces of [`take_dirty`](Self::take_dirty) could not be written.
    pub(super) fn put_back(&self, pieces: &[Piece]) {
        let mut state = self.0.borrow_mut();
        let numbers = pieces.iter().filter_map(|piece| state.number(piece.at));
        let numbers: Vec<_> = numbers.collect();
        state.dirty.extend(numbers);
    }

    /// Changes an entry as no program should.
    #[cfg(test)]
    pub(super) fn damage(&self, index: usize) {
        self.0.borrow_mut().entries[index] ^= 1 << 20;
    }
}

impl State {
    fn set(&mut self, index: u64, entry: u64) -> Option<()> {
        let index = usize::try_from(index).ok()?;
        let (piece, word) = (index / PIECE_ENTRIES, index % PIECE_ENTRIES);
        let place = self.entries.get_mut(index)?;
        let checksum = self.checksums.get_mut(piece)?;
        *checksum = checksum.without(word, &place.to_be_bytes()).with(word, &entry.to_be_bytes());
        *place = entry;
        self.dirty.insert(piece);
        Some(())
    }

    fn piece(&self, number: usize) -> Option<Piece> {
        let entries = self.entries.chunks(PIECE_ENTRIES).nth(number)?;
        let at = self.at + (number * PIECE_ENTRIES * WORD) as u64;
        Some(Piece { at, bytes: Rc::new(bytes(entries)), checksum: *self.checksums.get(number)? })
    }

    /// The piece that is there in the file. `None` if the table has moved.
    fn number(&self, at: u64) -> Option<usize> {
        let number = usize::try_from(at.checked_sub(self.at)?).ok()? / (PIECE_ENTRIES * WORD);
        (number < self.checksums.len()).then_some(number)
    }
}

fn bytes(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

#[cfg(test)]
#[path = "root_table_tests.rs"]
mod tests;
