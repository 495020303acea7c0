//! Images that nobody uses: what tools do to them as a whole.

use super::qcow2::{add_file, open, whole_edge};
use crate::bitmap::DirtyBitmap;
use crate::edge::Edge;
use crate::error::Result;
use crate::format::qcow2::amend::{AmendOptions, Backing, amend};
use crate::format::qcow2::bitmap::{
    ToStore, load_bitmap, load_directory, mark_in_use, store_bitmaps,
};
use crate::format::qcow2::check::check;
use crate::format::qcow2::header::{Header, Version};
use crate::format::qcow2::referenced_clusters;
use crate::format::qcow2::snapshot::{
    Moment, SnapshotRef, apply_snapshot, create_snapshot, delete_snapshot, load_snapshots,
};

/// Snapshots that are used one by one, however many an image has.
const SNAPSHOTS: usize = 3;

/// Does each operation to an image of these bytes that has not seen another one, and checks what
/// it left; how many succeeded.
///
/// # Panics
/// There is a mistake in what is tested.
pub fn fuzz_qcow2_at_rest(data: &[u8]) -> u32 {
    let default = AmendOptions::default;
    let backing = Backing { file: "below".into(), format: Some("raw".into()) };
    let amendments = [
        AmendOptions { version: Some(Version::V2), ..default() },
        AmendOptions { version: Some(Version::V3), lazy_refcounts: Some(true), ..default() },
        AmendOptions { refcount_bits: Some(64), ..default() },
        AmendOptions { refcount_bits: Some(1), ..default() },
        AmendOptions { backing: Some(Some(backing)), ..default() },
    ];
    let mut passed = on_image(data, async |file| look(&file).await);
    passed += on_image(data, async |file| change_snapshots(&file).await);
    passed += on_image(data, async |file| change_bitmaps(&file).await);
    for options in &amendments {
        passed += on_image(data, async |file| amend(&file, options).await);
    }
    passed
        + super::on_a_graph(async |graph| {
            let file = add_file(graph, "file", data).await.expect("a new graph");
            // Those of seeds; of other images at least the first has this id.
            let snapshot = SnapshotRef::Either("1".into());
            match open(graph, &file, Some(snapshot)).await {
                Ok(node) => super::use_disk(graph, &node).await,
                Err(_) => 0,
            }
        })
}

fn on_image(data: &[u8], work: impl AsyncFnOnce(Edge) -> Result<()>) -> u32 {
    super::on_a_graph(async |graph| {
        let file = add_file(graph, "file", data).await.expect("a new graph");
        let edge = whole_edge(graph, &file).expect("nobody else uses it");
        let passed = work(edge.clone()).await.is_ok();
        u32::from(passed) + u32::from(check(&edge, None).await.is_ok())
    })
}

async fn look(file: &Edge) -> Result<()> {
    let header = Header::load(file).await?;
    referenced_clusters(file, &header, u64::MAX).await?;
    load_snapshots(file, &header).await?;
    Ok(())
}

async fn change_snapshots(file: &Edge) -> Result<()> {
    let header = Header::load(file).await?;
    let snapshots = load_snapshots(file, &header).await?.snapshots;
    let mut result = create_snapshot(file, "new", Moment::default()).await.map(drop);
    for snapshot in snapshots.iter().take(SNAPSHOTS) {
        result = result.and(apply_snapshot(file, &snapshot.id).await);
        result = result.and(delete_snapshot(file, &SnapshotRef::Either(snapshot.id.clone())).await);
    }
    result.and(apply_snapshot(file, "new").await)
}

async fn change_bitmaps(file: &Edge) -> Result<()> {
    let header = Header::load(file).await?;
    let mut result = Ok(());
    let mut entries = Vec::new();
    if let Some(extension) = header.bitmaps() {
        entries = load_directory(file, extension, header.geometry).await?;
        for entry in &entries {
            result = result.and(load_bitmap(file, &header, entry).await.map(drop));
        }
    }
    result = result.and(mark_in_use(file).await.map(drop));
    let Ok(bits) = DirtyBitmap::new(header.size, 64 << 10) else { return result };
    let kept = entries.iter().skip(1).map(ToStore::Kept);
    let new = ToStore::Bits { name: "new", bits: &bits };
    let bitmaps: Vec<ToStore<'_>> = kept.chain([new]).collect();
    result.and(store_bitmaps(file, &bitmaps).await)
}
