//! What is done to an image as a whole while its guest writes: snapshots taken and deleted, another length, bitmaps
//! that come and go. Nothing that was written is lost, a snapshot holds one moment, and QEMU finds neither error nor leak.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::super::create::CreateOptions;
use super::super::snapshot::Moment;
use super::rig::{Rig, check};
use super::simulated::{DISK, SECTOR, Shape, Simulated};
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::graph::BitmapOptions;
use crate::node::BlockNode;
use crate::testing::{Rng, tool};

/// Guests that write at once, each to sectors of its own, which share clusters with others.
const TASKS: u64 = 6;
/// Most snapshots at once.
const SNAPSHOTS: usize = 4;
/// What is done to the image as a whole in one run.
const DEEDS: u64 = 30;

/// What a sector may hold: what was written last, and what is being written.
type Sector = (u64, Option<u64>);

/// What the disk holds, and every snapshot may hold.
#[derive(Default)]
struct Truth {
    sectors: Vec<Sector>,
    /// All that each sector held since it was begun to take a snapshot.
    taking: Option<Vec<Vec<u64>>>,
    snapshots: Vec<(String, Vec<Vec<u64>>)>,
    /// What each bitmap must have seen: sectors that were changed since it is there.
    bitmaps: BTreeMap<String, BTreeSet<usize>>,
    over: bool,
}

impl Truth {
    fn begin(&mut self, sectors: Range<usize>, value: u64) {
        for seen in self.bitmaps.values_mut() {
            seen.extend(sectors.clone());
        }
        for index in sectors {
            self.sectors[index].1 = Some(value);
            if let Some(taking) = &mut self.taking {
                taking[index].push(value);
            }
        }
    }

    fn done(&mut self, sectors: Range<usize>, value: u64) {
        for index in sectors {
            self.sectors[index] = (value, None);
        }
    }

    fn allowed(&self) -> Vec<Vec<u64>> {
        let both = |(old, new): &Sector| [Some(*old), *new].into_iter().flatten().collect();
        self.sectors.iter().map(both).collect()
    }
}

fn compare(bytes: &[u8], allowed: &[Vec<u64>], what: &str) {
    for (index, (bytes, allowed)) in bytes.chunks(512).zip(allowed).enumerate() {
        let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        let whole = bytes.chunks(8).all(|word| word == value.to_le_bytes());
        assert!(whole, "{what}: sector {index} is torn");
        assert!(
            allowed.contains(&value),
            "{what}: sector {index} holds {value:#x}, not {allowed:x?}"
        );
    }
}

/// Every bitmap has seen what it must have seen, and there are no others.
fn compare_bitmaps(node: &BlockNode, truth: &Truth) {
    let bitmaps = node.bitmaps();
    let names: BTreeSet<_> = bitmaps.iter().filter_map(|bitmap| bitmap.name.as_ref()).collect();
    assert_eq!(names, truth.bitmaps.keys().collect());
    for bitmap in &bitmaps {
        let Some(seen) = bitmap.name.as_ref().and_then(|name| truth.bitmaps.get(name)) else {
            continue;
        };
        let missed =
            seen.iter().find(|index| !bitmap.bits.borrow().is_dirty(**index as u64 * SECTOR));
        assert_eq!(missed, None, "bitmap {:?} has not seen a sector", bitmap.name);
    }
}

/// A guest that writes to sectors of its own until it is over.
async fn guest(node: BlockNode, truth: Rc<RefCell<Truth>>, mut rng: Rng, task: u64) {
    let all = DISK / SECTOR / TASKS;
    for number in 1.. {
        if truth.borrow().over {
            return;
        }
        let first = rng.below(all - 1);
        let longest = if rng.one_in(8) { all } else { 12 };
        let count = 1 + rng.below((all - first).min(longest));
        let start = task * all + first;
        let bytes = start * SECTOR..(start + count) * SECTOR;
        let sectors = usize::try_from(start).unwrap()..usize::try_from(start + count).unwrap();
        let value = task << 56 | number;
        let zero = if rng.one_in(2) { WriteFlags::UNMAP } else { WriteFlags::NONE };
        match rng.below(10) {
            0..=5 => {
                truth.borrow_mut().begin(sectors.clone(), value);
                let len = usize::try_from(bytes.end - bytes.start).unwrap();
                let data = IoBuf::from_vec(&value.to_le_bytes().repeat(len / 8));
                let flags = WriteFlags { compressed: rng.one_in(4), ..WriteFlags::NONE };
                node.write(bytes.start, data, flags).await.unwrap();
                truth.borrow_mut().done(sectors, value);
            }
            6..=8 => {
                truth.borrow_mut().begin(sectors.clone(), 0);
                node.write_zeroes(bytes, zero).await.unwrap();
                truth.borrow_mut().done(sectors, 0);
            }
            _ => {
                truth.borrow_mut().begin(sectors.clone(), 0);
                node.discard(bytes.clone()).await.unwrap();
                // Nobody promises that it is zero now.
                let data = IoBuf::alloc(usize::try_from(bytes.end - bytes.start).unwrap());
                node.read(bytes.start, data.clone()).await.unwrap();
                let mut truth = truth.borrow_mut();
                for (index, bytes) in sectors.zip(data.to_vec().chunks(512)) {
                    let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                    let (old, _) = truth.sectors[index];
                    assert!([0, old].contains(&value), "sector {index} was discarded: {value:#x}");
                    truth.done(index..index + 1, value);
                }
            }
        }
    }
}

/// One thing that is done to the image as a whole.
async fn deed(image: &Simulated, truth: &RefCell<Truth>, rng: &mut Rng, number: u64) {
    let (graph, node) = (&image.graph, &image.node);
    let alive = truth.borrow().snapshots.len();
    match rng.below(8) {
        0..=2 if alive < SNAPSHOTS => {
            let name = format!("s{number}");
            let now = truth.borrow().allowed();
            truth.borrow_mut().taking = Some(now);
            graph.take_internal_snapshot("disk", node, &name, Moment::default()).await.unwrap();
            let mut truth = truth.borrow_mut();
            let allowed = truth.taking.take().unwrap();
            truth.snapshots.push((name, allowed));
        }
        3..=4 if alive > 0 => {
            let which = usize::try_from(rng.below(alive as u64)).unwrap();
            let (name, _) = truth.borrow_mut().snapshots.swap_remove(which);
            graph.delete_internal_snapshot("disk", node, None, Some(&name)).await.unwrap();
        }
        5 => {
            let len = DISK + rng.below(64) * 8192;
            match node.resize(len).await {
                Ok(()) => assert_eq!(node.len(), len),
                Err(error) => assert!(len < node.len() && alive > 0, "{error}"),
            }
        }
        6 => {
            let options = BitmapOptions {
                name: format!("b{number}"),
                granularity: None,
                persistent: true,
                disabled: false,
            };
            graph.add_bitmap("disk", &options).unwrap().commit();
            truth.borrow_mut().bitmaps.insert(options.name, BTreeSet::new());
        }
        7 => {
            let names: Vec<_> = node.bitmaps().iter().filter_map(|one| one.name.clone()).collect();
            if let Some(name) = names.first() {
                graph.remove_bitmap("disk", name).await.unwrap().commit();
                truth.borrow_mut().bitmaps.remove(name);
            }
        }
        _ => node.flush().await.unwrap(),
    }
}

fn storm(rig: &Rig, shape: &Shape, seed: u64) {
    let image = Simulated::start(seed, shape, None);
    let mut rng = Rng::new(seed);
    let sectors = vec![(0, None); usize::try_from(DISK / SECTOR).unwrap()];
    let truth = Rc::new(RefCell::new(Truth { sectors, ..Truth::default() }));
    image.executor.block_on(async {
        let guests: Vec<_> = (0..TASKS)
            .map(|task| {
                let guest =
                    guest(image.node.clone(), Rc::clone(&truth), Rng::new(rng.bits()), task);
                image.executor.spawn(guest)
            })
            .collect();
        for number in 0..DEEDS {
            image.executor.sleep(Duration::from_micros(rng.below(5000))).await;
            deed(&image, &truth, &mut rng, number).await;
        }
        truth.borrow_mut().over = true;
        for guest in guests {
            guest.await;
        }
        compare_bitmaps(&image.node, &truth.borrow());
        image.graph.inactivate_all().await.unwrap();
    });
    let again = Simulated::start(seed, shape, Some(&image.media()));
    compare_bitmaps(&again.node, &truth.borrow());
    let path = rig.path("image.qcow2");
    std::fs::write(&path, image.disk.contents()).unwrap();
    check(&path);
    let truth = truth.borrow();
    compare(&rig.content(&path), &truth.allowed(), &format!("seed {seed}"));
    for (name, allowed) in &truth.snapshots {
        let copy = rig.path("snapshot.raw");
        tool("qemu-img", &["convert", "-l", name, "-O", "raw", &path, &copy]);
        let bytes = std::fs::read(copy).unwrap();
        compare(&bytes, allowed, &format!("seed {seed}, snapshot {name}"));
    }
}

#[test]
fn what_is_done_to_an_image_in_use_loses_nothing() {
    let Some(rig) = Rig::new() else { return };
    let runs: u64 =
        std::env::var("FERRY_STORMS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let base = CreateOptions { cluster_size: 4096, ..CreateOptions::new(DISK) };
    let shapes = [
        base.clone(),
        CreateOptions { cluster_size: 16384, extended_l2: true, ..base.clone() },
        CreateOptions { cluster_size: 512, refcount_bits: 8, ..base.clone() },
        CreateOptions { lazy_refcounts: true, ..base.clone() },
    ];
    for seed in 0..runs {
        for (number, create) in shapes.iter().enumerate() {
            let cache = seed.is_multiple_of(2).then_some(0);
            let shape = Shape { cache, ..Shape::new(create.clone()) };
            storm(&rig, &shape, seed * 10 + number as u64);
        }
    }
}

#[test]
fn what_waited_for_an_image_at_rest_is_there_after_the_next_flush() {
    let create = CreateOptions { cluster_size: 4096, ..CreateOptions::new(DISK) };
    let shape = Shape::new(create);
    let image = Simulated::start(1, &shape, None);
    let bytes = |byte: u8| IoBuf::from_vec(&[byte; 4096]);
    image.executor.block_on(async {
        image.node.write(0, bytes(1), WriteFlags::NONE).await.unwrap();
        let (graph, node) = (image.graph.clone(), image.node.clone());
        let snapshot = image.executor.spawn(async move {
            graph.take_internal_snapshot("disk", &node, "one", Moment::default()).await.unwrap();
        });
        // It is at work for some milliseconds.
        image.executor.sleep(Duration::from_millis(1)).await;
        assert!(!snapshot.is_finished());
        image.node.write(0, bytes(2), WriteFlags::NONE).await.unwrap();
        assert!(snapshot.is_finished(), "the write has not waited");
        image.node.flush().await.unwrap();
        image.crash();
    });
    let again = Simulated::start(1, &shape, Some(&image.media()));
    again.executor.block_on(async {
        let buf = IoBuf::alloc(4096);
        again.node.read(0, buf.clone()).await.unwrap();
        assert!(buf.to_vec() == [2; 4096], "what was flushed is lost");
    });
}
