//! Overlap checks: no write may hit metadata that it is not meant for.
//!
//! Tables and refcounts of a broken image may claim anything. Before each write the places of all
//! known metadata are looked at, so that the damage does not spread: the write fails, and the image
//! is marked corrupt.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Range;

use super::geometry::Geometry;
use super::options::OverlapFlags;

/// Kinds of metadata, by the names that QEMU's options and messages have for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Header,
    ActiveL1,
    ActiveL2,
    RefcountBlock,
    RefcountTable,
    SnapshotTable,
    InactiveL1,
    InactiveL2,
    BitmapDirectory,
}

impl Kind {
    /// Its name in messages.
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Header => "qcow2_header",
            Kind::ActiveL1 => "active L1 table",
            Kind::ActiveL2 => "active L2 table",
            Kind::RefcountBlock => "refcount block",
            Kind::RefcountTable => "refcount table",
            Kind::SnapshotTable => "snapshot table",
            Kind::InactiveL1 => "inactive L1 table",
            Kind::InactiveL2 => "inactive L2 table",
            Kind::BitmapDirectory => "bitmap directory",
        }
    }

    fn is_checked(self, flags: &OverlapFlags) -> bool {
        let flag = match self {
            Kind::Header => flags.main_header,
            Kind::ActiveL1 => flags.active_l1,
            Kind::ActiveL2 => flags.active_l2,
            Kind::RefcountBlock => flags.refcount_block,
            Kind::RefcountTable => flags.refcount_table,
            Kind::SnapshotTable => flags.snapshot_table,
            Kind::InactiveL1 => flags.inactive_l1,
            Kind::InactiveL2 => flags.inactive_l2,
            Kind::BitmapDirectory => flags.bitmap_directory,
        };
        flag == Some(true)
    }
}

/// Where the metadata is.
pub(super) struct Regions {
    flags: OverlapFlags,
    cluster_bits: Cell<u32>,
    /// Tables of any length, by their first and last byte in the image file.
    ranges: RefCell<Vec<(Range<u64>, Kind)>>,
    /// Tables of one cluster, by the number of it.
    tables: RefCell<HashMap<u64, Kind>>,
}

impl Regions {
    pub(super) fn new(flags: OverlapFlags) -> Regions {
        Regions {
            flags,
            cluster_bits: Cell::new(0),
            ranges: RefCell::default(),
            tables: RefCell::default(),
        }
    }

    /// Forgets everything but the header.
    pub(super) fn reset(&self, geometry: Geometry) {
        self.cluster_bits.set(geometry.cluster_bits());
        self.ranges.take();
        self.tables.take();
        self.set_range(Kind::Header, 0..geometry.cluster_size());
    }

    /// There is one table of this kind, and it is there.
    pub(super) fn set_range(&self, kind: Kind, range: Range<u64>) {
        self.ranges.borrow_mut().retain(|(_, other)| *other != kind);
        self.add_range(kind, range);
    }

    /// There is another table of this kind.
    pub(super) fn add_range(&self, kind: Kind, range: Range<u64>) {
        if kind.is_checked(&self.flags) && !range.is_empty() {
            self.ranges.borrow_mut().push((range, kind));
        }
    }

    /// Whether this kind is looked for at all.
    pub(super) fn wants(&self, kind: Kind) -> bool {
        kind.is_checked(&self.flags)
    }

    /// There is a table of one cluster at `at`.
    pub(super) fn add(&self, at: u64, kind: Kind) {
        if kind.is_checked(&self.flags) {
            self.tables.borrow_mut().insert(at >> self.cluster_bits.get(), kind);
        }
    }

    /// The table of one cluster at `at` is none any more.
    pub(super) fn remove(&self, at: u64) {
        self.tables.borrow_mut().remove(&(at >> self.cluster_bits.get()));
    }

    /// Metadata in `range` that is not of the kind `own`.
    pub(super) fn hit(&self, range: &Range<u64>, own: Option<Kind>) -> Option<Kind> {
        let other = |kind: &Kind| Some(*kind) != own;
        let overlaps = |(there, kind): &&(Range<u64>, Kind)| {
            there.start < range.end && range.start < there.end && other(kind)
        };
        if let Some((_, kind)) = self.ranges.borrow().iter().find(overlaps) {
            return Some(*kind);
        }
        let bits = self.cluster_bits.get();
        let tables = self.tables.borrow();
        let clusters = range.start >> bits..range.end.div_ceil(1 << bits);
        clusters.filter_map(|cluster| tables.get(&cluster)).copied().find(other)
    }
}
