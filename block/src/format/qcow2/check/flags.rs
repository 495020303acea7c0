//! The flags that say that a refcount is exactly one: a writer trusts them and writes in place.

use super::super::container::{read_at, read_words, write_at, write_words};
use super::super::entry::{Cluster, L1Entry, L2Entry};
use super::walk::Walk;
use crate::error::Result;

/// Compares the flags in the active tables with the references counted, and corrects them if
/// `fix` is set.
pub(super) async fn copied_flags(walk: &mut Walk<'_>, fix: bool) -> Result<()> {
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
        let once = walk.counts.get(geometry.cluster_index(l2)) == 1;
        if entry.is_copied() != once {
            walk.report
                .corrupt(format!("OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={word:#x}"));
            *word = L1Entry::new(l2, once).0;
            changed = true;
        }
        if seen.insert(l2) {
            l2_flags(walk, l2, fix).await?;
        }
    }
    if fix && changed {
        write_words(file, l1.offset, &entries).await?;
    }
    Ok(())
}

async fn l2_flags(walk: &mut Walk<'_>, l2: u64, fix: bool) -> Result<()> {
    let geometry = walk.geometry;
    let mut table = read_at(walk.file, l2, geometry.cluster_len()).await?;
    let mut changed = false;
    for index in 0..usize::try_from(geometry.l2_entries()).unwrap_or(0) {
        let entry = L2Entry::get(&table, index, geometry);
        if entry == L2Entry::default() {
            continue;
        }
        let wanted = match entry.decode(geometry) {
            Ok(Cluster::Standard { host: Some(host), .. }) => {
                // Every cluster of an external data file belongs to one guest cluster.
                geometry.has_external_data() || walk.counts.get(geometry.cluster_index(host)) == 1
            }
            _ => continue,
        };
        if entry.is_copied() != wanted {
            walk.report
                .corrupt(format!("OFLAG_COPIED data cluster: l2_entry={:#x}", entry.descriptor));
            entry.with_copied(wanted).put(&mut table, index, geometry);
            changed = true;
        }
    }
    if fix && changed {
        write_at(walk.file, l2, &table).await?;
    }
    Ok(())
}
