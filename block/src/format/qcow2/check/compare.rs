//! What the refcount structures say against what was counted.

use std::cmp::Ordering;

use super::super::container::{read_at, read_words, write_at};
use super::super::entry::{RefcountTableEntry, put_refcount, refcount};
use super::walk::Walk;
use crate::error::Result;

/// Which differences are to be put right in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fix {
    Nothing,
    Leaks,
    All,
}

/// The refcount blocks that can be believed, by their index in the refcount table.
pub(super) struct Blocks {
    at: Vec<Option<u64>>,
    /// The block that was looked at last, and its index.
    last: Option<(u64, Vec<u8>)>,
    /// The structures themselves are wrong: they must be made anew.
    pub(super) must_rebuild: bool,
}

impl Blocks {
    /// The refcount that the image has for a cluster.
    pub(super) async fn refcount(&mut self, walk: &Walk<'_>, cluster: u64) -> Result<u64> {
        let geometry = walk.geometry;
        let index = geometry.refcount_table_index(cluster);
        let place = usize::try_from(index).unwrap_or(usize::MAX);
        let Some(at) = self.at.get(place).copied().flatten() else { return Ok(0) };
        let block = match self.last.take().filter(|(last, _)| *last == index) {
            Some((_, block)) => block,
            None => read_at(walk.file, at, geometry.cluster_len()).await?,
        };
        let found = refcount(&block, geometry.refcount_block_index(cluster), geometry);
        self.last = Some((index, block));
        Ok(found)
    }
}

/// Counts the refcount structures themselves, and looks for blocks that cannot be.
pub(super) async fn load_blocks(walk: &mut Walk<'_>) -> Result<Blocks> {
    let (header, geometry) = (walk.header, walk.geometry);
    walk.count(header.refcount_table_offset, header.refcount_table_bytes(), 1)?;
    let entries = usize::try_from(header.refcount_table_bytes() / 8).unwrap_or(0);
    let table = read_words(walk.file, header.refcount_table_offset, entries).await?;
    let mut blocks = Blocks { at: Vec::with_capacity(entries), last: None, must_rebuild: false };
    for (index, entry) in table.into_iter().enumerate() {
        let entry = RefcountTableEntry(entry);
        let at = entry.offset();
        let problem = match at {
            _ if entry.reserved() != 0 => "has reserved bits set",
            None => {
                blocks.at.push(None);
                continue;
            }
            Some(at) if !geometry.is_aligned(at) => "is not cluster aligned",
            Some(at) if at >= walk.file_len => "is outside image",
            Some(at) => {
                walk.count(at, geometry.cluster_size(), 1)?;
                if walk.counts.get(geometry.cluster_index(at)) == 1 {
                    blocks.at.push(Some(at));
                    continue;
                }
                "is used for something else too"
            }
        };
        walk.report.corrupt(format!("refcount block {index} ({:#x}) {problem}", entry.0));
        blocks.at.push(None);
        blocks.must_rebuild = true;
    }
    Ok(blocks)
}

/// Compares all refcounts, and puts right what `fix` says and the blocks allow.
pub(super) async fn compare(walk: &mut Walk<'_>, blocks: &mut Blocks, fix: Fix) -> Result<()> {
    let geometry = walk.geometry;
    let clusters = geometry.clusters_for(walk.file_len);
    let span = geometry.refcount_block_entries();
    let mut end = 0;
    for (index, at) in blocks.at.iter().enumerate() {
        let first = index as u64 * span;
        if first >= clusters {
            break;
        }
        let range = first..clusters.min(first + span);
        let Some(at) = *at else {
            for cluster in walk.counts.used(range).collect::<Vec<_>>() {
                missing(walk, cluster, &mut blocks.must_rebuild);
            }
            continue;
        };
        let mut block = read_at(walk.file, at, geometry.cluster_len()).await?;
        let mut changed = false;
        for cluster in range {
            let place = geometry.refcount_block_index(cluster);
            let (says, counted) = (refcount(&block, place, geometry), walk.counts.get(cluster));
            if says != 0 {
                end = end.max(cluster + 1);
            }
            let text = || format!("cluster {cluster} refcount={says} reference={counted}");
            let wanted = fix == Fix::All || (fix == Fix::Leaks && says > counted);
            let repairs = wanted && counted <= geometry.refcount_max();
            match (says.cmp(&counted), repairs) {
                (Ordering::Equal, _) => continue,
                (Ordering::Greater, false) => walk.report.leak(text()),
                (Ordering::Greater, true) => walk.report.repair_leak(text()),
                (Ordering::Less, false) => walk.report.corrupt(text()),
                (Ordering::Less, true) => walk.report.repair_corruption(text()),
            }
            if repairs {
                put_refcount(&mut block, place, counted, geometry);
                changed = true;
            }
        }
        if changed {
            write_at(walk.file, at, &block).await?;
        }
    }
    // The refcount table ends before the file does.
    let covered = blocks.at.len() as u64 * span;
    for cluster in walk.counts.used(covered..clusters.max(covered)).collect::<Vec<_>>() {
        missing(walk, cluster, &mut blocks.must_rebuild);
    }
    walk.report.image_end_offset = end.max(walk.counts.end()) << geometry.cluster_bits();
    Ok(())
}

/// A cluster is in use, but there is no block that could say so.
fn missing(walk: &mut Walk<'_>, cluster: u64, must_rebuild: &mut bool) {
    let counted = walk.counts.get(cluster);
    walk.report.corrupt(format!("cluster {cluster} refcount=0 reference={counted}"));
    *must_rebuild = true;
}
