//! Sources and targets of several layers, also below filters.

use super::rig::{KIB, MIB, Rig, filled, pattern};
use crate::backend::{BackendKind, BlockBackend};
use crate::driver::WriteFlags;
use crate::edge::EdgePerms;
use crate::filter::copy_on_read::CopyOnRead;
use crate::format::raw::RawDriver;
use crate::job::mirror::{MirrorOptions, SyncMode};
use crate::node::{BlockNode, NodeOptions};
use crate::testing::{Model, Overlay, SimDisk, SimOptions};

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
