//! Power failures at any moment: what was flushed is there, and nothing is worse than a leak.
//!
//! Each sector knows what it may hold: what it held at the last flush, and everything written
//! since. The disk loses any part of what was not flushed, sector by sector.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use super::super::Qcow2Options;
use super::super::check::{Repair, check};
use super::super::create::{CreateOptions, create};
use super::rig::blockdev;
use crate::buf::IoBuf;
use crate::clock::Clock;
use crate::driver::WriteFlags;
use crate::edge::{ChildRole, EdgePerms, Perms};
use crate::executor::Executor;
use crate::graph::BlockGraph;
use crate::node::{BlockNode, NodeOptions};
use crate::open::BlockdevRef;
use crate::testing::{Rng, SimDisk, SimOptions};
use crate::{BackendKind, BlockBackend};

pub(super) const SECTOR: u64 = 512;
pub(super) const DISK: u64 = 1 << 20;
/// Tasks that write at once, each to sectors of its own, which share clusters with others.
pub(super) const TASKS: u64 = 6;

/// What one sector may hold: one value after the other, and up to where they are done.
#[derive(Clone, Default)]
struct Sector {
    values: Vec<u64>,
    done: usize,
    /// How many values were forgotten.
    forgotten: usize,
}

/// What all sectors may hold.
#[derive(Clone)]
struct Expected(Rc<RefCell<Vec<Sector>>>);

impl Expected {
    fn new() -> Expected {
        let zero = Sector { values: vec![0], ..Sector::default() };
        Expected(Rc::new(RefCell::new(vec![zero; usize::try_from(DISK / SECTOR).unwrap()])))
    }

    /// A copy that nobody changes who knows the original.
    fn freeze(&self) -> Expected {
        Expected(Rc::new(RefCell::new(self.0.borrow().clone())))
    }

    fn begin(&self, sectors: std::ops::Range<u64>, value: u64) {
        for sector in sectors {
            self.0.borrow_mut()[usize::try_from(sector).unwrap()].values.push(value);
        }
    }

    fn done(&self, sectors: std::ops::Range<u64>) {
        for sector in sectors {
            let sector = &mut self.0.borrow_mut()[usize::try_from(sector).unwrap()];
            sector.done = sector.values.len() - 1;
        }
    }

    /// How many values of each sector are history when the flush that begins now has ended.
    fn flushing(&self) -> Vec<usize> {
        self.0.borrow().iter().map(|sector| sector.forgotten + sector.done).collect()
    }

    fn flushed(&self, history: &[usize]) {
        for (sector, history) in self.0.borrow_mut().iter_mut().zip(history) {
            // A flush that began later may have ended before.
            let count = history.saturating_sub(sector.forgotten);
            sector.values.drain(..count);
            sector.done -= count;
            sector.forgotten += count;
        }
    }

    fn check(&self, disk: &[u8], what: &str) {
        for (index, (bytes, sector)) in
            disk.chunks(512).zip(self.0.borrow_mut().iter_mut()).enumerate()
        {
            let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            assert!(
                bytes.chunks(8).all(|word| word == value.to_le_bytes()),
                "{what}: sector {index} is torn"
            );
            let allowed = &sector.values;
            assert!(
                allowed.contains(&value),
                "{what}: sector {index} holds {value:#x}, not one of {allowed:x?}"
            );
            *sector = Sector { values: vec![value], ..Sector::default() };
        }
    }
}

/// An image in use on a simulated disk.
pub(super) struct Simulated {
    pub(super) executor: Executor,
    pub(super) graph: BlockGraph,
    pub(super) disk: SimDisk,
    pub(super) node: BlockNode,
    _root: BlockBackend,
}

impl Simulated {
    /// An image on a simulated disk that holds `content`, or a new one.
    pub(super) fn start(seed: u64, shape: &Shape, content: Option<&[u8]>) -> Simulated {
        let executor = Executor::new(Clock::simulated()).unwrap();
        let graph = BlockGraph::new(executor.clone());
        let len = content.map_or(shape.device, |content| content.len() as u64);
        let options = SimOptions { resizable: shape.device == 0, ..SimOptions::new(len, seed) };
        let disk = SimDisk::new(&executor, options);
        if let Some(content) = content {
            disk.fill(0, content);
        }
        let (node, root) = executor.block_on(async {
            let below = graph.add(Some("sim"), disk.clone(), NodeOptions::default()).await.unwrap();
            let needs = Perms::CONSISTENT_READ | Perms::WRITE | Perms::RESIZE;
            let edge = graph
                .edge(&below, ChildRole::File, EdgePerms { needs, shares: Perms::ALL })
                .unwrap();
            if content.is_none() {
                create(&edge, None, &shape.create).await.unwrap();
            } else if !shape.create.lazy_refcounts {
                let report = check(&edge, None).await.unwrap();
                assert_eq!(
                    (report.corruptions, report.check_errors),
                    (0, 0),
                    "{:?}",
                    report.messages
                );
                check(&edge, Some(Repair::Leaks)).await.unwrap();
            }
            below.flush().await.unwrap();
            drop(edge);
            let options = Qcow2Options {
                l2_cache_size: shape.cache,
                refcount_cache_size: shape.cache,
                l2_cache_entry_size: shape.cache.map(|_| 512),
                pass_discard_other: Some(seed.is_multiple_of(2)),
                ..Qcow2Options::new(BlockdevRef::Name("sim".into()))
            };
            let node = graph.open(&blockdev(options)).await.unwrap();
            let root = graph.add_backend(BackendKind::Device, "d0", &node, EdgePerms::READ_WRITE);
            (node, root.unwrap())
        });
        Simulated { executor, graph, disk, node, _root: root }
    }
}

pub(super) struct Shape {
    pub(super) create: CreateOptions,
    /// Bytes of a device that cannot grow; 0 for a file.
    pub(super) device: u64,
    pub(super) cache: Option<u64>,
}

/// One task's life: writes, zeroes, discards and flushes until the power fails.
async fn work(node: BlockNode, expected: Expected, mut rng: Rng, task: u64) {
    for number in 1.. {
        let all = DISK / SECTOR / TASKS;
        let first = rng.below(all - 1);
        let longest = if rng.one_in(8) { all } else { 12 };
        let count = 1 + rng.below((all - first).min(longest));
        let start = task * all + first;
        let sectors = start..start + count;
        let (at, len) = (start * SECTOR, count * SECTOR);
        let value = task << 56 | rng.bits() >> 16 << 8 | number & 0xff;
        let result = match rng.below(12) {
            0..=6 => {
                expected.begin(sectors.clone(), value);
                let bytes = value.to_le_bytes().repeat(usize::try_from(len / 8).unwrap());
                let flags = WriteFlags { compressed: rng.one_in(4), ..WriteFlags::NONE };
                node.write(at, IoBuf::from_vec(&bytes), flags).await
            }
            7..=8 => {
                expected.begin(sectors.clone(), 0);
                let flags = if rng.one_in(2) { WriteFlags::UNMAP } else { WriteFlags::NONE };
                node.write_zeroes(at..at + len, flags).await
            }
            9..=10 => {
                let certain = expected.flushing();
                let result = node.flush().await;
                if result.is_ok() {
                    expected.flushed(&certain);
                }
                if result.is_err() { return } else { continue }
            }
            _ => {
                expected.begin(sectors.clone(), 0);
                let buf = IoBuf::alloc(usize::try_from(len).unwrap());
                if node.discard(at..at + len).await.is_err()
                    || node.read(at, buf.clone()).await.is_err()
                {
                    return;
                }
                // What reads as before may become zero later: both stay possible.
                for (sector, bytes) in sectors.clone().zip(buf.to_vec().chunks(512)) {
                    if bytes.iter().all(|byte| *byte == 0) {
                        expected.done(sector..sector + 1);
                    }
                }
                continue;
            }
        };
        if result.is_err() {
            return;
        }
        expected.done(sectors);
    }
}

fn crash_again_and_again(shape: &Shape, seed: u64, crashes: u64) {
    let mut rng = Rng::new(seed);
    let mut expected = Expected::new();
    let mut content: Option<Vec<u8>> = None;
    for crash in 0..crashes {
        let image = Simulated::start(rng.bits(), shape, content.as_deref());
        let what = format!("seed {seed}, after crash {crash}");
        image.executor.block_on(async {
            let buf = IoBuf::alloc(usize::try_from(DISK).unwrap());
            image.node.read(0, buf.clone()).await.unwrap();
            expected.check(&buf.to_vec(), &what);
            for task in 0..TASKS {
                let work = work(image.node.clone(), expected.clone(), Rng::new(rng.bits()), task);
                image.executor.spawn(work);
            }
            let time = if rng.one_in(3) { 400 } else { 40 };
            image.executor.sleep(Duration::from_micros(500 + rng.below(time * 1000))).await;
            image.disk.crash();
        });
        // What the tasks still do and believe is of no account: they died with the machine.
        content = Some(image.disk.contents());
        expected = expected.freeze();
        drop(image.graph);
    }
}

fn runs() -> u64 {
    std::env::var("FERRY_CRASHES").ok().and_then(|text| text.parse().ok()).unwrap_or(6)
}

#[test]
fn files_survive_power_failures() {
    for seed in 0..runs() {
        let create = CreateOptions { cluster_size: 4096, ..CreateOptions::new(DISK) };
        let cache = (seed.is_multiple_of(2)).then_some(0);
        crash_again_and_again(&Shape { create, device: 0, cache }, seed, 8);
    }
}

#[test]
fn files_of_small_clusters_survive_power_failures() {
    for seed in 100..100 + runs() {
        let create =
            CreateOptions { cluster_size: 512, refcount_bits: 64, ..CreateOptions::new(DISK) };
        crash_again_and_again(&Shape { create, device: 0, cache: None }, seed, 6);
    }
}

#[test]
fn devices_survive_power_failures() {
    for seed in 200..200 + runs() {
        let create = CreateOptions {
            cluster_size: 16384,
            extended_l2: seed.is_multiple_of(2),
            ..CreateOptions::new(DISK)
        };
        crash_again_and_again(&Shape { create, device: 3 << 20, cache: None }, seed, 8);
    }
}

#[test]
fn lazy_refcounts_are_repaired_after_power_failures() {
    for seed in 300..300 + runs() {
        let create =
            CreateOptions { cluster_size: 8192, lazy_refcounts: true, ..CreateOptions::new(DISK) };
        crash_again_and_again(&Shape { create, device: 0, cache: None }, seed, 6);
    }
}
