//! The `qcow2` driver.

use serde::{Deserialize, Serialize};

use super::{BlockdevRef, BlockdevRefOrNull, present};
use crate::schema::{Alternate, Described, Type, enumeration, object};

object! {
    /// Options of `qcow2`.
    pub struct Qcow2Options {
        /// The node with the image.
        file: BlockdevRef = "file",
        /// The backing node (default: the one that the image names; null for none).
        #[serde(default, deserialize_with = "present")]
        backing: Option<BlockdevRefOrNull> = "backing",
        /// Whether to write reference counts late (default: as the image says).
        lazy_refcounts: Option<bool> = "lazy-refcounts",
        /// Whether discards are passed on (default: as `discard` says).
        pass_discard_request: Option<bool> = "pass-discard-request",
        /// Whether clusters of deleted snapshots are discarded (default true).
        pass_discard_snapshot: Option<bool> = "pass-discard-snapshot",
        /// Whether clusters freed for other reasons are discarded (default false).
        pass_discard_other: Option<bool> = "pass-discard-other",
        /// Which metadata no write may touch (default cached).
        overlap_check: Option<Qcow2OverlapChecks> = "overlap-check",
        /// Bytes of both caches together.
        cache_size: Option<i64> = "cache-size",
        /// Bytes of the cache of L2 tables.
        l2_cache_size: Option<i64> = "l2-cache-size",
        /// Bytes of a part of an L2 table that is read at once.
        l2_cache_entry_size: Option<i64> = "l2-cache-entry-size",
        /// Bytes of the cache of reference counts.
        refcount_cache_size: Option<i64> = "refcount-cache-size",
        /// Seconds after which unused parts of the cache are given up, 0 for never.
        cache_clean_interval: Option<i64> = "cache-clean-interval",
        /// The external data file (default: the one that the image names).
        data_file: Option<BlockdevRef> = "data-file",
        /// Discarded clusters keep their place in the file (default false).
        discard_no_unref: Option<bool> = "discard-no-unref",
    }
}

enumeration! {
    /// Templates of overlap checks.
    pub enum Qcow2OverlapCheckMode {
        /// None.
        None = "none",
        /// What is found without looking anything up.
        Constant = "constant",
        /// What is in memory anyway.
        Cached = "cached",
        /// Everything.
        All = "all",
    }
}

object! {
    /// Each kind of metadata by itself; what is not said is as in the template.
    #[derive(Default)]
    pub struct Qcow2OverlapCheckFlags {
        /// The template.
        template: Option<Qcow2OverlapCheckMode> = "template",
        /// The header.
        main_header: Option<bool> = "main-header",
        /// The active L1 table.
        active_l1: Option<bool> = "active-l1",
        /// The active L2 tables.
        active_l2: Option<bool> = "active-l2",
        /// The refcount table.
        refcount_table: Option<bool> = "refcount-table",
        /// The refcount blocks.
        refcount_block: Option<bool> = "refcount-block",
        /// The snapshot table.
        snapshot_table: Option<bool> = "snapshot-table",
        /// L1 tables of snapshots.
        inactive_l1: Option<bool> = "inactive-l1",
        /// L2 tables of snapshots.
        inactive_l2: Option<bool> = "inactive-l2",
        /// The bitmap directory.
        bitmap_directory: Option<bool> = "bitmap-directory",
    }
}

/// Overlap checks: a template, or each kind by itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Qcow2OverlapChecks {
    /// Each kind by itself.
    Flags(Qcow2OverlapCheckFlags),
    /// A template.
    Mode(Qcow2OverlapCheckMode),
}

impl Described for Qcow2OverlapChecks {
    fn describe() -> Type {
        static ALTERNATE: Alternate = Alternate {
            name: "Qcow2OverlapChecks",
            members: &[Qcow2OverlapCheckFlags::describe, Qcow2OverlapCheckMode::describe],
        };
        Type::Alternate(&ALTERNATE)
    }
}
