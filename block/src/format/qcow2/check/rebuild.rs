//! New refcount structures from the references that were counted.
//!
//! They go behind the end of the file, where nothing can be overwritten, and the header points to
//! them once they are durable. The old ones are free then.

use std::collections::BTreeSet;

use super::super::container::{write_at, write_words};
use super::super::entry::put_refcount;
use super::super::header::{Header, MAX_REFCOUNT_TABLE_BYTES};
use super::walk::Walk;
use crate::error::{Error, ErrorKind, Result};

/// Makes them, and answers the header that points to them. `walk` has counted everything but the
/// old structures.
pub(super) async fn rebuild(walk: &Walk<'_>) -> Result<Header> {
    let geometry = walk.geometry;
    let span = geometry.refcount_block_entries();
    let base = walk.counts.end().max(geometry.clusters_for(walk.file_len));
    let plan = Plan::new(walk, base)?;
    let own = base..base + plan.table_clusters + plan.blocks.len() as u64;
    let offset_of = |cluster: u64| cluster << geometry.cluster_bits();

    let table_len = offset_of(plan.table_clusters) / 8;
    let mut table = vec![0; usize::try_from(table_len).unwrap_or(0)];
    for (position, &index) in plan.blocks.iter().enumerate() {
        let first = index * span;
        let range = first..first + span;
        let mut block = vec![0; geometry.cluster_len()];
        for cluster in walk.counts.used(range.clone()) {
            let count = walk.counts.get(cluster);
            if count > geometry.refcount_max() {
                let bits = geometry.refcount_bits();
                let context =
                    format!("cluster {cluster} has {count} references, too many for {bits} bits");
                return Err(Error::new(ErrorKind::Corrupt, context));
            }
            put_refcount(&mut block, geometry.refcount_block_index(cluster), count, geometry);
        }
        for cluster in own.start.max(range.start)..own.end.min(range.end) {
            put_refcount(&mut block, geometry.refcount_block_index(cluster), 1, geometry);
        }
        let at = offset_of(base + plan.table_clusters + position as u64);
        write_at(walk.file, at, &block).await?;
        table[usize::try_from(index).unwrap_or(usize::MAX)] = at;
    }
    write_words(walk.file, offset_of(base), &table).await?;

    let mut header = walk.header.clone();
    header.refcount_table_offset = offset_of(base);
    header.refcount_table_clusters = u32::try_from(plan.table_clusters).unwrap_or(u32::MAX);
    header.store(walk.file).await?;
    Ok(header)
}

/// Which blocks are needed, and how long the table is.
struct Plan {
    blocks: BTreeSet<u64>,
    table_clusters: u64,
}

impl Plan {
    fn new(walk: &Walk<'_>, base: u64) -> Result<Plan> {
        let geometry = walk.geometry;
        let span = geometry.refcount_block_entries();
        let used = walk.counts.used(0..walk.counts.end());
        let mut plan =
            Plan { blocks: used.map(|cluster| cluster / span).collect(), table_clusters: 1 };
        // What is added must be described too; each round adds less than the one before.
        loop {
            let end = base + plan.table_clusters + plan.blocks.len() as u64;
            let before = (plan.blocks.len(), plan.table_clusters);
            plan.blocks.extend(base / span..end.div_ceil(span));
            let entries = plan.blocks.last().map_or(0, |last| last + 1);
            plan.table_clusters = geometry.clusters_for(entries * 8).max(plan.table_clusters);
            if plan.table_clusters << geometry.cluster_bits() > MAX_REFCOUNT_TABLE_BYTES {
                let context = "the file is too long for a refcount table of 8 MiB";
                return Err(Error::new(ErrorKind::Unsupported, context));
            }
            if before == (plan.blocks.len(), plan.table_clusters) {
                return Ok(plan);
            }
        }
    }
}
