//! Writes of zeroes, and discards: entries change, data does not move.
//!
//! Whole clusters (subclusters, for zeroes in images that have them) change their entries. What is
//! left at both ends of a write of zeroes is written as bytes; what is left of a discard keeps its
//! content.

use std::ops::Range;

use super::entry::{Cluster, L2Entry, Parts};
use super::frees::Why;
use super::header::Version;
use super::image::Image;
use super::map::{Place, What};
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::error::{Error, ErrorKind, Result};

/// Guest clusters whose entries change before others get their turn.
const BATCH: u64 = 4096;

/// What becomes of whole clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Emptying {
    /// They read as zeroes and keep their place.
    Zero,
    /// They read as zeroes and lose it.
    Unmap,
    /// Nobody needs them: they lose their place, and read as zeroes where that costs nothing.
    Discard,
    /// They are gone, as if they had never been: the disk ends before them.
    Remove,
}

impl Image {
    /// Makes a range read as zeroes.
    pub(super) async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        let pass = self.enter_to_change().await?;
        self.check_end(range.end)?;
        self.run(|image| async move {
            let how = if flags.may_unmap { Emptying::Unmap } else { Emptying::Zero };
            image.check_can_zero(&range, flags.opaque)?;
            let result = image.zero_range(range, how).await;
            drop(pass);
            result
        })
        .await?;
        self.flush_if_crowded();
        if flags.fua { self.flush().await } else { Ok(()) }
    }

    /// Version 2 has no zero clusters: only what reads as zeroes without an entry can be made so, and not if
    /// it is to stay so over a backing file that comes later. Nor are there any over a raw data file.
    pub(super) fn check_can_zero(&self, range: &Range<u64>, opaque: bool) -> Result<()> {
        let is_v2 = self.geometry().version() == Version::V2;
        let no_entry = opaque && (is_v2 || self.header.borrow().is_data_file_raw());
        if no_entry || (is_v2 && !self.is_zero_below(range.start)) {
            let text = "this image cannot hold zeroes over a backing file";
            return Err(Error::new(ErrorKind::Unsupported, text));
        }
        Ok(())
    }

    /// The content of a range is no longer needed.
    pub(super) async fn discard(&self, range: Range<u64>) -> Result<()> {
        let pass = self.enter_to_change().await?;
        self.check_end(range.end)?;
        self.run(|image| async move {
            let size = image.geometry().cluster_size();
            // The last cluster is whole where the disk ends.
            let end = if range.end == image.size.get() {
                range.end.next_multiple_of(size)
            } else {
                range.end - range.end % size
            };
            let whole = range.start.next_multiple_of(size)..end;
            let result = image.empty_clusters(whole, Emptying::Discard).await;
            drop(pass);
            result
        })
        .await?;
        self.flush_if_crowded();
        Ok(())
    }

    /// Takes away what the tables have for the clusters that begin in a range; the gate is closed.
    pub(super) async fn remove(&self, range: Range<u64>) -> Result<()> {
        let size = self.geometry().cluster_size();
        let clusters = range.start.next_multiple_of(size)..range.end.next_multiple_of(size);
        self.empty_clusters(clusters, Emptying::Remove).await
    }

    /// Makes a range zero; the gate is closed.
    pub(super) async fn zero_alone(&self, range: Range<u64>) -> Result<()> {
        self.zero_range(range, Emptying::Unmap).await
    }

    async fn zero_range(&self, range: Range<u64>, how: Emptying) -> Result<()> {
        let size = self.geometry().cluster_size();
        let start = range.start.next_multiple_of(size);
        if start >= range.end {
            return self.zero_part(range).await;
        }
        // The last cluster is whole where the disk ends.
        let end =
            if range.end == self.size.get() { range.end.next_multiple_of(size) } else { range.end };
        let end = (end - end % size).max(start);
        self.zero_part(range.start..start).await?;
        self.empty_clusters(start..end, how).await?;
        self.zero_part(end..range.end.max(end)).await
    }

    /// Zeroes a part of one cluster: whole subclusters by their bits, the rest by bytes, and what
    /// is zero already not at all.
    async fn zero_part(&self, range: Range<u64>) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let geometry = self.geometry();
        let first = geometry.cluster_start(range.start);
        let guard = self.locks.lock(first..first + geometry.cluster_size(), true).await;
        let unit = geometry.subcluster_size();
        let start = range.start.next_multiple_of(unit).min(range.end);
        // The last subcluster is whole where the disk ends, if the range has its start.
        let end = match start < range.end && range.end == self.size.get() {
            true => range.end.next_multiple_of(unit),
            false => range.end - range.end % unit,
        };
        let end = end.max(start);
        let mut middle = start..end;
        if !self.zero_subclusters(first, middle.clone()).await? {
            middle = range.end..range.end;
        }
        for left in [range.start..middle.start, middle.end..range.end] {
            self.zero_bytes(left).await?;
        }
        drop(guard);
        Ok(())
    }

    /// Sets the zero bits of whole subclusters; whether that was possible.
    async fn zero_subclusters(&self, first: u64, range: Range<u64>) -> Result<bool> {
        let geometry = self.geometry();
        if range.is_empty() || !geometry.has_extended_l2() || self.data.is_some() {
            return Ok(false);
        }
        let entry = self.entry_to_change(first).await?;
        match self.decode(entry)? {
            Cluster::Standard { host, parts } if host.is_none() || entry.is_copied() => {
                let unit = geometry.subcluster_size();
                let set = (range.start - first) / unit..(range.end - first) / unit;
                let set = set.fold(0, |set, part| set | 1_u32 << part);
                let parts = Parts { allocated: parts.allocated & !set, zero: parts.zero | set };
                let cluster = Cluster::Standard { host, parts };
                let entry = L2Entry::encode(cluster, entry.is_copied(), geometry)?;
                self.set_entry(first, entry)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Writes zeroes as bytes where there are others.
    async fn zero_bytes(&self, range: Range<u64>) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let mapping = self.find(at, range.end - at).await?;
            let is_zero = match mapping.what {
                // Others read the data file by itself, whatever the tables say.
                What::Zero | What::Absent if self.header.borrow().is_data_file_raw() => false,
                What::Zero => true,
                What::Absent => self.fix_zeroes(at..at + mapping.len).await?,
                _ => false,
            };
            if !is_zero {
                let zeroes = IoBuf::alloc(usize::try_from(mapping.len).unwrap_or(usize::MAX));
                self.write_locked(at, zeroes).await?;
            }
            at += mapping.len;
        }
        Ok(())
    }

    /// Sees to it that a part of a cluster that has nothing, and nothing below, goes on reading as
    /// zeroes when an image is put below; whether it reads as zeroes at all.
    async fn fix_zeroes(&self, range: Range<u64>) -> Result<bool> {
        let geometry = self.geometry();
        let unit = geometry.subcluster_size();
        let units = range.start - range.start % unit..range.end.next_multiple_of(unit);
        if !self.is_zero_below(units.start) {
            return Ok(false);
        }
        let first = geometry.cluster_start(range.start);
        if geometry.version() == Version::V2 || self.data.is_some() {
            return Ok(true);
        }
        if !geometry.has_extended_l2() {
            let entry = L2Entry::encode(Cluster::zero(geometry, None), false, geometry)?;
            self.entry_to_change(first).await?;
            self.set_entry(first, entry)?;
            return Ok(true);
        }
        self.zero_subclusters(first, units).await
    }

    /// Empties whole clusters, a batch at a time.
    async fn empty_clusters(&self, range: Range<u64>, how: Emptying) -> Result<()> {
        let geometry = self.geometry();
        let mut at = range.start;
        while at < range.end {
            let span = geometry.l2_span();
            let end = (at - at % span + span).min(at + BATCH * geometry.cluster_size());
            let end = end.min(range.end);
            let guard = self.locks.lock(at..end, true).await;
            self.empty_batch(at..end, how).await?;
            drop(guard);
            self.executor.yield_now().await;
            at = end;
        }
        Ok(())
    }

    /// Empties clusters of one L2 table, which are locked.
    async fn empty_batch(&self, range: Range<u64>, how: Emptying) -> Result<()> {
        let geometry = self.geometry();
        let mut at = range.start;
        while at < range.end {
            // Most of what is given up is empty: its entries, or their table, need no change.
            let first = self.find(at, geometry.cluster_size()).await?;
            if first.what == What::Absent && self.may_stay_absent(at, how) {
                let mapping = self.find(at, range.end - at).await?;
                let whole = at + mapping.len;
                let reserved = self.first_reserved(at..whole)?;
                let next = geometry.cluster_start(reserved.unwrap_or(whole));
                if next > at {
                    at = next;
                    continue;
                }
            }
            if let Some(data) = &self.data {
                self.empty_data(data, at, how).await?;
            }
            let entry = self.entry_to_change(at).await?;
            let old = self.decode(entry)?;
            if let Some((new, copied)) = self.emptied(at, old, entry.is_copied(), how) {
                self.set_entry(at, L2Entry::encode(new, copied, geometry)?)?;
                self.drop_unless_kept(old, new, how);
            }
            at += geometry.cluster_size();
        }
        Ok(())
    }

    /// The first cluster of a range of one table that has a place, but nothing in it: an image with
    /// subclusters that was preallocated has such.
    fn first_reserved(&self, range: Range<u64>) -> Result<Option<u64>> {
        let geometry = self.geometry();
        if !geometry.has_extended_l2() {
            return Ok(None);
        }
        let first = geometry.cluster_start(range.start);
        let Place::Slice { key, index, .. } = self.place(first)? else { return Ok(None) };
        let count = usize::try_from(geometry.clusters_for(range.end - first)).unwrap_or(usize::MAX);
        let is_reserved = |slice: &[u8], index: usize| {
            let cluster = L2Entry::get(slice, index, geometry).decode(geometry);
            matches!(cluster, Ok(Cluster::Standard { host: Some(_), .. }))
        };
        let found = self.map.slices.read(key, |slice| {
            let last = index.saturating_add(count).min(geometry.l2_entries_in(slice.len()));
            (index..last).position(|index| is_reserved(slice, index))
        });
        let place = |number: usize| first + number as u64 * geometry.cluster_size();
        Ok(found.flatten().map(place))
    }

    /// Whether a cluster without an entry needs none. What is made zero is written down even where
    /// nothing is below: an image may be put there later.
    fn may_stay_absent(&self, guest: u64, how: Emptying) -> bool {
        let without_zeroes = self.geometry().version() == Version::V2;
        match how {
            Emptying::Remove => true,
            Emptying::Discard => self.is_zero_below(guest),
            Emptying::Zero | Emptying::Unmap => without_zeroes && self.is_zero_below(guest),
        }
    }

    fn drop_unless_kept(&self, old: Cluster, new: Cluster, how: Emptying) {
        let host = |cluster: Cluster| match cluster {
            Cluster::Standard { host, .. } => host,
            Cluster::Compressed(_) => None,
        };
        if host(old).is_none() || host(old) != host(new) {
            let is_request = how != Emptying::Zero;
            self.drop_for(old, if is_request { Why::Request } else { Why::Other });
        }
    }

    /// What becomes of an entry, and whether it is the only one; `None` if it stays as it is.
    fn emptied(
        &self,
        guest: u64,
        old: Cluster,
        copied: bool,
        how: Emptying,
    ) -> Option<(Cluster, bool)> {
        let geometry = self.geometry();
        let is_v2 = geometry.version() == Version::V2;
        let zero_below = self.is_zero_below(guest);
        let (host, parts) = match old {
            Cluster::Compressed(_) => (None, Parts::default()),
            Cluster::Standard { host, parts } => (host, parts),
        };
        let is_absent = host.is_none() && parts == Parts::default();
        let is_absent = is_absent && matches!(old, Cluster::Standard { .. });
        let keep = match how {
            Emptying::Zero => true,
            Emptying::Discard => self.behaviour.discard_no_unref,
            Emptying::Unmap | Emptying::Remove => false,
        };
        // Raw data files are written through; their entries stay.
        let keep = keep || (self.data.is_some() && how != Emptying::Remove);
        if how == Emptying::Remove || is_v2 {
            // Without zero clusters, data over a backing file is better left than exposed.
            let possible = how == Emptying::Remove || zero_below;
            return (possible && !is_absent).then_some((Cluster::UNALLOCATED, false));
        }
        if self.header.borrow().is_data_file_raw() {
            return None;
        }
        if is_absent && self.may_stay_absent(guest, how) {
            return None;
        }
        let new = Cluster::zero(geometry, host.filter(|_| keep && copied));
        (new != old).then_some((new, copied && keep && host.is_some()))
    }

    /// Empties a cluster of a data file, before its entry says so: what is written there later
    /// must not be emptied.
    async fn empty_data(&self, data: &crate::edge::Edge, at: u64, how: Emptying) -> Result<()> {
        let end = (at + self.geometry().cluster_size()).min(data.len());
        if at >= end {
            return Ok(());
        }
        let flags = if how == Emptying::Zero { WriteFlags::NONE } else { WriteFlags::UNMAP };
        if self.header.borrow().is_data_file_raw() && how != Emptying::Remove {
            return data.write_zeroes(at..end, flags).await;
        }
        if how != Emptying::Zero && self.behaviour.pass_discard_request {
            return data.discard(at..end).await;
        }
        Ok(())
    }
}
