//! The members that `qcow2` has in `blockdev-add`.

use serde::{Deserialize, Deserializer};

use super::snapshot::SnapshotRef;
use crate::error::{Error, ErrorKind, Result};
use crate::open::BlockdevRef;

/// The members that `qcow2` has in `blockdev-add`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[expect(missing_docs, reason = "the members are QMP's, described there")]
pub struct Qcow2Options {
    pub file: BlockdevRef,
    #[serde(default)]
    pub backing: BackingRef,
    /// The external data file; by default the one that the image names.
    pub data_file: Option<BlockdevRef>,
    pub lazy_refcounts: Option<bool>,
    /// Give the space of what a guest discards back to the host (default: as the node's `discard`).
    pub pass_discard_request: Option<bool>,
    /// The same for what deleting a snapshot frees (default true).
    pub pass_discard_snapshot: Option<bool>,
    /// The same for what is freed otherwise (default false).
    pub pass_discard_other: Option<bool>,
    pub overlap_check: Option<OverlapCheck>,
    /// Bytes of both caches together.
    pub cache_size: Option<u64>,
    pub l2_cache_size: Option<u64>,
    /// Bytes of the pieces in which L2 tables are read and written.
    pub l2_cache_entry_size: Option<u64>,
    pub refcount_cache_size: Option<u64>,
    /// Seconds after which an unused part of the cache is given up; 0 for never.
    pub cache_clean_interval: Option<u64>,
    /// Discarded clusters keep their place in the file, so that it does not fragment.
    pub discard_no_unref: Option<bool>,
    /// Show an internal snapshot instead of the disk: by id or else name, or `{id, name}`.
    pub x_snapshot: Option<SnapshotRef>,
    /// Refused: encrypted images are not supported.
    pub encrypt: Option<serde_json::Value>,
}

/// Where what the image does not have is read from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum BackingRef {
    /// The file that the image names, if any.
    #[default]
    FromImage,
    /// Nothing, whatever the image says (`null`).
    None,
    /// This node.
    Node(BlockdevRef),
}

impl<'de> Deserialize<'de> for BackingRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        Ok(match Option::<BlockdevRef>::deserialize(deserializer)? {
            // QEMU's older way to say null.
            Some(BlockdevRef::Name(name)) if name.is_empty() => BackingRef::None,
            Some(node) => BackingRef::Node(node),
            None => BackingRef::None,
        })
    }
}

/// Which metadata no write may touch: a template, or each kind by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
#[expect(missing_docs, reason = "the members are QMP's, described there")]
pub enum OverlapCheck {
    Template(OverlapTemplate),
    Flags(OverlapFlags),
}

/// Templates of overlap checks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OverlapTemplate {
    /// No checks.
    None,
    /// What is found without looking anything up.
    Constant,
    /// What is in memory anyway.
    #[default]
    Cached,
    /// Everything, also what must be read from the image first.
    All,
}

/// Each kind of metadata by itself; what is not said is as in the template.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
#[expect(missing_docs, reason = "the members are QMP's, described there")]
pub struct OverlapFlags {
    pub template: Option<OverlapTemplate>,
    pub main_header: Option<bool>,
    pub active_l1: Option<bool>,
    pub active_l2: Option<bool>,
    pub refcount_table: Option<bool>,
    pub refcount_block: Option<bool>,
    pub snapshot_table: Option<bool>,
    pub inactive_l1: Option<bool>,
    pub inactive_l2: Option<bool>,
    pub bitmap_directory: Option<bool>,
}

/// What caches may grow to when nothing is said, in bytes: enough for the L2 tables of 256 GiB of
/// guest data at 64 KiB a cluster.
const DEFAULT_L2_CACHE: u64 = 32 << 20;
/// Fewest slices of the refcount cache.
const MIN_REFCOUNT_SLICES: u64 = 4;
/// Fewest slices of the L2 cache.
const MIN_L2_SLICES: u64 = 2;
/// The slice when nothing is said: a page, so that changing one entry writes little.
const DEFAULT_SLICE: u64 = 4096;
/// Largest cache, bytes: memory is real, and QEMU's limit is of this order.
const MAX_CACHE: u64 = 1 << 40;

/// How much of the metadata is kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CacheSizes {
    /// Bytes of a slice of an L2 table, of a refcount block too.
    pub(super) slice: usize,
    /// Slices of L2 tables.
    pub(super) l2_slices: usize,
    /// Slices of refcount blocks.
    pub(super) refcount_slices: usize,
}

impl Qcow2Options {
    /// Options with nothing but the file.
    pub fn new(file: BlockdevRef) -> Qcow2Options {
        Qcow2Options {
            file,
            backing: BackingRef::FromImage,
            data_file: None,
            lazy_refcounts: None,
            pass_discard_request: None,
            pass_discard_snapshot: None,
            pass_discard_other: None,
            overlap_check: None,
            cache_size: None,
            l2_cache_size: None,
            l2_cache_entry_size: None,
            refcount_cache_size: None,
            cache_clean_interval: None,
            discard_no_unref: None,
            x_snapshot: None,
            encrypt: None,
        }
    }

    /// Sizes of the caches for an image with clusters of `cluster` bytes whose L2 tables have
    /// `l2_bytes` bytes together, by QEMU's rules.
    pub(super) fn cache_sizes(&self, cluster: u64, l2_bytes: u64) -> Result<CacheSizes> {
        let slice = self.l2_cache_entry_size.unwrap_or(DEFAULT_SLICE.min(cluster));
        if !slice.is_power_of_two() || !(512..=cluster).contains(&slice) {
            return refuse(format!(
                "L2 cache entry size must be a power of two between 512 and the cluster size \
                 ({cluster})"
            ));
        }
        let useful = l2_bytes.max(slice);
        let (l2, refcount) = match (self.cache_size, self.l2_cache_size, self.refcount_cache_size) {
            (Some(_), Some(_), Some(_)) => {
                return refuse(
                    "cache-size, l2-cache-size and refcount-cache-size may not be set at the same \
                     time",
                );
            }
            (Some(total), Some(l2), _) if l2 > total => {
                return refuse("l2-cache-size may not exceed cache-size");
            }
            (Some(total), _, Some(refcount)) if refcount > total => {
                return refuse("refcount-cache-size may not exceed cache-size");
            }
            (Some(total), Some(l2), None) => (l2, total - l2),
            (Some(total), None, Some(refcount)) => (total - refcount, refcount),
            (Some(total), None, None) => {
                let refcount = (MIN_REFCOUNT_SLICES * slice).min(total);
                let l2 = useful.min(total - refcount);
                (l2, total - l2)
            }
            (None, l2, refcount) => (
                l2.unwrap_or(DEFAULT_L2_CACHE).min(useful),
                refcount.unwrap_or(DEFAULT_L2_CACHE / 32),
            ),
        };
        let slices = |bytes: u64, least: u64, what: &str| {
            let count = usize::try_from((bytes / slice).max(least));
            match count {
                Ok(count) if bytes <= MAX_CACHE => Ok(count),
                _ => refuse(format!("{what} cache size too big")),
            }
        };
        Ok(CacheSizes {
            slice: usize::try_from(slice).unwrap_or(usize::MAX),
            l2_slices: slices(l2, MIN_L2_SLICES, "L2")?,
            refcount_slices: slices(refcount, MIN_REFCOUNT_SLICES, "Refcount")?,
        })
    }
}

impl Default for OverlapCheck {
    fn default() -> OverlapCheck {
        OverlapCheck::Template(OverlapTemplate::default())
    }
}

impl OverlapCheck {
    /// The flags with the template filled in.
    pub(super) fn resolve(self) -> OverlapFlags {
        let flags = match self {
            OverlapCheck::Template(template) => {
                OverlapFlags { template: Some(template), ..OverlapFlags::default() }
            }
            OverlapCheck::Flags(flags) => flags,
        };
        let template = flags.template.unwrap_or_default();
        let at_least = |own: Option<bool>, from: OverlapTemplate| {
            Some(own.unwrap_or(template as u8 >= from as u8))
        };
        use OverlapTemplate::{All, Cached, Constant};
        OverlapFlags {
            template: Some(template),
            main_header: at_least(flags.main_header, Constant),
            active_l1: at_least(flags.active_l1, Constant),
            active_l2: at_least(flags.active_l2, Cached),
            refcount_table: at_least(flags.refcount_table, Constant),
            refcount_block: at_least(flags.refcount_block, Cached),
            snapshot_table: at_least(flags.snapshot_table, Constant),
            inactive_l1: at_least(flags.inactive_l1, Cached),
            inactive_l2: at_least(flags.inactive_l2, All),
            bitmap_directory: at_least(flags.bitmap_directory, Constant),
        }
    }
}

fn refuse<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::new(ErrorKind::InvalidArgument, text))
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
