//! Snapshots that do not say how long the disk was when they were taken. Version 2 leaves it open;
//! version 3 demands it, and a program that only knows version 3 may rely on it.

use super::super::at_rest::AtRest;
use super::super::header::Header;
use super::super::snapshot::complete_snapshots;
use super::report::CheckReport;
use crate::edge::Edge;
use crate::error::Result;

/// Writes the table of snapshots anew, with the length that the disk has now where none was said.
/// The refcounts are in order.
pub(super) async fn complete(
    file: &Edge,
    incomplete: &[usize],
    report: &mut CheckReport,
) -> Result<()> {
    let header = Header::load(file).await?;
    let mut image = AtRest::load(file, header).await?;
    complete_snapshots(&mut image).await?;
    for index in incomplete {
        report.repair_corruption(text(*index));
    }
    Ok(())
}

/// What is wrong with such a snapshot.
pub(super) fn text(index: usize) -> String {
    format!("snapshot table entry {index} is incomplete")
}
