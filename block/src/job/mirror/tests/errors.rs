//! Faults of both disks under every policy, and targets that do not answer at all.

use std::time::Duration;

use super::rig::{KIB, MIB, Rig};
use crate::backend::BackendKind;
use crate::edge::EdgePerms;
use crate::error::ErrorKind;
use crate::job::mirror::{self, MirrorOptions};
use crate::job::registry::JobRef;
use crate::job::{IoStatus, OnError};
use crate::testing::{Effect, Fault, SimOp};

/// The events up to `paused`, `READY` or the end, when one write fails under `policy`.
async fn one_write_fails(rig: &Rig, policy: OnError, kind: ErrorKind) -> Vec<String> {
    rig.fill_source();
    rig.target.inject(Fault::once(SimOp::Write, Effect::Fail(kind)));
    rig.start(MirrorOptions { on_target_error: policy, ..rig.options() }).await;
    rig.sleep_ms(10_000).await;
    rig.take_log().split_off(2)
}

#[test]
fn report_fails_the_job_and_restores_the_graph() {
    for (policy, kind, text) in [
        (OnError::Report, ErrorKind::NoSpace, "No space left on device"),
        (OnError::Report, ErrorKind::Io, "Input/output error"),
        (OnError::Enospc, ErrorKind::Io, "Input/output error"),
        (OnError::Auto, ErrorKind::Io, "Input/output error"),
    ] {
        Rig::run(4 * MIB, |rig| async move {
            let log = one_write_fails(&rig, policy, kind).await;
            let failed = format!("FAILED {text}");
            assert_eq!(
                log,
                ["ERROR write report", "aborting", failed.as_str(), "concluded", "null"]
            );
            assert_eq!(rig.device_node(), "src");
            rig.assert_no_trace();
            // Nothing stands in the way of the next attempt.
            let job = rig.ready(rig.options()).await;
            job.complete().unwrap();
            job.concluded().await;
            rig.assert_equal();
        });
    }
}

#[test]
fn ignore_tries_again_until_it_works() {
    Rig::run(4 * MIB, |rig| async move {
        let log = one_write_fails(&rig, OnError::Ignore, ErrorKind::Io).await;
        let ready = format!("READY {0}/{0}", 4 * MIB);
        assert_eq!(log, ["ERROR write ignore", "ready", ready.as_str()]);
        rig.assert_equal();
    });
}

#[test]
fn an_ignored_error_that_stays_does_not_spin() {
    Rig::run(MIB, |rig| async move {
        rig.fill_source();
        rig.target.inject(Fault::every(SimOp::Write, Effect::Fail(ErrorKind::Io)));
        let job =
            rig.start(MirrorOptions { on_target_error: OnError::Ignore, ..rig.options() }).await;
        rig.sleep_ms(10_000).await;
        let errors = rig.take_log().len();
        assert!((50..250).contains(&errors), "{errors} errors in ten seconds");
        job.cancel().await.unwrap();
        job.concluded().await;
        rig.assert_no_trace();
    });
}

#[test]
fn stop_pauses_until_resumed() {
    for (policy, kind, status) in [
        (OnError::Stop, ErrorKind::Io, IoStatus::Failed),
        (OnError::Stop, ErrorKind::NoSpace, IoStatus::NoSpace),
        (OnError::Enospc, ErrorKind::NoSpace, IoStatus::NoSpace),
        (OnError::Auto, ErrorKind::NoSpace, IoStatus::NoSpace),
    ] {
        Rig::run(4 * MIB, |rig| async move {
            let log = one_write_fails(&rig, policy, kind).await;
            assert_eq!(log, ["ERROR write stop", "paused"]);
            let job = rig.job("m0");
            assert_eq!((job.info().io_status, job.info().paused), (status, true));
            assert_eq!(job.pause().await.unwrap_err().to_string(), "Job is already paused");
            // The guest goes on.
            rig.write(0, 1, KIB).await.unwrap();
            job.resume().unwrap();
            assert_eq!(job.info().io_status, IoStatus::Ok);
            rig.wait_for("READY").await;
            assert_eq!(&rig.log()[..2], ["running", "ready"]);
            rig.assert_equal();
        });
    }
}

#[test]
fn errors_of_the_source_have_their_own_policy() {
    Rig::run(4 * MIB, |rig| async move {
        rig.fill_source();
        rig.source.inject(Fault::once(SimOp::Read, Effect::Fail(ErrorKind::Io)));
        let options = MirrorOptions {
            on_source_error: OnError::Stop,
            on_target_error: OnError::Report,
            ..rig.options()
        };
        let job = rig.start(options).await;
        rig.wait_for("paused").await;
        assert_eq!(rig.log()[2], "ERROR read stop");
        job.resume().unwrap();
        rig.wait_for("READY").await;
        rig.assert_equal();
    });
}

#[test]
fn an_error_after_ready_keeps_the_job_ready() {
    Rig::run(MIB, |rig| async move {
        let job =
            rig.ready(MirrorOptions { on_target_error: OnError::Stop, ..rig.options() }).await;
        rig.take_log();
        rig.target.inject(Fault::once(SimOp::Write, Effect::Fail(ErrorKind::Io)));
        rig.write(0, 1, KIB).await.unwrap();
        rig.wait_for("standby").await;
        assert!(job.info().ready);
        job.resume().unwrap();
        rig.sleep_ms(1000).await;
        assert_eq!(rig.log(), ["ERROR write stop", "standby", "ready"], "READY came once");
        rig.assert_equal();
    });
}

#[test]
fn a_source_that_cannot_say_what_it_holds_is_read() {
    Rig::run(4 * MIB, |rig| async move {
        rig.fill_source();
        let fail = Effect::Fail(ErrorKind::Unsupported);
        rig.source.inject(Fault::every(SimOp::Map, fail));
        rig.target.inject(Fault::every(SimOp::Map, fail));
        rig.ready(rig.options()).await;
        rig.assert_equal();
    });
}

#[test]
fn a_dead_target_holds_up_neither_cancel_nor_guest() {
    for blocking in [false, true] {
        Rig::run(4 * MIB, |rig| async move {
            let options = if blocking { rig.blocking() } else { rig.options() };
            let job = if blocking {
                rig.ready(options).await
            } else {
                rig.fill_source();
                rig.start(options).await
            };
            rig.target.inject(Fault::every(SimOp::Write, Effect::Hang));
            let (guest, executor) = (rig.clone(), rig.executor.clone());
            let writing = executor.spawn(async move { guest.write(0, 1, KIB).await });
            rig.sleep_ms(100).await;
            let before = rig.executor.clock().now();
            job.cancel().await.unwrap();
            job.concluded().await;
            assert!(rig.executor.clock().now() - before < 2_000_000_000);
            assert_eq!(rig.take_log().last().map(String::as_str), Some("null"));
            writing.await.unwrap();
            rig.write(KIB, 2, KIB).await.unwrap();
            assert_eq!(rig.device_node(), "src");
            // What has not come back still uses the target, and nobody else may.
            let text = rig.graph.remove("dst").await.unwrap_err().to_string();
            assert_eq!(text, "Node dst is in use");
            let error = mirror::start(&rig.graph, rig.options()).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Busy, "{error}");
            let use_it = || {
                let (node, perms) = (rig.graph.node("dst").unwrap(), EdgePerms::READ_WRITE);
                rig.graph.add_backend(BackendKind::Device, "d1", &node, perms)
            };
            let text = use_it().err().unwrap().to_string();
            assert!(text.starts_with("Permission conflict on node 'dst'"), "{text}");
            rig.target.heal();
            rig.sleep_ms(10).await;
            drop(use_it().unwrap());
            rig.assert_no_trace();
        });
    }
}

#[test]
fn a_slow_flush_holds_the_guest_up_for_bounded_times_only() {
    Rig::run(MIB, |rig| async move {
        let job = rig.ready(rig.options()).await;
        let slow = Effect::Delay(Duration::from_secs(2));
        rig.target.inject(Fault::every(SimOp::Flush, slow).after(1));
        job.complete().unwrap();
        rig.sleep_ms(10).await;
        let before = rig.executor.clock().now();
        rig.write(0, 1, KIB).await.unwrap();
        let stall = rig.executor.clock().now() - before;
        assert!(stall < 400_000_000, "{stall} ns");
        assert_ne!(rig.device_node(), "dst", "the guest was let go before the job was done");
        job.concluded().await;
        assert_eq!(rig.device_node(), "dst");
        assert!(rig.target.durable() == rig.source.contents());
    });
}

/// Completes the job while a write of the guest's is under way. Both sides are equal then, so the gates are
/// shut; then what was inside is dirty.
async fn complete_during_a_write(rig: &Rig, job: &JobRef) {
    rig.source.inject(Fault::once(SimOp::Write, Effect::Delay(Duration::from_millis(50))));
    let (guest, executor) = (rig.clone(), rig.executor.clone());
    let writing = executor.spawn(async move { guest.write(0, 1, KIB).await.unwrap() });
    rig.sleep_ms(10).await;
    job.complete().unwrap();
    writing.await;
}

#[test]
fn a_target_that_hangs_while_the_guest_is_held_up_lets_it_go() {
    Rig::run(MIB, |rig| async move {
        let job = rig.ready(rig.options()).await;
        rig.target.inject(Fault::every(SimOp::Write, Effect::Hang));
        complete_during_a_write(&rig, &job).await;
        let before = rig.executor.clock().now();
        rig.write(4 * KIB, 2, KIB).await.unwrap();
        assert!(rig.executor.clock().now() - before < 400_000_000);
        rig.target.heal();
        job.concluded().await;
        assert_eq!(rig.device_node(), "dst");
        assert_eq!(rig.read(4 * KIB, KIB).await, vec![2; 1024]);
    });
}

#[test]
fn a_cancel_while_the_guest_is_held_up_lets_it_go() {
    Rig::run(MIB, |rig| async move {
        let job = rig.ready(rig.options()).await;
        rig.target.inject(Fault::every(SimOp::Write, Effect::Hang));
        complete_during_a_write(&rig, &job).await;
        rig.sleep_ms(10).await;
        let before = rig.executor.clock().now();
        job.cancel().await.unwrap();
        rig.write(4 * KIB, 2, KIB).await.unwrap();
        let stall = rig.executor.clock().now() - before;
        assert!(stall < 20_000_000, "{stall} ns");
        job.concluded().await;
        assert_eq!(rig.device_node(), "src");
    });
}

#[test]
fn a_pause_while_the_guest_is_held_up_lets_it_go() {
    Rig::run(MIB, |rig| async move {
        let job =
            rig.ready(MirrorOptions { on_target_error: OnError::Stop, ..rig.options() }).await;
        rig.target.inject(Fault::once(SimOp::Write, Effect::Fail(ErrorKind::NoSpace)));
        complete_during_a_write(&rig, &job).await;
        rig.wait_for("standby").await;
        let before = rig.executor.clock().now();
        rig.write(4 * KIB, 2, KIB).await.unwrap();
        assert!(rig.executor.clock().now() - before < 20_000_000);
        job.resume().unwrap();
        job.concluded().await;
        assert_eq!(rig.device_node(), "dst");
        assert_eq!(rig.read(0, KIB).await, vec![1; 1024]);
        assert_eq!(rig.read(4 * KIB, KIB).await, vec![2; 1024]);
    });
}

#[test]
fn a_pause_that_comes_too_late_does_not_stay() {
    Rig::run(MIB, |rig| async move {
        let manual = MirrorOptions { auto_finalize: false, ..rig.options() };
        let job = rig.ready(manual).await;
        let slow = Effect::Delay(Duration::from_millis(50));
        rig.target.inject(Fault::once(SimOp::Flush, slow).after(1));
        job.complete().unwrap();
        rig.sleep_ms(10).await;
        job.pause().await.unwrap();
        rig.wait_for("PENDING").await;
        assert!(!job.info().paused);
        job.finalize().await.unwrap();
        assert_eq!(rig.device_node(), "dst");
    });
}

#[test]
fn a_pivot_that_cannot_be_made_leaves_the_graph_as_it_was() {
    Rig::run(MIB, |rig| async move {
        rig.fill_source();
        let replaces = MirrorOptions { replaces: Some("src".into()), ..rig.options() };
        let manual = MirrorOptions { auto_finalize: false, ..replaces };
        let job = rig.ready(manual).await;
        job.complete().unwrap();
        rig.wait_for("PENDING").await;
        // Somebody reads the target and does not share writing, so the device cannot have it.
        let node = rig.graph.node("dst").unwrap();
        let perms = crate::edge::EdgePerms {
            needs: crate::edge::Perms::NONE,
            shares: crate::edge::Perms::CONSISTENT_READ,
        };
        let export = rig.graph.add_backend(crate::backend::BackendKind::Export, "e0", &node, perms);
        assert!(export.is_err(), "the job itself keeps others from the target");
        job.finalize().await.unwrap();
        assert_eq!(rig.device_node(), "dst");
        rig.assert_no_trace();
    });
}
