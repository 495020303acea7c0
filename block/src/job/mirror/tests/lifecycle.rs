//! Verbs and the order of events, as QEMU has them.

use std::time::Duration;

use super::rig::{KIB, MIB, Rig, filled};
use crate::driver::WriteFlags;
use crate::edge::{EdgePerms, Perms};
use crate::graph::Edit;
use crate::job::mirror::{MirrorOptions, SyncMode};
use crate::job::{IoStatus, JobStatus};
use crate::testing::SimOptions;

#[test]
fn complete_pivots_and_leaves_no_trace() {
    Rig::run(4 * MIB, |rig| async move {
        rig.fill_source();
        let job = rig.ready(rig.options()).await;
        rig.write(MIB + 100, 0xee, 5000).await.unwrap();
        job.complete().unwrap();
        job.concluded().await;
        let (all, ready) = (4 * MIB, format!("READY {0}/{0}", 4 * MIB));
        let log = rig.take_log();
        assert_eq!(&log[..4], ["created", "running", "ready", ready.as_str()]);
        assert_eq!(&log[4..6], ["waiting", "pending"]);
        assert!(log[6].starts_with("COMPLETED "), "{log:?}");
        assert_eq!(&log[7..], ["concluded", "null"]);
        assert!(rig.jobs().is_empty());
        assert_eq!(rig.device_node(), "dst");
        rig.assert_no_trace();
        rig.assert_equal();
        assert!(rig.target.durable() == rig.source.contents());
        // The guest's next write goes to the new disk alone.
        rig.write(0, 0xaa, KIB).await.unwrap();
        assert_eq!(rig.read(0, KIB).await, vec![0xaa; 1024]);
        assert_eq!(&rig.target.contents()[..1024], vec![0xaa; 1024]);
        assert_ne!(&rig.source.contents()[..1024], vec![0xaa; 1024]);
        assert_eq!(rig.device.len(), all);
    });
}

#[test]
fn soft_cancel_completes_without_pivot() {
    Rig::run(2 * MIB, |rig| async move {
        rig.fill_source();
        let job = rig.ready(rig.options()).await;
        rig.take_log();
        job.cancel_block_job(false).await.unwrap();
        assert!(rig.log().is_empty(), "the verb returns first");
        job.concluded().await;
        let done = format!("COMPLETED {0}/{0}", 2 * MIB);
        assert_eq!(rig.log(), ["waiting", "pending", done.as_str(), "concluded", "null"]);
        assert_eq!(rig.device_node(), "src");
        rig.assert_no_trace();
        rig.assert_equal();
        assert!(rig.target.durable() == rig.source.contents());
    });
}

#[test]
fn forced_cancels_abort() {
    for (after_ready, force) in [(false, false), (false, true), (true, true)] {
        Rig::run(8 * MIB, |rig| async move {
            rig.fill_source();
            let job = rig.start(MirrorOptions { speed: 1 << 16, ..rig.options() }).await;
            if after_ready {
                job.set_speed(0).unwrap();
                rig.wait_for("READY").await;
            } else {
                rig.sleep_ms(1).await;
            }
            rig.take_log();
            job.cancel_block_job(force).await.unwrap();
            job.concluded().await;
            assert_eq!(rig.log(), ["aborting", "CANCELLED", "concluded", "null"]);
            assert_eq!(rig.device_node(), "src");
            rig.assert_no_trace();
        });
    }
}

#[test]
fn job_cancel_is_always_forced() {
    Rig::run(MIB, |rig| async move {
        let job = rig.ready(rig.options()).await;
        rig.take_log();
        job.cancel().await.unwrap();
        job.concluded().await;
        assert_eq!(rig.log(), ["aborting", "CANCELLED", "concluded", "null"]);
        rig.assert_no_trace();
    });
}

#[test]
fn manual_finalize_and_dismiss() {
    Rig::run(MIB, |rig| async move {
        rig.fill_source();
        let manual = MirrorOptions { auto_finalize: false, auto_dismiss: false, ..rig.options() };
        let job = rig.ready(manual).await;
        rig.take_log();
        job.complete().unwrap();
        rig.wait_for("PENDING").await;
        assert_eq!(rig.take_log(), ["waiting", "pending", "PENDING"]);
        assert_eq!(rig.device_node().chars().next(), Some('#'), "no pivot before finalize");
        for refused in [job.pause().await, job.complete(), job.dismiss(), job.set_speed(10)] {
            let text = refused.unwrap_err().to_string();
            assert!(text.starts_with("Job 'm0' in state 'pending' cannot accept"), "{text}");
        }
        job.finalize().await.unwrap();
        let done = format!("COMPLETED {0}/{0}", MIB);
        assert_eq!(rig.take_log(), [done.as_str(), "concluded"], "all before it returns");
        let info = &rig.jobs()[0];
        assert_eq!((info.status, info.ready), (JobStatus::Concluded, false));
        assert_eq!(
            job.cancel().await.unwrap_err().to_string(),
            "Job 'm0' in state 'concluded' cannot accept command verb 'cancel'"
        );
        job.dismiss().unwrap();
        assert_eq!(rig.take_log(), ["null"]);
        assert!(rig.jobs().is_empty());
        assert_eq!(rig.device_node(), "dst");
        rig.assert_no_trace();
    });
}

#[test]
fn cancel_while_pending_takes_everything_back() {
    Rig::run(MIB, |rig| async move {
        let manual = MirrorOptions { auto_finalize: false, auto_dismiss: false, ..rig.options() };
        let job = rig.ready(manual).await;
        job.complete().unwrap();
        rig.wait_for("PENDING").await;
        rig.take_log();
        job.cancel_block_job(false).await.unwrap();
        assert_eq!(rig.take_log(), ["aborting", "CANCELLED", "concluded"]);
        assert_eq!(rig.jobs()[0].error.as_deref(), Some("Operation canceled"));
        job.dismiss().unwrap();
        assert_eq!(rig.device_node(), "src");
        rig.assert_no_trace();
        rig.write(0, 1, KIB).await.unwrap();
    });
}

#[test]
fn pausing_a_ready_mirror() {
    Rig::run(MIB, |rig| async move {
        let job = rig.ready(rig.options()).await;
        rig.take_log();
        job.pause().await.unwrap();
        assert_eq!(rig.take_log(), ["standby"], "a resting job is paused when the verb returns");
        assert_eq!(job.pause().await.unwrap_err().to_string(), "Job is already paused");
        assert_eq!(
            job.cancel_block_job(false).await.unwrap_err().to_string(),
            "The block job for device 'm0' is currently paused"
        );
        rig.write(0, 9, 4 * KIB).await.unwrap();
        rig.sleep_ms(5000).await;
        assert_eq!(rig.target.contents()[0], 0, "nothing is copied in a pause");
        // Accepted, and takes effect at resume.
        job.complete().unwrap();
        rig.sleep_ms(1000).await;
        assert!(rig.log().is_empty());
        job.resume().unwrap();
        assert_eq!(rig.log(), ["ready"]);
        job.concluded().await;
        assert_eq!(&rig.take_log()[1..3], ["waiting", "pending"]);
        rig.assert_equal();
        assert_eq!(rig.device_node(), "dst");
        rig.assert_no_trace();
    });
}

#[test]
fn pausing_before_ready_and_forced_cancel_in_a_pause() {
    Rig::run(8 * MIB, |rig| async move {
        rig.fill_source();
        let job = rig.start(MirrorOptions { speed: 1, ..rig.options() }).await;
        rig.sleep_ms(100).await;
        job.pause().await.unwrap();
        assert_eq!(rig.take_log(), ["created", "running", "paused"]);
        let info = job.info();
        assert!(info.paused && !info.busy && !info.ready);
        assert_eq!(
            job.complete().unwrap_err().to_string(),
            "Job 'm0' in state 'paused' cannot accept command verb 'complete'"
        );
        job.resume().unwrap();
        assert_eq!(job.resume().unwrap_err().to_string(), "Can't resume a job that was not paused");
        assert_eq!(
            job.complete().unwrap_err().to_string(),
            "Job 'm0' in state 'running' cannot accept command verb 'complete'"
        );
        rig.sleep_ms(1).await;
        job.pause().await.unwrap();
        rig.take_log();
        job.cancel_block_job(true).await.unwrap();
        assert_eq!(rig.take_log(), ["running"]);
        job.concluded().await;
        assert_eq!(rig.take_log(), ["aborting", "CANCELLED", "concluded", "null"]);
        rig.assert_no_trace();
    });
}

#[test]
fn progress_grows_only_and_meets_its_length() {
    Rig::run(8 * MIB, |rig| async move {
        rig.fill_source();
        let job = rig.start(MirrorOptions { speed: 4 << 20, ..rig.options() }).await;
        let mut last = 0;
        while !job.info().ready {
            let info = job.info();
            assert!(info.offset >= last && info.len >= info.offset);
            last = info.offset;
            rig.write(last % (8 * MIB), 3, 512).await.unwrap();
            rig.sleep_ms(20).await;
        }
        rig.sleep_ms(1000).await;
        let info = job.info();
        assert!(info.len == info.offset && info.len >= 8 * MIB, "{info:?}");
        // A new write makes it longer before it is copied.
        job.set_speed(1).unwrap();
        rig.write(0, 4, 512).await.unwrap();
        let longer = job.info();
        assert_eq!((longer.len, longer.offset), (info.len + 64 * KIB, info.offset));
        job.set_speed(0).unwrap();
        rig.sleep_ms(1000).await;
        assert_eq!(job.info().len, job.info().offset);
    });
}

#[test]
fn the_rate_limit_holds_and_zeroes_are_free() {
    Rig::run(64 * MIB, |rig| async move {
        // Data in the first 24 MiB only.
        rig.source.fill(0, &super::rig::pattern(1, 24 * MIB));
        let start = rig.executor.clock().now();
        let job = rig.start(MirrorOptions { speed: 8 << 20, ..rig.options() }).await;
        assert_eq!(job.info().speed, 8 << 20);
        rig.wait_for("READY").await;
        let seconds = (rig.executor.clock().now() - start) as f64 / 1e9;
        assert!((2.5..3.3).contains(&seconds), "24 MiB at 8 MiB/s took {seconds} s");
        assert_eq!(rig.target.data_bytes(), 24 * MIB, "the target stays sparse");
        assert_eq!(rig.target.counts().zeroes.0, 0, "it was known to read as zeroes");
        rig.assert_equal();
    });
}

#[test]
fn nothing_to_copy_is_ready_at_once() {
    Rig::run(4 * MIB, |rig| async move {
        rig.fill_source();
        rig.ready(MirrorOptions { sync: SyncMode::None, ..rig.options() }).await;
        assert_eq!(rig.log(), ["created", "running", "ready", "READY 0/0"]);
        rig.write(MIB, 5, 64 * KIB).await.unwrap();
        rig.job("m0").cancel_block_job(false).await.unwrap();
        rig.wait_for("null").await;
        let target = rig.target.contents();
        assert_eq!(target[1 << 20], 5);
        assert_eq!(target[0], 0, "only new writes are copied");
    });
    Rig::run(0, |rig| async move {
        let job = rig.ready(rig.options()).await;
        job.complete().unwrap();
        job.concluded().await;
        assert_eq!(rig.device_node(), "dst");
    });
}

#[test]
fn stale_data_on_the_target_is_overwritten_with_zeroes() {
    Rig::run(4 * MIB, |rig| async move {
        rig.target.fill(0, &super::rig::pattern(3, 4 * MIB));
        rig.source.fill(MIB, &[1; 4096]);
        rig.ready(rig.options()).await;
        rig.assert_equal();
        assert!(rig.target.counts().zeroes.0 > 0);
    });
}

#[test]
fn different_sizes_fail_after_the_start() {
    let (source, target) = (SimOptions::new(MIB, 1), SimOptions::new(2 * MIB, 2));
    Rig::run_with(source, target, |rig| async move {
        let manual = MirrorOptions { auto_dismiss: false, ..rig.options() };
        let job = rig.start(manual).await;
        assert_eq!(rig.take_log(), ["created", "running"]);
        job.concluded().await;
        let failed = "FAILED Source and target image have different sizes";
        assert_eq!(rig.take_log(), ["aborting", failed, "concluded"]);
        let info = job.info();
        assert_eq!((info.len, info.offset, info.io_status), (0, 0, IoStatus::Ok));
        assert_eq!(info.error.as_deref(), Some("Source and target image have different sizes"));
        job.dismiss().unwrap();
        rig.assert_no_trace();
    });
}

#[test]
fn quit_cancels_every_job_with_all_its_events() {
    for auto_dismiss in [true, false] {
        Rig::run(MIB, async move |rig| {
            rig.ready(MirrorOptions { auto_dismiss, ..rig.options() }).await;
            rig.take_log();
            crate::job::JobRegistry::of(&rig.graph).cancel_all().await;
            assert_eq!(rig.log(), ["aborting", "CANCELLED", "concluded", "null"]);
            rig.assert_no_trace();
        });
    }
}

#[test]
fn operations_are_large_and_several() {
    let slow = Duration::from_millis(20)..Duration::from_millis(21);
    let target = SimOptions { latency: slow, ..SimOptions::new(32 * MIB, 2) };
    Rig::run_with(SimOptions::new(32 * MIB, 1), target, |rig| async move {
        rig.fill_source();
        rig.ready(rig.options()).await;
        let counts = rig.target.counts();
        assert_eq!(counts.writes, (32, 32 * MIB));
        assert_eq!(counts.deepest, 16);
    });
    Rig::run(8 * MIB, |rig| async move {
        rig.fill_source();
        let small = MirrorOptions { buf_size: 256 << 10, granularity: 4096, ..rig.options() };
        rig.ready(small).await;
        let counts = rig.target.counts();
        assert_eq!((counts.writes.1, counts.deepest), (8 * MIB, 1));
        rig.assert_equal();
    });
    Rig::run(5 * MIB + 512, |rig| async move {
        rig.fill_source();
        rig.ready(MirrorOptions { granularity: 64 << 20, ..rig.options() }).await;
        rig.assert_equal();
    });
}

#[test]
fn who_comes_for_the_source_while_it_is_copied_is_copied_and_moved_too() {
    for through in [false, true] {
        Rig::run(MIB, |rig| async move {
            let shared = EdgePerms { shares: Perms::ALL, ..EdgePerms::READ_WRITE };
            rig.graph.edit(&Edit::new().set_perms(&rig.device, shared), &[]).await.unwrap();
            let job = rig.ready(if through { rig.blocking() } else { rig.options() }).await;
            let late = rig.graph.add_export("late", "src", true, crate::Perms::ALL).await.unwrap();
            let write = async |byte| late.write(0, filled(byte, KIB), WriteFlags::NONE).await;
            write(0x33).await.unwrap();
            assert_eq!(rig.is_dirty(0), !through);
            job.complete().unwrap();
            job.concluded().await;
            assert_eq!((late.node().name(), rig.device_node().as_str()), ("dst", "dst"));
            rig.assert_equal();
            write(0x44).await.unwrap();
            assert_eq!(rig.target.contents()[0], 0x44);
            assert_eq!(rig.source.contents()[0], 0x33);
        });
    }
}

/// An image that is being opened over the source comes in at the filter, too, and may take longer than the job.
#[test]
fn what_is_being_opened_over_the_source_goes_where_the_disk_goes() {
    for (pivot, expected) in [(true, "dst"), (false, "src")] {
        Rig::run(MIB, |rig| async move {
            let job = rig.ready(rig.options()).await;
            let below = rig.graph.backing_edge(&rig.graph.node("src").unwrap()).unwrap();
            assert_eq!(below.node().format(), "mirror_top");
            if pivot {
                job.complete().unwrap()
            } else {
                job.cancel().await.unwrap()
            }
            job.concluded().await;
            assert_eq!(below.node().name(), expected);
        });
    }
}
