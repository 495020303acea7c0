//! Images made to do harm, by hand and at random: every operation on the whole image answers, and
//! soon, whatever the bytes say.

use super::amend::{AmendOptions, amend};
use super::bitmap::{load_bitmap, load_directory, mark_in_use, store_bitmaps};
use super::check::{Repair, check};
use super::create::CreateOptions;
use super::header::{Header, Version};
use super::snapshot::{
    Moment, SnapshotRef, apply_snapshot, create_snapshot, delete_snapshot, load_snapshots,
};
use super::test_rig::Rig;
use super::{OverlapCheck, OverlapTemplate, Qcow2Options};
use crate::BackendKind;
use crate::buf::IoBuf;
use crate::clock::Clock;
use crate::driver::WriteFlags;
use crate::edge::{Edge, EdgePerms};
use crate::graph::BlockGraph;
use crate::open::{BlockdevOptions, BlockdevRef, DriverOptions};
use crate::testing::Rng;

const CLUSTER: usize = 1 << 16;

/// A small image with L2 tables, data, a snapshot and a bitmap, where QEMU is there to make it.
fn sample(rig: &Rig) -> Vec<u8> {
    rig.qemu_img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", "a", "4M"]);
    rig.qemu_io("a", &["write -P 1 0 64k", "write -c -P 2 1M 4k"]);
    rig.qemu_img(&["snapshot", "-c", "first", "a"]);
    rig.qemu_img(&["bitmap", "--add", "a", "b0"]);
    rig.qemu_io("a", &["write -P 3 32k 64k"]);
    rig.bytes("a")
}

/// The image with a few bytes of its metadata changed.
fn damaged(good: &[u8], rng: &mut Rng) -> Vec<u8> {
    // Guest data is one byte over and over, and means nothing here.
    let has_meaning = |cluster: &usize| {
        let cluster = &good[cluster * 4096..(cluster + 1) * 4096];
        cluster.iter().any(|&byte| byte != cluster[0])
    };
    let metadata: Vec<usize> = (0..good.len() / 4096).filter(has_meaning).collect();
    let mut bytes = good.to_vec();
    for _ in 0..=rng.below(4) {
        let cluster = metadata[usize::try_from(rng.below(metadata.len() as u64)).unwrap()];
        let reach = if rng.one_in(2) { 128 } else { 4096 };
        let at = cluster * 4096 + usize::try_from(rng.below(reach)).unwrap();
        bytes[at] = match rng.below(4) {
            0 => 0,
            1 => 0xff,
            2 => bytes[at] ^ (1 << rng.below(8)),
            _ => rng.below(256).to_le_bytes()[0],
        };
    }
    bytes
}

fn put(bytes: &mut [u8], at: u64, word: u64) {
    let at = usize::try_from(at).unwrap();
    bytes[at..at + 8].copy_from_slice(&word.to_be_bytes());
}

/// Runs everything that takes an image. What it answers does not matter here.
async fn use_all(file: &Edge, round: u64) -> u32 {
    let mut refused = 0;
    let Ok(header) = Header::load(file).await else { return 1 };
    refused += u32::from(check(file, None).await.is_err());
    refused += u32::from(load_snapshots(file, &header).await.is_err());
    if let Some(extension) = header.bitmaps() {
        for entry in load_directory(file, extension, header.geometry).await.unwrap_or_default() {
            refused += u32::from(load_bitmap(file, &header, &entry).await.is_err());
        }
    }
    let width = AmendOptions { refcount_bits: Some(32), ..AmendOptions::default() };
    let down = AmendOptions { version: Some(Version::V2), ..AmendOptions::default() };
    refused += u32::from(match round % 7 {
        0 => create_snapshot(file, "s", Moment::default()).await.is_err(),
        1 => apply_snapshot(file, "first").await.is_err(),
        2 => delete_snapshot(file, &SnapshotRef::Either("first".into())).await.is_err(),
        3 => store_bitmaps(file, &[]).await.is_err(),
        4 => mark_in_use(file).await.is_err(),
        5 => amend(file, &width).await.is_err(),
        _ => amend(file, &down).await.is_err(),
    });
    refused + u32::from(check(file, Some(Repair::All)).await.is_err())
}

#[test]
fn images_damaged_at_random_are_refused_or_used_but_never_harm() {
    let Some(rig) = Rig::with_qemu() else { return };
    let good = sample(&rig);
    let mut rng = Rng::new(77);
    let mut refused = 0;
    for round in 0..600 {
        rig.set_bytes("a", &damaged(&good, &mut rng));
        refused += rig.on("a", async |file| use_all(file, round).await);
    }
    assert!(refused > 50, "the damage hit nothing");
}

/// Reads, maps, changes and closes a disk; answers how much of it failed.
async fn use_disk(graph: &BlockGraph, path: &str) -> u32 {
    let file = BlockdevRef::nested(BlockdevOptions::file(path));
    let driver = DriverOptions::Qcow2(Box::new(Qcow2Options::new(file)));
    let Ok(node) = graph.open(&BlockdevOptions::new(driver)).await else { return 1 };
    let perms = EdgePerms::READ_WRITE;
    let Ok(root) = graph.add_backend(BackendKind::Device, "d0", &node, perms) else { return 1 };
    let mut failed = 0;
    let buf = IoBuf::alloc(CLUSTER);
    // A damaged header may promise a disk of any length.
    for at in (0..root.len().min(8 << 20)).step_by(CLUSTER) {
        let end = (at + CLUSTER as u64).min(root.len());
        let part = buf.slice(0..usize::try_from(end - at).unwrap());
        failed += u32::from(root.read(at, part.clone()).await.is_err());
        failed += u32::from(node.map(at..end).await.is_err());
        failed += u32::from(match at / CLUSTER as u64 % 3 {
            0 => root.write(at, part, WriteFlags::NONE).await.is_err(),
            1 => root.write_zeroes(at..end, WriteFlags::UNMAP).await.is_err(),
            _ => node.discard(at..end).await.is_err(),
        });
    }
    failed += u32::from(node.flush().await.is_err());
    failed + u32::from(graph.inactivate_all().await.is_err())
}

#[test]
fn a_disk_on_an_image_damaged_at_random_answers_every_request() {
    let Some(rig) = Rig::with_qemu() else { return };
    let good = sample(&rig);
    let mut rng = Rng::new(78);
    let mut failed = 0;
    for _ in 0..150 {
        rig.set_bytes("a", &damaged(&good, &mut rng));
        failed += rig.on_graph(async |graph| use_disk(graph, &rig.path("a")).await);
    }
    assert!(failed > 20, "the damage hit nothing");
}

#[test]
fn tables_that_point_to_themselves_cost_no_more_than_the_file() {
    let rig = Rig::new();
    rig.create("a", &CreateOptions::new(1 << 40));
    let mut bytes = rig.bytes("a");
    let header = Header::parse(&bytes).unwrap();
    // Every L1 entry points to the one L2 table, all of whose entries point to the table itself.
    let table = bytes.len().next_multiple_of(CLUSTER) as u64;
    bytes.resize(usize::try_from(table).unwrap() + CLUSTER, 0);
    for index in 0..u64::from(header.l1.entries) {
        put(&mut bytes, header.l1.offset + index * 8, table | 1 << 63);
    }
    for index in 0..(CLUSTER / 8) as u64 {
        put(&mut bytes, table + index * 8, table | 1 << 63);
    }
    // The refcount block is described by itself at every place of its table.
    for index in 1..(CLUSTER / 8) as u64 {
        put(&mut bytes, header.refcount_table_offset + index * 8, 2 * CLUSTER as u64);
    }
    rig.set_bytes("a", &bytes);
    let clock = Clock::real();
    let started = clock.now();
    let report = rig.on("a", async |file| check(file, None).await).unwrap();
    assert!(report.corruptions > 0);
    let result = rig.on("a", async |file| create_snapshot(file, "s", Moment::default()).await);
    assert!(result.unwrap_err().to_string().contains("twice"));
    let took = clock.now() - started;
    assert!(took < 5_000_000_000, "took {took} ns");
}

#[test]
fn refcounts_of_clusters_far_behind_the_end_are_not_all_looked_at() {
    let rig = Rig::new();
    rig.create("a", &CreateOptions::new(1 << 30));
    let mut bytes = rig.bytes("a");
    let header = Header::parse(&bytes).unwrap();
    // One block says of everything that it is in use.
    let block = bytes.len().next_multiple_of(CLUSTER);
    bytes.resize(block, 0);
    bytes.resize(block + CLUSTER, 1);
    for index in 0..(CLUSTER / 8) as u64 {
        put(&mut bytes, header.refcount_table_offset + index * 8, block as u64);
    }
    rig.set_bytes("a", &bytes);
    let clock = Clock::real();
    let started = clock.now();
    let result = rig.on("a", async |file| create_snapshot(file, "s", Moment::default()).await);
    assert!(result.unwrap_err().to_string().contains("behind the end"));
    let took = clock.now() - started;
    assert!(took < 10_000_000_000, "took {took} ns");
}

/// An image with 2 MiB clusters and refcounts of one bit: 2^20 refcount blocks describe 2^65 bytes.
#[test]
fn refcounts_behind_all_addresses_do_not_lead_back_to_the_first() {
    let rig = Rig::new();
    let cluster = 2 << 20;
    let create =
        CreateOptions { cluster_size: cluster, refcount_bits: 1, ..CreateOptions::new(1 << 30) };
    rig.create("a", &create);
    let mut bytes = rig.bytes("a");
    let header = Header::parse(&bytes).unwrap();
    let size = usize::try_from(cluster).unwrap();
    let old = usize::try_from(header.refcount_table_offset).unwrap();
    let table = bytes.len().next_multiple_of(size);
    bytes.resize(table + 5 * size, 0);
    bytes.copy_within(old..old + size, table);
    let block = table + 4 * size;
    bytes[block] = 1;
    // What was added is in use.
    let first: [u8; 8] = bytes[old..old + 8].try_into().unwrap();
    let first = usize::try_from(u64::from_be_bytes(first)).unwrap();
    for number in 0..block / size + 1 {
        bytes[first + number / 8] |= 1 << (number % 8);
    }
    put(&mut bytes, table as u64 + (1 << 19) * 8, block as u64);
    put(&mut bytes, 48, table as u64);
    bytes[56..60].copy_from_slice(&4_u32.to_be_bytes());
    rig.set_bytes("a", &bytes);
    let failed = rig.on_graph(async |graph| use_disk(graph, &rig.path("a")).await);
    assert_eq!(failed, 0);
    let after = rig.bytes("a");
    assert!(after[..4] == bytes[..4] && Header::parse(&after).is_ok(), "the header is gone");
}

#[test]
fn a_snapshot_that_claims_an_l1_table_of_32_gib_is_not_believed() {
    let rig = Rig::new();
    rig.create("a", &CreateOptions::new(1 << 30));
    let taken = rig.on("a", async |file| create_snapshot(file, "s", Moment::default()).await);
    taken.unwrap();
    let mut bytes = rig.bytes("a");
    let at = usize::try_from(Header::parse(&bytes).unwrap().snapshots.offset).unwrap();
    bytes[at + 8..at + 12].fill(0xff);
    rig.set_bytes("a", &bytes);
    let file = BlockdevRef::nested(BlockdevOptions::file(rig.path("a")));
    let overlap_check = Some(OverlapCheck::Template(OverlapTemplate::All));
    let options = Qcow2Options { overlap_check, ..Qcow2Options::new(file) };
    let driver = DriverOptions::Qcow2(Box::new(options));
    let opened =
        rig.on_graph(async |graph| graph.open(&BlockdevOptions::new(driver)).await.map(drop));
    assert!(opened.unwrap_err().to_string().contains("too large"));
}

#[test]
fn a_sparse_file_of_enormous_length_is_checked_in_little_memory_and_time() {
    let rig = Rig::new();
    rig.create("a", &CreateOptions::new(1 << 30));
    let file = std::fs::File::options().write(true).open(rig.path("a")).unwrap();
    file.set_len(1 << 42).unwrap();
    let clock = Clock::real();
    let started = clock.now();
    let report = rig.on("a", async |file| check(file, None).await).unwrap();
    assert!(report.is_clean(), "{:?}", report.messages);
    let took = clock.now() - started;
    assert!(took < 5_000_000_000, "took {took} ns");
}

#[test]
fn references_behind_the_end_and_overflowing_ones_are_named() {
    let rig = Rig::new();
    rig.create("a", &CreateOptions::new(1 << 30));
    let good = rig.bytes("a");
    let header = Header::parse(&good).unwrap();
    let cases = [
        (header.l1.offset, 0x00ff_ffff_ffff_0000, "exceeding the end of the file"),
        (header.l1.offset, 0x30200, "not cluster aligned"),
        (header.l1.offset, 0x7f00_0000_0003_0000, "reserved bits set"),
        (header.refcount_table_offset, u64::MAX, "reserved bits set"),
        (header.refcount_table_offset, 0xffff_ffff_ffff_0000, "outside image"),
        (header.refcount_table_offset, 0x30000, "used for something else"),
    ];
    for (at, word, what) in cases {
        let mut bytes = good.clone();
        put(&mut bytes, at, word);
        rig.set_bytes("a", &bytes);
        let report = rig.on("a", async |file| check(file, None).await).unwrap();
        let said: Vec<String> = report.messages.iter().map(ToString::to_string).collect();
        let said = said.join("\n");
        assert!(said.contains(what), "{word:#x}: '{said}' does not say '{what}'");
    }
}

/// A rig with images that are below each other, in all spellings of a path.
fn loops() -> Rig {
    let rig = Rig::new();
    let image = |name: &str, below: &str, format: Option<&str>| {
        let backing_file = Some(below.to_owned());
        let backing_format = format.map(str::to_owned);
        rig.create(
            name,
            &CreateOptions { backing_file, backing_format, ..CreateOptions::new(1 << 20) },
        );
    };
    std::fs::create_dir(rig.path("folder")).unwrap();
    image("itself", "itself", Some("qcow2"));
    image("probed", "probed", None);
    image("as-raw", "as-raw", Some("raw"));
    image("dots", "./folder/../dots", Some("qcow2"));
    image("absolute", &rig.path("absolute"), Some("qcow2"));
    image("linked", "symbolic", Some("qcow2"));
    std::os::unix::fs::symlink("linked", rig.path("symbolic")).unwrap();
    image("named", "hard", Some("qcow2"));
    std::fs::hard_link(rig.path("named"), rig.path("hard")).unwrap();
    let file = rig.path("in-json");
    let json =
        format!(r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{file}"}}}}"#);
    image("in-json", &json, None);
    image("first", "second", Some("qcow2"));
    image("second", "folder/../first", Some("qcow2"));
    rig
}

#[test]
fn images_below_themselves_are_refused_by_name() {
    let rig = loops();
    let names = ["itself", "probed", "as-raw", "dots", "absolute", "linked", "named", "in-json"];
    let both = |name| [(name, false), (name, true)];
    for (name, read_only) in names.iter().chain(&["first", "second"]).flat_map(both) {
        let file = BlockdevRef::nested(BlockdevOptions::file(rig.path(name)));
        let driver = DriverOptions::Qcow2(Box::new(Qcow2Options::new(file)));
        let options =
            BlockdevOptions { read_only: Some(read_only), ..BlockdevOptions::new(driver) };
        let error = rig.on_graph(async |graph| graph.open(&options).await.err());
        let error = error.expect(name).to_string();
        let begins = format!("the backing files form a loop: '{}' -> '", rig.path(name));
        assert!(error.contains(&begins), "{name}: {error}");
        let between = rig.path(if *name == "first" { "second" } else { "folder/../first" });
        let has_two = ["first", "second"].contains(name);
        assert!(!has_two || error.contains(&between), "{name}: {error}");
    }
}

#[test]
fn a_pipe_is_no_image_and_is_not_waited_for() {
    let rig = Rig::new();
    crate::testing::tool("mkfifo", &[&rig.path("pipe")]);
    let pipe = BlockdevOptions { read_only: Some(true), ..BlockdevOptions::file(rig.path("pipe")) };
    let error = rig.on_graph(async |graph| graph.open(&pipe).await.err());
    let error = error.unwrap().to_string();
    assert!(error.contains("neither a regular file nor a block device"), "{error}");
}
