//! The two-level map from guest to host addresses: the L1 table in memory, slices of L2 tables in a
//! cache.
//!
//! [`Image::lookup`] and [`Image::set_entry`] never wait: what they need is in memory, or they say
//! so and the caller loads it first. Entries change under the lock of their guest cluster (see
//! `write`), each change at once for everybody; in the file it appears with the next flush.

use std::ops::Range;

use super::cache::SliceCache;
use super::entry::{Cluster, Compressed, L1Entry, L2Entry};
use super::frees::Why;
use super::image::Image;
use super::overlap::Kind;
use super::root_table::RootTable;
use crate::driver::WriteFlags;
use crate::error::{Error, ErrorKind, Result};
use crate::ranges::RangeLocks;

/// The map of an image.
pub(super) struct Map {
    pub(super) l1: RootTable,
    pub(super) slices: SliceCache,
    /// Held while an L2 table is made, by L1 index.
    making: RangeLocks,
}

/// What the bytes at a guest address are, and for how many this goes on in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mapping {
    pub(super) what: What,
    pub(super) len: u64,
}

/// What bytes of the guest are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// In the image file, or in the data file if there is one.
    Data {
        /// Where the first byte is.
        host: u64,
        /// Nobody else refers to it: it may be written there.
        own: bool,
    },
    /// Zeroes.
    Zero,
    /// Not in this image.
    Absent,
    /// All of a cluster, compressed.
    Compressed(Compressed),
}

/// Where an entry is.
pub(super) enum Place {
    /// There is no L2 table.
    NoTable,
    /// In this slice.
    Slice {
        key: u64,
        index: usize,
        /// The table is nobody else's, so that it may be changed.
        own: bool,
    },
}

impl Map {
    pub(super) fn new(slices: SliceCache) -> Map {
        Map { l1: RootTable::default(), slices, making: RangeLocks::new() }
    }

    /// Begins anew with an L1 table that was just read.
    pub(super) fn reset(&self, at: u64, l1: Vec<u64>) {
        self.l1.reset(at, l1);
        self.slices.clear();
    }

    /// Whether an entry is not in the file yet.
    pub(super) fn is_dirty(&self) -> bool {
        self.slices.is_dirty() || self.l1.is_dirty()
    }

    fn l1_entry(&self, index: u64) -> L1Entry {
        L1Entry(self.l1.get(index).unwrap_or(0))
    }
}

impl What {
    /// Whether `next`, which comes `distance` bytes later, goes on with it.
    fn continues(self, next: What, distance: u64) -> bool {
        match (self, next) {
            (What::Data { host, own }, What::Data { host: next, own: next_own }) => {
                host + distance == next && own == next_own
            }
            (What::Compressed(_), _) => false,
            (this, next) => this == next,
        }
    }
}

impl Image {
    /// Where the entry of a guest address is.
    pub(super) fn place(&self, guest: u64) -> Result<Place> {
        let geometry = self.geometry();
        let entry = self.map.l1_entry(geometry.l1_index(guest));
        let Some(table) = entry.offset() else { return Ok(Place::NoTable) };
        if !geometry.is_aligned(table) {
            let index = geometry.l1_index(guest);
            let text = format!("L2 table offset {table:#x} unaligned (L1 index: {index:#x})");
            return Err(self.corrupt(&text));
        }
        let index = geometry.l2_index(guest);
        let at = table + index as u64 * geometry.l2_entry_size();
        let (key, within) = self.map.slices.locate(at);
        let index = geometry.l2_entries_in(within);
        Ok(Place::Slice { key, index, own: entry.is_copied() })
    }

    /// What up to `most` bytes from `guest` are; `None` if that must be loaded first.
    pub(super) fn lookup(&self, guest: u64, most: u64) -> Result<Option<Mapping>> {
        match self.place(guest)? {
            Place::NoTable => {
                let span = self.geometry().l2_span();
                let len = most.min(span - guest % span);
                Ok(Some(Mapping { what: What::Absent, len }))
            }
            Place::Slice { key, index, own } => self
                .map
                .slices
                .read(key, |slice| self.walk(slice, index, own, guest, most))
                .transpose()
                .map_err(|error: Error| self.corrupt(&error.to_string())),
        }
    }

    /// The same, loading what is needed.
    pub(super) async fn find(&self, guest: u64, most: u64) -> Result<Mapping> {
        loop {
            if let Some(mapping) = self.lookup(guest, most)? {
                return Ok(mapping);
            }
            self.load_entry(guest).await?;
        }
    }

    /// Goes through the entries of a slice while they continue each other.
    fn walk(
        &self,
        slice: &[u8],
        index: usize,
        own: bool,
        guest: u64,
        most: u64,
    ) -> Result<Mapping> {
        let geometry = self.geometry();
        let mut found: Option<What> = None;
        let mut at = guest;
        for index in index..geometry.l2_entries_in(slice.len()) {
            let entry = L2Entry::get(slice, index, geometry);
            let cluster = entry.decode(geometry)?;
            let end = geometry.cluster_start(at) + geometry.cluster_size();
            while at < end && at - guest < most {
                let (what, until) = self.part(cluster, own && entry.is_copied(), at)?;
                match found {
                    None => found = Some(what),
                    Some(first) if first.continues(what, at - guest) => {}
                    Some(what) => return Ok(Mapping { what, len: at - guest }),
                }
                at = until;
            }
            if at - guest >= most {
                break;
            }
        }
        let what = found.unwrap_or(What::Absent);
        Ok(Mapping { what, len: (at - guest).min(most) })
    }

    /// What the byte at `guest` is in its cluster, and up to where.
    fn part(&self, cluster: Cluster, own: bool, guest: u64) -> Result<(What, u64)> {
        let geometry = self.geometry();
        let start = geometry.cluster_start(guest);
        let (host, parts) = match cluster {
            Cluster::Compressed(data) => {
                return Ok((What::Compressed(data), start + geometry.cluster_size()));
            }
            Cluster::Standard { host, parts } => (host, parts),
        };
        let first = geometry.subcluster_index(guest);
        let is = |set: u32, part: u32| set >> part & 1 != 0;
        let kind = |part: u32| (is(parts.allocated, part), is(parts.zero, part));
        let last = (first..geometry.subclusters()).take_while(|part| kind(*part) == kind(first));
        let until =
            start + (u64::from(last.last().unwrap_or(first)) + 1) * geometry.subcluster_size();
        let what = match (kind(first), host) {
            ((true, _), Some(host)) => {
                if geometry.has_external_data() && host != start {
                    let text = format!("guest cluster {start:#x} is at {host:#x} of its data file");
                    return Err(Error::new(ErrorKind::Corrupt, text));
                }
                What::Data { host: host + geometry.within_cluster(guest), own }
            }
            ((_, true), _) => What::Zero,
            _ => What::Absent,
        };
        Ok((what, until))
    }

    /// Loads the slice with the entry of `guest`, if there is one.
    pub(super) async fn load_entry(&self, guest: u64) -> Result<()> {
        let Place::Slice { key, .. } = self.place(guest)? else { return Ok(()) };
        while self.map.slices.is_stuck() {
            // Entries may only go to the file in the order that a flush keeps.
            self.flush_metadata().await?;
        }
        let len = self.map.slices.slice_len();
        self.map.slices.load(key, async || self.read_file(key, len).await).await
    }

    /// The entry of a guest cluster, if its table is in memory and may be changed.
    pub(super) fn own_entry(&self, guest: u64) -> Result<Option<L2Entry>> {
        let geometry = self.geometry();
        Ok(match self.place(guest)? {
            Place::Slice { key, index, own: true } => {
                self.map.slices.read(key, |slice| L2Entry::get(slice, index, geometry))
            }
            _ => None,
        })
    }

    /// The same, making the table or a copy of one's own first. Nothing is awaited between the
    /// last look and the return.
    pub(super) async fn entry_to_change(&self, guest: u64) -> Result<L2Entry> {
        loop {
            if let Some(entry) = self.own_entry(guest)? {
                return Ok(entry);
            }
            match self.place(guest)? {
                Place::Slice { own: true, .. } => self.load_entry(guest).await?,
                _ => self.make_table(guest).await?,
            }
        }
    }

    /// Changes the entry of a guest cluster whose table was just found to be there.
    pub(super) fn set_entry(&self, guest: u64, entry: L2Entry) -> Result<()> {
        let geometry = self.geometry();
        if let Place::Slice { key, index, own: true } = self.place(guest)?
            && let words = geometry.l2_entry_words(index)
            && let Some(()) =
                self.map.slices.modify(key, words, |entries| entry.put(entries, 0, geometry))
        {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Io, format!("the L2 table of {guest:#x} went away")))
    }

    /// Makes the L2 table of a guest address, or a copy of the one that a snapshot has too. What
    /// the L1 table comes to point to is in the file as it should be; a flush makes it durable
    /// before it writes the L1 table.
    async fn make_table(&self, guest: u64) -> Result<()> {
        let geometry = self.geometry();
        let index = geometry.l1_index(guest);
        let guard = self.map.making.lock(index..index + 1, true).await;
        let entry = self.map.l1_entry(index);
        // Somebody else may have made it meanwhile. A flag beside no table says nothing.
        if entry.is_copied() && entry.offset().is_some() {
            return Ok(());
        }
        let cluster = geometry.cluster_size();
        let run = self.allocate(1).await?;
        let range = run.host..run.host + cluster;
        if let Some(old) = entry.offset() {
            // A table that is shared is never changed, so the file has all of it.
            if let Err(error) = self.copy_table(old, run.host).await {
                self.frees.push_clusters(run.host, cluster, Why::Other);
                return Err(error);
            }
            self.frees.push_clusters(old, cluster, Why::Other);
            self.regions.remove(old);
        } else if !run.zero {
            self.check_overlap(&range, Some(Kind::ActiveL2))?;
            if let Err(error) = self.empty_table(range).await {
                self.frees.push_clusters(run.host, cluster, Why::Other);
                return Err(error);
            }
        }
        self.regions.add(run.host, Kind::ActiveL2);
        let entry = L1Entry::new(run.host, true);
        self.map.l1.set(index, entry.0)?;
        drop(guard);
        Ok(())
    }

    async fn empty_table(&self, range: Range<u64>) -> Result<()> {
        // A file may end within its last cluster.
        self.reserve_file(range.end).await?;
        self.file.write_zeroes(range, WriteFlags::NONE).await
    }

    async fn copy_table(&self, from: u64, to: u64) -> Result<()> {
        let table = self.read_file(from, self.geometry().cluster_len()).await?;
        self.write_metadata(to, &table, Kind::ActiveL2).await
    }
}
