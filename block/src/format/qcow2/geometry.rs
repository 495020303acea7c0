//! [`Geometry`]: the sizes that follow from a header, and how addresses split into table indices.

use std::ops::Range;

use super::header::{Incompatible, Version};
use crate::error::{Error, ErrorKind, Result};

/// Smallest cluster, as a power of two.
pub const MIN_CLUSTER_BITS: u32 = 9;
/// Largest cluster, as a power of two; QEMU's limit too.
pub const MAX_CLUSTER_BITS: u32 = 21;
/// Widest refcount, as a power of two of bits.
pub const MAX_REFCOUNT_ORDER: u32 = 6;
/// Subclusters of a cluster in an image with extended L2 entries.
pub const SUBCLUSTERS: u32 = 32;
/// Smallest cluster that can be divided into subclusters of at least a sector.
const MIN_EXTENDED_CLUSTER_BITS: u32 = 14;

/// Cluster size, entry widths and what follows from them. Valid by construction.
///
/// *Guest* addresses are those of the virtual disk, *host* addresses those of the image file. All
/// in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    version: Version,
    cluster_bits: u32,
    refcount_order: u32,
    extended_l2: bool,
    external_data: bool,
}

impl Geometry {
    /// The geometry that header fields describe.
    ///
    /// # Errors
    /// A field is out of its range; the message names it.
    pub fn new(
        version: Version,
        cluster_bits: u32,
        refcount_order: u32,
        incompatible: Incompatible,
    ) -> Result<Geometry> {
        let extended_l2 = incompatible.contains(Incompatible::EXTENDED_L2);
        let least = if extended_l2 { MIN_EXTENDED_CLUSTER_BITS } else { MIN_CLUSTER_BITS };
        let refuse = |text| Err(Error::new(ErrorKind::Corrupt, text));
        if !(least..=MAX_CLUSTER_BITS).contains(&cluster_bits) {
            let with = if extended_l2 { " with extended L2 entries" } else { "" };
            return refuse(format!(
                "cluster_bits is {cluster_bits}, but must be between {least} and \
                 {MAX_CLUSTER_BITS}{with}"
            ));
        }
        if refcount_order > MAX_REFCOUNT_ORDER {
            return refuse(format!(
                "refcount_order is {refcount_order}, but must not exceed {MAX_REFCOUNT_ORDER}"
            ));
        }
        if version == Version::V2 && refcount_order != 4 {
            return refuse(format!(
                "refcount_order is {refcount_order}, but version 2 has only 4 (16 bits)"
            ));
        }
        let external_data = incompatible.contains(Incompatible::EXTERNAL_DATA);
        Ok(Geometry { version, cluster_bits, refcount_order, extended_l2, external_data })
    }

    /// The version of the format, which decides what an L2 entry can say.
    pub fn version(self) -> Version {
        self.version
    }

    /// log2 of the cluster size.
    pub fn cluster_bits(self) -> u32 {
        self.cluster_bits
    }

    /// Bytes of a cluster.
    pub fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// The same, as a length in memory.
    pub fn cluster_len(self) -> usize {
        1 << self.cluster_bits
    }

    /// Whether L2 entries have 128 bits and clusters 32 subclusters.
    pub fn has_extended_l2(self) -> bool {
        self.extended_l2
    }

    /// Whether guest clusters lie in a file of their own, at their guest address, without refcounts.
    pub fn has_external_data(self) -> bool {
        self.external_data
    }

    /// The part of an address within its cluster.
    pub fn within_cluster(self, at: u64) -> u64 {
        at & (self.cluster_size() - 1)
    }

    /// The start of the cluster of an address.
    pub fn cluster_start(self, at: u64) -> u64 {
        at & !(self.cluster_size() - 1)
    }

    /// The number of the cluster of an address.
    pub fn cluster_index(self, at: u64) -> u64 {
        at >> self.cluster_bits
    }

    /// Whether an address is the start of a cluster.
    pub fn is_aligned(self, at: u64) -> bool {
        self.within_cluster(at) == 0
    }

    /// Clusters that `bytes` need.
    pub fn clusters_for(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size())
    }

    /// `bytes` rounded up to whole clusters; `None` past the largest number.
    pub fn round_up(self, bytes: u64) -> Option<u64> {
        bytes.checked_next_multiple_of(self.cluster_size())
    }

    /// Bytes of an L2 entry.
    pub fn l2_entry_size(self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Entries of a piece of an L2 table of so many bytes; the number of the entry that begins there.
    pub fn l2_entries_in(self, bytes: usize) -> usize {
        bytes >> self.l2_entry_size().trailing_zeros()
    }

    /// The words of a piece of an L2 table that an entry has, by number.
    pub fn l2_entry_words(self, index: usize) -> Range<usize> {
        let first = |index: usize| index << (self.l2_entry_size() / 8).trailing_zeros();
        first(index)..first(index + 1)
    }

    /// Entries of an L2 table, which is one cluster.
    pub fn l2_entries(self) -> u64 {
        self.cluster_size() / self.l2_entry_size()
    }

    /// Guest bytes that one L2 table describes.
    pub fn l2_span(self) -> u64 {
        self.l2_entries() << self.cluster_bits
    }

    /// The L1 entry of a guest address.
    pub fn l1_index(self, guest: u64) -> u64 {
        guest / self.l2_span()
    }

    /// The entry of a guest address in its L2 table.
    pub fn l2_index(self, guest: u64) -> usize {
        let index = self.cluster_index(guest) & (self.l2_entries() - 1);
        usize::try_from(index).unwrap_or(usize::MAX)
    }

    /// L1 entries that a disk of `size` bytes needs.
    pub fn l1_entries_for(self, size: u64) -> u64 {
        size.div_ceil(self.l2_span())
    }

    /// Parts of a cluster that are allocated by themselves: 32, or 1 without extended L2 entries.
    pub fn subclusters(self) -> u32 {
        if self.extended_l2 { SUBCLUSTERS } else { 1 }
    }

    /// Bytes of a subcluster; of a cluster without extended L2 entries.
    pub fn subcluster_size(self) -> u64 {
        self.cluster_size() / u64::from(self.subclusters())
    }

    /// The subcluster of a guest address within its cluster.
    pub fn subcluster_index(self, guest: u64) -> u32 {
        let index = self.within_cluster(guest) / self.subcluster_size();
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    /// log2 of the bits of a refcount.
    pub fn refcount_order(self) -> u32 {
        self.refcount_order
    }

    /// Bits of a refcount.
    pub fn refcount_bits(self) -> u32 {
        1 << self.refcount_order
    }

    /// The highest refcount that can be stored.
    pub fn refcount_max(self) -> u64 {
        u64::MAX >> (64 - self.refcount_bits())
    }

    /// Refcounts in a refcount block, which is one cluster.
    pub fn refcount_block_entries(self) -> u64 {
        (self.cluster_size() * 8) >> self.refcount_order
    }

    /// Host bytes that one refcount block describes.
    pub fn refcount_span(self) -> u64 {
        self.refcount_block_entries() << self.cluster_bits
    }

    /// The refcount table entry of a host cluster, by its number.
    pub fn refcount_table_index(self, cluster: u64) -> u64 {
        cluster / self.refcount_block_entries()
    }

    /// The entry of a host cluster, by its number, in its refcount block.
    pub fn refcount_block_index(self, cluster: u64) -> usize {
        usize::try_from(cluster % self.refcount_block_entries()).unwrap_or(usize::MAX)
    }
}
