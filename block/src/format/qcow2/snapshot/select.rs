//! Showing a snapshot instead of the disk, to who only reads.

use serde::Deserialize;

use super::super::header::Header;
use super::ops::find;
use super::table::{Snapshot, load_snapshots};
use crate::edge::Edge;
use crate::error::{Error, ErrorKind, Result};

/// An internal snapshot, by what is known of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum SnapshotRef {
    /// Its id, or else its name.
    Either(String),
    /// The first with this id and this name, of which one may be left open.
    Exact {
        /// Its id.
        id: Option<String>,
        /// Its name.
        name: Option<String>,
    },
}

impl SnapshotRef {
    /// Where in the list it is.
    pub(super) fn position(&self, snapshots: &[Snapshot]) -> Result<usize> {
        match self {
            SnapshotRef::Either(wanted) => find(snapshots, wanted),
            SnapshotRef::Exact { id, name } => {
                let is = |wanted: &Option<String>, text: &str| {
                    wanted.as_deref().is_none_or(|wanted| wanted == text)
                };
                let found = snapshots.iter().position(|one| is(id, &one.id) && is(name, &one.name));
                found.ok_or_else(|| Error::new(ErrorKind::NotFound, "Can't find snapshot"))
            }
        }
    }
}

/// The header of the image in `file`; with a snapshot, that of the disk as it was then, with the
/// length that it had.
///
/// # Errors
/// `NotFound`, or what the header or the snapshot says makes no sense.
pub(in super::super) async fn load_header(
    file: &Edge,
    snapshot: Option<&SnapshotRef>,
) -> Result<Header> {
    let mut header = Header::load(file).await?;
    let Some(snapshot) = snapshot else { return Ok(header) };
    let table = load_snapshots(file, &header).await?;
    let snapshot = &table.snapshots[snapshot.position(&table.snapshots)?];
    // An old snapshot says nothing of the disk's length then: no longer than its table, though.
    let most = u64::from(snapshot.l1.entries).saturating_mul(header.geometry.l2_span());
    header.size = snapshot.disk_size.unwrap_or(header.size.min(most));
    header.l1 = snapshot.l1;
    // They tell of the disk as it is now.
    header.extensions.bitmaps = None;
    let text = || format!("snapshot '{}'", snapshot.name);
    header.check().map_err(|error| error.context(text()))?;
    Ok(header)
}
