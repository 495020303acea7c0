//! Power failures at any moment: what was flushed is there, and nothing is worse than a leak. The disk loses
//! any part of what was not flushed, sector by sector.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use super::super::Qcow2Driver;
use super::super::create::CreateOptions;
use super::super::snapshot::Moment;
use super::history::History;
use super::simulated::{DISK, Media, SECTOR, Shape, Simulated};
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::error::ErrorKind;
use crate::executor::Executor;
use crate::graph::{BitmapOptions, BlockGraph};
use crate::node::BlockNode;
use crate::testing::{Effect, Fault, Rng, SimDisk, SimOp};

/// Tasks that write at once, each to sectors of its own, which share clusters with others.
const TASKS: u64 = 6;
/// Bitmaps at once.
const BITMAPS: usize = 3;

/// What happens to an image besides writes.
#[derive(Clone, Copy, Default)]
struct Life {
    /// Snapshots and bitmaps come and go, the length changes, and now and then it is given up in order.
    upkeep: bool,
    /// The disk fails now and then.
    faults: bool,
}

/// One task's life: writes, zeroes, discards and flushes. What fails may have been done in part.
async fn work(node: BlockNode, history: History, mut rng: Rng, task: u64, over: Rc<Cell<bool>>) {
    for number in 1.. {
        if over.get() {
            return;
        }
        let all = DISK / SECTOR / TASKS;
        let first = rng.below(all - 1);
        let longest = if rng.one_in(8) { all } else { 12 };
        let count = 1 + rng.below((all - first).min(longest));
        let start = task * all + first;
        let sectors = start..start + count;
        let bytes = start * SECTOR..(start + count) * SECTOR;
        let buf = IoBuf::alloc(usize::try_from(count * SECTOR).unwrap());
        let value = task << 56 | rng.bits() >> 16 << 8 | number & 0xff;
        let result = match rng.below(13) {
            0..=6 => {
                history.begin(sectors.clone(), value);
                buf.copy_from(&value.to_le_bytes().repeat(buf.len() / 8));
                let flags = WriteFlags { compressed: rng.one_in(4), ..WriteFlags::NONE };
                node.write(bytes.start, buf, flags).await
            }
            7..=8 => {
                history.begin(sectors.clone(), 0);
                let flags = if rng.one_in(2) { WriteFlags::UNMAP } else { WriteFlags::NONE };
                node.write_zeroes(bytes, flags).await
            }
            9..=10 => {
                let certain = history.flushing();
                if node.flush().await.is_ok() {
                    history.flushed(&certain);
                }
                continue;
            }
            11 => {
                if node.read(bytes.start, buf.clone()).await.is_ok() {
                    history.check_read(sectors, &buf.to_vec());
                }
                continue;
            }
            _ => {
                history.begin(sectors.clone(), 0);
                if node.discard(bytes.clone()).await.is_err() {
                    history.failed(sectors);
                    continue;
                }
                history.discarded(sectors.clone());
                if node.read(bytes.start, buf.clone()).await.is_ok() {
                    // What reads as before may become zero later: both stay possible.
                    for (sector, bytes) in sectors.zip(buf.to_vec().chunks(512)) {
                        if bytes.iter().all(|byte| *byte == 0) {
                            history.settled(sector..sector + 1);
                        }
                    }
                }
                continue;
            }
        };
        match result {
            Ok(()) => history.done(sectors),
            Err(_) => history.failed(sectors),
        }
    }
}

/// One thing that is done to the image as a whole. What is refused is of no account.
async fn deed(graph: &BlockGraph, node: &BlockNode, history: &History, rng: &mut Rng) {
    let name = rng.bits().to_string();
    match rng.below(8) {
        0..=1 => {
            let taken = graph.take_internal_snapshot("disk", node, &name, Moment::default());
            drop(taken.await);
        }
        2 => {
            let driver = node.driver::<Qcow2Driver>().expect("a qcow2 image");
            if let Some(first) = driver.snapshots().await.unwrap_or_default().first() {
                let id = Some(first.id.as_str());
                drop(graph.delete_internal_snapshot("disk", node, id, None).await);
            }
        }
        3 => {
            let bitmaps = node.bitmaps();
            if let Some(name) = bitmaps.first().and_then(|first| first.name.clone())
                && bitmaps.len() >= BITMAPS
            {
                graph.remove_bitmap("disk", &name).await.unwrap().commit();
            }
        }
        4 => {
            history.add_bitmap(&name);
            let persistent =
                BitmapOptions { name, granularity: None, persistent: true, disabled: false };
            if let Ok(added) = graph.add_bitmap("disk", &persistent) {
                added.commit();
            }
        }
        _ => drop(node.resize(DISK + rng.below(64) * 8192).await),
    }
}

async fn upkeep(
    executor: Executor,
    graph: BlockGraph,
    node: BlockNode,
    history: History,
    mut rng: Rng,
    over: Rc<Cell<bool>>,
) {
    while !over.get() {
        executor.sleep(Duration::from_micros(rng.below(20_000))).await;
        deed(&graph, &node, &history, &mut rng).await;
    }
}

/// Lets some operations of a disk fail.
async fn trouble(executor: Executor, disks: Vec<SimDisk>, mut rng: Rng) {
    let ops =
        [SimOp::Read, SimOp::Write, SimOp::Write, SimOp::Zeroes, SimOp::Discard, SimOp::Flush];
    loop {
        executor.sleep(Duration::from_micros(rng.below(10_000))).await;
        let op = ops[usize::try_from(rng.below(ops.len() as u64)).unwrap()];
        let kind = if rng.one_in(2) { ErrorKind::Io } else { ErrorKind::NoSpace };
        let fault = Fault::once(op, Effect::Fail(kind)).after(rng.below(8));
        disks[usize::try_from(rng.below(disks.len() as u64)).unwrap()].inject(fault);
    }
}

/// An image is used until the power fails.
async fn live(image: &Simulated, life: Life, history: &History, rng: &mut Rng) {
    let executor = &image.executor;
    let over = Rc::new(Cell::new(false));
    let mut tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let random = Rng::new(rng.bits());
            let work = work(image.node.clone(), history.clone(), random, task, Rc::clone(&over));
            executor.spawn(work)
        })
        .collect();
    if life.upkeep {
        let (graph, node, random) = (image.graph.clone(), image.node.clone(), Rng::new(rng.bits()));
        let upkeep =
            upkeep(executor.clone(), graph, node, history.clone(), random, Rc::clone(&over));
        tasks.push(executor.spawn(upkeep));
    }
    if life.faults {
        drop(executor.spawn(trouble(executor.clone(), image.disks(), Rng::new(rng.bits()))));
    }
    let time = if rng.one_in(3) { 400 } else { 40 };
    executor.sleep(Duration::from_micros(500 + rng.below(time * 1000))).await;
    if life.upkeep && rng.one_in(2) {
        over.set(true);
        for task in tasks {
            task.await;
        }
        let (graph, history) = (image.graph.clone(), history.clone());
        let given_up = executor.spawn(async move {
            let certain = history.flushing();
            if graph.inactivate_all().await.is_ok() {
                history.flushed(&certain);
            }
        });
        executor.sleep(Duration::from_micros(rng.below(20_000))).await;
        drop(given_up);
    }
    image.crash();
}

fn crash_again_and_again(shape: &Shape, life: Life, seed: u64, crashes: u64) {
    let mut rng = Rng::new(seed);
    let mut history = History::new(shape);
    let mut media: Option<Media> = None;
    for crash in 0..crashes {
        let image = Simulated::start(rng.bits(), shape, media.as_ref());
        let what = format!("seed {seed}, after crash {crash}");
        image.executor.block_on(async {
            let buf = IoBuf::alloc(usize::try_from(DISK).unwrap());
            image.node.read(0, buf.clone()).await.unwrap();
            history.check(&buf.to_vec(), &what);
            image.check_raw(&buf.to_vec(), &what);
            history.check_bitmaps(&image.node, &what);
            live(&image, life, &history, &mut rng).await;
        });
        // What the tasks still do and believe is of no account: they died with the machine.
        media = Some(image.media());
        history = history.freeze();
        image.executor.shut_down();
    }
}

/// Runs of each test: `FERRY_CRASHES` asks for more.
fn seeds(first: u64) -> std::ops::Range<u64> {
    let asked = std::env::var("FERRY_CRASHES").ok().and_then(|text| text.parse::<u64>().ok());
    first..first + asked.unwrap_or(12)
}

/// Images of every kind, one after the other.
fn shape(seed: u64) -> Shape {
    let base = CreateOptions { cluster_size: 4096, ..CreateOptions::new(DISK) };
    let create = match seed % 6 {
        0 => base,
        1 => CreateOptions { cluster_size: 512, ..base },
        2 => CreateOptions { cluster_size: 16384, extended_l2: true, ..base },
        3 => CreateOptions { cluster_size: 1024, lazy_refcounts: true, ..base },
        4 => CreateOptions { cluster_size: 2048, data_file: Some("data".into()), ..base },
        _ => CreateOptions { data_file: Some("data".into()), data_file_raw: true, ..base },
    };
    let cache = seed.is_multiple_of(3).then_some(0);
    let backed = seed.is_multiple_of(2) && !create.data_file_raw;
    Shape { cache, backed, ..Shape::new(create) }
}

#[test]
fn files_survive_power_failures() {
    for seed in seeds(0) {
        let create = CreateOptions { cluster_size: 4096, ..CreateOptions::new(DISK) };
        let cache = seed.is_multiple_of(2).then_some(0);
        crash_again_and_again(&Shape { cache, ..Shape::new(create) }, Life::default(), seed, 8);
    }
}

#[test]
fn files_of_small_clusters_survive_power_failures() {
    for seed in seeds(100) {
        let create =
            CreateOptions { cluster_size: 512, refcount_bits: 64, ..CreateOptions::new(DISK) };
        crash_again_and_again(&Shape::new(create), Life::default(), seed, 6);
    }
}

#[test]
fn devices_survive_power_failures() {
    for seed in seeds(200) {
        let create = CreateOptions {
            cluster_size: 16384,
            extended_l2: seed.is_multiple_of(2),
            ..CreateOptions::new(DISK)
        };
        let shape = Shape { device: 3 << 20, ..Shape::new(create) };
        crash_again_and_again(&shape, Life::default(), seed, 8);
    }
}

#[test]
fn lazy_refcounts_are_repaired_after_power_failures() {
    for seed in seeds(300) {
        let create =
            CreateOptions { cluster_size: 8192, lazy_refcounts: true, ..CreateOptions::new(DISK) };
        crash_again_and_again(&Shape::new(create), Life::default(), seed, 6);
    }
}

#[test]
fn images_survive_power_failures_while_snapshots_and_bitmaps_come_and_go() {
    for seed in seeds(400) {
        crash_again_and_again(&shape(seed), Life { upkeep: true, faults: false }, seed, 8);
    }
}

#[test]
fn images_survive_power_failures_of_disks_that_fail_now_and_then() {
    for seed in seeds(500) {
        crash_again_and_again(&shape(seed), Life { upkeep: false, faults: true }, seed, 8);
    }
}

#[test]
fn images_survive_all_of_it_together() {
    for seed in seeds(600) {
        crash_again_and_again(&shape(seed), Life { upkeep: true, faults: true }, seed, 8);
    }
}
