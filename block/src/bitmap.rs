//! Which granules of a disk have changed: one bit each, with one summary bit per word of 64.
//!
//! A granule is the smallest piece a bitmap knows about, a power of two bytes. Marking rounds a range
//! **out** (a granule that was touched is dirty), clearing rounds it **in** (only a granule that was dealt
//! with as a whole is clean), so no change is ever lost. The last granule of a disk whose length is not a
//! multiple counts as covered when the range reaches the end of the disk.
//!
//! The summary level makes the search for the next dirty granule cheap: a clean disk of 1 TiB at 64 KiB is
//! passed over in 4096 words.

use std::ops::Range;

/// Bits in one word of a bitmap.
const WORD_BITS: u64 = 64;

/// Smallest granule, in bytes.
pub const MIN_GRANULARITY: u64 = 512;

/// Largest granule, in bytes.
pub const MAX_GRANULARITY: u64 = 2 << 30;

/// The longest disk a bitmap describes, in bytes (half of what an `i64` can say, as file offsets are).
const MAX_LEN: u64 = 1 << 62;

/// Most granules: their bits take 4 GiB. A server may say that its disk has any length.
const MAX_GRANULES: u64 = 1 << 35;

/// What a bitmap does with the writes it is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapState {
    /// Writes are recorded.
    Recording,
    /// A job took the dirty bits away to work on them; writes are recorded beside, until it gives them back.
    Frozen,
    /// Writes are not recorded.
    Disabled,
    /// Writes may have been missed: nothing it says can be relied on.
    Inconsistent,
}

/// Why a bitmap refused something.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BitmapError {
    /// The granularity is no power of two between [`MIN_GRANULARITY`] and [`MAX_GRANULARITY`].
    #[error("bitmap granularity {0} is not a power of two between 512 bytes and 2 GiB")]
    Granularity(u64),
    /// The disk is longer than any file can be.
    #[error("a disk of {0} bytes is too long for a dirty bitmap")]
    Length(u64),
    /// Its bits would take too much memory.
    #[error(
        "a dirty bitmap of a disk of {len} bytes would have more than 4 GiB of bits with a granularity of \
         {granularity} bytes: use a larger one"
    )]
    Bits {
        /// Bytes of the disk.
        len: u64,
        /// Bytes of a granule.
        granularity: u64,
    },
    /// Bitmaps of disks of different lengths cannot be merged, nor words loaded that do not fit.
    #[error("dirty bitmaps do not fit together: {0}")]
    Shape(String),
    /// The state forbids it.
    #[error("the dirty bitmap is {0:?}: {1}")]
    State(BitmapState, &'static str),
}

/// The dirty granules of one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyBitmap {
    /// Bytes of the disk.
    len: u64,
    /// log2 of the granule's bytes.
    shift: u32,
    /// One bit per granule, granule 0 in bit 0 of word 0. Bits past the end are never set. One that is
    /// inconsistent has none.
    words: Vec<u64>,
    /// One bit per word that is not zero.
    summary: Vec<u64>,
    /// Dirty granules.
    dirty: u64,
    state: BitmapState,
}

/// The dirty bits a job took out of a bitmap with [`DirtyBitmap::freeze`].
///
/// It must go back: by [`DirtyBitmap::release`] when everything in it was dealt with, by
/// [`DirtyBitmap::merge_back`] when it was not.
#[derive(Debug)]
#[must_use = "a frozen view goes back to its bitmap with `release` or `merge_back`"]
pub struct FrozenView {
    bits: DirtyBitmap,
    resume_as: BitmapState,
}

impl FrozenView {
    /// What was dirty when the view was taken.
    pub fn bits(&self) -> &DirtyBitmap {
        &self.bits
    }

    /// The same, for a job that clears what it has done.
    pub fn bits_mut(&mut self) -> &mut DirtyBitmap {
        &mut self.bits
    }
}

impl DirtyBitmap {
    /// A clean, recording bitmap for a disk of `len` bytes.
    ///
    /// # Errors
    /// The granularity is not a power of two in range, or the disk too long to be described.
    pub fn new(len: u64, granularity: u64) -> Result<DirtyBitmap, BitmapError> {
        let mut bitmap = DirtyBitmap::inconsistent(len, granularity)?;
        let words = usize::try_from(bitmap.granules().div_ceil(WORD_BITS));
        let (true, Ok(words)) = (bitmap.granules() <= MAX_GRANULES, words) else {
            return Err(BitmapError::Bits { len, granularity });
        };
        bitmap.words = vec![0; words];
        bitmap.summary = vec![0; words.div_ceil(64)];
        bitmap.state = BitmapState::Recording;
        Ok(bitmap)
    }

    /// A bitmap that has missed writes. It takes no memory.
    ///
    /// # Errors
    /// The granularity is not a power of two in range, or the disk too long to be described.
    pub fn inconsistent(len: u64, granularity: u64) -> Result<DirtyBitmap, BitmapError> {
        if !granularity.is_power_of_two()
            || !(MIN_GRANULARITY..=MAX_GRANULARITY).contains(&granularity)
        {
            return Err(BitmapError::Granularity(granularity));
        }
        if len > MAX_LEN {
            return Err(BitmapError::Length(len));
        }
        Ok(DirtyBitmap {
            len,
            shift: granularity.trailing_zeros(),
            words: Vec::new(),
            summary: Vec::new(),
            dirty: 0,
            state: BitmapState::Inconsistent,
        })
    }

    /// Bytes of the disk.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// True for a disk without a byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of a granule.
    pub fn granularity(&self) -> u64 {
        1 << self.shift
    }

    /// What it does with writes now.
    pub fn state(&self) -> BitmapState {
        self.state
    }

    /// Start recording writes again after [`disable`](Self::disable).
    ///
    /// # Errors
    /// The bitmap is frozen or inconsistent.
    pub fn enable(&mut self) -> Result<(), BitmapError> {
        self.switch(BitmapState::Recording, "it cannot be enabled")
    }

    /// Stop recording writes; what is dirty stays dirty.
    ///
    /// # Errors
    /// The bitmap is frozen or inconsistent.
    pub fn disable(&mut self) -> Result<(), BitmapError> {
        self.switch(BitmapState::Disabled, "it cannot be disabled")
    }

    /// Writes were missed: nothing that it said is to be relied on, and it says nothing from now on. There is no way
    /// back.
    pub fn mark_inconsistent(&mut self) {
        self.state = BitmapState::Inconsistent;
        (self.words, self.summary, self.dirty) = (Vec::new(), Vec::new(), 0);
    }

    fn switch(&mut self, to: BitmapState, refusal: &'static str) -> Result<(), BitmapError> {
        match self.state {
            BitmapState::Recording | BitmapState::Disabled => self.state = to,
            state => return Err(BitmapError::State(state, refusal)),
        }
        Ok(())
    }

    /// A write touched `range`: all its granules are dirty, unless nothing is being recorded.
    pub fn record(&mut self, range: Range<u64>) {
        if matches!(self.state, BitmapState::Recording | BitmapState::Frozen) {
            self.mark(range);
        }
    }

    /// Mark every granule that `range` touches, also if it does not record. Bytes past the end are ignored.
    pub fn mark(&mut self, range: Range<u64>) {
        let end = range.end.min(self.len);
        if range.start >= end {
            return;
        }
        self.change((range.start >> self.shift)..(((end - 1) >> self.shift) + 1), true);
    }

    /// Clear every granule that lies wholly inside `range`.
    pub fn clear(&mut self, range: Range<u64>) {
        let granule_mask = self.granularity() - 1;
        let first = range.start.min(self.len).saturating_add(granule_mask) >> self.shift;
        let end = if range.end >= self.len { self.granules() } else { range.end >> self.shift };
        if first < end {
            self.change(first..end, false);
        }
    }

    /// Mark the whole disk.
    pub fn mark_all(&mut self) {
        self.mark(0..self.len);
    }

    /// Clear the whole disk.
    pub fn clear_all(&mut self) {
        self.clear(0..self.len);
    }

    /// Whether the granule that holds byte `at` is dirty.
    pub fn is_dirty(&self, at: u64) -> bool {
        at < self.len && self.bit(at >> self.shift)
    }

    /// Whether any granule that `range` touches is dirty.
    pub fn any_dirty(&self, range: Range<u64>) -> bool {
        let end = range.end.min(self.len);
        // The search starts inside the first granule, so a run may begin before `range` does.
        range.start < end && self.next_dirty(range.start, 1).is_some_and(|run| run.start < end)
    }

    /// Dirty granules.
    pub fn dirty_granules(&self) -> u64 {
        self.dirty
    }

    /// Bytes in dirty granules; never more than the disk has.
    pub fn dirty_bytes(&self) -> u64 {
        let whole = self.dirty << self.shift;
        let tail = self.len & (self.granularity() - 1);
        if tail != 0 && self.bit(self.granules() - 1) {
            whole - (self.granularity() - tail)
        } else {
            whole
        }
    }

    /// The first run of dirty bytes at or after `from`, in whole granules (cut at the end of the disk), at
    /// most `limit` bytes long but never less than one granule. The granule that holds `from` counts.
    pub fn next_dirty(&self, from: u64, limit: u64) -> Option<Range<u64>> {
        if from >= self.len {
            return None;
        }
        let first = self.next_set_bit(from >> self.shift)?;
        let most = (limit >> self.shift).max(1);
        let cap = self.granules().min(first.saturating_add(most));
        let end = self.next_clear_bit(first, cap);
        Some((first << self.shift)..(end << self.shift).min(self.len))
    }

    /// Take the dirty bits out, for a job to work on; meanwhile this bitmap records afresh.
    ///
    /// # Errors
    /// It is frozen already, or inconsistent.
    pub fn freeze(&mut self) -> Result<FrozenView, BitmapError> {
        let resume_as = self.state;
        if !matches!(resume_as, BitmapState::Recording | BitmapState::Disabled) {
            return Err(BitmapError::State(resume_as, "it cannot be frozen"));
        }
        let bits = self.clone();
        self.clear_all();
        self.state = BitmapState::Frozen;
        Ok(FrozenView { bits, resume_as })
    }

    /// The job has dealt with everything in `view`: only what was recorded since is dirty.
    pub fn release(&mut self, view: FrozenView) {
        if self.state == BitmapState::Frozen {
            self.state = view.resume_as;
        }
    }

    /// The job has not dealt with what is left in `view`: it is dirty again.
    ///
    /// # Errors
    /// The view is of another disk's bitmap.
    pub fn merge_back(&mut self, view: FrozenView) -> Result<(), BitmapError> {
        self.merge(&view.bits)?;
        self.release(view);
        Ok(())
    }

    /// Add everything that is dirty in `other`, whose granules may be coarser or finer.
    ///
    /// # Errors
    /// It is of a disk of another length.
    pub fn merge(&mut self, other: &DirtyBitmap) -> Result<(), BitmapError> {
        if self.len != other.len {
            let (own, other) = (self.len, other.len);
            return Err(BitmapError::Shape(format!("{own} bytes against {other}")));
        }
        if self.shift != other.shift {
            let mut at = 0;
            while let Some(run) = other.next_dirty(at, u64::MAX) {
                self.mark(run.clone());
                at = run.end;
            }
            return Ok(());
        }
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            self.dirty += u64::from((more & !*word).count_ones());
            *word |= more;
        }
        for (summary, more) in self.summary.iter_mut().zip(&other.summary) {
            *summary |= more;
        }
        Ok(())
    }

    /// The disk has now `len` bytes. A longer disk's new part is clean, as is a tail that was cut off.
    ///
    /// # Errors
    /// The disk is too long to be described, or a job holds the frozen bits of the old length.
    pub fn resize(&mut self, len: u64) -> Result<(), BitmapError> {
        if self.state == BitmapState::Frozen {
            return Err(BitmapError::State(self.state, "it cannot be resized"));
        }
        if self.state == BitmapState::Inconsistent {
            *self = DirtyBitmap::inconsistent(len, self.granularity())?;
            return Ok(());
        }
        let mut resized = DirtyBitmap::new(len, self.granularity())?;
        let mut from = 0;
        while let Some(run) = self.next_dirty(from, u64::MAX) {
            resized.mark(run.clone());
            from = run.end;
        }
        resized.state = self.state;
        *self = resized;
        Ok(())
    }

    /// The bits as little-endian words, granule 0 in bit 0 of byte 0: as qcow2 and the stream keep them.
    pub fn to_le_bytes(&self) -> Vec<u8> {
        self.words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Mark what [`to_le_bytes`](Self::to_le_bytes) of an equally shaped bitmap said is dirty.
    ///
    /// # Errors
    /// The number of bytes is wrong, or a bit past the end of the disk is set.
    pub fn load_le_bytes(&mut self, bytes: &[u8]) -> Result<(), BitmapError> {
        if bytes.len() != self.words.len() * 8 {
            let (got, want) = (bytes.len(), self.words.len() * 8);
            return Err(BitmapError::Shape(format!("{got} bytes of bits where {want} belong")));
        }
        let mut loaded = DirtyBitmap::new(self.len, self.granularity())?;
        for (index, chunk) in bytes.chunks_exact(8).enumerate() {
            let mut raw = [0; 8];
            raw.copy_from_slice(chunk);
            let word = u64::from_le_bytes(raw);
            loaded.words[index] = word;
            loaded.dirty += u64::from(word.count_ones());
            if word != 0 {
                loaded.summary[index / 64] |= 1 << (index % 64);
            }
        }
        let used = self.granules() % WORD_BITS;
        if used != 0 && loaded.words.last().is_some_and(|last| last >> used != 0) {
            return Err(BitmapError::Shape("a bit past the end of the disk is set".into()));
        }
        self.merge(&loaded)
    }

    fn granules(&self) -> u64 {
        self.len.div_ceil(self.granularity())
    }

    fn bit(&self, granule: u64) -> bool {
        let (word, bit) = place(granule);
        self.words.get(word).is_some_and(|word| word >> bit & 1 != 0)
    }

    /// Set or clear the bits `granules`, a word at a time.
    fn change(&mut self, granules: Range<u64>, set: bool) {
        if self.state == BitmapState::Inconsistent {
            return;
        }
        let mut at = granules.start;
        while at < granules.end {
            let (word, bit) = place(at);
            let count = (WORD_BITS - u64::from(bit)).min(granules.end - at);
            let mask = (u64::MAX >> (WORD_BITS - count)) << bit;
            let before = self.words[word];
            let after = if set { before | mask } else { before & !mask };
            at += count;
            // Most writes go where others went before.
            if after == before {
                continue;
            }
            self.words[word] = after;
            self.dirty += u64::from((after & !before).count_ones());
            self.dirty -= u64::from((before & !after).count_ones());
            let summary_bit = 1 << (word % 64);
            if after == 0 {
                self.summary[word / 64] &= !summary_bit;
            } else {
                self.summary[word / 64] |= summary_bit;
            }
        }
    }

    /// The first set bit at or after `from`.
    fn next_set_bit(&self, from: u64) -> Option<u64> {
        let (word, bit) = place(from);
        let here = *self.words.get(word)? & (u64::MAX << bit);
        if here != 0 {
            return Some(word as u64 * WORD_BITS + u64::from(here.trailing_zeros()));
        }
        let next = word + 1;
        let mut group = next / 64;
        let mut live = *self.summary.get(group)? & (u64::MAX << (next % 64));
        while live == 0 {
            group += 1;
            live = *self.summary.get(group)?;
        }
        let word = group * 64 + live.trailing_zeros() as usize;
        Some(word as u64 * WORD_BITS + u64::from(self.words[word].trailing_zeros()))
    }

    /// The first clear bit at or after `from`, but not past `cap`.
    fn next_clear_bit(&self, from: u64, cap: u64) -> u64 {
        let mut at = from;
        while at < cap {
            let (word, bit) = place(at);
            let ones = u64::from((self.words[word] >> bit).trailing_ones());
            at += ones;
            if ones < WORD_BITS - u64::from(bit) {
                break;
            }
        }
        at.min(cap)
    }
}

/// The word and the bit within it of a granule.
fn place(granule: u64) -> (usize, u32) {
    // A bitmap's words fit in memory, so their index fits in a usize: checked in `new`.
    let word = usize::try_from(granule / WORD_BITS).unwrap_or(usize::MAX);
    let bit = u32::try_from(granule % WORD_BITS).unwrap_or(0);
    (word, bit)
}

#[cfg(test)]
#[path = "bitmap_tests.rs"]
mod tests;
