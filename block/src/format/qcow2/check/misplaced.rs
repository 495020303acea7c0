//! Clusters kept for later, without data, at places where no cluster can be.
//!
//! What the guest reads there does not depend on the place, so the entry can lose it. Entries with
//! data are left alone: nobody can tell where the data is.

use super::super::container::{read_at, write_at};
use super::super::entry::L2Entry;
use super::walk::Walk;
use crate::error::Result;

/// Takes the places out of the entries that `walk` has found.
pub(super) async fn empty_entries(walk: &mut Walk<'_>) -> Result<()> {
    let geometry = walk.geometry;
    for (offset, times) in std::mem::take(&mut walk.misplaced) {
        // A table that is used for something else, too, must not be written to.
        if walk.counts.get(geometry.cluster_index(offset)) != times {
            continue;
        }
        let mut table = read_at(walk.file, offset, geometry.cluster_len()).await?;
        for index in 0..usize::try_from(geometry.l2_entries()).unwrap_or(0) {
            let entry = L2Entry::get(&table, index, geometry);
            if entry.is_misplaced_reserve(geometry) {
                walk.report.repair_corruption(text(entry));
                entry.without_reserve(geometry).put(&mut table, index, geometry);
            }
        }
        write_at(walk.file, offset, &table).await?;
    }
    Ok(())
}

/// What is wrong with such an entry.
pub(super) fn text(entry: L2Entry) -> String {
    let at = entry.address();
    format!("offset={at:x}: Preallocated cluster is not properly aligned; L2 entry corrupted.")
}
