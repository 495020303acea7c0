//! Where everything of a new image goes: header, refcount table, refcount blocks, L1 table, then,
//! if it is preallocated, L2 tables and data.

use super::super::geometry::Geometry;
use super::super::header::{MAX_L1_BYTES, MAX_REFCOUNT_TABLE_BYTES};
use crate::error::{Error, ErrorKind, Result};

/// Clusters of refcount structures that describe `others` clusters and themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RefcountArea {
    /// Refcount blocks, one cluster each.
    pub(super) blocks: u64,
    /// Clusters of the refcount table.
    pub(super) table_clusters: u64,
}

impl RefcountArea {
    /// The smallest area for `others` clusters and itself. Each round only adds, and what it adds
    /// shrinks by the number of entries in a block, so this ends after a few rounds.
    pub(super) fn for_clusters(others: u64, geometry: Geometry) -> RefcountArea {
        let mut area = RefcountArea { blocks: 1, table_clusters: 1 };
        loop {
            let total = others + area.blocks + area.table_clusters;
            let blocks = total.div_ceil(geometry.refcount_block_entries());
            let table_clusters = geometry.clusters_for(blocks * 8);
            let next = RefcountArea {
                blocks: blocks.max(area.blocks),
                table_clusters: table_clusters.max(area.table_clusters),
            };
            if next == area {
                return area;
            }
            area = next;
        }
    }
}

/// Host clusters by number, one range after the other, and what is in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) geometry: Geometry,
    /// Entries of the L1 table.
    pub(super) l1_entries: u64,
    /// Clusters of the L1 table.
    pub(super) l1_clusters: u64,
    /// L2 tables, one cluster each.
    pub(super) l2_tables: u64,
    /// Guest clusters in the image file.
    pub(super) data_clusters: u64,
    pub(super) refcounts: RefcountArea,
}

impl Layout {
    /// The layout of an image for a disk of `size` bytes.
    pub(super) fn new(geometry: Geometry, size: u64, preallocated: bool) -> Result<Layout> {
        let l1_entries = geometry.l1_entries_for(size);
        if l1_entries * 8 > MAX_L1_BYTES {
            let context = "The image size is too large for file format 'qcow2' (try using a \
                           larger cluster size)";
            return Err(Error::new(ErrorKind::InvalidArgument, context));
        }
        let l1_clusters = geometry.clusters_for(l1_entries * 8);
        let guest_clusters = if preallocated { geometry.clusters_for(size) } else { 0 };
        let l2_tables = if preallocated { l1_entries } else { 0 };
        let data_clusters = if geometry.has_external_data() { 0 } else { guest_clusters };
        let others = 1 + l1_clusters + l2_tables + data_clusters;
        let refcounts = RefcountArea::for_clusters(others, geometry);
        if refcounts.table_clusters << geometry.cluster_bits() > MAX_REFCOUNT_TABLE_BYTES {
            let context = "the image would need a refcount table longer than 8 MiB; use larger \
                           clusters";
            return Err(Error::new(ErrorKind::InvalidArgument, context));
        }
        Ok(Layout { geometry, l1_entries, l1_clusters, l2_tables, data_clusters, refcounts })
    }

    /// First byte of the refcount table.
    pub(super) fn refcount_table(&self) -> u64 {
        self.geometry.cluster_size()
    }

    /// First byte of the refcount blocks.
    pub(super) fn refcount_blocks(&self) -> u64 {
        self.refcount_table() + self.bytes(self.refcounts.table_clusters)
    }

    /// First byte of the L1 table.
    pub(super) fn l1(&self) -> u64 {
        self.refcount_blocks() + self.bytes(self.refcounts.blocks)
    }

    /// First byte of the L2 tables.
    pub(super) fn l2(&self) -> u64 {
        self.l1() + self.bytes(self.l1_clusters)
    }

    /// First byte of the guest's clusters.
    pub(super) fn data(&self) -> u64 {
        self.l2() + self.bytes(self.l2_tables)
    }

    /// End of the image file.
    pub(super) fn end(&self) -> u64 {
        self.data() + self.bytes(self.data_clusters)
    }

    fn bytes(&self, clusters: u64) -> u64 {
        // The limits of both tables keep every number of clusters below 2^40.
        clusters << self.geometry.cluster_bits()
    }
}
