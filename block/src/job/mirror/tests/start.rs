//! What a start refuses, in QEMU's words, and that nothing is left behind then.

use super::rig::{MIB, Rig};
use crate::backend::BackendKind;
use crate::edge::{EdgePerms, Perms};
use crate::error::ErrorKind;
use crate::format::raw::RawDriver;
use crate::job::mirror::{self, MirrorOptions, SyncMode};
use crate::node::NodeOptions;
use crate::testing::{SimDisk, SimOptions};

async fn refusal(rig: &Rig, options: MirrorOptions) -> String {
    mirror::start(&rig.graph, options).await.unwrap_err().to_string()
}

#[test]
fn bad_arguments() {
    Rig::run(MIB, |rig| async move {
        let ok = || rig.options();
        let id = |id: &str| MirrorOptions { job_id: Some(id.into()), ..ok() };
        let cases = [
            (id("m 0"), "Invalid job ID 'm 0'"),
            (id("0m"), "Invalid job ID '0m'"),
            (id(""), "Invalid job ID ''"),
            (MirrorOptions { job_id: None, device: "src".into(), ..ok() }, "Invalid job ID ''"),
            (
                MirrorOptions { device: "x".into(), ..ok() },
                "Cannot find device='x' nor node-name='x'",
            ),
            (
                MirrorOptions { target: "y".into(), ..ok() },
                "Cannot find device='y' nor node-name='y'",
            ),
            (
                MirrorOptions { granularity: 100, ..ok() },
                "Parameter 'granularity' expects a value in range [512B, 64MB]",
            ),
            (
                MirrorOptions { granularity: 128 << 20, ..ok() },
                "Parameter 'granularity' expects a value in range [512B, 64MB]",
            ),
            (
                MirrorOptions { granularity: 1000, ..ok() },
                "Parameter 'granularity' expects a power of 2",
            ),
            (MirrorOptions { buf_size: -1, ..ok() }, "Invalid parameter 'buf-size'"),
            (
                MirrorOptions { sync: SyncMode::Incremental, ..ok() },
                "Sync mode 'incremental' not supported",
            ),
            (MirrorOptions { sync: SyncMode::Bitmap, ..ok() }, "Sync mode 'bitmap' not supported"),
            (
                MirrorOptions { replaces: Some("n".into()), ..ok() },
                "Failed to find node with node-name='n'",
            ),
            (
                MirrorOptions { replaces: Some("dst".into()), ..ok() },
                "Cannot replace 'dst' by a node mirrored from 'src', because it cannot be guaranteed \
                 that doing so would not lead to an abrupt change of visible data",
            ),
            (MirrorOptions { target: "d0".into(), ..ok() }, "Can't mirror node into itself"),
            (MirrorOptions { target: "src".into(), ..ok() }, "Can't mirror node into itself"),
        ];
        for (options, text) in cases {
            assert_eq!(refusal(&rig, options).await, text);
        }
        assert!(rig.log().is_empty(), "refused before the job existed: {:?}", rig.log());
        rig.assert_no_trace();
    });
}

#[test]
fn refused_after_the_job_was_made() {
    Rig::run(MIB, |rig| async move {
        let filter =
            |name: &str| MirrorOptions { filter_node_name: Some(name.into()), ..rig.options() };
        let negative = MirrorOptions { speed: -1, ..rig.options() };
        let cases = [
            (negative, "Parameter 'speed' expects a non-negative value"),
            (filter("src"), "Duplicate nodes with node-name='src'"),
            (filter("bad name"), "Invalid node-name: 'bad name'"),
        ];
        for (options, text) in cases {
            assert_eq!(refusal(&rig, options).await, text);
            assert_eq!(rig.take_log(), ["created", "null"]);
            rig.assert_no_trace();
        }
        let dst = rig.graph.node("dst").unwrap();
        let perms = EdgePerms::READ_WRITE;
        let other = rig.graph.add_backend(BackendKind::Device, "d1", &dst, perms).unwrap();
        let text = refusal(&rig, rig.options()).await;
        assert!(text.starts_with("Permission conflict on node 'dst'"), "{text}");
        drop(other);
        rig.take_log();
        rig.assert_no_trace();
    });
}

#[test]
fn what_a_job_uses_is_not_for_others() {
    Rig::run(MIB, |rig| async move {
        let disk = SimDisk::new(&rig.executor, SimOptions::new(MIB, 9));
        rig.graph.add(Some("other"), disk, NodeOptions::default()).await.unwrap();
        let job = rig.ready(rig.options()).await;
        let again = |device: &str, target: &str| MirrorOptions {
            job_id: Some("m1".into()),
            ..MirrorOptions::new(device, target, SyncMode::Full)
        };
        assert_eq!(refusal(&rig, again("src", "other")).await, "Need a root block node");
        assert_eq!(refusal(&rig, again("d0", "other")).await, "Need a root block node");
        assert_eq!(
            refusal(&rig, again("other", "dst")).await,
            "Node 'dst' is busy: block device is in use by block job: mirror"
        );
        assert_eq!(
            refusal(&rig, again("other", "src")).await,
            "Node 'src' is busy: block device is in use by block job: mirror"
        );
        for node in ["src", "dst"] {
            let resized = rig.graph.check_no_job(&rig.graph.node(node).unwrap());
            let text =
                format!("Node '{node}' is busy: block device is in use by block job: mirror");
            assert_eq!(resized.unwrap_err().to_string(), text);
            let text = rig.graph.remove(node).await.unwrap_err().to_string();
            assert_eq!(text, format!("Node {node} is in use"));
        }
        assert_eq!(
            refusal(&rig, rig.options()).await,
            "Need a root block node",
            "before the job's id is looked at, as in QEMU"
        );
        let same_id = MirrorOptions { job_id: Some("m0".into()), ..again("other", "third") };
        let disk = SimDisk::new(&rig.executor, SimOptions::new(MIB, 9));
        rig.graph.add(Some("third"), disk, NodeOptions::default()).await.unwrap();
        assert_eq!(refusal(&rig, same_id).await, "Job ID 'm0' already in use");
        job.cancel().await.unwrap();
        job.concluded().await;
        rig.graph.remove("dst").await.unwrap();
    });
}

#[test]
fn the_device_name_is_the_default_id_and_the_filter_may_be_named() {
    Rig::run(MIB, |rig| async move {
        let named =
            MirrorOptions { job_id: None, filter_node_name: Some("top".into()), ..rig.options() };
        assert_eq!(mirror::start(&rig.graph, named).await.unwrap(), "d0");
        assert_eq!(rig.device_node(), "top");
        let node = rig.graph.node("top").unwrap();
        assert_eq!((node.format(), node.len()), ("mirror_top", MIB));
        drop(node);
        assert_eq!(rig.bitmap().bits.borrow().granularity(), 64 << 10);
        let job = rig.job("d0");
        job.cancel().await.unwrap();
        job.concluded().await;
        rig.assert_no_trace();
    });
}

#[test]
fn what_another_process_owns_is_not_mirrored() {
    Rig::run(MIB, |rig| async move {
        let disk = SimDisk::new(&rig.executor, SimOptions::new(MIB, 9));
        let idle = NodeOptions { active: false, ..NodeOptions::default() };
        rig.graph.add(Some("idle"), disk, idle).await.unwrap();
        for (device, target) in [("idle", "dst"), ("d0", "idle")] {
            let options = MirrorOptions { device: device.into(), ..rig.options() };
            let error =
                mirror::start(&rig.graph, MirrorOptions { target: target.into(), ..options });
            let error = error.await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Inactive);
            assert_eq!(error.to_string(), "Node 'idle' is inactive, another process may own it");
        }
    });
}

#[test]
fn a_node_below_the_source_keeps_its_length() {
    let disk = || SimOptions { resizable: true, ..SimOptions::new(MIB, 1) };
    Rig::run_with(disk(), disk(), |rig| async move {
        let file = rig.graph.node("src").unwrap();
        let raw = RawDriver::new(&rig.graph, &file, 0, None).unwrap();
        let raw = rig.graph.add(Some("raw"), raw, NodeOptions::default()).await.unwrap();
        let resize = |needs| {
            let perms = EdgePerms { needs, shares: Perms::ALL };
            rig.graph.add_backend(BackendKind::Job, "block_resize", &file, perms)
        };
        resize(Perms::RESIZE).unwrap();
        let options = MirrorOptions { auto_finalize: false, ..rig.options() };
        let job = rig.ready(MirrorOptions { device: "raw".into(), ..options }).await;
        for needs in [Perms::GROW, Perms::SHRINK] {
            assert_eq!(resize(needs).err().unwrap().kind(), ErrorKind::PermissionConflict);
        }
        // However its length has changed, a target of another one does not take its place.
        job.complete().unwrap();
        rig.wait_for("PENDING").await;
        file.resize(2 * MIB).await.unwrap();
        assert_eq!(raw.len(), 2 * MIB);
        job.finalize().await.ok();
        rig.wait_for("FAILED Source and target image have different sizes").await;
        assert_eq!(rig.graph.node("dst").unwrap().0.live_parents().len(), 0);
    });
}
