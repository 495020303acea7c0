//! Images.

use crate::bitmap::DirtyBitmap;
use crate::edge::{ChildRole, Edge, EdgePerms, Perms};
use crate::error::Result;
use crate::executor::Executor;
use crate::format::qcow2::bitmap::{ToStore, store_bitmaps};
use crate::format::qcow2::check::{Repair, check};
use crate::format::qcow2::create::{CreateOptions, create};
use crate::format::qcow2::header::{Compression, Header, Version};
use crate::format::qcow2::snapshot::{Moment, SnapshotRef, create_snapshot};
use crate::format::qcow2::{BackingRef, Qcow2Options};
use crate::graph::BlockGraph;
use crate::node::{BlockNode, NodeOptions};
use crate::open::{BlockdevOptions, BlockdevRef, DriverOptions};
use crate::testing::{SimDisk, SimOptions};

/// Bytes of the disk in a seed.
const DISK: u64 = 256 << 10;

/// Opens the bytes as an image, uses it, and checks and repairs it afterwards.
///
/// # Panics
/// There is a mistake in what is tested.
pub fn fuzz_qcow2(data: &[u8]) -> u32 {
    super::on_a_graph(async |graph| {
        let file = add_file(graph, "file", data).await.expect("a new graph");
        let passed = match open(graph, &file, None).await {
            Ok(node) => super::use_disk(graph, &node).await,
            Err(_) => 0,
        };
        let closed = graph.remove("disk").await.is_ok();
        passed + u32::from(closed) + repair(graph, &file).await
    })
}

/// Images of several shapes, with something in them.
///
/// # Panics
/// They cannot be made.
pub fn qcow2_seeds() -> Vec<Vec<u8>> {
    let small = CreateOptions { cluster_size: 4096, ..CreateOptions::new(DISK) };
    let shapes = [
        CreateOptions { cluster_size: 512, refcount_bits: 1, ..small.clone() },
        CreateOptions { version: Version::V2, ..small.clone() },
        CreateOptions { lazy_refcounts: true, compression: Compression::Zstd, ..small.clone() },
        CreateOptions { extended_l2: true, cluster_size: 16 << 10, ..small.clone() },
        CreateOptions { refcount_bits: 64, cluster_size: 1024, ..small.clone() },
        CreateOptions { data_file: Some("data".into()), ..small },
    ];
    shapes.iter().map(seed).collect()
}

fn seed(options: &CreateOptions) -> Vec<u8> {
    super::on_a_graph(async |graph| {
        let disk = sim(graph.executor(), &[]);
        let added = graph.add(Some("file"), disk.clone(), NodeOptions::default()).await;
        let file = added.expect("a new graph");
        let edge = whole_edge(graph, &file).expect("nobody else uses it");
        let data = match options.data_file {
            Some(_) => Some(add_file(graph, "new-data", &[]).await.expect("a new name")),
            None => None,
        };
        let data = data.map(|node| whole_edge(graph, &node).expect("the same"));
        create(&edge, data.as_ref(), options).await.expect("options that go together");
        drop(edge);
        for again in [false, true] {
            let node = open(graph, &file, None).await.expect("a good image");
            super::use_disk(graph, &node).await;
            drop(node);
            graph.remove("disk").await.expect("nobody else uses it");
            if let (Some(_), false) = (graph.node("data"), again) {
                graph.remove("data").await.expect("the same");
            }
            let edge = whole_edge(graph, &file).expect("nobody else uses it");
            add_inside(&edge, again).await;
        }
        disk.contents()
    })
}

/// Adds a snapshot and two bitmaps, the second time some more: what the image can have of that.
async fn add_inside(file: &Edge, again: bool) {
    let name = if again { "s1" } else { "s0" };
    let refused = create_snapshot(file, name, Moment::default()).await.is_err();
    let mut bits = DirtyBitmap::new(DISK, 4096).expect("bits that fit");
    bits.record(0..DISK / 2);
    let coarse = DirtyBitmap::new(DISK, 64 << 10).expect("bits that fit");
    let bitmaps = [("fine", &bits), ("coarse", &coarse)];
    let bitmaps = bitmaps.map(|(name, bits)| ToStore::Bits { name, bits });
    let stored = store_bitmaps(file, &bitmaps).await.is_ok();
    assert!(stored || !refused, "the image has neither");
}

/// An image opens neither a backing file nor a data file of the host, whatever it says.
pub(super) async fn open(
    graph: &BlockGraph,
    file: &BlockNode,
    snapshot: Option<SnapshotRef>,
) -> Result<BlockNode> {
    let edge = graph.edge(file, ChildRole::File, EdgePerms::READ)?;
    let header = Header::load(&edge).await?;
    drop(edge);
    let mut options = Qcow2Options::new(BlockdevRef::Name(file.name().to_owned()));
    options.backing = BackingRef::None;
    if header.geometry.has_external_data() {
        let len = usize::try_from(header.size.min(DISK)).unwrap_or(0);
        let data = add_file(graph, "data", &vec![0; len]).await?;
        options.data_file = Some(BlockdevRef::Name(data.name().to_owned()));
    }
    let read_only = snapshot.is_some();
    options.x_snapshot = snapshot;
    let mut options = BlockdevOptions::new(DriverOptions::Qcow2(Box::new(options)));
    options.node_name = Some("disk".into());
    options.read_only = Some(read_only);
    graph.open(&options).await
}

async fn repair(graph: &BlockGraph, file: &BlockNode) -> u32 {
    let Ok(edge) = whole_edge(graph, file) else { return 0 };
    let checked = check(&edge, None).await.is_ok();
    u32::from(checked) + u32::from(check(&edge, Some(Repair::All)).await.is_ok())
}

/// A file that nobody else uses.
pub(super) fn whole_edge(graph: &BlockGraph, file: &BlockNode) -> Result<Edge> {
    let needs = Perms::CONSISTENT_READ | Perms::WRITE | Perms::RESIZE;
    graph.edge(file, ChildRole::File, EdgePerms { needs, shares: Perms::NONE })
}

pub(super) async fn add_file(graph: &BlockGraph, name: &str, content: &[u8]) -> Result<BlockNode> {
    graph.add(Some(name), sim(graph.executor(), content), NodeOptions::default()).await
}

fn sim(executor: &Executor, content: &[u8]) -> SimDisk {
    let options = SimOptions::new(content.len() as u64, 1).instant();
    let disk = SimDisk::new(executor, SimOptions { resizable: true, ..options });
    disk.fill(0, content);
    disk
}
