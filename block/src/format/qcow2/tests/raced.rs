//! Requests, and what is done to the image as a whole, that meet: who waited for the other finds another image than the
//! one he came for.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use super::super::Qcow2Driver;
use super::super::container::{read_words, write_at};
use super::super::create::CreateOptions;
use super::super::header::{Header, Incompatible};
use super::super::snapshot::{Moment, create_snapshot};
use super::simulated::{DISK, Shape, Simulated};
use crate::buf::IoBuf;
use crate::driver::{BlockDriver, WriteFlags};
use crate::edge::Edge;
use crate::error::{ErrorKind, Result};
use crate::executor::within;
use crate::graph::BitmapOptions;
use crate::node::BlockNode;
use crate::testing::{Effect, Fault, SimOp};

fn small() -> Shape {
    Shape::new(CreateOptions { cluster_size: 4096, ..CreateOptions::new(DISK) })
}

fn bytes(byte: u8, len: u64) -> IoBuf {
    IoBuf::from_vec(&vec![byte; usize::try_from(len).unwrap()])
}

async fn write(node: &BlockNode, at: u64, byte: u8, len: u64) -> Result<()> {
    node.write(at, bytes(byte, len), WriteFlags::NONE).await
}

async fn read(node: &BlockNode, at: u64, len: u64) -> Vec<u8> {
    let buf = bytes(0xee, len);
    node.read(at, buf.clone()).await.unwrap();
    buf.to_vec()
}

fn driver(node: &BlockNode) -> &Qcow2Driver {
    node.driver().expect("a qcow2 image")
}

#[test]
fn what_waited_while_an_image_was_given_up_leaves_it_alone() {
    let image = Simulated::start(1, &small(), None);
    let (executor, node) = (&image.executor, &image.node);
    executor.block_on(async {
        write(node, 0, 1, 4096).await.unwrap();
        let pass = driver(node).image.gate.try_enter().unwrap();
        let other = node.clone();
        let given_up = executor.spawn(async move { driver(&other).inactivate().await });
        executor.sleep(Duration::from_micros(1)).await;
        let other = node.clone();
        let late = executor.spawn(async move {
            let take =
                |file: Edge| async move { create_snapshot(&file, "late", Moment::default()).await };
            driver(&other).offline(take).await
        });
        executor.sleep(Duration::from_micros(1)).await;
        drop(pass);
        given_up.await.unwrap();
        let content = image.disk.contents();
        assert_eq!(late.await.unwrap_err().kind(), ErrorKind::Inactive);
        assert!(image.disk.contents() == content, "a snapshot was taken");
        // Nor do bitmaps come into it, which does not keep the node from being given up.
        let (name, granularity) = ("b".to_owned(), None);
        let options = BitmapOptions { name, granularity, persistent: true, disabled: false };
        image.graph.add_bitmap("disk", &options).unwrap().commit();
        image.graph.inactivate_all().await.unwrap();
        assert!(image.disk.contents() == content, "a bitmap was stored");
    });
}

#[test]
fn an_image_that_was_written_loses_nothing_when_it_is_taken_over_again() {
    let image = Simulated::start(1, &small(), None);
    image.executor.block_on(async {
        write(&image.node, 0, 1, 4096).await.unwrap();
        driver(&image.node).activate(None).await.unwrap();
        assert!(read(&image.node, 0, 4096).await == [1; 4096]);
    });
}

/// Bitmaps would be believed that miss the write.
#[test]
fn a_first_write_that_meets_the_discovery_of_damage_is_refused() {
    let create = CreateOptions { cluster_size: 4096, ..CreateOptions::new(8 << 20) };
    let image = Simulated::start(1, &Shape::new(create), None);
    let node = &image.node;
    image.executor.block_on(async {
        write(node, 0, 1, 4096).await.unwrap();
        image.graph.inactivate_all().await.unwrap();
        // The second L2 table is said to be where none can be.
        let l1 = driver(node).header().l1.offset;
        image.disk.fill(l1 + 8, &(1_u64 << 63 | 0x1200).to_be_bytes());
        image.graph.activate_all(None).await.unwrap();
        let mut first = Box::pin(write(node, 0, 2, 4096));
        let waits = poll_fn(|cx| Poll::Ready(first.as_mut().poll(cx).is_pending())).await;
        assert!(waits);
        let found = node.read(2 << 20, IoBuf::alloc(512)).await.unwrap_err();
        assert_eq!(found.kind(), ErrorKind::Corrupt);
        assert_eq!(first.await.unwrap_err().kind(), ErrorKind::Corrupt);
        assert!(read(node, 0, 4096).await == [1; 4096]);
    });
}

/// Leaves an image behind whose refcounts must be counted anew, and cannot be read just now.
async fn spoil(image: &Simulated) {
    let disk = image.disk.clone();
    let spoil = |file: Edge| async move {
        let mut header = Header::load(&file).await?;
        header.incompatible = header.incompatible.with(Incompatible::DIRTY, true);
        header.store(&file).await?;
        let block = read_words(&file, header.refcount_table_offset, 1).await?[0];
        write_at(&file, block, &2_u16.to_be_bytes()).await?;
        disk.inject(Fault::every(SimOp::Read, Effect::Fail(ErrorKind::Io)));
        Ok(())
    };
    driver(&image.node).offline(spoil).await.unwrap();
    image.disk.heal();
}

#[test]
fn a_repair_goes_on_when_the_request_that_began_it_is_given_up() {
    let image = Simulated::start(1, &small(), None);
    let (executor, node) = (&image.executor, &image.node);
    executor.block_on(async {
        write(node, 0, 1, 4096).await.unwrap();
        spoil(&image).await;
        // The refcounts are on their way for long.
        image.disk.inject(Fault::once(SimOp::Write, Effect::Delay(Duration::from_secs(1))));
        let patience = Duration::from_millis(200);
        let given_up = within(executor, patience, node.read(0, IoBuf::alloc(512))).await;
        assert!(given_up.is_none() && image.disk.under_way() == 1);
        assert!(read(node, 0, 4096).await == [1; 4096]);
        write(node, 4096, 2, 512 << 10).await.unwrap();
        node.flush().await.unwrap();
        executor.sleep(Duration::from_secs(2)).await;
        image.graph.inactivate_all().await.unwrap();
    });
    let again = Simulated::start(1, &small(), Some(&image.media()));
    again.executor.block_on(async {
        assert!(read(&again.node, 0, 4096).await == [1; 4096]);
        assert!(read(&again.node, 4096, 512 << 10).await == [2; 512 << 10]);
    });
}

#[test]
fn a_request_that_waited_while_the_disk_became_shorter_is_refused() {
    for raw in [false, true] {
        let data_file = raw.then(|| "data".into());
        let create = CreateOptions { data_file, data_file_raw: raw, ..CreateOptions::new(DISK) };
        let image = Simulated::start(1, &Shape::new(create), None);
        let (executor, node) = (&image.executor, &image.node);
        executor.block_on(async {
            write(node, 0, 1, DISK).await.unwrap();
            let shorter = node.clone();
            let resized = executor.spawn(async move { shorter.resize(DISK / 2).await });
            executor.sleep(Duration::from_micros(1)).await;
            let late: Vec<_> = (0..4)
                .map(|kind| {
                    let (node, range) = (node.clone(), DISK / 2 - 4096..DISK / 2 + 4096);
                    executor.spawn(async move {
                        match kind {
                            0 => write(&node, range.start, 2, 8192).await,
                            1 => node.write_zeroes(range, WriteFlags::NONE).await,
                            2 => node.discard(range).await,
                            _ => node.read(range.start, IoBuf::alloc(8192)).await,
                        }
                    })
                })
                .collect();
            for (kind, late) in late.into_iter().enumerate() {
                let refused = late.await.map_err(|error| error.kind());
                assert_eq!(refused, Err(ErrorKind::OutOfRange), "request {kind}, raw {raw}");
            }
            resized.await.unwrap();
            assert!(read(node, 0, DISK / 2).await == [1; (DISK / 2) as usize]);
            if let Some(data) = &image.data {
                assert_eq!(data.contents().len() as u64, DISK / 2);
            }
        });
    }
}

#[test]
fn a_full_device_has_room_again_after_a_discard() {
    let image = Simulated::start(1, &Shape { device: 512 << 10, ..small() }, None);
    image.executor.block_on(async {
        let node = &image.node;
        let mut at = 0;
        while write(node, at, 1, 4096).await.is_ok() {
            at += 4096;
        }
        assert!(at > 256 << 10);
        let full = write(node, at, 2, 4096).await.unwrap_err();
        assert_eq!(full.kind(), ErrorKind::NoSpace, "{full}");
        // What was freed before, and what was discarded while everything was written out.
        for discarded in [0..128 << 10, 128 << 10..132 << 10] {
            node.discard(discarded).await.unwrap();
            write(node, at, 2, 4096).await.unwrap();
            at += 4096;
        }
        node.write_zeroes(132 << 10..256 << 10, WriteFlags { may_unmap: true, ..WriteFlags::NONE })
            .await
            .unwrap();
        write(node, at, 3, 64 << 10).await.unwrap();
    });
}

#[test]
fn a_full_device_is_searched_to_its_end() {
    // A slice describes 64 clusters.
    let narrow =
        CreateOptions { cluster_size: 512, refcount_bits: 64, ..CreateOptions::new(4 << 20) };
    let image = Simulated::start(1, &Shape { device: 2 << 20, ..Shape::new(narrow) }, None);
    image.executor.block_on(async {
        let node = &image.node;
        let mut at = 0;
        while write(node, at, 1, 512).await.is_ok() {
            at += 512;
        }
        // Not the last one, behind which the next owner would begin.
        node.discard(at - 8192..at - 7680).await.unwrap();
        // The next owner does not know what is free.
        driver(node).offline(|_| async { Ok(()) }).await.unwrap();
        assert!(at > 1 << 20);
        write(node, at, 2, 512).await.unwrap();
        let full = write(node, at + 512, 2, 512).await.unwrap_err();
        assert_eq!(full.kind(), ErrorKind::NoSpace, "{full}");
    });
}

#[test]
fn a_corrupt_image_keeps_what_was_to_be_freed() {
    let image = Simulated::start(1, &small(), None);
    let node = &image.node;
    image.executor.block_on(async {
        write(node, 0, 1, 64 << 10).await.unwrap();
        // A request that may have seen where the data was.
        let pass = driver(node).image.gate.try_enter();
        node.discard(0..64 << 10).await.unwrap();
        node.flush().await.unwrap();
        drop(driver(node).image.corrupt("somebody has found something"));
        let before = image.disk.counts().zeroes;
        drop(pass);
        image.executor.sleep(Duration::from_secs(1)).await;
        assert_eq!(image.disk.counts().zeroes, before, "the host has got clusters back");
    });
}

#[test]
fn what_is_written_to_a_cluster_that_is_being_preallocated_stays() {
    let image = Simulated::start(1, &Shape { backed: true, ..small() }, None);
    let (executor, node) = (&image.executor, &image.node);
    executor.block_on(async {
        write(node, DISK / 2, 1, 512).await.unwrap();
        // The rest of the cluster is copied first, which takes a while.
        let other = node.clone();
        let written = executor.spawn(async move { write(&other, 0, 2, 512).await });
        executor.sleep(Duration::from_micros(1)).await;
        driver(node).preallocate(0..4096, false).await.unwrap();
        written.await.unwrap();
        assert!(read(node, 0, 512).await == [2; 512]);
    });
}
