//! Snapshots that do not say how long the disk was when they were taken, or have more extra data than
//! anybody reads. Version 2 leaves the length open; version 3 demands it, and a program that only
//! knows version 3 may rely on it.

use super::super::at_rest::AtRest;
use super::super::header::{Header, Version};
use super::super::snapshot::{SnapshotTable, complete_snapshots, load_cut};
use super::report::CheckReport;
use crate::edge::Edge;
use crate::error::Result;

/// Writes the table of snapshots anew, with the length that the disk has now where none was said and
/// without the end of what is too long. The refcounts are in order.
pub(super) async fn complete(
    file: &Edge,
    faults: &[String],
    report: &mut CheckReport,
) -> Result<()> {
    let header = Header::load(file).await?;
    let table = load_cut(file, &header).await?;
    let mut image = AtRest::load(file, header).await?;
    complete_snapshots(&mut image, table).await?;
    for fault in faults {
        report.repair_corruption(fault);
    }
    Ok(())
}

/// What is wrong with the snapshots that [`complete`] is for.
pub(super) fn faults(table: &SnapshotTable, version: Version) -> Vec<String> {
    let incomplete =
        table.snapshots.iter().enumerate().filter(|(_, one)| one.is_incomplete(version));
    let incomplete =
        incomplete.map(|(index, _)| format!("snapshot table entry {index} is incomplete"));
    let cut = table.cut.iter().map(|(index, len)| {
        format!("snapshot table entry {index} has too much extra metadata ({len} bytes)")
    });
    incomplete.chain(cut).collect()
}
