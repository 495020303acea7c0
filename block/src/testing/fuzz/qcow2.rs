//! Images.

use crate::clock::Clock;
use crate::edge::{ChildRole, EdgePerms, Perms};
use crate::error::Result;
use crate::executor::Executor;
use crate::format::qcow2::check::{Repair, check};
use crate::format::qcow2::create::{CreateOptions, create};
use crate::format::qcow2::header::{Compression, Header, Version};
use crate::format::qcow2::{BackingRef, Qcow2Options};
use crate::graph::BlockGraph;
use crate::node::{BlockNode, NodeOptions};
use crate::open::{BlockdevOptions, BlockdevRef, DriverOptions};
use crate::testing::{SimDisk, SimOptions};

/// Bytes of the disk in a seed.
const DISK: u64 = 256 << 10;

/// Opens the bytes as an image, uses it, and checks and repairs it afterwards. The clock is
/// simulated: a request that waits for what never comes is a panic.
///
/// # Panics
/// There is a mistake in what is tested.
pub fn fuzz_qcow2(data: &[u8]) -> u32 {
    let executor = Executor::new(Clock::simulated()).expect("an executor");
    let graph = BlockGraph::new(executor.clone());
    executor.block_on(async {
        let file = add_file(&graph, "file", data).await.expect("a new graph");
        let passed = match open(&graph, &file).await {
            Ok(node) => super::use_disk(&graph, &node).await,
            Err(_) => 0,
        };
        let closed = graph.remove("disk").await.is_ok();
        passed + u32::from(closed) + repair(&graph, &file).await
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
        CreateOptions { data_file: Some("data".into()), ..small },
    ];
    shapes.iter().map(seed).collect()
}

fn seed(options: &CreateOptions) -> Vec<u8> {
    let executor = Executor::new(Clock::simulated()).expect("an executor");
    let graph = BlockGraph::new(executor.clone());
    executor.block_on(async {
        let disk = sim(&executor, &[]);
        let added = graph.add(Some("file"), disk.clone(), NodeOptions::default()).await;
        let file = added.expect("a new graph");
        let edge = graph.edge(&file, ChildRole::File, whole()).expect("nobody else uses it");
        let data = match options.data_file {
            Some(_) => Some(add_file(&graph, "new-data", &[]).await.expect("a new name")),
            None => None,
        };
        let data = data.map(|node| graph.edge(&node, ChildRole::Data, whole()).expect("the same"));
        create(&edge, data.as_ref(), options).await.expect("options that go together");
        drop(edge);
        let node = open(&graph, &file).await.expect("a good image");
        super::use_disk(&graph, &node).await;
        drop(node);
        graph.remove("disk").await.expect("nobody else uses it");
        disk.contents()
    })
}

/// An image opens neither a backing file nor a data file of the host, whatever it says.
async fn open(graph: &BlockGraph, file: &BlockNode) -> Result<BlockNode> {
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
    let mut options = BlockdevOptions::new(DriverOptions::Qcow2(Box::new(options)));
    options.node_name = Some("disk".into());
    graph.open(&options).await
}

async fn repair(graph: &BlockGraph, file: &BlockNode) -> u32 {
    let Ok(edge) = graph.edge(file, ChildRole::File, whole()) else { return 0 };
    let checked = check(&edge, None).await.is_ok();
    u32::from(checked) + u32::from(check(&edge, Some(Repair::All)).await.is_ok())
}

fn whole() -> EdgePerms {
    let needs = Perms::CONSISTENT_READ | Perms::WRITE | Perms::RESIZE;
    EdgePerms { needs, shares: Perms::NONE }
}

async fn add_file(graph: &BlockGraph, name: &str, content: &[u8]) -> Result<BlockNode> {
    graph.add(Some(name), sim(graph.executor(), content), NodeOptions::default()).await
}

fn sim(executor: &Executor, content: &[u8]) -> SimDisk {
    let options = SimOptions::new(content.len() as u64, 1).instant();
    let disk = SimDisk::new(executor, SimOptions { resizable: true, ..options });
    disk.fill(0, content);
    disk
}
