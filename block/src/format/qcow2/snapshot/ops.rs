//! Taking, going back to and deleting internal snapshots of an image at rest.

use super::super::at_rest::AtRest;
use super::super::container::{write_at, write_words};
use super::super::header::{MAX_SNAPSHOTS, Table};
use super::select::SnapshotRef;
use super::table::{Snapshot, SnapshotTable, load_snapshots, serialise};
use super::tree::{Flags, load_l1, refresh_active, set_flags, share};
use crate::edge::Edge;
use crate::error::{Error, ErrorKind, Result};

/// When a snapshot is taken: the block layer asks no clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since the epoch.
    pub seconds: u32,
    /// Nanoseconds of that second.
    pub nanoseconds: u32,
    /// How long the guest has been running, in nanoseconds.
    pub vm_clock_nsec: u64,
}

/// Takes a snapshot of the disk as it is. The id is the first number above all others.
///
/// # Errors
/// `Unsupported` with an external data file, `NoSpace` when the refcounts are too narrow or there
/// are too many snapshots; the image is unchanged then.
pub async fn create_snapshot(file: &Edge, name: &str, when: Moment) -> Result<Snapshot> {
    let mut image = open(file).await?;
    let old = load_snapshots(file, &image.header).await?;
    if old.snapshots.len() as u64 >= u64::from(MAX_SNAPSHOTS) {
        let context = format!("the image has {MAX_SNAPSHOTS} snapshots already");
        return Err(Error::new(ErrorKind::NoSpace, context));
    }
    let highest = old.snapshots.iter().filter_map(|one| one.id.parse::<u64>().ok()).max();
    let active = image.header.l1;
    let mut l1 = load_l1(&image, active).await?;
    let bytes = l1.len() as u64 * 8;
    let snapshot = Snapshot {
        l1: Table { offset: image.allocate(bytes).await?, entries: active.entries },
        id: highest.unwrap_or(0).saturating_add(1).to_string(),
        name: name.to_owned(),
        date_sec: when.seconds,
        date_nsec: when.nanoseconds,
        vm_clock_nsec: when.vm_clock_nsec,
        disk_size: Some(image.header.size),
        ..Snapshot::default()
    };
    share(&mut image, &l1, true).await?;
    image.unsettle().await?;
    let table = [old.snapshots, vec![snapshot.clone()]].concat();
    let place = store(&mut image, &table).await?;
    // Everything is shared before the snapshot exists: no write may land in it.
    set_flags(&mut image, &mut l1, Flags::Clear).await?;
    write_words(file, snapshot.l1.offset, &l1).await?;
    write_words(file, active.offset, &l1).await?;
    image.mark_unsettled(false);
    switch(&mut image, place, old.bytes).await?;
    Ok(snapshot)
}

/// Makes the disk what it was when the snapshot with this id or name was taken.
///
/// # Errors
/// `NotFound`, or `Unsupported` if there are persistent bitmaps: they would not know what changed.
pub async fn apply_snapshot(file: &Edge, id_or_name: &str) -> Result<()> {
    let mut image = open(file).await?;
    let table = load_snapshots(file, &image.header).await?;
    let snapshot = &table.snapshots[find(&table.snapshots, id_or_name)?];
    if image.header.bitmaps().is_some() {
        let context = "the image has persistent bitmaps, which do not follow a snapshot: remove \
                       them first";
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    let mut l1 = load_l1(&image, snapshot.l1).await?;
    let old = image.header.l1;
    let old_l1 = load_l1(&image, old).await?;
    let size = snapshot.disk_size.unwrap_or(image.header.size);
    let needed = usize::try_from(image.geometry().l1_entries_for(size)).unwrap_or(usize::MAX);
    if needed > l1.len() {
        let context = format!("snapshot '{id_or_name}' does not have the whole disk it claims");
        return Err(Error::new(ErrorKind::Corrupt, context));
    }
    share(&mut image, &l1, true).await?;
    let offset = image.allocate(l1.len() as u64 * 8).await?;
    image.unsettle().await?;
    image.write_refcounts().await?;
    set_flags(&mut image, &mut l1, Flags::Clear).await?;
    write_words(file, offset, &l1).await?;
    image.header.l1 = Table { offset, entries: snapshot.l1.entries };
    image.header.size = size;
    image.write_header().await?;
    // Nothing points to the disk as it was any more.
    share(&mut image, &old_l1, false).await?;
    image.change(old.offset, u64::from(old.entries) * 8, false).await?;
    image.write_refcounts().await?;
    settle(&mut image).await
}

/// Deletes a snapshot.
///
/// # Errors
/// `NotFound`, or the image is damaged.
pub async fn delete_snapshot(file: &Edge, which: &SnapshotRef) -> Result<()> {
    let mut image = open(file).await?;
    let mut table = load_snapshots(file, &image.header).await?;
    let snapshot = table.snapshots.remove(which.position(&table.snapshots)?);
    let l1 = load_l1(&image, snapshot.l1).await?;
    let place = store(&mut image, &table.snapshots).await?;
    image.mark_unsettled(true);
    switch(&mut image, place, table.bytes).await?;
    share(&mut image, &l1, false).await?;
    if !l1.is_empty() {
        image.change(snapshot.l1.offset, l1.len() as u64 * 8, false).await?;
    }
    image.write_refcounts().await?;
    settle(&mut image).await
}

/// Version 3 wants to know of each snapshot how long the disk was: what says nothing had the length
/// of now. What `table` has cut off goes for good.
pub(in super::super) async fn complete_snapshots(
    image: &mut AtRest<'_>,
    mut table: SnapshotTable,
) -> Result<()> {
    let complete = table.snapshots.iter().all(|snapshot| snapshot.disk_size.is_some());
    if complete && table.cut.is_empty() {
        return Ok(());
    }
    for snapshot in &mut table.snapshots {
        snapshot.disk_size = snapshot.disk_size.or(Some(image.header.size));
    }
    let place = store(image, &table.snapshots).await?;
    switch(image, place, table.bytes).await
}

/// Makes the flags of the active tables agree with the refcounts.
async fn settle(image: &mut AtRest<'_>) -> Result<()> {
    refresh_active(image).await?;
    image.mark_unsettled(false);
    image.write_header().await
}

async fn open(file: &Edge) -> Result<AtRest<'_>> {
    let image = AtRest::open(file).await?;
    if image.geometry().has_external_data() {
        let context = "internal snapshots do not go together with an external data file";
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    Ok(image)
}

/// The snapshot with this id, or else with this name.
pub(super) fn find(snapshots: &[Snapshot], wanted: &str) -> Result<usize> {
    let by_id = snapshots.iter().position(|snapshot| snapshot.id == wanted);
    by_id
        .or_else(|| snapshots.iter().position(|snapshot| snapshot.name == wanted))
        .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("Can't find snapshot '{wanted}'")))
}

/// Writes a snapshot table where nothing points to it yet, with all refcounts that it relies on.
async fn store(image: &mut AtRest<'_>, snapshots: &[Snapshot]) -> Result<Table> {
    let entries = u32::try_from(snapshots.len()).unwrap_or(u32::MAX);
    if snapshots.is_empty() {
        image.write_refcounts().await?;
        return Ok(Table::default());
    }
    let bytes = serialise(snapshots, image.geometry().version())?;
    let offset = image.allocate(bytes.len() as u64).await?;
    image.write_refcounts().await?;
    write_at(image.file, offset, &bytes).await?;
    Ok(Table { offset, entries })
}

/// Points the header to a new snapshot table and frees the old one of `old_bytes`.
async fn switch(image: &mut AtRest<'_>, new: Table, old_bytes: u64) -> Result<()> {
    let old = std::mem::replace(&mut image.header.snapshots, new);
    image.write_header().await?;
    if old_bytes != 0 {
        image.change(old.offset, old_bytes, false).await?;
        image.write_refcounts().await?;
    }
    Ok(())
}

#[cfg(test)]
#[path = "../snapshot_tests.rs"]
mod tests;
