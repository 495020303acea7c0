//! Sources and targets of several layers, also below filters, and targets that get their layers later.

use super::rig::{KIB, MIB, Rig, filled, pattern};
use crate::backend::{BackendKind, BlockBackend};
use crate::clock::Clock;
use crate::driver::WriteFlags;
use crate::edge::EdgePerms;
use crate::executor::Executor;
use crate::filter::copy_on_read::CopyOnRead;
use crate::format::raw::RawDriver;
use crate::graph::BlockGraph;
use crate::job::JobRegistry;
use crate::job::mirror::{self, CopyMode, MirrorOptions, SyncMode};
use crate::node::{BlockNode, NodeOptions};
use crate::open::{BlockdevOptions, BlockdevRef};
use crate::testing::{Effect, Fault, Model, Overlay, SimDisk, SimOp, SimOptions, have_tool, tool};

impl Rig {
    async fn add_disk(&self, name: &str, bytes: &[u8]) -> BlockNode {
        let disk = SimDisk::new(&self.executor, SimOptions::new(bytes.len() as u64, 9));
        disk.fill(0, bytes);
        self.graph.add(Some(name), disk, NodeOptions::default()).await.unwrap()
    }

    /// A node `upper` over an overlay over a disk with data everywhere; the overlay has 64 KiB of its own.
    async fn layers(&self, upper: &str) -> BlockNode {
        let (graph, options) = (&self.graph, NodeOptions::default());
        let base = self.add_disk("base", &pattern(3, MIB)).await;
        let file = self.add_disk("file", &[0; 1 << 20]).await;
        let overlay = Overlay::new(graph, &file, &base).unwrap();
        let overlay = graph.add(Some("overlay"), overlay, options).await.unwrap();
        overlay.write(256 * KIB, filled(0x77, 64 * KIB), WriteFlags::NONE).await.unwrap();
        let node = match upper {
            "raw" => {
                let raw = RawDriver::new(graph, &overlay, 0, None).unwrap();
                graph.add(Some("upper"), raw, options).await
            }
            _ => {
                let filter = CopyOnRead::new(graph, &overlay, None).unwrap();
                graph.add(Some("upper"), filter, options).await
            }
        };
        node.unwrap()
    }

    fn device(&self, node: &BlockNode) -> BlockBackend {
        let perms = EdgePerms::READ_WRITE;
        self.graph.add_backend(BackendKind::Device, "d1", node, perms).unwrap()
    }

    fn mirror_of(&self, device: &str, target: &str, sync: SyncMode) -> MirrorOptions {
        MirrorOptions { job_id: Some("m0".into()), ..MirrorOptions::new(device, target, sync) }
    }
}

async fn content(device: &BlockBackend) -> Vec<u8> {
    Model::learn(&device.node(), 0..device.len()).await.bytes().to_vec()
}

#[test]
fn what_shows_through_a_filter_or_raw_is_copied() {
    for (upper, sync) in [
        ("copy-on-read", SyncMode::Full),
        ("raw", SyncMode::Full),
        // What is below raw is a layer to nobody.
        ("raw", SyncMode::Top),
    ] {
        Rig::run(MIB, |rig| async move {
            let device = rig.device(&rig.layers(upper).await);
            let mut expected = pattern(3, MIB);
            expected[256 << 10..320 << 10].fill(0x77);
            let job = rig.ready(rig.mirror_of("d1", "dst", sync)).await;
            job.complete().unwrap();
            job.concluded().await;
            assert_eq!(device.node().name(), "dst");
            assert!(content(&device).await == expected, "{upper}, {sync:?}");
        });
    }
}

#[test]
fn the_topmost_layer_below_a_filter_is_copied_alone() {
    Rig::run(MIB, |rig| async move {
        let device = rig.device(&rig.layers("copy-on-read").await);
        let mut expected = vec![0xaa; 1 << 20];
        rig.target.fill(0, &expected);
        let job = rig.ready(rig.mirror_of("d1", "dst", SyncMode::Top)).await;
        expected[256 << 10..320 << 10].fill(0x77);
        assert!(rig.target.contents() == expected);
        job.cancel_block_job(false).await.unwrap();
        job.concluded().await;
        assert_eq!(device.node().name(), "upper");
    });
}

#[test]
fn zeroes_hide_what_shows_through_raw_in_the_target() {
    Rig::run(MIB, |rig| async move {
        rig.layers("raw").await;
        rig.write(512 * KIB, 5, 64 * KIB).await.unwrap();
        let expected = rig.source.contents();
        let job = rig.ready(rig.mirror_of("d0", "upper", SyncMode::Full)).await;
        job.complete().unwrap();
        job.concluded().await;
        assert_eq!(rig.device_node(), "upper");
        assert!(content(&rig.device).await == expected);
    });
}

#[test]
fn zeroes_go_through_before_it_is_known_what_the_target_holds() {
    Rig::run(MIB, |rig| async move {
        rig.target.fill(0, &pattern(5, MIB));
        rig.target
            .inject(Fault::once(SimOp::Map, Effect::Delay(std::time::Duration::from_millis(50))));
        let options = MirrorOptions { sync: SyncMode::None, ..rig.blocking() };
        let job = rig.start(options).await;
        rig.sleep_ms(10).await;
        let range = 128 * KIB..256 * KIB;
        rig.device.write_zeroes(range, WriteFlags::NONE).await.unwrap();
        rig.wait_for("READY").await;
        job.cancel_block_job(false).await.unwrap();
        job.concluded().await;
        let mut expected = pattern(5, MIB);
        expected[128 << 10..256 << 10].fill(0);
        assert!(rig.target.contents() == expected);
    });
}

#[test]
fn parts_of_granules_go_through_once_the_whole_is_there() {
    Rig::run(MIB, |rig| async move {
        rig.fill_source();
        let job = rig.ready(MirrorOptions { sync: SyncMode::None, ..rig.blocking() }).await;
        let synced = || job.info().actively_synced.unwrap();
        rig.write(4 * KIB, 1, 64 * KIB).await.unwrap();
        assert!(rig.is_dirty(0) && rig.is_dirty(64 * KIB) && !synced());
        rig.write(256 * KIB, 1, 64 * KIB).await.unwrap();
        assert!(!rig.is_dirty(256 * KIB));
        rig.sleep_ms(1000).await;
        rig.write(8 * KIB, 2, KIB).await.unwrap();
        rig.write(256 * KIB, 2, KIB).await.unwrap();
        assert!(synced() && !rig.is_dirty(0) && !rig.is_dirty(256 * KIB));
        let (source, target) = (rig.source.contents(), rig.target.contents());
        assert!(target[..128 << 10] == source[..128 << 10]);
        assert!(target[128 << 10..256 << 10].iter().all(|byte| *byte == 0));
        assert!(target[256 << 10..320 << 10] == source[256 << 10..320 << 10]);
    });
}

/// Mirrors a layer to an image without one below, which gets that just before it takes the source's place.
async fn late_layer(graph: &BlockGraph, path: impl Fn(&str) -> String, options: MirrorOptions) {
    let named = |name: &str, image: BlockdevOptions| BlockdevOptions {
        node_name: Some(name.to_owned()),
        ..image
    };
    let qcow2 = |name| {
        let file = BlockdevRef::nested(BlockdevOptions::file(path(name)));
        named(name, BlockdevOptions::qcow2(file))
    };
    let top = graph.open(&qcow2("top")).await.unwrap();
    let over = graph.open(&qcow2("over")).await.unwrap();
    let base = graph.open(&named("copy", BlockdevOptions::raw_file(path("copy")))).await.unwrap();
    let perms = EdgePerms::READ_WRITE;
    let device = graph.add_backend(BackendKind::Device, "d0", &top, perms).unwrap();
    let mut expected = pattern(3, 4 * MIB);
    if options.sync == SyncMode::Top {
        device.write(0, filled(1, 4 * KIB), WriteFlags::NONE).await.unwrap();
        expected[..4 << 10].fill(1);
    }
    let id = mirror::start(graph, options.clone()).await.unwrap();
    let job = JobRegistry::of(graph).find(&id).unwrap();
    while !job.info().ready {
        graph.executor().sleep(std::time::Duration::from_millis(1)).await;
    }
    device.write(MIB + 4 * KIB, filled(7, 4 * KIB), WriteFlags::NONE).await.unwrap();
    expected[1028 << 10..1032 << 10].fill(7);
    let zeroes = 3 * MIB + 4 * KIB..3 * MIB + 8 * KIB;
    device.write_zeroes(zeroes, WriteFlags::UNMAP).await.unwrap();
    expected[3076 << 10..3080 << 10].fill(0);
    device.write_zeroes(2 * MIB..2 * MIB + 128 * KIB, WriteFlags::UNMAP).await.unwrap();
    expected[2048 << 10..2176 << 10].fill(0);
    while job.info().offset < job.info().len {
        graph.executor().sleep(std::time::Duration::from_millis(1)).await;
    }
    let drained = graph.drain_nodes(vec![base.clone(), over.clone()], &[]).await;
    let taken = graph.snapshot(&base, &over, &drained).await.unwrap();
    drop(drained);
    taken.commit().await;
    job.complete().unwrap();
    job.concluded().await;
    assert_eq!(device.node().name(), "over");
    let wrong = content(&device).await.iter().zip(&expected).position(|(is, was)| is != was);
    assert_eq!(wrong, None, "{options:?}");
}

#[test]
fn what_is_copied_of_a_cluster_hides_no_layer_that_comes_later() {
    if !have_tool("qemu-img") {
        return;
    }
    for (sync, copy_mode, cluster, granularity) in [
        (SyncMode::None, CopyMode::WriteBlocking, "64k", 0),
        (SyncMode::Top, CopyMode::WriteBlocking, "64k", 4096),
        (SyncMode::None, CopyMode::Background, "2M", 0),
        (SyncMode::Top, CopyMode::Background, "2M", 0),
        (SyncMode::None, CopyMode::Background, "64k", 4096),
        // It can have nothing, or bytes, but no zeroes.
        (SyncMode::None, CopyMode::WriteBlocking, "64k,compat=0.10", 0),
        (SyncMode::Top, CopyMode::Background, "64k,compat=0.10", 0),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        for name in ["base", "copy"] {
            std::fs::write(path(name), pattern(3, 4 * MIB)).unwrap();
        }
        let (base, top, over) = (path("base"), path("top"), path("over"));
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", &top]);
        let size = format!("cluster_size={cluster}");
        tool("qemu-img", &["create", "-q", "-f", "qcow2", "-o", &size, &over, "4M"]);
        let executor = Executor::new(Clock::real()).unwrap();
        let graph = BlockGraph::new(executor.clone());
        let options =
            MirrorOptions { copy_mode, granularity, ..MirrorOptions::new("d0", "over", sync) };
        executor.block_on(late_layer(&graph, path, options));
    }
}
