//! The flags that say that a refcount is exactly one: a writer trusts them and writes in place.

use super::super::container::{read_at, read_words, write_at, write_words};
use super::super::entry::{Cluster, L1Entry, L2Entry};
use super::compare::Blocks;
use super::walk::Walk;
use crate::error::Result;

/// Compares the flags in the active tables with the refcounts, and corrects them if `fix` is set.
pub(super) async fn copied_flags(
    walk: &mut Walk<'_>,
    blocks: &mut Blocks,
    fix: bool,
) -> Result<()> {
    let (file, geometry, l1) = (walk.file, walk.geometry, walk.header.l1);
    if !geometry.is_aligned(l1.offset) {
        return Ok(());
    }
    let there = walk.file_len.saturating_sub(l1.offset).div_ceil(8).min(l1.entries.into());
    let mut entries = read_words(file, l1.offset, usize::try_from(there).unwrap_or(0)).await?;
    let mut seen = std::collections::BTreeSet::new();
    let mut changed = false;
    for (index, word) in entries.iter_mut().enumerate() {
        let entry = L1Entry(*word);
        let Some(l2) = entry.offset() else { continue };
        if !geometry.is_aligned(l2) || l2 >= walk.file_len {
            continue;
        }
        let refcount = blocks.refcount(walk, geometry.cluster_index(l2)).await?;
        if entry.is_copied() != (refcount == 1) {
            let what = format!("L2 cluster: l1_index={index} l1_entry={word:x}");
            note(walk, &what, refcount, fix);
            *word = L1Entry::new(l2, refcount == 1).0;
            changed = true;
        }
        if seen.insert(l2) {
            l2_flags(walk, blocks, l2, fix).await?;
        }
    }
    if fix && changed {
        write_words(file, l1.offset, &entries).await?;
    }
    Ok(())
}

fn note(walk: &mut Walk<'_>, what: &str, refcount: u64, fix: bool) {
    let text = format!("OFLAG_COPIED {what} refcount={refcount}");
    match fix {
        true => walk.report.repair_corruption(text),
        false => walk.report.corrupt(text),
    }
}

async fn l2_flags(walk: &mut Walk<'_>, blocks: &mut Blocks, l2: u64, fix: bool) -> Result<()> {
    let geometry = walk.geometry;
    let mut table = read_at(walk.file, l2, geometry.cluster_len()).await?;
    let mut changed = false;
    for index in 0..usize::try_from(geometry.l2_entries()).unwrap_or(0) {
        let entry = L2Entry::get(&table, index, geometry);
        if entry == L2Entry::default() {
            continue;
        }
        let refcount = match entry.decode(geometry) {
            // Every cluster of an external data file belongs to one guest cluster.
            Ok(Cluster::Standard { host: Some(_), .. }) if geometry.has_external_data() => 1,
            Ok(Cluster::Standard { host: Some(host), .. }) => {
                blocks.refcount(walk, geometry.cluster_index(host)).await?
            }
            _ => continue,
        };
        if entry.is_copied() != (refcount == 1) {
            let what = format!("data cluster: l2_entry={:x}", entry.descriptor);
            note(walk, &what, refcount, fix);
            entry.with_copied(refcount == 1).put(&mut table, index, geometry);
            changed = true;
        }
    }
    if fix && changed {
        write_at(walk.file, l2, &table).await?;
    }
    Ok(())
}
