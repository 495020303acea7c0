//! [`AtRest`]: an image that nobody uses meanwhile, for operations on it as a whole: snapshots,
//! bitmaps, amendments, the completion of snapshots in a repair, and giving back the tables of a
//! disk that has become shorter.
//!
//! That nobody does is the caller's to see to: a tool on an image that is not open elsewhere, or the
//! driver, with its caches written out, no request under way, and everything read again afterwards.
//!
//! Refcounts change in memory first. [`AtRest::write_refcounts`] makes them durable, and each
//! operation keeps the order that makes a crash harmless: raised before the first reference is
//! written, lowered after the last reference is durably gone. At worst clusters leak. What can be
//! given up then is for `surplus` to find.

mod surplus;

use std::collections::BTreeMap;

use super::check::recount;
use super::container::{read_at, read_words, write_at, write_words};
use super::entry::{RefcountTableEntry, put_refcount, refcount};
use super::geometry::Geometry;
use super::header::{Autoclear, Header, Incompatible, MAX_REFCOUNT_TABLE_BYTES, Version};
use crate::edge::Edge;
use crate::error::{Error, ErrorKind, Result};

/// Refcount blocks that are searched for free clusters before the file grows instead.
const SEARCHED_BLOCKS: u64 = 64;
/// Clusters behind the end of the file that are passed over because they have refcounts: a crash leaves
/// fewer, and whoever makes an image may claim more than there is time and memory for.
const MAX_BEHIND: u64 = 1 << 18;

/// An image at rest.
pub(super) struct AtRest<'a> {
    pub(super) file: &'a Edge,
    pub(super) header: Header,
    table: Vec<u64>,
    table_changed: bool,
    /// The refcount table that the header on disk points to, once it was moved, and those that it was
    /// moved to since.
    old_tables: Vec<(u64, u64)>,
    blocks: BTreeMap<u64, Block>,
    /// Clusters of the file when it was opened.
    len: u64,
    /// Nothing from this cluster on is in use: behind the end of the file, or earlier once that was looked at.
    end: u64,
    end_is_found: bool,
    /// Clusters before this one were given out, or their refcounts changed, which may not be in a block yet.
    taken: u64,
    /// No cluster before is free.
    searched: u64,
}

/// A refcount block in memory.
struct Block {
    bytes: Vec<u8>,
    changed: bool,
}

impl<'a> AtRest<'a> {
    /// Opens the image in `file` to change it. One that was not closed is put in order first.
    ///
    /// # Errors
    /// Its refcounts cannot be relied on, or its tables make no sense.
    pub(super) async fn open(file: &'a Edge) -> Result<AtRest<'a>> {
        let mut header = Header::load(file).await?;
        header.check_against(file.len())?;
        if header.incompatible.contains(Incompatible::CORRUPT) {
            let context = "the image is marked corrupt: repair it first";
            return Err(Error::new(ErrorKind::Corrupt, context));
        }
        if header.incompatible.contains(Incompatible::DIRTY) {
            Box::pin(recount(file)).await?;
            header = Header::load(file).await?;
        }
        AtRest::load(file, header).await
    }

    /// The image in `file` with this header, whatever its flags say, to repair it.
    pub(super) async fn load(file: &'a Edge, mut header: Header) -> Result<AtRest<'a>> {
        // Whoever writes must take back what others promise that he knows nothing of.
        header.autoclear = Autoclear(header.autoclear.0 & Autoclear::KNOWN.0);
        let entries = usize::try_from(header.refcount_table_bytes() / 8).unwrap_or(0);
        let table = read_words(file, header.refcount_table_offset, entries).await?;
        let len = header.geometry.clusters_for(file.len());
        Ok(AtRest {
            file,
            header,
            table,
            table_changed: false,
            old_tables: Vec::new(),
            blocks: BTreeMap::new(),
            len,
            end: len,
            end_is_found: false,
            taken: 0,
            searched: 0,
        })
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.header.geometry
    }

    /// The refcount of a cluster, by its number.
    pub(super) async fn refcount(&mut self, cluster: u64) -> Result<u64> {
        let geometry = self.geometry();
        let index = geometry.refcount_table_index(cluster);
        match self.block(index).await? {
            Some(block) => {
                Ok(refcount(&block.bytes, geometry.refcount_block_index(cluster), geometry))
            }
            None => Ok(0),
        }
    }

    /// One reference more (`up`) or less to each cluster of a stretch of the file.
    ///
    /// # Errors
    /// `Corrupt` for what lies outside the file or has no references left, `NoSpace` if the
    /// refcount is too narrow.
    pub(super) async fn change(&mut self, offset: u64, bytes: u64, up: bool) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let geometry = self.geometry();
        let last = offset.checked_add(bytes - 1).map(|at| geometry.cluster_index(at));
        let Some(last) = last.filter(|&last| last < self.end.max(self.len)) else {
            let context = format!("{bytes} bytes at {offset:#x} are not in the image file");
            return Err(Error::new(ErrorKind::Corrupt, context));
        };
        for cluster in geometry.cluster_index(offset)..=last {
            let old = self.refcount(cluster).await?;
            let new = if up { old.checked_add(1) } else { old.checked_sub(1) };
            let Some(new) = new else {
                let context = format!("cluster {cluster} is in use, but its refcount is 0");
                return Err(Error::new(ErrorKind::Corrupt, context));
            };
            if new > geometry.refcount_max() {
                let context = format!(
                    "cluster {cluster} has {old} references, and refcounts of {} bits cannot hold \
                     more",
                    geometry.refcount_bits()
                );
                return Err(Error::new(ErrorKind::NoSpace, context));
            }
            self.set(cluster, new).await?;
        }
        Ok(())
    }

    /// `bytes` of new space in one piece, in whole clusters; answers where. What has no bytes is
    /// nowhere.
    pub(super) async fn allocate(&mut self, bytes: u64) -> Result<u64> {
        if bytes == 0 {
            return Ok(0);
        }
        let geometry = self.geometry();
        let clusters = geometry.clusters_for(bytes);
        let first = match self.find_free(clusters).await? {
            Some(first) => first,
            None => self.append(clusters).await?,
        };
        self.take_before(first + clusters);
        for cluster in first..first + clusters {
            self.set(cluster, 1).await?;
        }
        if clusters == 1 {
            self.searched = first + 1;
        }
        Ok(first << geometry.cluster_bits())
    }

    /// Makes all refcounts durable, and the table of their blocks.
    pub(super) async fn write_refcounts(&mut self) -> Result<()> {
        for (&index, block) in &mut self.blocks {
            if std::mem::take(&mut block.changed) {
                let at = self.table[usize::try_from(index).unwrap_or(usize::MAX)];
                write_at(self.file, at, &block.bytes).await?;
            }
        }
        self.file.flush().await?;
        if std::mem::take(&mut self.table_changed) {
            write_words(self.file, self.header.refcount_table_offset, &self.table).await?;
            self.file.flush().await?;
        }
        let old_tables = std::mem::take(&mut self.old_tables);
        if old_tables.is_empty() {
            return Ok(());
        }
        self.write_header().await?;
        for (offset, bytes) in old_tables {
            self.change(offset, bytes, false).await?;
        }
        // The old tables' own refcounts: there is no table to move any more.
        Box::pin(self.write_refcounts()).await
    }

    /// The header says from now on, once it is written, that refcounts and the flags that repeat them may
    /// differ (`set`), or that they do not any more. No single write changes both, and whoever opens
    /// an image that was left in between counts them anew. Version 2 cannot say so: there flags are left that
    /// are wrong on the safe side.
    pub(super) fn mark_unsettled(&mut self, set: bool) {
        if self.geometry().version() == Version::V3 {
            self.header.incompatible = self.header.incompatible.with(Incompatible::DIRTY, set);
        }
    }

    /// The same, written at once to the header as it is on disk: ours may point to what is not there yet.
    pub(super) async fn unsettle(&mut self) -> Result<()> {
        self.mark_unsettled(true);
        let mut header = Header::load(self.file).await?;
        header.incompatible = self.header.incompatible;
        header.autoclear = self.header.autoclear;
        header.store(self.file).await
    }

    /// Makes the header durable, and everything written before it.
    pub(super) async fn write_header(&self) -> Result<()> {
        self.header.store(self.file).await
    }

    /// The refcount block `index`, if there is one.
    async fn block(&mut self, index: u64) -> Result<Option<&mut Block>> {
        let place = usize::try_from(index).unwrap_or(usize::MAX);
        let entry = RefcountTableEntry(self.table.get(place).copied().unwrap_or(0));
        let Some(at) = entry.offset() else { return Ok(None) };
        if !self.blocks.contains_key(&index) {
            let geometry = self.geometry();
            let inside = geometry.cluster_index(at) < self.end.max(self.len);
            if entry.reserved() != 0 || !geometry.is_aligned(at) || !inside {
                let context = format!("refcount table entry {index} is {:#x}", entry.0);
                return Err(Error::new(ErrorKind::Corrupt, context));
            }
            let bytes = read_at(self.file, at, geometry.cluster_len()).await?;
            self.blocks.insert(index, Block { bytes, changed: false });
        }
        Ok(self.blocks.get_mut(&index))
    }

    async fn set(&mut self, cluster: u64, value: u64) -> Result<()> {
        let geometry = self.geometry();
        let index = geometry.refcount_table_index(cluster);
        self.take_before(cluster + 1);
        self.make_blocks(index).await?;
        if let Some(block) = self.block(index).await? {
            let place = geometry.refcount_block_index(cluster);
            put_refcount(&mut block.bytes, place, value, geometry);
            block.changed = true;
        }
        Ok(())
    }

    /// Sees to it that block `index` exists, and the blocks of what is allocated for that.
    async fn make_blocks(&mut self, index: u64) -> Result<()> {
        let geometry = self.geometry();
        let place = usize::try_from(index).unwrap_or(usize::MAX);
        if self.table.get(place).is_some_and(|entry| *entry != 0) {
            return Ok(());
        }
        self.find_end().await?;
        let (mut wanted, mut taken) = (vec![index], Vec::new());
        while let Some(index) = wanted.pop() {
            let mut new = self.grow_table(index)?;
            let place = usize::try_from(index).unwrap_or(usize::MAX);
            if self.table[place] == 0 {
                self.table[place] = self.end << geometry.cluster_bits();
                self.table_changed = true;
                new.push(self.end);
                self.end += 1;
                let bytes = vec![0; geometry.cluster_len()];
                self.blocks.insert(index, Block { bytes, changed: true });
            }
            wanted.extend(new.iter().map(|&cluster| geometry.refcount_table_index(cluster)));
            taken.extend(new);
        }
        for cluster in taken {
            if let Some(block) = self.block(geometry.refcount_table_index(cluster)).await? {
                let place = geometry.refcount_block_index(cluster);
                put_refcount(&mut block.bytes, place, 1, geometry);
                block.changed = true;
            }
        }
        Ok(())
    }

    /// Moves the refcount table to a longer place if it has no entry `index`; answers the clusters
    /// taken.
    fn grow_table(&mut self, index: u64) -> Result<Vec<u64>> {
        if index < self.table.len() as u64 {
            return Ok(Vec::new());
        }
        let geometry = self.geometry();
        // Half as much again, so that it is not moved every time.
        let clusters = geometry.clusters_for((index + 1).saturating_mul(12));
        if clusters > MAX_REFCOUNT_TABLE_BYTES >> geometry.cluster_bits() {
            let context = "the refcount table would be longer than 8 MiB";
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        let old = (self.header.refcount_table_offset, self.header.refcount_table_bytes());
        self.old_tables.push(old);
        let first = self.end;
        self.end += clusters;
        let entries = (clusters << geometry.cluster_bits()) / 8;
        self.table.resize(usize::try_from(entries).unwrap_or(usize::MAX), 0);
        self.table_changed = true;
        self.header.refcount_table_offset = first << geometry.cluster_bits();
        self.header.refcount_table_clusters = u32::try_from(clusters).unwrap_or(u32::MAX);
        Ok((first..self.end).collect())
    }

    /// The first run of free clusters, where it is worth looking.
    async fn find_free(&mut self, clusters: u64) -> Result<Option<u64>> {
        let limit = self.geometry().refcount_block_entries() * SEARCHED_BLOCKS;
        let mut run = 0;
        let mut cluster = self.searched.max(1);
        while cluster < self.end.min(limit) {
            run = if self.refcount(cluster).await? == 0 { run + 1 } else { 0 };
            cluster += 1;
            if run == clusters {
                return Ok(Some(cluster - clusters));
            }
        }
        Ok(None)
    }

    /// Finds the end of what is in use. A device has room behind that, and none behind its own end.
    async fn find_end(&mut self) -> Result<()> {
        if !std::mem::replace(&mut self.end_is_found, true) {
            self.end = self.end_in_use().await?.max(self.taken);
        }
        Ok(())
    }

    /// Nothing goes to a place before `end` behind all that is in use: somebody has it.
    fn take_before(&mut self, end: u64) {
        self.taken = self.taken.max(end);
        if self.end_is_found {
            self.end = self.end.max(end);
        }
    }

    /// Clusters behind all that are in use.
    async fn append(&mut self, clusters: u64) -> Result<u64> {
        self.find_end().await?;
        // A refcount behind the end is a leak, but not ours to use.
        let last = self.end.saturating_add(MAX_BEHIND);
        while self.refcount(self.end).await? != 0 {
            self.end += 1;
            if self.end > last {
                let context = "the refcounts claim a lot that is behind the end of the file";
                return Err(Error::new(ErrorKind::Corrupt, context));
            }
        }
        let first = self.end;
        self.end += clusters;
        Ok(first)
    }
}
