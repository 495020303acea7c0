//! Errors of the disk at the worst moments.

use std::time::Duration;

use super::super::Qcow2Driver;
use super::super::check::check;
use super::super::create::CreateOptions;
use super::super::snapshot::Moment;
use super::simulated::{DISK, Shape, Simulated};
use crate::bitmap::BitmapState;
use crate::buf::IoBuf;
use crate::driver::{BlockDriver, WriteFlags};
use crate::error::ErrorKind;
use crate::graph::BitmapOptions;
use crate::testing::{Effect, Fault, SimOp};

/// The first of 32 KiB that share an L2 table.
const FAR: u64 = 40 << 10;

/// A longer disk needs a longer L1 table elsewhere, to which the header changes over. When that fails at
/// any of its flushes nobody knows what header the file has.
#[test]
fn a_header_that_may_have_been_written_is_made_certain_before_the_next_flush_ends() {
    let create = CreateOptions { cluster_size: 512, ..CreateOptions::new(DISK) };
    let shape = Shape::new(create);
    let mut failed = 0;
    for skip in 0..10 {
        let image = Simulated::start(skip, &shape, None);
        image.executor.block_on(async {
            let ones = IoBuf::from_vec(&[1; 512]);
            image.node.write(0, ones.clone(), WriteFlags::NONE).await.unwrap();
            image.disk.inject(Fault::once(SimOp::Flush, Effect::Fail(ErrorKind::Io)).after(skip));
            failed += u32::from(image.node.resize(4 * DISK).await.is_err());
            image.disk.heal();
            image.node.write(FAR, ones, WriteFlags::NONE).await.unwrap();
            image.node.flush().await.unwrap();
        });
        image.crash();
        let again = Simulated::start(skip, &shape, Some(&image.media()));
        again.executor.block_on(async {
            for at in [0, FAR] {
                let buf = IoBuf::alloc(512);
                again.node.read(at, buf.clone()).await.unwrap();
                assert!(buf.to_vec() == [1; 512], "flush {skip} failed: {at:#x} is lost");
            }
        });
    }
    assert!(failed >= 4, "only {failed} flushes have failed");
}

/// Clusters before a refcount table that could not be made longer are given out all the same. Those who have
/// them keep them when the image is given up.
#[test]
fn a_refcount_table_that_could_not_grow_leaves_no_cluster_behind_the_end() {
    let len = 1800 << 10;
    let create = CreateOptions { cluster_size: 512, refcount_bits: 64, ..CreateOptions::new(len) };
    let shape = Shape::new(create);
    let content: Vec<u8> = (1..=len / 512).flat_map(|at| at.to_le_bytes().repeat(64)).collect();
    // The table is full at 2 MiB, which the longer L1 table reaches. A flush fails before that, or then.
    for skip in 0..10 {
        let image = Simulated::start(skip, &shape, None);
        image.executor.block_on(async {
            let (first, second) = content.split_at(1400 << 10);
            image.node.write(0, IoBuf::from_vec(first), WriteFlags::NONE).await.unwrap();
            image.node.flush().await.unwrap();
            image.disk.inject(Fault::once(SimOp::Flush, Effect::Fail(ErrorKind::Io)).after(skip));
            image.node.resize(4 << 30).await.unwrap_err();
            image.node.write(1400 << 10, IoBuf::from_vec(second), WriteFlags::NONE).await.unwrap();
            image.graph.inactivate_all().await.unwrap();
        });
        let again = Simulated::start(skip, &shape, Some(&image.media()));
        again.executor.block_on(async {
            let buf = IoBuf::alloc(content.len());
            again.node.read(0, buf.clone()).await.unwrap();
            assert!(buf.to_vec() == content, "flush {skip} failed, and something is lost");
        });
    }
}

/// A data file may be shorter than the disk. Each of many requests at once makes it longer, and what the
/// longest has written stays.
#[test]
fn requests_that_make_a_data_file_longer_at_once_take_nothing_from_each_other() {
    let create = CreateOptions { data_file: Some("data".into()), ..CreateOptions::new(DISK) };
    for seed in 0..20 {
        let image = Simulated::start(seed, &Shape::new(create.clone()), None);
        image.executor.block_on(async {
            let data = image.data.as_ref().unwrap();
            data.resize(0).await.unwrap();
            let places = (0..16).map(|number| number * (DISK / 16));
            let tasks: Vec<_> = places
                .clone()
                .map(|at| {
                    let (node, byte) = (image.node.clone(), byte_for(at));
                    image.executor.spawn(async move {
                        let bytes = IoBuf::from_vec(&[byte; 4096]);
                        node.write(at, bytes, WriteFlags::NONE).await.unwrap();
                    })
                })
                .collect();
            for task in tasks {
                task.await;
            }
            for at in places {
                let buf = IoBuf::alloc(4096);
                image.node.read(at, buf.clone()).await.unwrap();
                assert!(buf.to_vec() == [byte_for(at); 4096], "seed {seed}: {at:#x} is lost");
            }
        });
    }
}

fn byte_for(at: u64) -> u8 {
    u8::try_from(at / (DISK / 16) + 1).unwrap()
}

#[test]
fn a_compressed_write_that_is_to_be_durable_is() {
    let create = CreateOptions { cluster_size: 4096, ..CreateOptions::new(DISK) };
    let shape = Shape::new(create);
    for seed in 0..4 {
        let image = Simulated::start(seed, &shape, None);
        image.executor.block_on(async {
            let flags = WriteFlags { compressed: true, fua: true, ..WriteFlags::NONE };
            image.node.write(FAR, IoBuf::from_vec(&[1; 4096]), flags).await.unwrap();
        });
        image.crash();
        let again = Simulated::start(seed, &shape, Some(&image.media()));
        again.executor.block_on(async {
            let buf = IoBuf::alloc(4096);
            again.node.read(FAR, buf.clone()).await.unwrap();
            assert!(buf.to_vec() == [1; 4096], "seed {seed}: what was durable is lost");
        });
    }
}

/// The first write marks the bitmaps as in use. Wherever that fails, the next one does it again.
#[test]
fn bitmaps_that_could_not_be_marked_as_in_use_do_not_claim_to_be_whole() {
    let create = CreateOptions { cluster_size: 4096, ..CreateOptions::new(DISK) };
    let shape = Shape::new(create);
    let image = Simulated::start(1, &shape, None);
    let media = image.executor.block_on(async {
        let (name, granularity) = ("b".to_owned(), None);
        let options = BitmapOptions { name, granularity, persistent: true, disabled: false };
        image.graph.add_bitmap("disk", &options).unwrap().commit();
        image.graph.inactivate_all().await.unwrap();
        image.media()
    });
    let mut failed = 0;
    for skip in 0..6 {
        for op in [SimOp::Write, SimOp::Flush] {
            let image = Simulated::start(skip, &shape, Some(&media));
            image.executor.block_on(async {
                let ones = IoBuf::from_vec(&[1; 512]);
                image.disk.inject(Fault::once(op, Effect::Fail(ErrorKind::Io)).after(skip));
                let first = image.node.write(0, ones.clone(), WriteFlags::NONE).await;
                failed += u32::from(first.is_err());
                image.disk.heal();
                image.node.write(0, ones, WriteFlags::NONE).await.unwrap();
                image.node.flush().await.unwrap();
            });
            image.crash();
            let again = Simulated::start(skip, &shape, Some(&image.media()));
            for bitmap in again.node.bitmaps() {
                let bits = bitmap.bits.borrow();
                let is_void = bits.state() == BitmapState::Inconsistent;
                assert!(is_void || bits.is_dirty(0), "{op:?} {skip} failed: a write was not seen");
            }
        }
    }
    assert!(failed >= 4, "only {failed} writes have failed");
}

/// A flush that fails, while at the moment of its end somebody asks for another one (`late`, in
/// nanoseconds); when it ended, and how.
fn failing_flush(late: Option<u64>) -> (u64, bool) {
    let create = CreateOptions { cluster_size: 4096, ..CreateOptions::new(DISK) };
    let image = Simulated::start(1, &Shape::new(create), None);
    image.executor.block_on(async {
        image.node.write(0, IoBuf::from_vec(&[1; 512]), WriteFlags::NONE).await.unwrap();
        let begun = image.executor.clock().now();
        image.disk.inject(Fault::once(SimOp::Flush, Effect::Fail(ErrorKind::Io)));
        let (executor, node) = (image.executor.clone(), image.node.clone());
        let other = late.map(|late| {
            image.executor.spawn(async move {
                // Its timer is set later than any of the disk's, and goes off after them.
                executor.sleep(Duration::from_nanos(late - 1)).await;
                executor.sleep(Duration::from_nanos(1)).await;
                node.flush().await.unwrap();
            })
        });
        let result = image.node.flush().await;
        let took = image.executor.clock().now() - begun;
        if let Some(other) = other {
            other.await;
        }
        (took, result.is_err())
    })
}

#[test]
fn who_waited_for_a_flush_hears_of_its_failure_and_not_of_the_next_ones_success() {
    let (took, failed) = failing_flush(None);
    assert!(failed);
    let (_, failed) = failing_flush(Some(took));
    assert!(failed, "the failure was not told");
}

/// A write that fails because an operation of the disk does, the one after `skip` others, and what leaks; `None` if
/// it does not come to that.
fn leaks(
    shape: &Shape,
    with_snapshot: bool,
    compressed: bool,
    op: SimOp,
    skip: u64,
) -> Option<u64> {
    let image = Simulated::start(skip, shape, None);
    image.executor.block_on(async {
        let bytes = IoBuf::from_vec(&[1; 4096]);
        if with_snapshot {
            image.node.write(0, bytes.clone(), WriteFlags::NONE).await.unwrap();
            let taken =
                image.graph.take_internal_snapshot("disk", &image.node, "s", Moment::default());
            taken.await.unwrap();
        }
        image.disk.inject(Fault::once(op, Effect::Fail(ErrorKind::Io)).after(skip));
        let flags = WriteFlags { compressed, ..WriteFlags::NONE };
        image.node.write(0, bytes, flags).await.err()?;
        image.disk.heal();
        let driver = image.node.driver::<Qcow2Driver>().unwrap();
        let report = driver.offline(async |file| check(&file, None).await).await.unwrap();
        Some(report.leaks + report.corruptions)
    })
}

#[test]
fn a_write_that_fails_gives_back_what_it_has_taken() {
    let create = CreateOptions { cluster_size: 4096, ..CreateOptions::new(DISK) };
    let file = Shape::new(create);
    // What a device holds is not known to be zero.
    let device = Shape { device: 3 << 20, ..file.clone() };
    let cases = [
        (&device, false, false),
        (&device, false, true),
        (&file, true, false),
        (&file, false, true),
    ];
    for (shape, with_snapshot, compressed) in cases {
        let mut failed = 0;
        for op in [SimOp::Zeroes, SimOp::Write, SimOp::Read] {
            for skip in 0..12 {
                let Some(leaks) = leaks(shape, with_snapshot, compressed, op, skip) else { break };
                failed += 1;
                assert_eq!(
                    leaks, 0,
                    "{op:?} {skip}, snapshot {with_snapshot}, compressed {compressed}"
                );
            }
        }
        assert!(failed >= 2, "only {failed} writes have failed");
    }
}

/// Where the data file is a device, it stays as long as it is.
#[test]
fn a_disk_over_a_device_for_its_data_becomes_shorter_and_longer_again() {
    for raw in [false, true] {
        let create = CreateOptions {
            data_file: Some("data".into()),
            data_file_raw: raw,
            ..CreateOptions::new(DISK)
        };
        let shape = Shape { device: 3 << 20, ..Shape::new(create) };
        let image = Simulated::start(1, &shape, None);
        image.executor.block_on(async {
            let ones = IoBuf::from_vec(&[1; 4096]);
            for len in [DISK - 512, DISK / 2 + 512, DISK] {
                image.node.resize(len).await.unwrap();
                image.node.write_zeroes(len - 8192..len, WriteFlags::NONE).await.unwrap();
                image.node.write(len - 4096, ones.clone(), WriteFlags::NONE).await.unwrap();
            }
            image.graph.inactivate_all().await.unwrap();
        });
    }
}

/// A device does not become longer. Snapshots and bitmaps find room behind what is in use, not behind its end,
/// however far in it that is.
#[test]
fn snapshots_and_bitmaps_find_room_on_a_device() {
    let create =
        CreateOptions { cluster_size: 512, refcount_bits: 64, ..CreateOptions::new(3 << 20) };
    let shape = Shape { device: 12 << 20, ..Shape::new(create) };
    let image = Simulated::start(1, &shape, None);
    image.executor.block_on(async {
        let ones = IoBuf::from_vec(&vec![1; 3 << 20]);
        image.node.write(0, ones.clone(), WriteFlags::NONE).await.unwrap();
        let taking =
            image.graph.take_internal_snapshot("disk", &image.node, "a", Moment::default());
        taking.await.unwrap();
        let granularity = Some(512);
        let options =
            BitmapOptions { name: "b".into(), granularity, persistent: true, disabled: false };
        image.graph.add_bitmap("disk", &options).unwrap().commit();
        image.node.write(0, ones, WriteFlags::NONE).await.unwrap();
        image.graph.inactivate_all().await.unwrap();
    });
    let again = Simulated::start(1, &shape, Some(&image.media()));
    assert_eq!(again.node.bitmaps()[0].bits.borrow().dirty_bytes(), 3 << 20);
}

/// A corrupt image that was given up is nobody's: it bears its mark by then, and what it had begun is over.
#[test]
fn a_corrupt_image_that_was_given_up_is_not_written_any_more() {
    let create = CreateOptions { cluster_size: 4096, ..CreateOptions::new(DISK) };
    let image = Simulated::start(1, &Shape::new(create), None);
    image.executor.block_on(async {
        let (node, disk) = (image.node.clone(), &image.disk);
        let ones = IoBuf::from_vec(&vec![1; 256 << 10]);
        node.write(0, ones.clone(), WriteFlags::NONE).await.unwrap();
        let l1 = node.driver::<Qcow2Driver>().expect("a qcow2 image").header().l1.offset;
        image.graph.inactivate_all().await.unwrap();
        // The first cluster is said to be where the L1 table is.
        let at = usize::try_from(l1).unwrap();
        let entry = u64::from_be_bytes(disk.contents()[at..at + 8].try_into().unwrap());
        disk.fill(entry & !(1 << 63), &(l1 | 1 << 63).to_be_bytes());
        image.graph.activate_all(None).await.unwrap();
        node.write(512 << 10, ones, WriteFlags::NONE).await.unwrap();
        let other = node.clone();
        let flush = image.executor.spawn(async move { drop(other.flush().await) });
        image.executor.sleep(Duration::from_micros(100)).await;
        node.write(0, IoBuf::alloc(512), WriteFlags::NONE).await.unwrap_err();
        image.graph.close_all().await.unwrap_err();
        let content = disk.contents();
        assert_eq!(disk.under_way(), 0);
        assert_eq!(content[79] & 2, 2, "no mark");
        image.executor.sleep(Duration::from_secs(1)).await;
        assert!(disk.contents() == content);
        flush.await;
    });
}

/// What was to be cut off is gone already when the length could not be changed.
#[test]
fn bitmaps_know_of_the_end_of_a_disk_that_could_not_become_shorter() {
    let create = CreateOptions { cluster_size: 4096, ..CreateOptions::new(DISK) };
    let image = Simulated::start(1, &Shape::new(create), None);
    image.executor.block_on(async {
        let (name, granularity) = ("b".to_owned(), Some(4096));
        let options = BitmapOptions { name, granularity, persistent: false, disabled: false };
        image.graph.add_bitmap("disk", &options).unwrap().commit();
        let ones = IoBuf::from_vec(&[1; 4096]);
        image.node.write(DISK - 4096, ones, WriteFlags::NONE).await.unwrap();
        image.graph.clear_bitmap("disk", "b").await.unwrap().commit();
        image.disk.inject(Fault::once(SimOp::Flush, Effect::Fail(ErrorKind::Io)));
        image.node.resize(DISK / 2).await.unwrap_err();
        assert_eq!(image.node.len(), DISK);
        let bits = image.graph.find_bitmap("disk", "b").unwrap().1.bits.borrow().clone();
        assert_eq!(bits.next_dirty(0, u64::MAX), Some(DISK / 2..DISK));
    });
}
