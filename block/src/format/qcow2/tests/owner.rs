//! Who may write, and what is believed: images opened while others own them.

use super::super::{BackingRef, Qcow2Driver, Qcow2Options, check};
use super::rig::{Rig, blockdev, check_but_for_leaks, open, open_blockdev, options};
use crate::EdgePerms;
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::error::ErrorKind;
use crate::open::BlockdevOptions;
use crate::testing::tool;

fn inactive(path: &str) -> BlockdevOptions {
    BlockdevOptions { active: Some(false), ..blockdev(options(path)) }
}

async fn fill(node: &crate::BlockNode, at: u64, len: usize, byte: u8) {
    let buf = IoBuf::from_vec(&vec![byte; len]);
    node.write(at, buf, WriteFlags::NONE).await.unwrap();
}

#[test]
fn the_next_owner_sees_everything_that_the_first_one_did() {
    let Some(rig) = Rig::new() else { return };
    let path = rig.create("shared.qcow2", "cluster_size=4k", "1M");
    let first = open(options(&path));
    first.on(async |node| fill(node, 0, 200_000, 1).await);
    first.on(async |node| node.flush().await.unwrap());
    // The second one reads, so it has tables in its caches that will be wrong.
    let second = open_blockdev(&inactive(&path), EdgePerms::READ_WRITE);
    assert_eq!(second.content()[0], 1);
    let error = second
        .on(async |node| node.write(0, IoBuf::alloc(512), WriteFlags::NONE).await.unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Inactive);
    let marks = second.executor.block_on(second.node.generation()).unwrap();
    first.on(async |node| {
        node.discard(8192..100_000).await.unwrap();
        fill(node, 500_000, 300_000, 2).await;
        node.resize((1 << 20) + 65536).await.unwrap();
        fill(node, 1 << 20, 65536, 3).await;
    });
    let content = first.content();
    first.close();
    second.executor.block_on(second.graph.activate_all(None)).unwrap();
    assert_eq!(second.node.len(), (1 << 20) + 65536);
    assert!(second.content() == content);
    assert_eq!(second.executor.block_on(second.node.generation()).unwrap(), marks);
    second.on(async |node| fill(node, 8192, 5000, 4).await);
    let after = second.executor.block_on(second.node.generation()).unwrap();
    assert_eq!(after, marks.map(|mark| mark + 1));
    let content = second.content();
    second.close();
    tool("qemu-img", &["check", &path]);
    assert!(rig.content(&path) == content);
}

#[test]
fn an_image_whose_data_is_elsewhere_by_now_is_not_taken_over() {
    let Some(rig) = Rig::new() else { return };
    let path = rig.create("image.qcow2", "", "1M");
    let image = open_blockdev(&inactive(&path), EdgePerms::READ_WRITE);
    let data = rig.path("data.raw");
    rig.create("image.qcow2", &format!("data_file={data}"), "1M");
    let error = image.executor.block_on(image.graph.activate_all(None)).unwrap_err();
    assert!(error.to_string().contains("has its data elsewhere"), "{error}");
}

#[test]
fn an_image_is_not_touched_before_it_is_changed() {
    let Some(rig) = Rig::new() else { return };
    let path = rig.create("still.qcow2", "lazy_refcounts=on", "1M");
    tool("qemu-img", &["bitmap", "--add", &path, "b"]);
    let before = std::fs::read(&path).unwrap();
    let image = open_blockdev(&inactive(&path), EdgePerms::READ_WRITE);
    image.content();
    image.executor.block_on(image.graph.activate_all(None)).unwrap();
    image.on(async |node| node.flush().await.unwrap());
    image.content();
    image.close();
    assert!(std::fs::read(&path).unwrap() == before);
}

#[test]
fn an_owner_comes_back_only_to_an_image_that_nobody_changed() {
    let Some(rig) = Rig::new() else { return };
    let path = rig.create("mark.qcow2", "", "1M");
    let image = open(options(&path));
    image.on(async |node| fill(node, 0, 512, 1).await);
    let mark = image.executor.block_on(image.node.generation()).unwrap();
    image.executor.block_on(image.graph.inactivate_all()).unwrap();
    let other = open(options(&path));
    other.on(async |node| fill(node, 0, 512, 2).await);
    other.close();
    image.executor.block_on(async {
        image.node.children()[0].node().activate(None).await.unwrap();
        let error = image.node.activate(mark).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::OwnershipUnknown);
        let now = image.node.generation().await.unwrap();
        assert_eq!(now, mark.map(|mark| mark + 1));
        image.node.activate(now).await.unwrap();
    });
}

#[test]
fn a_dirty_image_is_repaired_and_a_corrupt_one_refused() {
    let Some(rig) = Rig::new() else { return };
    let path = rig.create("dirty.qcow2", "lazy_refcounts=on", "1M");
    let image = open(options(&path));
    image.on(async |node| {
        fill(node, 0, 300_000, 7).await;
        node.flush().await.unwrap();
    });
    // As a crash leaves it: entries durable, refcounts not.
    drop(image);
    let image = open(options(&path));
    assert!(image.content()[..300_000].iter().all(|byte| *byte == 7));
    image.on(async |node| fill(node, 400_000, 10, 8).await);
    image.close();
    tool("qemu-img", &["check", &path]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[79] |= 2;
    std::fs::write(&path, &bytes).unwrap();
    let executor = crate::Executor::new(crate::Clock::real()).unwrap();
    let graph = crate::BlockGraph::new(executor.clone());
    let error = executor.block_on(graph.open(&blockdev(options(&path)))).unwrap_err();
    assert!(error.to_string().contains("Image is corrupt"), "{error}");
}

#[test]
fn damage_is_not_spread() {
    let Some(rig) = Rig::new() else { return };
    let path = rig.create("damaged.qcow2", "", "1M");
    rig.qemu_io(&path, &["write -P 1 0 64k", "write -P 2 128k 64k"]);
    // The second data cluster is said to be where the L2 table is.
    let mut bytes = std::fs::read(&path).unwrap();
    let word = |bytes: &[u8], at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
    let l1 = usize::try_from(word(&bytes, 40)).unwrap();
    let table = word(&bytes, l1);
    let l2 = usize::try_from(table & 0x00ff_ffff_ffff_fe00).unwrap();
    bytes[l2 + 16..l2 + 24].copy_from_slice(&table.to_be_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let image = open(options(&path));
    let told = std::rc::Rc::new(std::cell::RefCell::new(Vec::new()));
    let sink = std::rc::Rc::clone(&told);
    let jobs = crate::job::JobRegistry::of(&image.graph);
    jobs.set_event_sink(std::rc::Rc::new(move |event| sink.borrow_mut().push(event)));
    let error = image.on(async |node| {
        node.write(128 << 10, IoBuf::alloc(512), WriteFlags::NONE).await.unwrap_err()
    });
    assert!(error.to_string().contains("overlaps with active L2 table"), "{error}");
    let error = image
        .on(async |node| node.write(0, IoBuf::alloc(512), WriteFlags::NONE).await.unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    // Once, however often it is tried.
    assert_eq!(told.borrow().len(), 1, "{told:?}");
    assert!(image.node.driver::<Qcow2Driver>().unwrap().is_corrupt());
    image.executor.block_on(image.executor.sleep(std::time::Duration::from_millis(50)));
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes[79] & 2, 2, "the header does not say corrupt");
}

/// A refcount block that is said to be where no address reaches.
#[test]
fn a_refcount_block_behind_all_addresses_is_not_written() {
    let Some(rig) = Rig::new() else { return };
    let path = rig.create("far.qcow2", "cluster_size=512", "1M");
    let mut bytes = std::fs::read(&path).unwrap();
    let table = u64::from_be_bytes(bytes[48..56].try_into().unwrap());
    let second = usize::try_from(table).unwrap() + 8;
    bytes[second..second + 8].copy_from_slice(&(u64::MAX - 511).to_be_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let image = open(options(&path));
    image.on(async |node| {
        let write = node.write(0, IoBuf::alloc(1 << 20), WriteFlags::NONE).await;
        assert_eq!(write.unwrap_err().kind(), ErrorKind::Corrupt);
        node.flush().await.unwrap();
    });
}

#[test]
fn an_image_in_use_can_be_checked() {
    let Some(rig) = Rig::new() else { return };
    let path = rig.create("live.qcow2", "", "4M");
    let image = open(options(&path));
    image.on(async |node| {
        fill(node, 100_000, 1_000_000, 1).await;
        node.discard(0..512 << 10).await.unwrap();
        let driver = node.driver::<Qcow2Driver>().unwrap();
        let report = driver.offline(async |file| check::check(&file, None).await).await.unwrap();
        assert!(report.is_clean(), "{:?}", report.messages);
        fill(node, 3_000_000, 100_000, 2).await;
    });
    image.close();
    tool("qemu-img", &["check", &path]);
}

#[test]
fn a_backing_file_can_be_left_out_or_given() {
    let Some(rig) = Rig::new() else { return };
    let base = rig.create("base.qcow2", "", "1M");
    rig.qemu_io(&base, &["write -P 9 0 1M"]);
    let path = rig.create("top.qcow2", "backing_file=base.qcow2,backing_fmt=qcow2", "1M");
    let first = |options: Qcow2Options| open(options).content()[0];
    assert_eq!(first(options(&path)), 9);
    assert_eq!(first(Qcow2Options { backing: BackingRef::None, ..options(&path) }), 0);
    tool("qemu-img", &["rebase", "-u", "-b", "nosuch.qcow2", "-F", "qcow2", &path]);
    let executor = crate::Executor::new(crate::Clock::real()).unwrap();
    let graph = crate::BlockGraph::new(executor.clone());
    let error = executor.block_on(graph.open(&blockdev(options(&path)))).unwrap_err();
    assert!(error.to_string().contains("nosuch.qcow2"), "{error}");
    assert!(graph.nodes().is_empty());
    // A loop ends.
    tool("qemu-img", &["rebase", "-u", "-b", "top.qcow2", "-F", "qcow2", &path]);
    let read_only = BlockdevOptions { read_only: Some(true), ..blockdev(options(&path)) };
    executor.block_on(graph.open(&read_only)).unwrap_err();
    check_but_for_leaks(&base);
}
