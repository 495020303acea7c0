//! The six rules of the mirror (see [`super::super`]). Each test fails when its rule is broken.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::rig::{KIB, MIB, Rig, filled};
use crate::driver::WriteFlags;
use crate::error::ErrorKind;
use crate::job::mirror::MirrorOptions;
use crate::job::{BlockEvent, OnError};
use crate::testing::{Effect, Fault, SimOp};

const SLOW: Effect = Effect::Delay(Duration::from_millis(50));

#[test]
fn rule_1_a_write_is_marked_before_the_guest_hears_of_it() {
    Rig::run(MIB, |rig| async move {
        let job = rig.ready(rig.options()).await;
        job.pause().await.unwrap();
        rig.source.inject(Fault::once(SimOp::Write, SLOW));
        let (slow, executor) = (rig.clone(), rig.executor.clone());
        let writing = executor.spawn(async move {
            slow.write(128 * KIB, 1, 512).await.unwrap();
            assert!(slow.is_dirty(128 * KIB), "marked when the guest hears of it");
        });
        rig.sleep_ms(10).await;
        assert!(!rig.is_dirty(128 * KIB), "a write is marked when it completes, not before");
        writing.await;

        rig.device.write_zeroes(256 * KIB..256 * KIB + 1, WriteFlags::NONE).await.unwrap();
        assert!(rig.is_dirty(256 * KIB));
        rig.device.discard(512 * KIB..MIB).await.unwrap();
        assert!(rig.is_dirty(512 * KIB) && rig.is_dirty(MIB - 1));
    });
}

#[test]
fn rule_1_a_failed_write_is_marked_too() {
    for blocking in [false, true] {
        Rig::run(MIB, |rig| async move {
            let options = if blocking { rig.blocking() } else { rig.options() };
            let job = rig.ready(options).await;
            job.pause().await.unwrap();
            rig.source.inject(Fault::every(SimOp::Write, Effect::Fail(ErrorKind::Io)));
            for granule in 0..8 {
                // Some of them reach the medium in part before they fail.
                rig.write(granule * 64 * KIB, 7, 64 * KIB).await.unwrap_err();
                assert!(rig.is_dirty(granule * 64 * KIB));
            }
            job.resume().unwrap();
            job.cancel_block_job(false).await.unwrap();
            job.concluded().await;
            rig.assert_equal();
        });
    }
}

#[test]
fn rule_2_a_write_during_the_copy_of_its_granule_is_copied_again() {
    for delayed in [SimOp::Map, SimOp::Read] {
        Rig::run(64 * KIB, |rig| async move {
            rig.fill_source();
            rig.source.inject(Fault::once(delayed, SLOW));
            rig.target.inject(Fault::once(SimOp::Write, SLOW));
            let job = rig.start(rig.options()).await;
            // One write lands while the source is asked, one while the old data goes to the target.
            rig.sleep_ms(20).await;
            rig.write(0, 1, 512).await.unwrap();
            rig.sleep_ms(50).await;
            rig.write(KIB, 2, 512).await.unwrap();
            rig.wait_for("READY").await;
            rig.sleep_ms(1000).await;
            rig.assert_equal();
            job.cancel_block_job(false).await.unwrap();
            job.concluded().await;
            rig.assert_equal();
        });
    }
}

#[test]
fn rule_3_copies_of_one_granule_never_overlap() {
    Rig::run(128 * KIB, |rig| async move {
        rig.fill_source();
        rig.target.inject(Fault::every(SimOp::Write, SLOW));
        let job = rig.start(rig.options()).await;
        for round in 0..40 {
            rig.sleep_ms(7).await;
            rig.write(round % 4 * 32 * KIB, round.to_le_bytes()[0], 4 * KIB).await.unwrap();
        }
        rig.wait_for("READY").await;
        job.cancel_block_job(false).await.unwrap();
        job.concluded().await;
        assert_eq!(rig.target.counts().overlaps, 0);
        rig.assert_equal();
    });
}

#[test]
fn rule_3_a_write_through_waits_for_the_copy_of_its_granules() {
    Rig::run(256 * KIB, |rig| async move {
        rig.fill_source();
        // The copy has read the old data and is slow to write it.
        rig.target.inject(Fault::once(SimOp::Write, SLOW));
        let job = rig.start(rig.blocking()).await;
        rig.sleep_ms(20).await;
        assert_eq!(rig.target.under_way(), 1);
        rig.write(60 * KIB, 0xee, 8 * KIB).await.unwrap();
        rig.wait_for("READY").await;
        assert_eq!(rig.target.counts().overlaps, 0);
        rig.assert_equal();
        // And two of them for each other.
        rig.target.inject(Fault::times(Fault::every(SimOp::Write, SLOW), 2));
        let (other, executor) = (rig.clone(), rig.executor.clone());
        let first = executor.spawn(async move { other.write(0, 1, KIB).await.unwrap() });
        rig.sleep_ms(2).await;
        rig.write(2 * KIB, 2, KIB).await.unwrap();
        first.await;
        assert_eq!(job.info().actively_synced, Some(true));
        rig.assert_equal();
    });
}

#[test]
fn rule_4_a_failed_copy_is_dirty_before_anything_else_happens() {
    Rig::run(MIB, |rig| async move {
        rig.fill_source();
        let range = 128 * KIB..192 * KIB;
        rig.target
            .inject(Fault::once(SimOp::Write, Effect::Fail(ErrorKind::Io)).within(range.clone()));
        let seen = Rc::new(Cell::new(false));
        let (heard, at) = (Rc::clone(&seen), rig.clone());
        rig.listen(move |event| {
            if matches!(event, BlockEvent::BlockJobError { .. }) {
                assert!(at.is_dirty(range.start), "the bits come before the event");
                heard.set(true);
            }
        });
        let ignore =
            MirrorOptions { on_target_error: OnError::Ignore, buf_size: 64 << 10, ..rig.options() };
        rig.ready(ignore).await;
        assert!(seen.get());
        rig.assert_equal();
    });
}

#[test]
fn rule_4_holds_for_what_was_written_through() {
    Rig::run(MIB, |rig| async move {
        let ignore = MirrorOptions { on_target_error: OnError::Ignore, ..rig.blocking() };
        let job = rig.ready(ignore).await;
        assert_eq!(job.info().actively_synced, Some(true));
        rig.target.inject(Fault::once(SimOp::Write, Effect::Fail(ErrorKind::NoSpace)));
        rig.write(0, 5, 64 * KIB).await.unwrap();
        assert!(rig.is_dirty(0));
        assert_eq!(job.info().actively_synced, Some(false));
        rig.sleep_ms(1000).await;
        rig.assert_equal();
        assert_eq!(job.info().actively_synced, Some(true));
    });
}

#[test]
fn rule_5_ready_only_after_the_target_is_flushed() {
    Rig::run(MIB, |rig| async move {
        rig.fill_source();
        let fail = Effect::Fail(ErrorKind::Io);
        rig.target.inject(Fault::once(SimOp::Flush, fail));
        let disks = rig.clone();
        rig.listen(move |event| {
            if matches!(event, BlockEvent::BlockJobReady(_)) {
                assert!(disks.target.durable() == disks.source.contents());
            }
        });
        rig.ready(MirrorOptions { on_target_error: OnError::Ignore, ..rig.options() }).await;
        assert_eq!(rig.log()[2], "ERROR write ignore");
    });
}

#[test]
fn rule_5_completing_waits_for_writes_that_are_under_way_and_copies_them() {
    Rig::run(MIB, |rig| async move {
        let job = rig.ready(rig.options()).await;
        // When the job looks, both sides are equal, and this write is on its way.
        rig.source.inject(Fault::once(SimOp::Write, SLOW));
        let (guest, executor) = (rig.clone(), rig.executor.clone());
        let writing = executor.spawn(async move { guest.write(0, 0x11, KIB).await.unwrap() });
        rig.sleep_ms(1).await;
        job.complete().unwrap();
        writing.await;
        job.concluded().await;
        assert_eq!(rig.device_node(), "dst");
        assert_eq!(rig.read(0, KIB).await, vec![0x11; 1024]);
        assert_eq!(&rig.target.durable()[..1024], vec![0x11; 1024]);
    });
}

#[test]
fn rule_5_what_comes_during_the_pivot_goes_to_the_new_node() {
    Rig::run(MIB, |rig| async move {
        let job = rig.ready(rig.options()).await;
        // One flush ahead, then the one that counts.
        rig.target.inject(Fault::once(SimOp::Flush, SLOW).after(1));
        job.complete().unwrap();
        rig.sleep_ms(10).await;
        // The gates are shut and the last flush is under way.
        rig.write(0, 0x22, KIB).await.unwrap();
        assert_eq!(rig.device_node(), "dst");
        assert_eq!(&rig.target.contents()[..1024], vec![0x22; 1024]);
        assert_eq!(&rig.source.contents()[..1024], vec![0; 1024]);
        job.concluded().await;
    });
}

#[test]
fn rule_5_a_failed_last_flush_lets_the_guest_go_on_and_is_tried_again() {
    Rig::run(MIB, |rig| async move {
        rig.fill_source();
        let job =
            rig.ready(MirrorOptions { on_target_error: OnError::Ignore, ..rig.options() }).await;
        rig.target.inject(Fault::every(SimOp::Flush, Effect::Fail(ErrorKind::Io)).times(3));
        job.complete().unwrap();
        rig.sleep_ms(5).await;
        let before = rig.executor.clock().now();
        rig.write(0, 0x33, KIB).await.unwrap();
        let stall = rig.executor.clock().now() - before;
        assert!(stall < 20_000_000, "held up for {stall} ns while nothing is done");
        assert_ne!(rig.device_node(), "dst");
        job.concluded().await;
        assert_eq!(rig.device_node(), "dst");
        assert!(rig.target.durable() == rig.source.contents());
    });
}

#[test]
fn rule_6_what_is_written_through_is_copied_first() {
    Rig::run(MIB, |rig| async move {
        rig.ready(rig.blocking()).await;
        rig.target.inject(Fault::once(SimOp::Write, SLOW));
        let buf = filled(0x44, KIB);
        let (guest, shared, executor) = (rig.clone(), buf.clone(), rig.executor.clone());
        let writing = executor.spawn(async move {
            guest.device.write(0, shared, WriteFlags::NONE).await.unwrap();
        });
        rig.sleep_ms(10).await;
        assert_eq!(rig.source.contents()[0], 0x44, "it is on its way to the target now");
        buf.copy_from(&[0x55; 1024]);
        writing.await;
        rig.assert_equal();
    });
}
