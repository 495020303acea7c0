//! Sources and targets of several layers, also below filters, and targets that get their layers later.

use std::time::Duration;

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
use crate::nbd::{ExportOptions, Server, ServerOptions};
use crate::net::SocketAddress;
use crate::node::{BlockNode, NodeOptions};
use crate::open::{BlockdevOptions, BlockdevRef, DetectZeroes, DiscardMode, DriverOptions};
use crate::protocol::nbd::NbdOptions;
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
        rig.target.inject(Fault::once(SimOp::Map, Effect::Delay(Duration::from_millis(50))));
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

/// A mirror to an image that gets its layers later.
#[derive(Clone, Debug)]
struct Late {
    options: MirrorOptions,
    detect: DetectZeroes,
    /// Whether an NBD server is between the two.
    served: bool,
}

fn named(name: &str, image: BlockdevOptions) -> BlockdevOptions {
    BlockdevOptions { node_name: Some(name.to_owned()), ..image }
}

/// Serves node `over`, and opens that again as node `remote`.
async fn serve(graph: &BlockGraph, path: String) -> Server {
    let address = SocketAddress::unix(path);
    let server = Server::bind(graph, ServerOptions::new(address.clone())).await.unwrap();
    server.open();
    let options = ExportOptions { writable: true, ..ExportOptions::new("export", "over") };
    server.add(options).await.unwrap();
    let remote = DriverOptions::Nbd(NbdOptions::new(address, Some("over".to_owned())));
    graph.open(&named("remote", BlockdevOptions::new(remote))).await.unwrap();
    server
}

/// Mirrors a layer to an image without one below, which gets that just before it takes the source's place, or
/// is used without the server.
async fn late_layer(graph: &BlockGraph, path: impl Fn(&str) -> String, late: Late) {
    let qcow2 = |name| {
        let file = BlockdevRef::nested(BlockdevOptions::file(path(name)));
        named(name, BlockdevOptions::qcow2(file))
    };
    let top = graph.open(&qcow2("top")).await.unwrap();
    let discard = (late.detect == DetectZeroes::Unmap).then_some(DiscardMode::Unmap);
    let over = BlockdevOptions { detect_zeroes: Some(late.detect), discard, ..qcow2("over") };
    let over = graph.open(&over).await.unwrap();
    let base = graph.open(&named("copy", BlockdevOptions::raw_file(path("copy")))).await.unwrap();
    let server = if late.served { Some(serve(graph, path("socket")).await) } else { None };
    let perms = EdgePerms::READ_WRITE;
    let device = graph.add_backend(BackendKind::Device, "d0", &top, perms).unwrap();
    let mut expected = pattern(3, 4 * MIB);
    if late.options.sync == SyncMode::Top {
        device.write(0, filled(1, 4 * KIB), WriteFlags::NONE).await.unwrap();
        expected[..4 << 10].fill(1);
        device.write(512 * KIB, filled(0, 64 * KIB), WriteFlags::NONE).await.unwrap();
        expected[512 << 10..576 << 10].fill(0);
        device.write_zeroes(640 * KIB..704 * KIB, WriteFlags::NONE).await.unwrap();
        expected[640 << 10..704 << 10].fill(0);
    }
    let id = mirror::start(graph, late.options.clone()).await.unwrap();
    let job = JobRegistry::of(graph).find(&id).unwrap();
    while !job.info().ready {
        graph.executor().sleep(Duration::from_millis(1)).await;
    }
    guest_writes(&device, &mut expected).await;
    while job.info().offset < job.info().len {
        graph.executor().sleep(Duration::from_millis(1)).await;
    }
    if let Some(server) = server {
        job.cancel_block_job(false).await.unwrap();
        job.concluded().await;
        server.stop().await;
        put_below(graph, &base, &over).await;
    } else {
        put_below(graph, &base, &over).await;
        job.complete().unwrap();
        job.concluded().await;
        assert_eq!(device.node().name(), "over");
    }
    let is = Model::learn(&over, 0..over.len()).await.bytes().to_vec();
    let wrong = is.iter().zip(&expected).position(|(is, was)| is != was);
    assert_eq!(wrong, None, "{late:?}");
}

/// Writes bytes, zeroes as bytes, and zeroes, in whole clusters and in parts of them.
async fn guest_writes(device: &BlockBackend, expected: &mut [u8]) {
    device.write(MIB + 4 * KIB, filled(7, 4 * KIB), WriteFlags::NONE).await.unwrap();
    expected[1028 << 10..1032 << 10].fill(7);
    device.write(MIB + 256 * KIB, filled(0, 64 * KIB), WriteFlags::NONE).await.unwrap();
    expected[1280 << 10..1344 << 10].fill(0);
    let zeroes = 3 * MIB + 4 * KIB..3 * MIB + 8 * KIB;
    device.write_zeroes(zeroes, WriteFlags::UNMAP).await.unwrap();
    expected[3076 << 10..3080 << 10].fill(0);
    device.write_zeroes(2 * MIB..2 * MIB + 128 * KIB, WriteFlags::UNMAP).await.unwrap();
    expected[2048 << 10..2176 << 10].fill(0);
}

async fn put_below(graph: &BlockGraph, base: &BlockNode, over: &BlockNode) {
    let drained = graph.drain_nodes(vec![base.clone(), over.clone()], &[]).await;
    let taken = graph.snapshot(base, over, &drained).await.unwrap();
    drop(drained);
    taken.commit().await;
}

#[test]
fn what_is_copied_of_a_cluster_hides_no_layer_that_comes_later() {
    use {CopyMode::*, DetectZeroes::*};
    if !have_tool("qemu-img") {
        return;
    }
    for (sync, copy_mode, cluster, granularity, detect, served) in [
        (SyncMode::None, WriteBlocking, "64k", 0, Off, false),
        (SyncMode::Top, WriteBlocking, "64k", 4096, Off, false),
        (SyncMode::None, Background, "2M", 0, On, false),
        (SyncMode::Top, Background, "2M", 0, Off, false),
        (SyncMode::None, Background, "64k", 4096, Off, false),
        // It can have nothing, or bytes, but no zeroes.
        (SyncMode::None, WriteBlocking, "64k,compat=0.10", 0, Off, false),
        (SyncMode::Top, Background, "64k,compat=0.10", 0, Off, false),
        (SyncMode::None, WriteBlocking, "64k,compat=0.10", 0, Unmap, false),
        (SyncMode::Top, Background, "64k,compat=0.10", 0, On, false),
        // It cannot say where it has nothing.
        (SyncMode::None, WriteBlocking, "64k", 0, Off, true),
        (SyncMode::Top, Background, "64k", 0, Off, true),
        (SyncMode::Top, WriteBlocking, "2M", 0, Off, true),
        (SyncMode::None, Background, "64k,compat=0.10", 0, Off, true),
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
        let target = if served { "remote" } else { "over" };
        let options =
            MirrorOptions { copy_mode, granularity, ..MirrorOptions::new("d0", target, sync) };
        executor.block_on(late_layer(&graph, path, Late { options, detect, served }));
    }
}
