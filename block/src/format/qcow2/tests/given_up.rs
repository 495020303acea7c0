//! Requests that nobody waits for any more, with errors of the disk, snapshots and other lengths in between. They
//! may have done what they were asked for, all of it or a part, now or later. They never change anything else.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::super::Qcow2Driver;
use super::super::check::check;
use super::super::create::CreateOptions;
use super::super::snapshot::Moment;
use super::simulated::{DISK, SECTOR, Shape, Simulated};
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::error::{ErrorKind, Result};
use crate::executor::within;
use crate::node::BlockNode;
use crate::testing::{Effect, Fault, Rng, SimOp};

/// Guests that are at work at once.
const TASKS: u64 = 6;
/// How often everything comes to an end and is looked at.
const EPISODES: u64 = 5;

/// What a sector holds, and what it may come to hold by requests that were given up, or have failed.
#[derive(Clone)]
struct Sector {
    value: u64,
    ghosts: Vec<u64>,
}

/// What the disk holds.
struct Truth {
    sectors: Vec<Sector>,
    over: bool,
}

type Shared = Rc<RefCell<Truth>>;

impl Truth {
    fn may_become(&mut self, sectors: Range<u64>, value: u64) {
        for sector in &mut self.sectors[places(sectors)] {
            sector.ghosts.push(value);
        }
    }

    /// What was last said to be possible has been done.
    fn is(&mut self, sectors: Range<u64>) {
        for sector in &mut self.sectors[places(sectors)] {
            sector.value = sector.ghosts.pop().unwrap();
        }
    }

    fn check(&self, sectors: Range<u64>, bytes: &[u8], what: &str) {
        for (number, bytes) in sectors.zip(bytes.chunks(512)) {
            let sector = &self.sectors[usize::try_from(number).unwrap()];
            let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            let whole = bytes.chunks(8).all(|word| word == value.to_le_bytes());
            assert!(whole, "{what}: sector {number} is torn");
            assert!(
                value == sector.value || sector.ghosts.contains(&value),
                "{what}: sector {number} holds {value:#x}, not {:#x} or one of {:x?}",
                sector.value,
                sector.ghosts
            );
        }
    }

    /// Nothing is under way: what is there stays.
    fn settle(&mut self, bytes: &[u8]) {
        for (sector, bytes) in self.sectors.iter_mut().zip(bytes.chunks(512)) {
            let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
            *sector = Sector { value, ghosts: Vec::new() };
        }
    }
}

fn places(sectors: Range<u64>) -> Range<usize> {
    usize::try_from(sectors.start).unwrap()..usize::try_from(sectors.end).unwrap()
}

/// The sectors of a request. Each guest has its own: a part of the disk, or narrow stripes all over it.
fn pick(rng: &mut Rng, task: u64, stripe: Option<u64>) -> Range<u64> {
    let all = DISK / SECTOR;
    if let Some(stripe) = stripe {
        let number = rng.below(all / stripe / TASKS);
        let first = (number * TASKS + task) * stripe;
        let from = rng.below(stripe);
        return first + from..first + from + 1 + rng.below(stripe - from);
    }
    let part = all / TASKS;
    let first = rng.below(part - 1);
    let longest = if rng.one_in(8) { part } else { 12 };
    let count = 1 + rng.below((part - first).min(longest));
    task * part + first..task * part + first + count
}

async fn request(
    node: BlockNode,
    kind: u64,
    bytes: Range<u64>,
    value: u64,
    fua: bool,
) -> Result<()> {
    let len = usize::try_from(bytes.end - bytes.start).unwrap();
    match kind {
        0..=6 => {
            let from = IoBuf::from_vec(&value.to_le_bytes().repeat(len / 8));
            let flags = WriteFlags { compressed: kind == 6, fua, ..WriteFlags::NONE };
            node.write(bytes.start, from, flags).await
        }
        7 => node.write_zeroes(bytes, WriteFlags::UNMAP).await,
        8 => node.write_zeroes(bytes, WriteFlags::NONE).await,
        _ => node.discard(bytes).await,
    }
}

/// A guest that gives up now and then.
async fn guest(image: Rc<Simulated>, truth: Shared, mut rng: Rng, task: u64, stripe: Option<u64>) {
    let (executor, node) = (&image.executor, &image.node);
    for number in 1.. {
        if truth.borrow().over {
            return;
        }
        let sectors = pick(&mut rng, task, stripe);
        let bytes = sectors.start * SECTOR..sectors.end * SECTOR;
        let kind = rng.below(13);
        let patience = Duration::from_nanos(match rng.below(6) {
            0 => rng.below(300_000),
            1 => rng.below(5_000_000),
            _ => u64::MAX / 4,
        });
        match kind {
            10 => drop(within(executor, patience, node.flush()).await),
            11..=12 => {
                let buf = IoBuf::alloc(usize::try_from(bytes.end - bytes.start).unwrap());
                let read = node.read(bytes.start, buf.clone());
                if let Some(Ok(())) = within(executor, patience, read).await {
                    truth.borrow().check(sectors, &buf.to_vec(), "read back");
                }
            }
            _ => {
                let value = if kind < 7 {
                    (task + 1) << 56 | rng.bits() >> 16 << 8 | number & 0xff
                } else {
                    0
                };
                truth.borrow_mut().may_become(sectors.clone(), value);
                let request = request(node.clone(), kind, bytes, value, rng.one_in(6));
                if let Some(Ok(())) = within(executor, patience, request).await
                    && kind < 9
                {
                    truth.borrow_mut().is(sectors);
                }
            }
        }
    }
}

/// What is done to the image as a whole. What is refused is of no account.
async fn deed(image: &Simulated, rng: &mut Rng, errors: bool) {
    let (graph, node) = (&image.graph, &image.node);
    let driver = node.driver::<Qcow2Driver>().expect("a qcow2 image");
    match rng.below(6) {
        0..=1 => {
            let name = rng.bits().to_string();
            drop(graph.take_internal_snapshot("disk", node, &name, Moment::default()).await);
        }
        2 => {
            if let Some(first) = driver.snapshots().await.unwrap_or_default().first() {
                let id = Some(first.id.as_str());
                drop(graph.delete_internal_snapshot("disk", node, id, None).await);
            }
        }
        3 => drop(node.resize(DISK + rng.below(64) * 8192).await),
        4 => {
            let report = driver.offline(async |file| check(&file, None).await).await;
            match report {
                Ok(report) if errors => assert_eq!(
                    (report.corruptions, report.check_errors),
                    (0, 0),
                    "{:?}",
                    report.messages
                ),
                Ok(report) => assert!(report.is_clean(), "{:?}", report.messages),
                Err(error) => assert!(errors, "{error}"),
            }
        }
        _ => image.executor.sleep(Duration::from_millis(3)).await,
    }
}

/// Lets operations of the disks fail.
async fn trouble(image: &Simulated, rng: &mut Rng) {
    let ops =
        [SimOp::Read, SimOp::Write, SimOp::Write, SimOp::Zeroes, SimOp::Discard, SimOp::Flush];
    let op = ops[usize::try_from(rng.below(ops.len() as u64)).unwrap()];
    let kind = if rng.one_in(2) { ErrorKind::Io } else { ErrorKind::NoSpace };
    let disks = image.disks();
    let disk = &disks[usize::try_from(rng.below(disks.len() as u64)).unwrap()];
    disk.inject(Fault::once(op, Effect::Fail(kind)).after(rng.below(8)));
}

async fn content(node: &BlockNode) -> Vec<u8> {
    let buf = IoBuf::alloc(usize::try_from(DISK).unwrap());
    node.read(0, buf.clone()).await.unwrap();
    buf.to_vec()
}

async fn episode(image: &Rc<Simulated>, truth: &Shared, rng: &mut Rng, errors: bool, what: &str) {
    let executor = &image.executor;
    truth.borrow_mut().over = false;
    let stripe = rng.one_in(2).then(|| 1 + rng.below(5));
    let guests: Vec<_> = (0..TASKS)
        .map(|task| {
            let random = Rng::new(rng.bits());
            executor.spawn(guest(Rc::clone(image), Rc::clone(truth), random, task, stripe))
        })
        .collect();
    let deeds = 2 + rng.below(8);
    for _ in 0..deeds {
        executor.sleep(Duration::from_micros(rng.below(8000))).await;
        if errors && rng.one_in(2) {
            trouble(image, rng).await;
        }
        deed(image, rng, errors).await;
    }
    truth.borrow_mut().over = true;
    for guest in guests {
        guest.await;
    }
    image.disks().iter().for_each(|disk| disk.heal());
    // What was given up may go on for a while.
    executor.sleep(Duration::from_secs(2)).await;
    let bytes = content(&image.node).await;
    truth.borrow().check(0..DISK / SECTOR, &bytes, what);
    image.check_raw(&bytes, what);
    truth.borrow_mut().settle(&bytes);
}

fn life(shape: &Shape, seed: u64, errors: bool) {
    let mut rng = Rng::new(seed);
    let first = |sector| Sector { value: shape.below(sector), ghosts: Vec::new() };
    let sectors = (0..DISK / SECTOR).map(first).collect();
    let truth = Rc::new(RefCell::new(Truth { sectors, over: false }));
    let image = Rc::new(Simulated::start(seed, shape, None));
    image.executor.block_on(async {
        for number in 0..EPISODES {
            let what = format!("seed {seed}, episode {number}");
            episode(&image, &truth, &mut rng, errors, &what).await;
        }
        image.node.flush().await.unwrap();
        image.graph.inactivate_all().await.unwrap();
    });
    let again = Simulated::start(seed, shape, Some(&image.media()));
    again.executor.block_on(async {
        let bytes = content(&again.node).await;
        truth.borrow().check(0..DISK / SECTOR, &bytes, &format!("seed {seed}, opened again"));
    });
}

/// An image that was given up has come to rest, also when a write was given up just before: one in place, one to a
/// cluster that it gets, or one that copies.
#[test]
fn who_gives_an_image_up_waits_for_what_others_have_given_up() {
    let create = CreateOptions { cluster_size: 4096, ..CreateOptions::new(DISK) };
    for (at, backed) in [(4096, false), (0, false), (0, true)] {
        let image = Simulated::start(1, &Shape { backed, ..Shape::new(create.clone()) }, None);
        image.executor.block_on(async {
            let ones = IoBuf::from_vec(&[1; 512]);
            image.node.write(4096, ones.clone(), WriteFlags::NONE).await.unwrap();
            image.node.flush().await.unwrap();
            let delay = Effect::Delay(Duration::from_millis(100));
            image.disk.inject(Fault::once(SimOp::Write, delay));
            let write = image.node.write(at, ones, WriteFlags::NONE);
            let given_up = within(&image.executor, Duration::from_millis(5), write).await;
            assert!(given_up.is_none());
            assert_eq!(image.disk.under_way(), 1);
            image.graph.inactivate_all().await.unwrap();
            assert_eq!(image.disk.under_way(), 0, "the write at {at} is under way, {backed}");
        });
    }
}

/// What is done to the image as a whole goes on when nobody waits for it any more, at whatever write that was: the
/// image can be used then, and given up.
#[test]
fn what_is_done_to_an_image_at_rest_goes_on_when_it_is_given_up() {
    let create = CreateOptions { cluster_size: 512, ..CreateOptions::new(DISK) };
    let shape = Shape { cache: Some(0), ..Shape::new(create) };
    let bytes: Vec<u8> = (0..DISK / 512).flat_map(|at| at.to_le_bytes().repeat(64)).collect();
    for skip in 0.. {
        let image = Simulated::start(skip, &shape, None);
        let (executor, node) = (&image.executor, &image.node);
        let ended = executor.block_on(async {
            node.write(0, IoBuf::from_vec(&bytes), WriteFlags::NONE).await.unwrap();
            node.flush().await.unwrap();
            node.discard(0..DISK / 2).await.unwrap();
            let delay = Effect::Delay(Duration::from_secs(1));
            image.disk.inject(Fault::once(SimOp::Write, delay).after(skip));
            let moment = Moment::default();
            let taking = image.graph.take_internal_snapshot("disk", node, "one", moment);
            let ended = within(executor, Duration::from_millis(500), taking).await;
            executor.sleep(Duration::from_secs(2)).await;
            let driver = node.driver::<Qcow2Driver>().expect("a qcow2 image");
            assert_eq!(driver.snapshots().await.unwrap().len(), 1, "given up at write {skip}");
            node.write(0, IoBuf::from_vec(&bytes), WriteFlags::NONE).await.unwrap();
            let patience = Duration::from_secs(60);
            let given_up = within(executor, patience, image.graph.inactivate_all()).await;
            given_up.unwrap_or_else(|| panic!("given up at write {skip}: it hangs")).unwrap();
            ended
        });
        let again = Simulated::start(skip, &shape, Some(&image.media()));
        let read = again.executor.block_on(content(&again.node));
        assert!(read == bytes, "given up at write {skip}: something is lost");
        if ended.is_some() {
            assert!(skip > 10, "only {skip} writes");
            return;
        }
    }
}

/// Images of every kind, one after the other.
fn shape(seed: u64) -> Shape {
    let base = CreateOptions { cluster_size: 4096, ..CreateOptions::new(DISK) };
    let create = match seed % 8 {
        0 => base,
        1 => CreateOptions { cluster_size: 512, refcount_bits: 64, ..base },
        2 => CreateOptions { cluster_size: 16384, extended_l2: true, ..base },
        3 => CreateOptions { cluster_size: 1024, lazy_refcounts: true, ..base },
        4 => CreateOptions { cluster_size: 65536, refcount_bits: 8, ..base },
        5 => CreateOptions { cluster_size: 2048, data_file: Some("data".into()), ..base },
        6 => CreateOptions { data_file: Some("data".into()), data_file_raw: true, ..base },
        _ => CreateOptions { cluster_size: 2048, ..base },
    };
    let cache = seed.is_multiple_of(3).then_some(0);
    // One of them is on a device that is not much larger than the disk.
    let device = if seed % 8 == 7 { 2600 << 10 } else { 0 };
    let backed = seed / 8 % 2 == 1 && !create.data_file_raw;
    Shape { cache, backed, device, ..Shape::new(create) }
}

/// Runs of each test: `FERRY_GIVEN_UP` asks for more.
fn seeds(first: u64) -> Range<u64> {
    let asked = std::env::var("FERRY_GIVEN_UP").ok().and_then(|text| text.parse::<u64>().ok());
    first..first + asked.unwrap_or(16)
}

#[test]
fn requests_that_were_given_up_harm_nothing_else() {
    for seed in seeds(0) {
        life(&shape(seed), seed, false);
    }
}

#[test]
fn requests_that_were_given_up_harm_nothing_else_on_disks_that_fail_now_and_then() {
    for seed in seeds(1000) {
        life(&shape(seed), seed, true);
    }
}
