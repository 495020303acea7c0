//! Bitmaps that are stored with an image in use, with QEMU's tools as judges.

use super::super::Qcow2Driver;
use super::super::check::{Repair, check as repair_leaks};
use super::rig::{Open, Rig, blockdev, check, open, open_blockdev, options};
use crate::bitmap::BitmapState;
use crate::buf::IoBuf;
use crate::clock::Clock;
use crate::driver::WriteFlags;
use crate::error::Result;
use crate::executor::Executor;
use crate::graph::BlockGraph;
use crate::job::create::{CreateImage, create_image};
use crate::node::AttachedBitmap;
use crate::open::{BlockdevOptions, BlockdevRef};
use crate::testing::{have_tool, tool};
use crate::{BitmapChange, BitmapOptions, EdgePerms};

const MIB: u64 = 1 << 20;
const GRANULE: u64 = 65536;

fn add(image: &Open, name: &str) {
    let granularity = Some(GRANULE);
    let options =
        BitmapOptions { name: name.into(), granularity, persistent: true, disabled: false };
    image.graph.add_bitmap("disk", &options).unwrap().commit();
}

fn write(image: &Open, at: u64, len: usize) {
    let data = IoBuf::from_vec(&vec![7; len]);
    image.on(async |node| node.write(at, data, WriteFlags::NONE).await.unwrap());
}

fn attached(image: &Open, name: &str) -> std::rc::Rc<AttachedBitmap> {
    image.graph.find_bitmap("disk", name).unwrap().1
}

/// Dirty runs, in granules.
fn dirty(bitmap: &AttachedBitmap) -> Vec<(u64, u64)> {
    let bits = bitmap.bits.borrow();
    let (mut runs, mut from) = (Vec::new(), 0);
    while let Some(run) = bits.next_dirty(from, u64::MAX) {
        from = run.end;
        runs.push((run.start / GRANULE, run.end / GRANULE));
    }
    runs
}

/// The same as QEMU's server tells it to clients.
fn dirty_in_qemu(path: &str, name: &str) -> Vec<(u64, u64)> {
    let map = format!("--map=qemu:dirty-bitmap:{name}");
    let server = ["--", "[", "qemu-nbd", "-r", "-f", "qcow2", "-B", name, path, "]"];
    let text = tool("nbdinfo", &[&[map.as_str()], &server[..]].concat());
    let number = |word: &str| word.parse::<u64>().unwrap() / GRANULE;
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let dirty = lines.filter(|words| words[2] == "1");
    dirty.map(|words| (number(words[0]), number(words[0]) + number(words[1]))).collect()
}

fn rig() -> Option<Rig> {
    (have_tool("nbdinfo") && have_tool("qemu-nbd")).then(Rig::new)?
}

#[test]
fn a_bitmap_of_ours_is_one_for_qemu() {
    let Some(rig) = rig() else { return };
    for shape in ["", "cluster_size=512", "lazy_refcounts=on"] {
        let path = rig.create("ours.qcow2", shape, "64M");
        let image = open(options(&path));
        add(&image, "b");
        write(&image, MIB, 100_000);
        image.on(async |node| {
            node.write_zeroes(5 * MIB..6 * MIB, WriteFlags::NONE).await.unwrap();
            node.flush().await.unwrap();
        });
        assert!(!tool("qemu-img", &["info", "-U", &path]).contains("name: b"), "stored by a flush");
        image.close();
        check(&path);
        assert!(!tool("qemu-img", &["info", &path]).contains("in-use"));
        assert_eq!(dirty_in_qemu(&path, "b"), [(16, 18), (80, 96)], "{shape}");
        // It records when QEMU writes, and we go on with that.
        rig.qemu_io(&path, &["write 0 64k"]);
        let image = open(options(&path));
        assert_eq!(dirty(&attached(&image, "b")), [(0, 1), (16, 18), (80, 96)]);
        image.executor.block_on(image.graph.clear_bitmap("disk", "b")).unwrap().commit();
        image.close();
        assert_eq!(dirty_in_qemu(&path, "b"), []);
        check(&path);
    }
}

#[test]
fn bitmaps_of_qemu_record_our_writes_and_follow_the_length_of_the_disk() {
    let Some(rig) = rig() else { return };
    let path = rig.create("theirs.qcow2", "", "64M");
    tool("qemu-img", &["bitmap", "--add", "-g", "64k", &path, "b"]);
    tool("qemu-img", &["bitmap", "--add", "--disable", "-g", "64k", &path, "still"]);
    let image = open(options(&path));
    assert_eq!(attached(&image, "still").bits.borrow().state(), BitmapState::Disabled);
    write(&image, 10 * MIB, 65536);
    image.on(async |node| node.resize(65 * MIB).await.unwrap());
    write(&image, 2 * MIB, 1);
    image.close();
    check(&path);
    assert_eq!(dirty_in_qemu(&path, "b"), [(32, 33), (160, 161), (1024, 1040)]);
    assert_eq!(dirty_in_qemu(&path, "still"), []);
    let image = open(options(&path));
    image.on(async |node| node.resize(4 * MIB).await.unwrap());
    image.executor.block_on(image.graph.remove_bitmap("disk", "still")).unwrap().commit();
    image.close();
    check(&path);
    assert_eq!(dirty_in_qemu(&path, "b"), [(32, 33)]);
    assert!(!tool("qemu-img", &["info", &path]).contains("still"));
    let image = open(options(&path));
    image.executor.block_on(image.graph.remove_bitmap("disk", "b")).unwrap().commit();
    // A crash must not bring one back that others take for whole.
    assert!(tool("qemu-img", &["info", "-U", &path]).contains("in-use"));
    image.close();
    check(&path);
    assert!(!tool("qemu-img", &["info", &path]).contains("bitmaps:"));
}

#[test]
fn the_next_owner_goes_on_with_the_bits_of_the_first_one() {
    let Some(rig) = rig() else { return };
    let path = rig.create("handed.qcow2", "", "64M");
    let first = open(options(&path));
    add(&first, "b");
    let inactive = BlockdevOptions { active: Some(false), ..blockdev(options(&path)) };
    let second = open_blockdev(&inactive, EdgePerms::READ_WRITE);
    write(&first, 0, 1);
    first.executor.block_on(first.graph.inactivate_all()).unwrap();
    let kept = attached(&first, "b");
    let cleared = first.executor.block_on(first.graph.clear_bitmap("disk", "b"));
    assert!(kept.read_only.get() && cleared.is_err());
    second.executor.block_on(second.graph.activate_all(None)).unwrap();
    write(&second, MIB, 1);
    assert_eq!(dirty(&attached(&second, "b")), [(0, 1), (16, 17)]);
    add(&second, "c");
    second.close();
    check(&path);
    assert_eq!(dirty_in_qemu(&path, "b"), [(0, 1), (16, 17)]);
    // And back, as after a migration that failed: who holds the bitmap sees the new bits.
    first.executor.block_on(first.graph.activate_all(None)).unwrap();
    write(&first, 2 * MIB, 1);
    assert_eq!(dirty(&kept), [(0, 1), (16, 17), (32, 33)]);
    first.executor.block_on(first.graph.remove_bitmap("disk", "c")).unwrap().commit();
    first.close();
    check(&path);
    assert_eq!(dirty_in_qemu(&path, "b"), [(0, 1), (16, 17), (32, 33)]);
}

#[test]
fn a_bitmap_that_was_not_stored_is_inconsistent_until_it_is_removed() {
    let Some(rig) = rig() else { return };
    let path = rig.create("crash.qcow2", "", "64M");
    tool("qemu-img", &["bitmap", "--add", &path, "auto"]);
    tool("qemu-img", &["bitmap", "--add", "--disable", &path, "still"]);
    let image = open(options(&path));
    write(&image, 0, 65536);
    image.on(async |node| node.flush().await.unwrap());
    // As a crash leaves it.
    drop(image);
    assert_eq!(tool("qemu-img", &["info", &path]).matches("in-use").count(), 2);
    check(&path);
    let image = open(options(&path));
    for name in ["auto", "still"] {
        assert_eq!(attached(&image, name).bits.borrow().state(), BitmapState::Inconsistent);
    }
    write(&image, 0, 65536);
    image.executor.block_on(image.graph.remove_bitmap("disk", "still")).unwrap().commit();
    image.close();
    let info = tool("qemu-img", &["info", &path]);
    assert!(info.matches("in-use").count() == 1 && !info.contains("still"), "{info}");
    check(&path);
}

#[test]
fn who_may_not_write_sees_bitmaps_and_leaves_them_alone() {
    let Some(rig) = rig() else { return };
    let path = rig.create("looked.qcow2", "", "64M");
    tool("qemu-img", &["bitmap", "--add", "-g", "64k", &path, "b"]);
    rig.qemu_io(&path, &["write 1M 64k"]);
    let before = std::fs::read(&path).unwrap();
    let read_only = BlockdevOptions { read_only: Some(true), ..blockdev(options(&path)) };
    let image = open_blockdev(&read_only, EdgePerms::READ);
    let bitmap = attached(&image, "b");
    assert!(bitmap.read_only.get() && bitmap.persistent.get());
    assert_eq!(dirty(&bitmap), [(16, 17)]);
    assert!(image.executor.block_on(image.graph.remove_bitmap("disk", "b")).is_err());
    image.close();
    assert!(std::fs::read(&path).unwrap() == before);
}

#[test]
fn removing_a_node_stores_the_bitmaps_of_those_that_go_with_it() {
    let Some(rig) = rig() else { return };
    let path = rig.create("below.qcow2", "", "64M");
    let executor = crate::Executor::new(crate::Clock::real()).unwrap();
    let graph = crate::BlockGraph::new(executor.clone());
    let below = BlockdevRef::nested(blockdev(options(&path)));
    let top = BlockdevOptions { node_name: Some("top".into()), ..BlockdevOptions::raw(below) };
    executor.block_on(async {
        let top = graph.open(&top).await.unwrap();
        let bitmap = BitmapOptions { name: "b".into(), persistent: true, ..Default::default() };
        graph.add_bitmap("disk", &bitmap).unwrap().commit();
        let root = graph
            .add_backend(crate::BackendKind::Device, "d0", &top, EdgePerms::READ_WRITE)
            .unwrap();
        root.write(MIB, IoBuf::alloc(512), WriteFlags::NONE).await.unwrap();
        drop((root, top));
        graph.remove("top").await.unwrap();
    });
    assert!(graph.nodes().is_empty());
    assert_eq!(dirty_in_qemu(&path, "b"), [(16, 17)]);
    check(&path);
}

/// A writer that knows nothing of bitmaps makes them void, and a check frees what they took up.
#[test]
fn the_place_of_void_bitmaps_can_be_used() {
    let Some(rig) = rig() else { return };
    let path = rig.create("image.qcow2", "cluster_size=512", "1M");
    let image = open(options(&path));
    add(&image, "b0");
    image.close();
    let mut bytes = std::fs::read(&path).unwrap();
    // Autoclear features, bit 0.
    bytes[95] &= !1;
    std::fs::write(&path, bytes).unwrap();
    let image = open(options(&path));
    image.on(async |node| {
        let driver = node.driver::<Qcow2Driver>().unwrap();
        let repair = |file| async move { repair_leaks(&file, Some(Repair::Leaks)).await };
        assert!(driver.offline(repair).await.unwrap().leaks_fixed > 0);
    });
    write(&image, 0, 1 << 20);
    image.close();
    rig.qemu_io(&path, &["read -P 7 0 1M"]);
    check(&path);
}

/// An image has whole sectors, however long the tables are that it holds.
#[test]
fn an_image_in_an_image_stores_its_bitmaps() {
    let Some(rig) = rig() else { return };
    let path = rig.create("outer.qcow2", "", "64M");
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let file = serde_json::json!({"driver": "file", "filename": path});
    let outer = serde_json::json!({"driver": "qcow2", "file": file});
    let image = serde_json::json!({"driver": "qcow2", "file": outer, "size": MIB});
    let image: CreateImage = serde_json::from_value(image).unwrap();
    executor.block_on(create_image(&graph, &image)).unwrap();
    let outer = BlockdevOptions::qcow2(BlockdevRef::nested(BlockdevOptions::file(path)));
    let inner = BlockdevOptions {
        node_name: Some("disk".into()),
        ..BlockdevOptions::qcow2(BlockdevRef::nested(outer))
    };
    executor.block_on(graph.open(&inner)).unwrap();
    let options =
        BitmapOptions { name: "b".into(), granularity: None, persistent: true, disabled: false };
    graph.add_bitmap("disk", &options).unwrap().commit();
    executor.block_on(graph.remove("disk")).unwrap();
    executor.block_on(graph.open(&inner)).unwrap();
    assert!(graph.find_bitmap("disk", "b").is_ok());
}

/// Nobody could take over an image with more.
#[test]
fn there_are_at_most_as_many_bits_as_are_loaded() {
    let Some(rig) = rig() else { return };
    let path = rig.create("large.qcow2", "", "4T");
    let image = open(options(&path));
    let add_of = |number: u32, granularity: u64| {
        let (name, granularity) = (format!("b{number}"), Some(granularity));
        let options = BitmapOptions { name, granularity, persistent: true, disabled: false };
        image.graph.add_bitmap("disk", &options)
    };
    let add = |number| add_of(number, 4096);
    let refused = |added: Result<BitmapChange>| {
        let refused = added.map(drop).unwrap_err().to_string();
        assert!(
            refused.contains("would have more than 512 MiB of bits, or all together"),
            "{refused}"
        );
    };
    refused(add_of(0, 512));
    let added: Vec<_> = (0..8).map(|number| add(number).unwrap()).collect();
    refused(add(8));
    drop(added);
    drop(add(8).unwrap());
}
