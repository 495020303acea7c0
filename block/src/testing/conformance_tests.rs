//! The suite on the disks and filters of this folder and of the mirror; drivers with tests of their own
//! call it there.

use super::*;
use crate::backend::BackendKind;
use crate::clock::Clock;
use crate::driver::Limits;
use crate::edge::EdgePerms;
use crate::format::raw::RawOptions;
use crate::graph::BlockGraph;
use crate::io::RingChoice;
use crate::io_thread::{IoThread, IoThreadOptions};
use crate::job::mirror::{self, CopyMode, MirrorOptions, SyncMode};
use crate::node::NodeOptions;
use crate::open::{BlockdevOptions, BlockdevRef, CacheOptions, DriverOptions};
use crate::testing::{SimDisk, SimOptions};

fn with_graph(test: impl AsyncFnOnce(BlockGraph)) {
    let executor = Executor::new(Clock::simulated()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    executor.block_on(test(graph));
}

async fn sim(graph: &BlockGraph, name: &str, options: SimOptions) -> (SimDisk, BlockNode) {
    let disk = SimDisk::new(graph.executor(), options);
    let node = graph.add(Some(name), disk.clone(), NodeOptions::default()).await.unwrap();
    (disk, node)
}

#[test]
fn a_simulated_disk() {
    with_graph(async |graph| {
        let (_, node) = sim(&graph, "sim", SimOptions::new(CONFORMANCE_LEN + 777, 1)).await;
        conformance(graph.executor(), &node, 1).await;
    });
}

#[test]
fn a_simulated_disk_with_every_limit() {
    with_graph(async |graph| {
        let limits = Limits {
            request_alignment: 4096,
            memory_alignment: 512,
            max_transfer: 64 << 10,
            max_zeroes: 32 << 10,
            discard_granularity: 8192,
        };
        let options = SimOptions { limits, ..SimOptions::new(CONFORMANCE_LEN, 2) };
        let (_, node) = sim(&graph, "sim", options).await;
        conformance(graph.executor(), &node, 2).await;
    });
}

/// A window into a simulated disk with units of 4 KiB.
#[test]
fn raw_over_a_simulated_disk() {
    with_graph(async |graph| {
        let limits = Limits { request_alignment: 4096, ..Limits::NONE };
        let options = SimOptions { limits, ..SimOptions::new(CONFORMANCE_LEN + 8192, 3) };
        sim(&graph, "sim", options).await;
        let window = RawOptions {
            file: BlockdevRef::Name("sim".into()),
            offset: Some(4096),
            size: Some(CONFORMANCE_LEN),
            guessed: false,
        };
        let window = BlockdevOptions::new(DriverOptions::Raw(window));
        let node = graph.open(&window).await.unwrap();
        conformance(graph.executor(), &node, 3).await;
    });
}

#[test]
fn raw_over_a_file_of_the_host() {
    for (ring, direct) in
        [(RingChoice::Auto, false), (RingChoice::Auto, true), (RingChoice::ThreadPool, false)]
    {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(CONFORMANCE_LEN).unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        let thread = IoThread::spawn("conformance", IoThreadOptions { ring, ..Default::default() });
        let thread = thread.unwrap();
        let check = move |graph: BlockGraph| async move {
            let cache = CacheOptions { direct: Some(direct), no_flush: None };
            let file = BlockdevOptions { cache: Some(cache), ..BlockdevOptions::file(path) };
            let options = BlockdevOptions::raw(BlockdevRef::nested(file));
            match graph.open(&options).await {
                Ok(node) => conformance(graph.executor(), &node, 4).await,
                Err(error) if direct => eprintln!("no O_DIRECT here: {error}"),
                Err(error) => panic!("{error}"),
            }
        };
        thread.handle().call_blocking(check).unwrap();
        thread.stop().unwrap();
    }
}

#[test]
fn a_disk_under_a_mirror_and_the_mirror_itself() {
    for mode in [CopyMode::Background, CopyMode::WriteBlocking] {
        with_graph(async |graph| {
            let (from, node) = sim(&graph, "src", SimOptions::new(CONFORMANCE_LEN, 3)).await;
            let (to, _) = sim(&graph, "dst", SimOptions::new(CONFORMANCE_LEN, 4)).await;
            let perms = EdgePerms::READ_WRITE;
            let device = graph.add_backend(BackendKind::Device, "d0", &node, perms).unwrap();
            let options = MirrorOptions {
                copy_mode: mode,
                ..MirrorOptions::new("d0", "dst", SyncMode::Full)
            };
            let id = mirror::start(&graph, options).await.unwrap();
            let top = device.node();
            assert_eq!(top.format(), "mirror_top");
            conformance(graph.executor(), &top, 5).await;
            drop(top);
            let job = crate::job::JobRegistry::of(&graph).find(&id).unwrap();
            while !job.info().ready {
                graph.executor().sleep(std::time::Duration::from_millis(1)).await;
            }
            job.complete().unwrap();
            job.concluded().await;
            assert!(from.contents() == to.contents());
            assert_eq!(device.node().name(), "dst");
        });
    }
}
