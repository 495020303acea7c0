//! What the entries of the tables say, bit by bit: qcow2 specification, "Cluster mapping" and
//! "Host cluster management".

use super::geometry::Geometry;
use super::header::Version;
use crate::error::{Error, ErrorKind, Result};

/// Bits 9-55: where a table or cluster is in the image file.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bit 63: the refcount of what the entry points to is exactly one.
const COPIED: u64 = 1 << 63;
/// Bit 62: compressed.
const COMPRESSED: u64 = 1 << 62;
/// Bit 0 of a standard descriptor: reads as zeroes.
const ZERO: u64 = 1;
/// The unit in which the length of compressed data is counted, in bytes.
const SECTOR: u64 = 512;
/// Host addresses have at most 56 bits.
pub const MAX_HOST_OFFSET: u64 = (1 << 56) - 1;

/// An entry of an L1 table: where an L2 table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L1Entry(pub u64);

impl L1Entry {
    /// Nothing is allocated in what it describes.
    pub const EMPTY: L1Entry = L1Entry(0);

    /// Points to the L2 table at `host`; `copied` if its refcount is exactly one.
    pub fn new(host: u64, copied: bool) -> L1Entry {
        debug_assert_eq!(host & !OFFSET, 0);
        L1Entry(host | if copied { COPIED } else { 0 })
    }

    /// Where the L2 table is; `None` if there is none.
    pub fn offset(self) -> Option<u64> {
        Some(self.0 & OFFSET).filter(|&at| at != 0)
    }

    /// The L2 table's refcount is exactly one, so that it may be changed in place.
    pub fn is_copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// Bits that must be zero and are not.
    pub fn reserved(self) -> u64 {
        self.0 & !(OFFSET | COPIED)
    }
}

/// An entry of a refcount table: where a refcount block is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefcountTableEntry(pub u64);

impl RefcountTableEntry {
    /// Where the refcount block is; `None` if there is none and all its refcounts are zero.
    pub fn offset(self) -> Option<u64> {
        Some(self.0 & !(SECTOR - 1)).filter(|&at| at != 0)
    }

    /// Bits that must be zero and are not.
    pub fn reserved(self) -> u64 {
        self.0 & (SECTOR - 1)
    }
}

/// Which parts of a cluster are allocated and which read as zeroes, one bit for each subcluster,
/// subcluster 0 in bit 0. Without extended L2 entries a cluster is one part. A part in neither set
/// is read from the backing file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Parts whose bytes are in the host cluster.
    pub allocated: u32,
    /// Parts that read as zeroes.
    pub zero: u32,
}

impl Parts {
    /// All parts of a cluster, as a set.
    pub fn all(geometry: Geometry) -> u32 {
        u32::MAX >> (32 - geometry.subclusters())
    }
}

/// Where compressed data is. It starts anywhere and ends somewhere in its last sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed {
    /// First byte, in the image file.
    pub offset: u64,
    /// Bytes up to the end of the last sector, an upper bound of what the data takes.
    pub len: u64,
}

/// What an L2 entry says about a guest cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cluster {
    /// A whole cluster of the host, or none. With an external data file the host address is the
    /// guest's, and may be zero.
    Standard {
        /// Where the host cluster is, if there is one (it may serve zeroes only).
        host: Option<u64>,
        /// What is in it.
        parts: Parts,
    },
    /// Compressed data.
    Compressed(Compressed),
}

impl Cluster {
    /// Nothing here: read from the backing file.
    pub const UNALLOCATED: Cluster =
        Cluster::Standard { host: None, parts: Parts { allocated: 0, zero: 0 } };

    /// A cluster at `host` all of whose bytes are there.
    pub fn data(geometry: Geometry, host: u64) -> Cluster {
        let parts = Parts { allocated: Parts::all(geometry), zero: 0 };
        Cluster::Standard { host: Some(host), parts }
    }

    /// Reads as zeroes, with or without a host cluster kept for later.
    pub fn zero(geometry: Geometry, host: Option<u64>) -> Cluster {
        Cluster::Standard { host, parts: Parts { allocated: 0, zero: Parts::all(geometry) } }
    }
}

/// An entry of an L2 table as it is stored; `bitmap` is zero without extended L2 entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct L2Entry {
    /// The cluster descriptor with its flags.
    pub descriptor: u64,
    /// The subcluster allocation bitmap.
    pub bitmap: u64,
}

impl L2Entry {
    /// Entry `index` of the table in `table`, a whole cluster.
    pub fn get(table: &[u8], index: usize, geometry: Geometry) -> L2Entry {
        if geometry.has_extended_l2() {
            let (descriptor, bitmap) = (word(table, index * 2), word(table, index * 2 + 1));
            L2Entry { descriptor, bitmap }
        } else {
            L2Entry { descriptor: word(table, index), bitmap: 0 }
        }
    }

    /// Stores it as entry `index`.
    pub fn put(self, table: &mut [u8], index: usize, geometry: Geometry) {
        if geometry.has_extended_l2() {
            put_word(table, index * 2, self.descriptor);
            put_word(table, index * 2 + 1, self.bitmap);
        } else {
            put_word(table, index, self.descriptor);
        }
    }

    /// The entry that says `cluster`; `copied` if its refcount is exactly one.
    ///
    /// # Errors
    /// Compressed data lies further back than a descriptor can say, or version 2 is to hold zeroes.
    pub fn encode(cluster: Cluster, copied: bool, geometry: Geometry) -> Result<L2Entry> {
        let flag = if copied { COPIED } else { 0 };
        match cluster {
            Cluster::Compressed(data) => {
                Ok(L2Entry { descriptor: data.encode(geometry)? | COMPRESSED, bitmap: 0 })
            }
            Cluster::Standard { host, parts } => {
                let descriptor = host.unwrap_or(0) | flag;
                if geometry.has_extended_l2() {
                    let bitmap = u64::from(parts.allocated) | u64::from(parts.zero) << 32;
                    return Ok(L2Entry { descriptor, bitmap });
                }
                if parts.zero != 0 && geometry.version() == Version::V2 {
                    let text = "version 2 images cannot hold zero clusters";
                    return Err(Error::new(ErrorKind::Unsupported, text));
                }
                let zero = if parts.zero == 0 { 0 } else { ZERO };
                Ok(L2Entry { descriptor: descriptor | zero, bitmap: 0 })
            }
        }
    }

    /// What the entry says.
    ///
    /// # Errors
    /// It contradicts itself or the specification: an unaligned address, a subcluster that is
    /// both allocated and zero or allocated nowhere, zeroes in version 2, or compression in an
    /// external data file.
    pub fn decode(self, geometry: Geometry) -> Result<Cluster> {
        if self.is_compressed() {
            if geometry.has_external_data() {
                return Err(self.corrupt("is compressed, but data is in an external file"));
            }
            return Ok(Cluster::Compressed(Compressed::decode(self.descriptor, geometry)));
        }
        let at = self.address();
        if !geometry.is_aligned(at) {
            return Err(self.corrupt("has an address that is not at the start of a cluster"));
        }
        let here = at != 0 || (geometry.has_external_data() && self.is_copied());
        let host = here.then_some(at);
        let parts = if geometry.has_extended_l2() {
            let [z3, z2, z1, z0, a3, a2, a1, a0] = self.bitmap.to_be_bytes();
            let allocated = u32::from_be_bytes([a3, a2, a1, a0]);
            Parts { allocated, zero: u32::from_be_bytes([z3, z2, z1, z0]) }
        } else if self.descriptor & ZERO != 0 {
            if geometry.version() == Version::V2 {
                return Err(self.corrupt("is a zero cluster, which version 2 does not have"));
            }
            Parts { allocated: 0, zero: 1 }
        } else {
            Parts { allocated: u32::from(here), zero: 0 }
        };
        if parts.allocated & parts.zero != 0 {
            return Err(self.corrupt("has subclusters that are both allocated and zero"));
        }
        if parts.allocated != 0 && !here {
            return Err(self.corrupt("has allocated subclusters, but no host cluster"));
        }
        Ok(Cluster::Standard { host, parts })
    }

    /// The host address of a standard cluster in the image file, however wrong the entry is.
    pub(super) fn host_bits(self, geometry: Geometry) -> Option<u64> {
        let at = self.address();
        (!self.is_compressed() && !geometry.has_external_data() && at != 0).then_some(at)
    }

    /// The host address of a standard cluster, whatever the rest of the entry says.
    pub(super) fn address(self) -> u64 {
        self.descriptor & OFFSET
    }

    /// A host cluster without data, kept for later, at an address where no cluster can be.
    pub(super) fn is_misplaced_reserve(self, geometry: Geometry) -> bool {
        let data = match geometry.has_extended_l2() {
            true => self.bitmap & u64::from(u32::MAX) != 0,
            false => self.descriptor & ZERO == 0 || geometry.version() == Version::V2,
        };
        !self.is_compressed() && !data && !geometry.is_aligned(self.address())
    }

    /// What the guest reads there, without a host cluster.
    #[must_use]
    pub(super) fn without_reserve(self, geometry: Geometry) -> L2Entry {
        match geometry.has_extended_l2() {
            true => L2Entry { descriptor: 0, bitmap: self.bitmap & !u64::from(u32::MAX) },
            false => L2Entry { descriptor: ZERO, bitmap: 0 },
        }
    }

    /// The refcount is exactly one, so that the cluster may be written in place.
    pub fn is_copied(self) -> bool {
        self.descriptor & COPIED != 0
    }

    /// The same entry with that flag set or cleared.
    #[must_use]
    pub fn with_copied(self, copied: bool) -> L2Entry {
        let flag = if copied { COPIED } else { 0 };
        L2Entry { descriptor: self.descriptor & !COPIED | flag, ..self }
    }

    /// Whether it describes compressed data.
    pub fn is_compressed(self) -> bool {
        self.descriptor & COMPRESSED != 0
    }

    /// Bits that must be zero and are not.
    pub fn reserved(self, geometry: Geometry) -> u64 {
        if self.is_compressed() {
            return 0;
        }
        let zero = if geometry.has_extended_l2() { 0 } else { ZERO };
        self.descriptor & !(OFFSET | COPIED | zero)
    }

    #[cold]
    fn corrupt(self, what: &str) -> Error {
        let context = format!("L2 entry {:#x} (bitmap {:#x}) {what}", self.descriptor, self.bitmap);
        Error::new(ErrorKind::Corrupt, context)
    }
}

impl Compressed {
    /// Bits of the address; the sectors' number is above, up to bit 61.
    fn offset_bits(geometry: Geometry) -> u32 {
        62 - (geometry.cluster_bits() - 8)
    }

    fn decode(descriptor: u64, geometry: Geometry) -> Compressed {
        let bits = Compressed::offset_bits(geometry);
        let offset = descriptor & ((1 << bits) - 1) & MAX_HOST_OFFSET;
        let more = (descriptor & !(COPIED | COMPRESSED)) >> bits;
        // At most 2^13 sectors and 56 bits of offset: no sum here can overflow.
        Compressed { offset, len: (more + 1) * SECTOR - offset % SECTOR }
    }

    fn encode(self, geometry: Geometry) -> Result<u64> {
        let bits = Compressed::offset_bits(geometry);
        let end = self.offset.saturating_add(self.len);
        if end > (1 << bits.min(56)) || self.len == 0 || self.len > geometry.cluster_size() {
            let context = format!(
                "{} bytes of compressed data at {:#x} cannot be described with clusters of {}",
                self.len,
                self.offset,
                geometry.cluster_size()
            );
            return Err(Error::new(ErrorKind::NoSpace, context));
        }
        let more = (end - 1) / SECTOR - self.offset / SECTOR;
        Ok(self.offset | more << bits)
    }
}

/// Refcount `index` of the refcount block in `block`, a whole cluster. Refcounts of less than a
/// byte fill it from its lowest bit.
pub fn refcount(block: &[u8], index: usize, geometry: Geometry) -> u64 {
    let order = geometry.refcount_order();
    if order < 3 {
        let per_byte = 8 >> order;
        let shift = (index % per_byte) << order;
        return u64::from(block[index / per_byte] >> shift) & geometry.refcount_max();
    }
    let width = 1 << (order - 3);
    let bytes = &block[index * width..(index + 1) * width];
    bytes.iter().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

/// Stores refcount `index`. `value` must not exceed [`Geometry::refcount_max`].
pub fn put_refcount(block: &mut [u8], index: usize, value: u64, geometry: Geometry) {
    debug_assert!(value <= geometry.refcount_max());
    let order = geometry.refcount_order();
    let bytes = value.to_be_bytes();
    if order < 3 {
        let per_byte = 8 >> order;
        let shift = (index % per_byte) << order;
        let mask = u8::MAX >> (8 - (1 << order));
        let byte = &mut block[index / per_byte];
        *byte = *byte & !(mask << shift) | (bytes[7] & mask) << shift;
        return;
    }
    let width = 1 << (order - 3);
    block[index * width..(index + 1) * width].copy_from_slice(&bytes[8 - width..]);
}

fn word(table: &[u8], index: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&table[index * 8..index * 8 + 8]);
    u64::from_be_bytes(bytes)
}

fn put_word(table: &mut [u8], index: usize, word: u64) {
    table[index * 8..index * 8 + 8].copy_from_slice(&word.to_be_bytes());
}

#[cfg(test)]
#[path = "entry_tests.rs"]
mod tests;
