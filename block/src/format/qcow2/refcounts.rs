//! Refcounts: the refcount table in memory, slices of its blocks in a cache.
//!
//! A refcount that is *raised* may reach the file at any time: at worst a cluster leaks. One that is
//! *lowered* is changed here only after the last reference is durably gone (see `frees`), so it may
//! be written at any time too. That is why blocks need no order among themselves, and only the
//! flush makes sure that they are durable before the entries that rely on them.

use std::ops::Range;

use super::cache::SliceCache;
use super::checksum::{Piece, WORD};
use super::entry::{MAX_HOST_OFFSET, RefcountTableEntry, put_refcount, refcount};
use super::frees::Why;
use super::geometry::Geometry;
use super::image::Image;
use super::overlap::Kind;
use super::root_table::RootTable;
use crate::error::{Error, ErrorKind, Result};
use crate::ranges::RangeLocks;

/// Largest refcount table, bytes: QEMU's limit, which its check enforces.
const MAX_TABLE: u64 = 8 << 20;

/// The refcount structures of an image.
pub(super) struct Refcounts {
    /// As many entries as its clusters hold.
    pub(super) table: RootTable,
    pub(super) slices: SliceCache,
    /// Held while slices are written: an older content must not overtake a newer one.
    writing: RangeLocks,
}

impl Refcounts {
    pub(super) fn new(slices: SliceCache) -> Refcounts {
        Refcounts { table: RootTable::default(), slices, writing: RangeLocks::new() }
    }

    /// Begins anew with a table that was just read.
    pub(super) fn reset(&self, at: u64, table: Vec<u64>) {
        self.table.reset(at, table);
        self.slices.clear();
    }

    pub(super) fn is_dirty(&self) -> bool {
        self.slices.is_dirty() || self.table.is_dirty()
    }
}

/// Where a refcount is: the slice, the entry in it, and how many entries follow there.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) key: u64,
    pub(super) index: usize,
    pub(super) follow: u64,
}

impl Place {
    /// The words of the slice that hold `count` refcounts from here on, and the number of the first one in
    /// them.
    pub(super) fn words(self, count: u64, geometry: Geometry) -> (Range<usize>, usize) {
        let per_word = (WORD * 8) >> geometry.refcount_order();
        let end = self.index + usize::try_from(count).unwrap_or(0);
        (self.index / per_word..end.div_ceil(per_word), self.index % per_word)
    }
}

impl Image {
    /// Where the refcount of the host cluster number `cluster` is; `None` without a block for it.
    pub(super) fn refcount_place(&self, cluster: u64) -> Result<Option<Place>> {
        let geometry = self.geometry();
        let index = geometry.refcount_table_index(cluster);
        let entry = self.refcounts.table.get(index).unwrap_or(0);
        let Some(block) = RefcountTableEntry(entry).offset() else { return Ok(None) };
        if !geometry.is_aligned(block) || block > MAX_HOST_OFFSET {
            let what = if block > MAX_HOST_OFFSET { "too large" } else { "unaligned" };
            let text = format!("Refblock offset {block:#x} {what} (reftable index: {index:#x})");
            return Err(Error::new(ErrorKind::Corrupt, text));
        }
        let order = geometry.refcount_order();
        let index = geometry.refcount_block_index(cluster) as u64;
        let (key, _) = self.refcounts.slices.locate(block + (index << order >> 3));
        let per_slice = (self.refcounts.slices.slice_len() as u64 * 8) >> order;
        let index = index % per_slice;
        let follow = per_slice - index;
        Ok(Some(Place { key, index: usize::try_from(index).unwrap_or(usize::MAX), follow }))
    }

    /// Loads a slice of a refcount block.
    pub(super) async fn load_refcounts(&self, key: u64) -> Result<()> {
        while self.refcounts.slices.is_stuck() {
            self.write_refcounts().await?;
        }
        let len = self.refcounts.slices.slice_len();
        self.refcounts.slices.load(key, async || self.read_file(key, len).await).await
    }

    /// The refcount of a host cluster.
    pub(super) async fn refcount(&self, cluster: u64) -> Result<u64> {
        loop {
            let Some(place) = self.refcount_place(cluster)? else { return Ok(0) };
            let geometry = self.geometry();
            let look = |slice: &[u8]| refcount(slice, place.index, geometry);
            if let Some(count) = self.refcounts.slices.read(place.key, look) {
                return Ok(count);
            }
            self.load_refcounts(place.key).await?;
        }
    }

    /// Adds one reference to a host cluster.
    pub(super) async fn add_reference(&self, cluster: u64) -> Result<()> {
        let most = self.geometry().refcount_max();
        self.change_refcount(cluster, |count| {
            let raised = count.checked_add(1).filter(|raised| *raised <= most);
            raised.ok_or_else(|| {
                let text = format!("host cluster {cluster:#x} has as many references as fit");
                Error::new(ErrorKind::NoSpace, text)
            })
        })
        .await?;
        Ok(())
    }

    /// Takes one reference from a host cluster; how many are left.
    pub(super) async fn drop_reference(&self, cluster: u64) -> Result<u64> {
        self.change_refcount(cluster, |count| {
            count.checked_sub(1).ok_or_else(|| {
                let text = format!("host cluster {cluster:#x} is freed, but has no references");
                Error::new(ErrorKind::Corrupt, text)
            })
        })
        .await
    }

    async fn change_refcount(
        &self,
        cluster: u64,
        change: impl Fn(u64) -> Result<u64>,
    ) -> Result<u64> {
        let geometry = self.geometry();
        loop {
            let Some(place) = self.refcount_place(cluster)? else { return change(0) };
            let (words, index) = place.words(1, geometry);
            let changed = self.refcounts.slices.modify(place.key, words, |counts| {
                let count = change(refcount(counts, index, geometry))?;
                put_refcount(counts, index, count, geometry);
                Ok(count)
            });
            if let Some(result) = changed {
                return result;
            }
            self.load_refcounts(place.key).await?;
        }
    }

    /// Writes every block out that has changed, then the table if it has. A new block is durable
    /// before the table points to it: garbage in its place would be believed otherwise.
    pub(super) async fn write_refcounts(&self) -> Result<()> {
        let guard = self.refcounts.writing.lock(0..1, true).await;
        let slices = self.refcounts.slices.take_dirty();
        let result = self.write_tables(&slices, Kind::RefcountBlock).await;
        self.refcounts.slices.written(&slices, result.is_ok());
        result?;
        // The blocks that the table points to have been written. An entry that comes later needs a later
        // flush, also in the same piece.
        let pieces = self.refcounts.table.take_dirty();
        if !pieces.is_empty() {
            let result = self.write_table_pieces(&pieces).await;
            if result.is_err() {
                self.refcounts.table.put_back(&pieces);
            }
            result?;
        }
        drop(guard);
        Ok(())
    }

    async fn write_table_pieces(&self, pieces: &[Piece]) -> Result<()> {
        self.file.flush().await?;
        self.write_tables(pieces, Kind::RefcountTable).await
    }

    /// Makes refcount block `index` in the host cluster number `cluster`, whose refcount is one
    /// already, unless it is in this very block.
    pub(super) async fn make_refcount_block(&self, index: u64, cluster: u64) -> Result<()> {
        let geometry = self.geometry();
        let at = cluster << geometry.cluster_bits();
        let mut block = vec![0; geometry.cluster_len()];
        if geometry.refcount_table_index(cluster) == index {
            put_refcount(&mut block, geometry.refcount_block_index(cluster), 1, geometry);
        }
        self.reserve_file(at + geometry.cluster_size()).await?;
        self.write_metadata(at, &block, Kind::RefcountBlock).await?;
        self.refcounts.table.set(index, at)?;
        self.regions.add(at, Kind::RefcountBlock);
        Ok(())
    }

    /// Makes a larger refcount table of at least `entries` entries at host cluster number `start`,
    /// from where on no block describes anything yet, with the blocks for itself behind it.
    /// Nothing refers to any of it before all of it is durable; then the header does. Answers the
    /// number of the first cluster behind all that.
    pub(super) async fn grow_refcount_table(&self, start: u64, entries: u64) -> Result<u64> {
        // If this failed before, the header may point to the place that is used now.
        self.settle_header().await?;
        let geometry = self.geometry();
        let per_block = geometry.refcount_block_entries();
        let mut table = self.entries_of(&self.refcounts.table, Kind::RefcountTable)?;
        let entries = entries.max(table.len() as u64 + table.len() as u64 / 2);
        let plan = TablePlan::new(start, entries, per_block, geometry.cluster_size())?;
        let end = plan.end();
        self.reserve_file(end << geometry.cluster_bits()).await?;
        table.resize(usize::try_from(plan.entries).unwrap_or(usize::MAX), 0);
        for (number, index) in plan.blocks.clone().enumerate() {
            let cluster = start + plan.clusters + number as u64;
            let mut block = vec![0; geometry.cluster_len()];
            let covered = index * per_block..(index + 1) * per_block;
            for used in start.max(covered.start)..end.min(covered.end) {
                put_refcount(&mut block, geometry.refcount_block_index(used), 1, geometry);
            }
            let at = cluster << geometry.cluster_bits();
            self.write_metadata(at, &block, Kind::RefcountBlock).await?;
            table[usize::try_from(index).unwrap_or(usize::MAX)] = at;
        }
        let at = start << geometry.cluster_bits();
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        // The copy must have everything that the old table was to get.
        self.write_metadata(at, &bytes, Kind::RefcountTable).await?;
        let (old_at, old_clusters) = {
            let header = self.header.borrow();
            (header.refcount_table_offset, u64::from(header.refcount_table_clusters))
        };
        let guard = self.refcounts.writing.lock(0..1, true).await;
        let clusters = u32::try_from(plan.clusters).unwrap_or(u32::MAX);
        self.change_header(|header| {
            header.refcount_table_offset = at;
            header.refcount_table_clusters = clusters;
        })
        .await?;
        for index in plan.blocks.clone() {
            let block = table[usize::try_from(index).unwrap_or(usize::MAX)];
            self.regions.add(block, Kind::RefcountBlock);
        }
        self.refcounts.table.reset(at, table);
        let behind = at + (plan.clusters << geometry.cluster_bits());
        self.regions.set_range(Kind::RefcountTable, at..behind);
        drop(guard);
        self.frees.push_clusters(old_at, old_clusters << geometry.cluster_bits(), Why::Other);
        Ok(end)
    }
}

/// Where a new refcount table and its blocks go, in clusters.
struct TablePlan {
    start: u64,
    /// Clusters of the table.
    clusters: u64,
    /// Entries that fit into them.
    entries: u64,
    /// Entries of the blocks that describe table and blocks.
    blocks: Range<u64>,
}

impl TablePlan {
    fn new(start: u64, entries: u64, per_block: u64, cluster_size: u64) -> Result<TablePlan> {
        let first = start / per_block;
        let mut plan = TablePlan { start, clusters: 0, entries: 0, blocks: first..first + 1 };
        // Blocks take clusters, which take blocks: each round adds what the last one lacked.
        loop {
            let needed = entries.max(plan.blocks.end);
            plan.clusters = (needed * 8).div_ceil(cluster_size);
            plan.entries = plan.clusters * cluster_size / 8;
            if plan.clusters * cluster_size > MAX_TABLE {
                let text = "the image has as many clusters as a refcount table can describe";
                return Err(Error::new(ErrorKind::NoSpace, text));
            }
            let end = plan.end().div_ceil(per_block);
            if end <= plan.blocks.end && plan.blocks.end <= plan.entries {
                return Ok(plan);
            }
            plan.blocks.end = plan.blocks.end.max(end);
        }
    }

    fn end(&self) -> u64 {
        self.start + self.clusters + (self.blocks.end - self.blocks.start)
    }
}
