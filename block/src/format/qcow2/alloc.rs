//! Which host clusters are given out.
//!
//! First those that were freed, then those behind everything that is used. The file is grown in
//! large steps, and what it grew by reads as zeroes: a cluster from there needs no filling, so that
//! a small write into it is only that.
//!
//! Clusters that are free since before the image was opened are looked for whenever the file would
//! have to grow, a little at a time: reading all refcounts of a large image would take seconds.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;

use super::entry::{put_refcount, refcount};
use super::image::Image;
use crate::driver::ExtentKind;
use crate::error::{Error, ErrorKind, Result};
use crate::ranges::RangeLocks;

/// The file grows by an eighth of its length, within these bounds in bytes.
const GROW: Range<u64> = 1 << 20..64 << 20;
/// Refcount slices that are searched for free clusters before the file grows.
const SEARCH_SLICES: u32 = 8;
/// Addresses in an image file have at most 56 bits.
const MAX_HOST: u64 = 1 << 56;

/// Contiguous host clusters that were just given out, each with one reference.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    /// First byte.
    pub(super) host: u64,
    /// Their number, at least one.
    pub(super) clusters: u64,
    /// They read as zeroes.
    pub(super) zero: bool,
}

/// What clusters are wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// What is in them does not matter.
    Any,
    /// They must read as zeroes.
    Zeroes,
}

/// The free space of an image file.
#[derive(Default)]
pub(super) struct Space {
    /// Number of the first cluster behind all that are used.
    end: Cell<u64>,
    least_len: Cell<u64>,
    /// Bytes of the file that it grew by and that nobody has written since it was opened.
    zeroes: Cell<(u64, u64)>,
    /// Free clusters before `end`: number of the first, how many, whether they read as zeroes.
    free: RefCell<BTreeMap<u64, (u64, bool)>>,
    /// Clusters that have not been searched yet.
    unsearched: Cell<(u64, u64)>,
    preparing: RangeLocks,
}

impl Space {
    /// Begins anew: `end` clusters are used or were once, of a file of `file_len` bytes.
    pub(super) fn reset(&self, end: u64, file_len: u64) {
        self.end.set(end);
        self.least_len.set(file_len);
        self.zeroes.set((file_len, file_len));
        self.free.take();
        self.unsearched.set((0, end));
    }

    /// Bytes that the file had when this began.
    pub(super) fn least_len(&self) -> u64 {
        self.least_len.get()
    }

    /// Number of the first cluster behind all that are used.
    pub(super) fn end(&self) -> u64 {
        self.end.get()
    }

    /// These clusters have no references any more.
    pub(super) fn add_free(&self, clusters: Range<u64>, zero: bool) {
        let mut free = self.free.borrow_mut();
        let (mut start, mut len) = (clusters.start, clusters.end - clusters.start);
        if let Some((&before, &(count, kind))) = free.range(..start).next_back()
            && before + count == start
            && kind == zero
        {
            free.remove(&before);
            (start, len) = (before, len + count);
        }
        if let Some(&(count, kind)) = free.get(&clusters.end)
            && kind == zero
        {
            free.remove(&clusters.end);
            len += count;
        }
        free.insert(start, (len, zero));
    }

    /// A search has found that this cluster has no references. One that was freed while the search waited is
    /// free already: twice in the list, it would be free still when somebody has it, and read as zeroes when
    /// that one has written there.
    fn add_found(&self, cluster: u64) {
        let before = self.free.borrow().range(..=cluster).next_back().map(|(at, run)| (*at, run.0));
        if before.is_none_or(|(start, len)| start + len <= cluster) {
            self.add_free(cluster..cluster + 1, false);
        }
    }

    fn is_unsearched(&self) -> bool {
        let (start, end) = self.unsearched.get();
        start < end
    }

    fn first_free(&self) -> Option<(u64, u64, bool)> {
        self.free.borrow().first_key_value().map(|(&start, &(len, zero))| (start, len, zero))
    }

    /// The first `count` clusters of the first free run are free no more.
    fn remove_free(&self, count: u64) {
        let mut free = self.free.borrow_mut();
        if let Some((start, (len, zero))) = free.pop_first()
            && len > count
        {
            free.insert(start + count, (len - count, zero));
        }
    }
}

impl Image {
    /// Gives out up to `want` contiguous clusters, if that needs no waiting and the next that are
    /// free are such as is needed.
    pub(super) fn try_allocate(&self, want: u64, need: Need) -> Result<Option<Run>> {
        let bits = self.geometry().cluster_bits();
        while let Some((start, len, zero)) = self.space.first_free() {
            if need == Need::Zeroes && !zero {
                return Ok(None);
            }
            match self.take_clusters(start, len.min(want))? {
                None => return Ok(None),
                // In use after all: whoever freed it was wrong, or the image is.
                Some(0) => self.space.remove_free(1),
                Some(clusters) => {
                    self.space.remove_free(clusters);
                    return Ok(Some(Run { host: start << bits, clusters, zero }));
                }
            }
        }
        let start = self.space.end();
        let (zero_start, zero_end) = self.space.zeroes.get();
        let is_zero = zero_start <= start << bits;
        let room = match need {
            Need::Any => self.file.len(),
            Need::Zeroes if is_zero => zero_end,
            Need::Zeroes => 0,
        };
        let room = (room >> bits).saturating_sub(start);
        if room == 0 {
            return Ok(None);
        }
        let taken = self.take_clusters(start, want.min(room))?;
        let Some(clusters) = taken else { return Ok(None) };
        // A cluster that is in use behind the end is stepped over.
        self.space.end.set(start + clusters.max(1));
        let host = start << bits;
        let zero = is_zero && host + (clusters << bits) <= zero_end;
        Ok((clusters != 0).then_some(Run { host, clusters, zero }))
    }

    /// Raises the refcounts of up to `count` clusters from `start` from zero to one; of how many.
    /// `None` if the refcounts must be loaded first.
    fn take_clusters(&self, start: u64, count: u64) -> Result<Option<u64>> {
        let geometry = self.geometry();
        let Some(place) = self.refcount_place(start)? else { return Ok(None) };
        let count = count.min(place.follow);
        let bits = geometry.cluster_bits();
        let range = start << bits..(start + count) << bits;
        if let Some(kind) = self.regions.hit(&range, None) {
            return Err(self.overlap(&range, kind));
        }
        let (words, first) = place.words(count, geometry);
        Ok(self.refcounts.slices.modify(place.key, words, |counts| {
            let mut taken = 0;
            for index in (first..).take(usize::try_from(count).unwrap_or(0)) {
                if refcount(counts, index, geometry) != 0 {
                    break;
                }
                put_refcount(counts, index, 1, geometry);
                taken += 1;
            }
            taken
        }))
    }

    /// Gives out up to `want` contiguous clusters.
    pub(super) async fn allocate(&self, want: u64) -> Result<Run> {
        loop {
            if let Some(run) = self.try_allocate(want, Need::Any)? {
                return Ok(run);
            }
            let guard = self.space.preparing.lock(0..1, true).await;
            // Somebody else may have prepared it meanwhile.
            if let Some(run) = self.try_allocate(want, Need::Any)? {
                return Ok(run);
            }
            self.prepare(want).await?;
            drop(guard);
        }
    }

    /// Gives out exactly `count` contiguous clusters behind everything else, for a table. What is
    /// there is not known to be zero.
    pub(super) async fn allocate_table(&self, count: u64) -> Result<u64> {
        let bits = self.geometry().cluster_bits();
        let guard = self.space.preparing.lock(0..1, true).await;
        loop {
            let start = self.space.end();
            self.reserve_file((start + count) << bits).await?;
            // Blocks for all of it first: made on the way, they would lie in between.
            if let Some(cluster) = self.first_without_block(start..start + count)? {
                self.make_ready(cluster).await?;
            } else if self.take_table(start, count).await? {
                drop(guard);
                return Ok(start << bits);
            }
        }
    }

    fn first_without_block(&self, clusters: Range<u64>) -> Result<Option<u64>> {
        let per_block = self.geometry().refcount_block_entries();
        let mut cluster = clusters.start;
        while cluster < clusters.end {
            if self.refcount_place(cluster)?.is_none() {
                return Ok(Some(cluster));
            }
            cluster = (cluster / per_block + 1) * per_block;
        }
        Ok(None)
    }

    /// Takes these clusters, all or none. Others may take clusters at the end meanwhile.
    async fn take_table(&self, start: u64, count: u64) -> Result<bool> {
        let mut done = 0;
        while done < count {
            let at = start + done;
            let taken = match self.space.end() == at {
                true => self.take_clusters(at, count - done)?,
                false => Some(0),
            };
            match taken {
                None => self.make_ready(at).await?,
                Some(0) => {
                    self.space.end.set(self.space.end().max(at + 1));
                    self.abandon_run(start, done).await?;
                    return Ok(false);
                }
                Some(taken) => {
                    done += taken;
                    self.space.end.set(start + done);
                }
            }
        }
        Ok(true)
    }

    async fn abandon_run(&self, start: u64, count: u64) -> Result<()> {
        for cluster in start..start + count {
            self.drop_reference(cluster).await?;
        }
        if count != 0 {
            self.space.add_free(start..start + count, false);
        }
        Ok(())
    }

    /// Makes room for the next [`try_allocate`](Self::try_allocate).
    async fn prepare(&self, want: u64) -> Result<()> {
        if let Some((start, ..)) = self.space.first_free() {
            return self.make_ready(start).await;
        }
        let bits = self.geometry().cluster_bits();
        let end = self.space.end();
        if self.file.len() >> bits <= end {
            if self.search().await? {
                return Ok(());
            }
            match self.reserve_file((end + want) << bits).await {
                // There is no other place to be had than what the search has not come to yet.
                Err(error) if error.kind() == ErrorKind::NoSpace => {
                    return if self.search_all().await? { Ok(()) } else { Err(error) };
                }
                reserved => reserved?,
            }
        }
        self.make_ready(end).await
    }

    /// Sees to it that the refcount of `cluster` is in memory, for which a block may have to be
    /// made first, or room for one: call it again until the refcount is there.
    async fn make_ready(&self, cluster: u64) -> Result<()> {
        if let Some(place) = self.refcount_place(cluster)? {
            return self.load_refcounts(place.key).await;
        }
        let geometry = self.geometry();
        let per_block = geometry.refcount_block_entries();
        let (index, end) = (geometry.refcount_table_index(cluster), self.space.end());
        let entries = self.refcounts.table.len();
        if index >= entries {
            // Where no old block describes anything.
            let start = end.max(entries * per_block);
            let behind = self.grow_refcount_table(start, index + 1).await?;
            // What is skipped is free, as far as nobody has taken it meanwhile. Not before: if this had
            // failed, clusters would be given out that are behind the end.
            let end = self.space.end();
            if end < start {
                self.space.add_free(end..start, false);
            }
            self.space.end.set(behind);
        } else if geometry.refcount_table_index(end) == index {
            // At the end of what is used, and the first that the block describes.
            self.make_refcount_block(index, end).await?;
            self.space.end.set(end + 1);
        } else {
            let block = loop {
                match self.try_allocate(1, Need::Any)? {
                    Some(run) => break geometry.cluster_index(run.host),
                    None => Box::pin(self.prepare(1)).await?,
                }
            };
            self.make_refcount_block(index, block).await?;
        }
        Ok(())
    }

    /// Searches refcounts until clusters are found that are free; whether any are.
    async fn search_all(&self) -> Result<bool> {
        while self.space.is_unsearched() {
            if self.search().await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Searches a few more refcounts for clusters that are free; whether it found any.
    async fn search(&self) -> Result<bool> {
        let geometry = self.geometry();
        for _ in 0..SEARCH_SLICES {
            let (start, end) = self.space.unsearched.get();
            if start >= end {
                break;
            }
            let Some(place) = self.refcount_place(start)? else {
                // A whole block of zeroes, which nobody needs to look at one by one.
                let next =
                    (geometry.refcount_table_index(start) + 1) * geometry.refcount_block_entries();
                self.space.unsearched.set((next, end));
                continue;
            };
            self.load_refcounts(place.key).await?;
            let count = place.follow.min(end - start);
            let found = self.refcounts.slices.read(place.key, |slice| {
                let is_free = |number: &u64| {
                    let index = place.index + usize::try_from(*number).unwrap_or(0);
                    refcount(slice, index, geometry) == 0
                };
                (0..count).filter(is_free).map(|number| start + number).collect::<Vec<u64>>()
            });
            let Some(found) = found else { continue };
            self.space.unsearched.set((start + count, end));
            found.iter().for_each(|cluster| self.space.add_found(*cluster));
            if !found.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sees to it that the file has at least `len` bytes.
    pub(super) async fn reserve_file(&self, len: u64) -> Result<()> {
        if len <= self.file.len() {
            return Ok(());
        }
        if len > MAX_HOST {
            let text = "the image file would become longer than its tables can say";
            return Err(Error::new(ErrorKind::NoSpace, text));
        }
        self.run(move |image| async move {
            let guard = image.growing.lock(0..1, true).await;
            let grown = image.grow_file(len).await;
            drop(guard);
            grown
        })
        .await
    }

    /// The same for who holds the lock for it.
    async fn grow_file(&self, len: u64) -> Result<()> {
        let have = self.file.len();
        if len <= have {
            return Ok(());
        }
        let ahead = (have / 8).clamp(GROW.start, GROW.end);
        let cluster = self.geometry().cluster_size();
        let grown = len.max(have + ahead).next_multiple_of(cluster);
        let result = match self.file.grow(grown).await {
            // A device may have no more than what is needed, too.
            Err(error) if matches!(error.kind(), ErrorKind::NoSpace | ErrorKind::Unsupported) => {
                self.file.grow(len).await
            }
            other => other,
        };
        let kind = result.map_err(full)?;
        if kind == ExtentKind::Zero {
            let (start, end) = self.space.zeroes.get();
            let start = if end == have { start } else { have };
            self.space.zeroes.set((start, self.file.len()));
        }
        Ok(())
    }
}

/// What cannot become longer, a device or a window of a file, is full.
pub(super) fn full(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Unsupported => error.with_kind(ErrorKind::NoSpace),
        _ => error,
    }
}

#[cfg(test)]
#[path = "alloc_tests.rs"]
mod tests;
