//! Changing the length of the disk.

use std::ops::Range;

use super::container;
use super::entry::L1Entry;
use super::frees::Why;
use super::gate::Closed;
use super::header::{MAX_L1_BYTES, Version};
use super::image::Image;
use super::map::{Mapping, What};
use super::overlap::Kind;
use crate::buf::IoBuf;
use crate::driver::{ExtentKind, WriteFlags};
use crate::edge::Edge;
use crate::error::{Error, ErrorKind, Result};

/// Disks are whole sectors, bytes.
const SECTOR: u64 = 512;
/// Bytes that get their places in a data file before others get their turn.
const MAX_IN_DATA: u64 = 1 << 28;

impl Image {
    /// Makes the disk `len` bytes long. What it grows by reads as zeroes. The gate is closed still.
    pub(super) async fn resize(&self, len: u64) -> Result<Closed> {
        self.run(|image| async move {
            let closed = image.close_to_change().await?;
            let old = image.size.get();
            image.check_length(len)?;
            if len < old {
                image.shrink(len).await?;
            } else if len > old {
                image.grow(old, len).await?;
            }
            image.flush().await?;
            Ok(closed)
        })
        .await
    }

    /// Takes every cluster of the disk away. The gate is closed still.
    pub(super) async fn make_empty(&self) -> Result<Closed> {
        self.run(|image| async move {
            let closed = image.close_to_change().await?;
            image.remove(0..image.size.get()).await?;
            image.flush().await?;
            Ok(closed)
        })
        .await
    }

    /// Gives a place to every cluster of a range, without writing to it: what is allocated reads as
    /// zeroes. With `space` the host's room for it is taken, too.
    pub(super) async fn preallocate(&self, range: Range<u64>, space: bool) -> Result<()> {
        let pass = self.enter_to_change().await?;
        self.run(|image| async move {
            let mut at = range.start;
            while at < range.end && at < image.size.get() {
                let (host, len) = image.place_of_some(at, range.end - at).await?;
                image.extend_data(host + len).await?;
                if space {
                    let file = host..host + len;
                    image.data_edge().write_zeroes(file, WriteFlags::NONE).await?;
                }
                at += len;
            }
            drop(pass);
            Ok(())
        })
        .await?;
        self.flush().await
    }

    /// The place of the first of `len` bytes from `at`, which have one or get it, and how many they
    /// are.
    async fn place_of_some(&self, at: u64, len: u64) -> Result<(u64, u64)> {
        if let Some(data) = &self.data {
            return self.place_in_data(data, at, len.min(MAX_IN_DATA)).await;
        }
        self.entry_to_change(at).await?;
        // Where the file ends now only one cluster would get a place, and be written for it.
        let clusters = self.geometry().clusters_for(len);
        self.reserve_file((self.space.end() + clusters) << self.geometry().cluster_bits()).await?;
        match self.fresh_place(at, len)? {
            Some(fresh) => Ok(fresh),
            None => self.place_of_one(at, len).await,
        }
    }

    /// The same in a data file, where every cluster has its place and only its entry must say so.
    /// What is there already may be anything, and becomes zero.
    async fn place_in_data(&self, data: &Edge, at: u64, len: u64) -> Result<(u64, u64)> {
        let geometry = self.geometry();
        let clusters =
            geometry.cluster_start(at)..(at + len).next_multiple_of(geometry.cluster_size());
        let guard = self.locks.lock(clusters, true).await;
        let mapping = self.find(at, len).await?;
        if !matches!(mapping.what, What::Data { .. }) {
            // The parts that get a place do so as a whole.
            let unit = geometry.subcluster_size();
            let parts = at - at % unit..(at + mapping.len).next_multiple_of(unit);
            clear(data, parts.start..parts.end.min(data.len())).await?;
            self.adopt_data(parts).await?;
        }
        drop(guard);
        Ok((at, mapping.len))
    }

    /// The place of the first cluster of some that have one, or get it by being written.
    async fn place_of_one(&self, at: u64, len: u64) -> Result<(u64, u64)> {
        let first = self.geometry().cluster_start(at);
        let end = first + self.geometry().cluster_size();
        // Whoever writes there meanwhile gives it a place, and something to keep.
        let guard = self.locks.lock(first..end, true).await;
        let mapping = self.find(at, len.min(end - at)).await?;
        if let What::Data { host, own: true } = mapping.what {
            return Ok((host, mapping.len));
        }
        let zeroes = IoBuf::alloc(usize::try_from(mapping.len).unwrap_or(usize::MAX));
        self.write_locked(at, zeroes).await?;
        drop(guard);
        match self.find(at, mapping.len).await? {
            Mapping { what: What::Data { host, .. }, len } => Ok((host, len)),
            _ => Err(Error::new(ErrorKind::Io, "a cluster that was written has no place")),
        }
    }

    fn check_length(&self, len: u64) -> Result<()> {
        let refuse = |kind, text: &str| Err(Error::new(kind, text));
        let geometry = self.geometry();
        if i64::try_from(len).is_err() || geometry.l1_entries_for(len) * 8 > MAX_L1_BYTES {
            return refuse(ErrorKind::InvalidArgument, "The new size is too large for the image");
        }
        // Images made by others may be of any length.
        if !len.is_multiple_of(SECTOR) && len != self.size.get() {
            return refuse(ErrorKind::InvalidArgument, "The new size must be a multiple of 512");
        }
        let header = self.header.borrow();
        if header.snapshots.entries != 0 && header.geometry.version() == Version::V2 {
            return refuse(ErrorKind::Unsupported, "Can't resize a v2 image which has snapshots");
        }
        Ok(())
    }

    async fn shrink(&self, len: u64) -> Result<()> {
        self.remove(len..self.size.get()).await?;
        // The clusters go before the length does: a crash in between leaves a long disk.
        self.flush().await?;
        self.change_header(|header| header.size = len).await?;
        self.size.set(len);
        match &self.data {
            // A device stays as long as it is.
            Some(data) => container::cut(data, len).await,
            None => Ok(()),
        }
    }

    async fn grow(&self, old: u64, len: u64) -> Result<()> {
        // What the disk did not show until now may be anything: the rest of its last cluster, and
        // what a longer backing file has there.
        let geometry = self.geometry();
        let whole = old.next_multiple_of(geometry.cluster_size());
        let below = self.backing().map_or(0, |backing| backing.len());
        let unsure = whole.max(below).min(len);
        if whole < unsure {
            self.check_can_zero(&(whole..unsure), false)?;
        }
        if let Some(data) = &self.data
            && data.len() < len
        {
            data.grow(len).await?;
        }
        // The end of what the tables may have clusters for: QEMU leaves the memory of a guest behind the
        // disk, when it went back to a snapshot.
        let end = u64::from(self.header.borrow().l1.entries).saturating_mul(geometry.l2_span());
        let needed = geometry.l1_entries_for(len);
        if needed > u64::from(self.header.borrow().l1.entries) {
            self.move_l1(needed).await?;
        }
        self.size.set(len);
        let changed = self.show(old..unsure, unsure..len.min(end), len).await;
        if changed.is_err() {
            self.size.set(old);
        }
        changed
    }

    /// Makes the disk `len` bytes long, once what it would show reads as zeroes: `hidden`, which may be anything, and
    /// `behind`, which has nothing below.
    async fn show(&self, hidden: Range<u64>, behind: Range<u64>, len: u64) -> Result<()> {
        self.hide(hidden).await?;
        self.remove(behind).await?;
        self.flush().await?;
        self.change_header(|header| header.size = len).await
    }

    /// Makes zero what a disk that has grown would show. Where nothing is, at its old end, nothing needs to be
    /// written down: to copy what is before it in the same cluster would only cost space.
    async fn hide(&self, mut range: Range<u64>) -> Result<()> {
        // Others read a raw data file by itself, whatever the tables say.
        let is_raw = self.header.borrow().is_data_file_raw();
        if !range.is_empty() && !is_raw && self.is_zero_below(range.start) {
            let mapping = self.find(range.start, range.end - range.start).await?;
            if mapping.what == What::Absent {
                range.start += mapping.len;
            }
        }
        if range.is_empty() { Ok(()) } else { self.zero_alone(range).await }
    }

    /// Makes a longer L1 table. The header changes over to it when all of it is durable.
    async fn move_l1(&self, entries: u64) -> Result<()> {
        let geometry = self.geometry();
        let mut l1 = self.entries_of(&self.map.l1, Kind::ActiveL1)?;
        l1.resize(usize::try_from(entries).unwrap_or(usize::MAX), L1Entry::EMPTY.0);
        let clusters = geometry.clusters_for(entries * 8);
        let at = self.allocate_table(clusters).await?;
        let mut bytes: Vec<u8> = l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        bytes.resize(usize::try_from(clusters << geometry.cluster_bits()).unwrap_or(0), 0);
        // Entries that are not in the file yet are in the copy, so the tables that they point to
        // and their refcounts must be durable first.
        self.flush().await?;
        self.write_metadata(at, &bytes, Kind::ActiveL1).await?;
        self.write_refcounts().await?;
        let old = self.header.borrow().l1;
        let count = u32::try_from(entries).unwrap_or(u32::MAX);
        self.change_header(|header| {
            header.l1.offset = at;
            header.l1.entries = count;
        })
        .await?;
        self.map.l1.reset(at, l1);
        self.regions.set_range(Kind::ActiveL1, at..at + entries * 8);
        let old_bytes =
            geometry.clusters_for(u64::from(old.entries) * 8) << geometry.cluster_bits();
        if old_bytes != 0 {
            self.frees.push_clusters(old.offset, old_bytes, Why::Other);
        }
        Ok(())
    }
}

/// Makes zero what is not: a file that has no bytes there stays as small as it is.
async fn clear(data: &Edge, range: Range<u64>) -> Result<()> {
    let mut at = range.start;
    while at < range.end {
        let extent = data.map(at..range.end).await?;
        let end = at + extent.len;
        if extent.kind != ExtentKind::Zero {
            data.write_zeroes(at..end, WriteFlags::UNMAP).await?;
        }
        at = end;
    }
    Ok(())
}
