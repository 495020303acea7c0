//! What hangs on an L1 table: its L2 tables and their clusters.

use std::collections::BTreeSet;

use super::super::at_rest::AtRest;
use super::super::container::{read_at, read_words, write_at, write_words};
use super::super::entry::{Cluster, L1Entry, L2Entry};
use super::super::header::{MAX_L1_BYTES, Table};
use crate::error::{Error, ErrorKind, Result};

/// What to do with the flags that say that a refcount is exactly one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Flags {
    /// Clear all of them: everything becomes shared.
    Clear,
    /// Make them say what the refcounts say.
    FromRefcounts,
}

/// The entries of an L1 table whose place and length an image gives.
pub(in super::super) async fn load_l1(image: &AtRest<'_>, l1: Table) -> Result<Vec<u64>> {
    let bytes = u64::from(l1.entries) * 8;
    let end = l1.offset.checked_add(bytes);
    let inside = end.is_some_and(|end| end <= image.file.len());
    if bytes > MAX_L1_BYTES || !image.geometry().is_aligned(l1.offset) || (bytes != 0 && !inside) {
        let context = format!("an L1 table has {} entries at {:#x}", l1.entries, l1.offset);
        return Err(Error::new(ErrorKind::Corrupt, context));
    }
    read_words(image.file, l1.offset, l1.entries as usize).await
}

/// The L2 tables that an L1 table points to. None may appear twice: changing it once would be
/// wrong for one of them.
pub(in super::super) fn l2_tables(image: &AtRest<'_>, l1: &[u64]) -> Result<Vec<u64>> {
    let mut seen = BTreeSet::new();
    let mut tables = Vec::new();
    for at in l1.iter().filter_map(|&entry| L1Entry(entry).offset()) {
        if !image.geometry().is_aligned(at) || at >= image.file.len() || !seen.insert(at) {
            let context = format!("an L1 table points to {at:#x} twice, or to no L2 table");
            return Err(Error::new(ErrorKind::Corrupt, context));
        }
        tables.push(at);
    }
    Ok(tables)
}

/// One reference more (`up`) or less to everything that hangs on an L1 table.
pub(in super::super) async fn share(image: &mut AtRest<'_>, l1: &[u64], up: bool) -> Result<()> {
    let geometry = image.geometry();
    for at in l2_tables(image, l1)? {
        let table = read_at(image.file, at, geometry.cluster_len()).await?;
        for index in 0..usize::try_from(geometry.l2_entries()).unwrap_or(0) {
            match L2Entry::get(&table, index, geometry).decode(geometry)? {
                Cluster::Standard { host: None, .. } => {}
                // An external data file has no refcounts.
                Cluster::Standard { .. } if geometry.has_external_data() => {}
                Cluster::Standard { host: Some(host), .. } => {
                    image.change(host, geometry.cluster_size(), up).await?;
                }
                Cluster::Compressed(data) => image.change(data.offset, data.len, up).await?,
            }
        }
        image.change(at, geometry.cluster_size(), up).await?;
    }
    Ok(())
}

/// Rewrites the flags in the L2 tables, and in `l1`, which the caller writes.
pub(super) async fn set_flags(image: &mut AtRest<'_>, l1: &mut [u64], how: Flags) -> Result<()> {
    let geometry = image.geometry();
    l2_tables(image, l1)?;
    for word in l1 {
        let Some(at) = L1Entry(*word).offset() else { continue };
        let mut table = read_at(image.file, at, geometry.cluster_len()).await?;
        let mut changed = false;
        for index in 0..usize::try_from(geometry.l2_entries()).unwrap_or(0) {
            let entry = L2Entry::get(&table, index, geometry);
            let Cluster::Standard { host: Some(host), .. } = entry.decode(geometry)? else {
                continue;
            };
            let once = how == Flags::FromRefcounts
                && image.refcount(geometry.cluster_index(host)).await? == 1;
            if entry.is_copied() != once {
                entry.with_copied(once).put(&mut table, index, geometry);
                changed = true;
            }
        }
        if changed {
            write_at(image.file, at, &table).await?;
        }
        let once =
            how == Flags::FromRefcounts && image.refcount(geometry.cluster_index(at)).await? == 1;
        *word = L1Entry::new(at, once).0;
    }
    Ok(())
}

/// The flags of the active tables, from the refcounts.
pub(super) async fn refresh_active(image: &mut AtRest<'_>) -> Result<()> {
    let active = image.header.l1;
    let mut l1 = load_l1(image, active).await?;
    set_flags(image, &mut l1, Flags::FromRefcounts).await?;
    write_words(image.file, active.offset, &l1).await?;
    image.file.flush().await
}
