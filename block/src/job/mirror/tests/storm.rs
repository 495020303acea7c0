//! Guests that hammer a disk through hundreds of mirrors, with random verbs and faults. Every write that
//! was acknowledged must be on the disk that survives, and the graph must be whole after each job.
//!
//! A failure names its seed; the same seed fails again.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::rig::{KIB, Rig};
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::error::ErrorKind;
use crate::job::mirror::{CopyMode, MirrorOptions, SyncMode};
use crate::job::{BlockEvent, JobStatus, OnError};
use crate::testing::{Effect, Fault, Rng, SimDisk, SimOp, SimOptions};

const LEN: u64 = 1024 * KIB;
const WRITERS: u64 = 4;
/// Each writer owns every fourth block: they share granules, but no bytes.
const BLOCK: u64 = 8 * KIB;

/// What the guests know must be on the disk.
struct Ledger {
    bytes: RefCell<Vec<u8>>,
    stop: Cell<bool>,
    writes: Cell<u64>,
    /// The longest that a request took, in ns.
    stall: Cell<u64>,
}

/// One guest thread: writes, discards, reads back, for ever.
async fn hammer(rig: Rig, ledger: Rc<Ledger>, seed: u64, who: u64) {
    let mut rng = Rng::new(seed);
    while !ledger.stop.get() {
        let block = rng.below(LEN / BLOCK / WRITERS) * WRITERS + who;
        let piece = rng.range(BLOCK, 512, BLOCK);
        let range = block * BLOCK + piece.start..block * BLOCK + piece.end;
        let len = usize::try_from(range.end - range.start).unwrap();
        let place = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        let expected = ledger.bytes.borrow()[place.clone()].to_vec();
        let began = rig.executor.clock().now();
        match rng.below(16) {
            0..=9 => {
                let bytes: Vec<u8> = (0..len).map(|_| rng.bits().to_le_bytes()[0]).collect();
                let flags = if rng.one_in(4) { WriteFlags::FUA } else { WriteFlags::NONE };
                // A guest repeats what failed until it works.
                while rig.device.write(range.start, IoBuf::from_vec(&bytes), flags).await.is_err() {
                }
                ledger.bytes.borrow_mut()[place].copy_from_slice(&bytes);
                ledger.writes.set(ledger.writes.get() + 1);
            }
            10..=11 => {
                while rig.device.write_zeroes(range.clone(), WriteFlags::UNMAP).await.is_err() {}
                ledger.bytes.borrow_mut()[place].fill(0);
            }
            12 => {
                while rig.device.discard(range.clone()).await.is_err() {}
                // It may read as old data or zeroes now, but it must stay so.
                let now = rig.read(range.start, range.end - range.start).await;
                ledger.bytes.borrow_mut()[place].copy_from_slice(&now);
            }
            13 => {
                // May meet a fault, and is not repeated.
                rig.device.flush().await.ok();
            }
            _ => {
                let now = rig.read(range.start, range.end - range.start).await;
                assert!(now == expected, "a guest reads something else than it wrote at {range:?}");
            }
        }
        let took = rig.executor.clock().now() - began;
        ledger.stall.set(ledger.stall.get().max(took));
        if rng.one_in(64) {
            rig.executor.sleep(Duration::from_micros(rng.below(20_000))).await;
        }
    }
}

/// The two disks and where the device is.
struct Place {
    names: [&'static str; 2],
    disks: [SimDisk; 2],
    at: usize,
}

fn random_options(rng: &mut Rng, from: &str, to: &str) -> MirrorOptions {
    let pick = |rng: &mut Rng| match rng.below(4) {
        0 => OnError::Ignore,
        1 => OnError::Stop,
        2 => OnError::Enospc,
        _ => OnError::Report,
    };
    let device = if rng.one_in(2) { "d0" } else { from };
    MirrorOptions {
        job_id: Some("m0".into()),
        granularity: 512 << rng.below(8),
        buf_size: if rng.one_in(4) { 0 } else { 1 << (10 + rng.below(8)) },
        speed: if rng.one_in(4) { 8 << 20 } else { 0 },
        copy_mode: if rng.one_in(2) { CopyMode::WriteBlocking } else { CopyMode::Background },
        on_source_error: pick(rng),
        on_target_error: pick(rng),
        auto_finalize: !rng.one_in(8),
        ..MirrorOptions::new(device, to, SyncMode::Full)
    }
}

fn random_faults(rng: &mut Rng, place: &Place) {
    let (source, target) = (&place.disks[place.at], &place.disks[1 - place.at]);
    for _ in 0..rng.below(4) {
        let kind = if rng.one_in(2) { ErrorKind::NoSpace } else { ErrorKind::Io };
        let effect = if rng.one_in(3) {
            Effect::Delay(Duration::from_millis(rng.below(30)))
        } else {
            Effect::Fail(kind)
        };
        let (disk, op) = match rng.below(6) {
            0 => (source, SimOp::Write),
            1 => (source, SimOp::Map),
            2 => (target, SimOp::Flush),
            3 => (target, SimOp::Zeroes),
            _ => (target, SimOp::Write),
        };
        disk.inject(Fault::every(op, effect).after(rng.below(25)).times(1 + rng.below(3)));
    }
}

/// Shuts every gate of the graph now and then, as a machine does that is stopped.
async fn stop_the_world(rig: Rig, ledger: Rc<Ledger>, seed: u64) {
    let mut rng = Rng::new(seed);
    while !ledger.stop.get() {
        rig.executor.sleep(Duration::from_micros(rng.below(60_000))).await;
        let drained = rig.graph.drain_all(&[]).await;
        let disks = rig.source.under_way() + rig.target.under_way();
        assert_eq!(disks, 0, "something is under way in a stopped machine");
        rig.executor.sleep(Duration::from_micros(rng.below(3_000))).await;
        drop(drained);
    }
}

/// One mirror from start to end, with whatever verbs and faults come.
async fn one_mirror(rig: &Rig, rng: &mut Rng, place: &mut Place) {
    let (source, target) = (place.names[place.at], place.names[1 - place.at]);
    rig.take_log();
    let options = random_options(rng, source, target);
    let job = rig.start(options).await;
    random_faults(rng, place);
    let mut last = 0;
    while !rig.jobs().is_empty() {
        rig.executor.sleep(Duration::from_micros(rng.below(8_000))).await;
        let Some(info) = rig.jobs().pop() else { break };
        assert!(info.offset >= last && info.len >= info.offset, "{info:?}");
        last = info.offset;
        // Whatever is refused is refused: the state may be any.
        let answer = match rng.below(60) {
            0..=2 => job.pause().await,
            _ if info.paused => job.resume(),
            3 => job.cancel().await,
            4 => job.cancel_block_job(false).await,
            5..=24 => job.complete(),
            25 => job.set_speed(4 << 20),
            26..=27 => job.set_speed(0),
            _ if info.status == JobStatus::Pending => job.finalize().await,
            _ => Ok(()),
        };
        answer.ok();
    }
    place.disks.iter().for_each(SimDisk::heal);
    let pivoted = rig.device_node() == target;
    let log = rig.log();
    let completed = log.iter().any(|event| event.starts_with("COMPLETED"));
    assert!(!pivoted || completed, "{log:?}");
    assert!(pivoted || rig.device_node() == source);
    place.at = if pivoted { 1 - place.at } else { place.at };
    assert_eq!(place.disks[0].counts().overlaps + place.disks[1].counts().overlaps, 0);
    rig.settled().await;
    rig.assert_no_trace();
}

/// One mirror that is completed as soon as it is ready.
async fn one_pivot(rig: &Rig, rng: &mut Rng, place: &mut Place) {
    let target = place.names[1 - place.at];
    rig.take_log();
    let options = MirrorOptions {
        auto_finalize: true,
        speed: 0,
        // Smaller ones are slower than these guests write.
        buf_size: 0,
        ..random_options(rng, "d0", target)
    };
    let job = rig.start(options).await;
    let start = rig.executor.clock().now();
    while !job.info().ready {
        rig.executor.sleep(Duration::from_micros(200)).await;
        let ns = rig.executor.clock().now() - start;
        assert!(ns < 20_000_000_000, "not ready after {ns} ns: {:?}", job.info());
    }
    job.complete().unwrap();
    job.concluded().await;
    let ns = rig.executor.clock().now() - start;
    assert!(ns < 20_000_000_000, "a mirror of 1 MiB took {ns} ns");
    assert_eq!(rig.device_node(), target, "{:?}", rig.log());
    place.at = 1 - place.at;
    rig.settled().await;
    rig.assert_no_trace();
}

async fn storm(rig: Rig, seed: u64, cycles: u32, only_pivots: bool) -> Outcome {
    let mut rng = Rng::new(seed);
    let ledger = Rc::new(Ledger {
        bytes: RefCell::new(rig.source.contents()),
        stop: Cell::new(false),
        writes: Cell::new(0),
        stall: Cell::new(0),
    });
    let disks = [rig.source.clone(), rig.target.clone()];
    let mut place = Place { names: ["src", "dst"], disks, at: 0 };
    let completed = Rc::new(Cell::new(0));
    let (count, both) = (Rc::clone(&completed), rig.clone());
    rig.listen(move |event| {
        // At this moment both sides are equal and durable: a point in time.
        if matches!(event, BlockEvent::BlockJobCompleted { error: None, .. }) {
            both.assert_equal();
            count.set(count.get() + 1);
        }
    });
    let writers: Vec<_> = (0..WRITERS)
        .map(|who| {
            let seed = rng.bits();
            rig.executor.spawn(hammer(rig.clone(), Rc::clone(&ledger), seed, who))
        })
        .collect();
    let world = stop_the_world(rig.clone(), Rc::clone(&ledger), rng.bits());
    let world = rig.executor.spawn(world);
    for _ in 0..cycles {
        if only_pivots {
            one_pivot(&rig, &mut rng, &mut place).await;
        } else {
            one_mirror(&rig, &mut rng, &mut place).await;
        }
    }
    ledger.stop.set(true);
    world.await;
    for writer in writers {
        writer.await;
    }
    rig.device.flush().await.unwrap();
    place.disks[place.at].crash();
    assert!(
        place.disks[place.at].contents() == *ledger.bytes.borrow(),
        "an acknowledged write is lost"
    );
    Outcome { completed: completed.get(), writes: ledger.writes.get(), stall: ledger.stall.get() }
}

/// What a storm came to.
#[derive(Debug, Default)]
struct Outcome {
    completed: u64,
    writes: u64,
    stall: u64,
}

/// Runs a storm for each seed, or only for the one in `FERRY_SEED`.
fn storms(seeds: std::ops::Range<u64>, cycles: u32, only_pivots: bool) -> Outcome {
    let seeds = std::env::var("FERRY_SEED").map_or(seeds, |seed| {
        let seed = seed.parse().unwrap();
        seed..seed + 1
    });
    let mut sum = Outcome::default();
    for seed in seeds {
        eprintln!("seed {seed}");
        let (source, target) = (SimOptions::new(LEN, seed), SimOptions::new(LEN, !seed));
        let one = Rig::run_with(source, target, |rig| storm(rig, seed, cycles, only_pivots));
        sum.completed += one.completed;
        sum.writes += one.writes;
        sum.stall = sum.stall.max(one.stall);
    }
    eprintln!("{sum:?}");
    sum
}

#[test]
fn every_acknowledged_write_survives() {
    assert!(storms(0..20, 25, false).completed > 0);
}

#[test]
fn hundreds_of_pivots_under_load() {
    let sum = storms(1000..1004, 75, true);
    assert!(sum.completed >= 75);
    assert!(sum.stall < 1_000_000_000, "a guest was held up for {} ns", sum.stall);
}
