//! The end of the disk: changes of its length, and of what is in its last clusters; and a file that ends within one.

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::super::Qcow2Options;
use super::rig::{Rig, check, open, options};
use crate::{ErrorKind, IoBuf, WriteFlags};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A disk that ends within a subcluster, of 2 KiB, whose last `len` bytes are 5.
fn ends_within(rig: &Rig, end: u64, len: u64) -> String {
    let path = rig.create("small.qcow2", "extended_l2=on", "567k");
    let image = open(options(&path));
    image.on(async |node| {
        node.resize(end).await.unwrap();
        let fives = IoBuf::from_vec(&vec![5; usize::try_from(len).unwrap()]);
        node.write(end - len, fives, WriteFlags::NONE).await.unwrap();
    });
    image.close();
    path
}

#[test]
fn the_last_subcluster_keeps_what_is_before_a_write_of_zeroes() {
    let Some(rig) = Rig::new() else { return };
    let path = ends_within(&rig, 567 * KIB, KIB);
    let image = open(options(&path));
    image.on(async |node| {
        node.write_zeroes(566 * KIB + 512..567 * KIB, WriteFlags::NONE).await.unwrap();
    });
    image.close();
    rig.qemu_io(&path, &["read -P 5 566k 512", "read -P 0 580096 512"]);
    check(&path);
}

#[test]
fn a_disk_that_grows_within_its_last_subcluster_keeps_what_is_there() {
    let Some(rig) = Rig::new() else { return };
    let path = ends_within(&rig, 566 * KIB + 512, 512);
    let image = open(options(&path));
    image.on(async |node| node.resize(567 * KIB).await.unwrap());
    image.close();
    rig.qemu_io(&path, &["read -P 5 566k 512", "read -P 0 580096 512"]);
    check(&path);
}

#[test]
fn a_raw_data_file_stays_sparse_when_the_disk_grows() {
    let Some(rig) = Rig::new() else { return };
    for more in ["cluster_size=64k", "extended_l2=on"] {
        let data = rig.path("data.raw");
        let raw = format!("{more},data_file={data},data_file_raw=on");
        let path = rig.create("image.qcow2", &raw, "1001k");
        rig.qemu_io(&path, &["write -P 5 0 1001k"]);
        // Behind the disk there may be anything.
        let mut bytes = std::fs::read(&data).unwrap();
        bytes.resize(2 << 20, 7);
        std::fs::write(&data, bytes).unwrap();
        let image = open(options(&path));
        image.on(async |node| node.resize(1024 * MIB).await.unwrap());
        image.close();
        let file = std::fs::metadata(&data).unwrap();
        assert_eq!(file.len(), 1024 * MIB);
        assert!(file.blocks() * 512 <= 2 * MIB, "{} bytes are allocated", file.blocks() * 512);
        rig.qemu_io(&path, &["read -P 5 0 1001k", "read -P 0 1001k 3M", "read -P 0 1000M 24M"]);
        check(&path);
        let map = crate::testing::tool("qemu-img", &["map", "--output", "json", &path]);
        assert!(!map.contains("\"present\": false"), "{map}");
        let bytes = std::fs::read(&data).unwrap();
        assert!(bytes[1001 << 10..].iter().all(|byte| *byte == 0));
    }
}

/// What is below the end of the disk is not copied to make room for nothing.
#[test]
fn a_disk_that_grows_where_nothing_is_allocates_nothing() {
    let Some(rig) = Rig::new() else { return };
    let below = rig.create("below.qcow2", "", "1001k");
    rig.qemu_io(&below, &["write -P 5 0 1001k"]);
    for more in ["cluster_size=2M", "cluster_size=64k,compat=0.10", "extended_l2=on"] {
        let more = format!("{more},backing_file={below},backing_fmt=qcow2");
        let path = rig.create("image.qcow2", &more, "1001k");
        let image = open(options(&path));
        image.on(async |node| node.resize(5 * MIB).await.unwrap());
        image.close();
        let map = crate::testing::tool("qemu-img", &["map", "--output", "json", &path]);
        assert!(!map.contains("\"depth\": 0, \"present\": true"), "{more}: {map}");
        rig.qemu_io(&path, &["read -P 5 0 1001k", "read -P 0 1001k 4119k"]);
        check(&path);
    }
}

/// Version 2 cannot hide what a longer backing file has: the disk then stays as it is.
#[test]
fn a_disk_does_not_grow_over_what_it_cannot_hide() {
    let Some(rig) = Rig::new() else { return };
    let below = rig.create("below.qcow2", "", "1001k");
    rig.qemu_io(&below, &["write -P 5 0 1001k"]);
    let more = format!("compat=0.10,backing_file={below},backing_fmt=qcow2");
    let path = rig.create("image.qcow2", &more, "33k");
    let image = open(options(&path));
    image.on(async |node| {
        let refused = node.resize(5 * MIB).await.unwrap_err();
        assert_eq!((refused.kind(), node.len()), (ErrorKind::Unsupported, 33 * KIB));
        // The rest of its last cluster has room for zeroes.
        node.resize(64 * KIB).await.unwrap();
    });
    image.close();
    rig.qemu_io(&path, &["read -P 5 0 33k", "read -P 0 33k 31k"]);
    check(&path);
}

/// Places that were given to clusters in advance are given back, though nothing is in them.
#[test]
fn a_preallocated_disk_with_subclusters_gets_shorter() {
    let Some(rig) = Rig::new() else { return };
    let path = rig.create("image.qcow2", "extended_l2=on,preallocation=metadata", "8M");
    rig.qemu_io(&path, &["write -P 5 100k 10k", "write -P 5 5M 10k"]);
    let image = open(options(&path));
    image.on(async |node| node.resize(MIB).await.unwrap());
    image.close();
    check(&path);
    let len = std::fs::metadata(&path).unwrap().len();
    assert!(len <= 2 * MIB, "the file has {len} bytes");
    rig.qemu_io(&path, &["read -P 5 100k 10k", "read -P 0 110k 914k"]);
}

/// Behind the disk QEMU keeps the memory of a guest that goes back to a snapshot.
#[test]
fn a_disk_that_grows_does_not_show_what_was_behind_it() {
    let Some(rig) = Rig::new() else { return };
    for shape in ["cluster_size=4k", "cluster_size=64k", "cluster_size=512"] {
        let path = rig.create("behind.qcow2", shape, "1000k");
        rig.qemu_io(&path, &["write -P 1 0 1000k", "write -b -P 7 0 300k"]);
        let image = open(options(&path));
        image.on(async |node| node.resize(1001 * KIB).await.unwrap());
        image.on(async |node| node.resize(32 * MIB).await.unwrap());
        image.close();
        rig.qemu_io(&path, &["read -P 1 0 1000k", "read -P 0 1000k 31768k"]);
        check(&path);
    }
}

#[test]
fn a_write_to_zeroes_at_the_end_makes_no_data_file_longer_than_the_disk() {
    let Some(rig) = Rig::new() else { return };
    for more in ["cluster_size=64k", "extended_l2=on"] {
        let data = rig.path("data.raw");
        let path = rig.create("image.qcow2", &format!("{more},data_file={data}"), "1001k");
        let image = open(options(&path));
        image.on(async |node| {
            let fives = IoBuf::from_vec(&[5; 41 << 10]);
            node.write(960 * KIB, fives.clone(), WriteFlags::NONE).await.unwrap();
            node.write_zeroes(960 * KIB..1001 * KIB, WriteFlags::NONE).await.unwrap();
            let end = fives.slice(0..512);
            node.write(1001 * KIB - 1024, end, WriteFlags::NONE).await.unwrap();
        });
        image.close();
        assert_eq!(std::fs::metadata(&data).unwrap().len(), 1001 * KIB);
        rig.qemu_io(&path, &["read -P 0 960k 40k", "read -P 5 1000k 512", "read -P 0 1024512 512"]);
    }
}

/// The last cluster of the file is the first that is given out again, to a table.
#[test]
fn a_table_fits_where_the_file_ends_within_a_cluster() {
    let Some(rig) = Rig::new() else { return };
    let path = rig.create("image.qcow2", "cluster_size=4k", "16M");
    rig.qemu_io(&path, &["write -P 5 0 4k"]);
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 2048).unwrap();
    let options = Qcow2Options { pass_discard_request: Some(false), ..options(&path) };
    let image = open(options);
    image.on(async |node| {
        node.discard(0..4096).await.unwrap();
        node.flush().await.unwrap();
        image.executor.sleep(Duration::from_millis(20)).await;
        let fives = IoBuf::from_vec(&[5; 4096]);
        node.write(8 * MIB, fives, WriteFlags::NONE).await.unwrap();
    });
    image.close();
    rig.qemu_io(&path, &["read -P 0 0 4k", "read -P 5 8M 4k", "read -P 0 8196k 4k"]);
    check(&path);
}
