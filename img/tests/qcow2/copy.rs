//! What is copied and measured of images with snapshots, bitmaps and holes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use super::rig::{OURS, Rig};

/// An image with two snapshots, the second of which is called as the id of the first.
fn snapshots(rig: &Rig) {
    rig.qemu_img("create -q -f qcow2 a.qcow2 4M");
    rig.qemu_io("a.qcow2", &["write -P 1 0 1M"]);
    rig.qemu_img("snapshot -c one a.qcow2");
    rig.qemu_io("a.qcow2", &["write -P 2 512k 1M"]);
    rig.qemu_img("snapshot -c 1 a.qcow2");
    rig.qemu_io("a.qcow2", &["write -P 3 0 3M"]);
}

#[test]
fn a_snapshot_is_read_as_qemu_img_reads_it() {
    let Some(rig) = Rig::empty() else { return };
    snapshots(&rig);
    for snapshot in [
        "one",
        "1",
        "2",
        "nosuch",
        "snapshot.id=2",
        "snapshot.name=1",
        "snapshot.name=one,snapshot.id=1",
        "snapshot.name=one,snapshot.id=2",
    ] {
        let content = |program: &str| {
            fs::remove_file(rig.path("o.raw")).ok();
            rig.run(program, &format!("convert -l {snapshot} -O raw a.qcow2 o.raw"));
            fs::read(rig.path("o.raw")).ok()
        };
        assert!(content(OURS) == content("qemu-img"), "{snapshot}");
        rig.both(&format!("measure -l {snapshot} -O raw a.qcow2"));
    }
    for arguments in [
        "measure -l one -O qcow2 --output json a.qcow2",
        "measure -l snapshot.name=1 -O qcow2 --output json a.qcow2",
    ] {
        rig.same_json(arguments);
    }
    rig.qemu_img("convert -l one -O raw a.qcow2 one.raw");
    rig.ours("dd -l one bs=64k skip=3 count=20 if=a.qcow2 of=o.raw");
    let part = 3 << 16..23 << 16;
    assert!(fs::read(rig.path("o.raw")).unwrap() == fs::read(rig.path("one.raw")).unwrap()[part]);
    fs::write(rig.path("b.raw"), [0; 4096]).unwrap();
    for arguments in [
        "convert -l one -O raw a.qcow2 a.qcow2 o.raw",
        "convert -f raw -l one -O raw b.raw o.raw",
        "measure -f raw -l one -O raw b.raw",
    ] {
        rig.both(arguments);
    }
}

#[test]
fn a_snapshot_is_deleted_by_its_name() {
    let Some(rig) = Rig::empty() else { return };
    for program in [OURS, "qemu-img"] {
        snapshots(&rig);
        for (name, status) in [("1", 0), ("2", 1), ("1", 1)] {
            let ended = rig.run(program, &format!("snapshot -d {name} a.qcow2"));
            assert_eq!(ended.status.code(), Some(status), "{program} {name}: {ended:?}");
        }
        let left = rig.qemu_img("snapshot -l a.qcow2");
        let left = String::from_utf8_lossy(&left.stdout).into_owned();
        assert!(left.contains("one") && left.lines().count() == 3, "{program}: {left}");
    }
}

#[test]
fn a_snapshot_is_as_long_as_the_disk_was() {
    let Some(rig) = Rig::empty() else { return };
    snapshots(&rig);
    rig.qemu_img("resize a.qcow2 6M");
    rig.ours("convert -l one -O raw a.qcow2 o.raw");
    let bytes = fs::read(rig.path("o.raw")).unwrap();
    assert!(bytes == [vec![1; 1 << 20], vec![0; 3 << 20]].concat());
    let output = rig.run(OURS, "check a.qcow2");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn bitmaps_are_measured_and_broken_ones_left_out() {
    let Some(rig) = Rig::empty() else { return };
    super::chain(&rig);
    rig.qemu_img("bitmap --add -g 512 top.qcow2 fine");
    rig.qemu_img("bitmap --add -g 2M top.qcow2 a-name-that-is-somewhat-longer");
    rig.qemu_img("create -q -f qcow2 -o compat=0.10 old.qcow2 1M");
    for arguments in [
        "measure -O qcow2 --output json top.qcow2",
        "measure -O qcow2 --output json -o cluster_size=4k top.qcow2",
        "measure -O qcow2 --output json -o compat=0.10 top.qcow2",
        "measure -O qcow2 --output json base.qcow2",
        "measure -O qcow2 --output json old.qcow2",
        "measure -O raw --output json top.qcow2",
    ] {
        rig.same_json(arguments);
    }
    rig.same_text("measure -O qcow2 top.qcow2");
    // Flags of the directory's second entry: in use, as a crash leaves it.
    let mut image = fs::read(rig.path("top.qcow2")).unwrap();
    let name = image.windows(4).rposition(|bytes| bytes == b"fine").unwrap();
    image[name - 12..name - 8].copy_from_slice(&3_u32.to_be_bytes());
    fs::write(rig.path("top.qcow2"), image).unwrap();
    rig.same_json("measure -O qcow2 --output json top.qcow2");
    rig.same_json("info --output json top.qcow2");
    rig.same_text("info top.qcow2");
    rig.both("convert --bitmaps -O qcow2 top.qcow2 o.qcow2");
    for arguments in
        ["convert --bitmaps -O qcow2 top.qcow2 none", "convert --bitmaps top.qcow2 none"]
    {
        rig.run(OURS, arguments);
        assert!(!Path::new(&rig.path("none")).exists(), "{arguments} left a target behind");
    }
    rig.both("convert --bitmaps --skip-broken-bitmaps -O qcow2 top.qcow2 o.qcow2");
    let names = |program: &str| {
        rig.run(program, "convert --bitmaps --skip-broken-bitmaps -O qcow2 top.qcow2 o.qcow2");
        let info = rig.qemu_img("info --output json o.qcow2").stdout;
        let info: serde_json::Value = serde_json::from_slice(&info).unwrap();
        info["format-specific"]["data"]["bitmaps"].clone()
    };
    assert_eq!(names(OURS), names("qemu-img"));
}

#[test]
fn bitmaps_go_to_a_target_of_their_length_only() {
    let Some(rig) = Rig::empty() else { return };
    rig.qemu_img("create -q -f qcow2 a.qcow2 4M");
    rig.qemu_img("bitmap --add a.qcow2 b0");
    for (size, status) in [("4M", 0), ("5M", 1)] {
        for program in [OURS, "qemu-img"] {
            rig.qemu_img(&format!("create -q -f qcow2 o.qcow2 {size}"));
            let copied = rig.run(program, "convert -n --bitmaps -O qcow2 a.qcow2 o.qcow2");
            assert_eq!(copied.status.code(), Some(status), "{program}: {copied:?}");
            let said = String::from_utf8_lossy(&copied.stderr).into_owned();
            assert_eq!(said.contains("Bitmaps are of different sizes"), status == 1, "{said}");
        }
    }
}

#[test]
fn a_target_without_holes_has_none() {
    let Some(rig) = Rig::empty() else { return };
    rig.qemu_img("create -q -f qcow2 empty.qcow2 1M");
    for format in ["qcow2", "raw"] {
        rig.run(OURS, &format!("convert -S 0 -O {format} empty.qcow2 full.{format}"));
        let map = rig.qemu_img(&format!("map -f {format} --output json full.{format}")).stdout;
        let map: serde_json::Value = serde_json::from_slice(&map).unwrap();
        let extents: Vec<_> = map.as_array().unwrap().iter().collect();
        assert!(extents.iter().all(|extent| extent["data"] == true), "{format}: {extents:?}");
    }
}

#[test]
fn holes_in_allocated_clusters_are_mapped_as_qemu_img_maps_them() {
    let Some(rig) = Rig::empty() else { return };
    for mode in ["off", "metadata", "falloc", "full"] {
        rig.qemu_img(&format!("create -q -f qcow2 -o preallocation={mode} a.qcow2 4M"));
        rig.qemu_io("a.qcow2", &["write -P 3 130k 200k", "write -z 1M 1M"]);
        rig.same_json("map --output json a.qcow2");
        rig.same_text("map a.qcow2");
        rig.same_json("map --output json --start-offset=100k --max-length=1000k a.qcow2");
        rig.same_json("map --output json --start-offset 2M --max-length 10M a.qcow2");
    }
    rig.qemu_img("create -q -f qcow2 -o preallocation=metadata,data_file=d.raw b.qcow2 1M");
    rig.same_json("map --output json b.qcow2");
}

#[test]
fn the_kernel_copies_what_it_can() {
    let Some(rig) = Rig::empty() else { return };
    rig.qemu_img("create -q -f raw a.raw 40M");
    let content: Vec<u8> = (0..20 << 20_u32).map(|at: u32| (at / 511).to_le_bytes()[0]).collect();
    fs::write(rig.path("b.raw"), &content).unwrap();
    for (arguments, target) in [
        ("convert -C -f raw b.raw o.raw", "o.raw"),
        ("convert -C -f raw -O raw -W -m 3 a.raw b.raw o.raw", "o.raw"),
        ("convert -C -f raw -O qcow2 b.raw o.qcow2", "o.qcow2"),
        ("convert -C -f raw -r 1G b.raw o.raw", "o.raw"),
    ] {
        rig.both(arguments);
        rig.ours(arguments);
        let bytes = if target == "o.raw" { target } else { "p.raw" };
        if target != bytes {
            rig.qemu_img("convert -O raw o.qcow2 p.raw");
        }
        let bytes = fs::read(rig.path(bytes)).unwrap();
        assert!(bytes.ends_with(&content), "{arguments}");
        assert!(bytes[..bytes.len() - content.len()].iter().all(|byte| *byte == 0), "{arguments}");
    }
    // What is a hole there stays one here.
    rig.ours("convert -C -f raw a.raw o.raw");
    let blocks = |name: &str| fs::metadata(rig.path(name)).unwrap().blocks();
    assert_eq!(blocks("o.raw"), blocks("a.raw"));
}

#[test]
fn what_lies_below_the_target_is_not_copied() {
    let Some(rig) = Rig::empty() else { return };
    super::chain(&rig);
    rig.qemu_io("top.qcow2", &["write -z 0 64k"]);
    rig.qemu_img("convert -O raw base.qcow2 other.raw");
    for arguments in [
        "-B base.qcow2 -F qcow2",
        "-B other.raw -F raw",
        "-o backing_file=base.qcow2,backing_fmt=qcow2",
        "-o backing_file=other.raw,backing_fmt=raw,cluster_size=4k",
    ] {
        let size = |program: &str| {
            let arguments = format!("convert -O qcow2 {arguments} top.qcow2 o.qcow2");
            let output = rig.run(program, &arguments);
            assert!(output.status.success(), "{arguments}: {output:?}");
            rig.same_content("top.qcow2", "o.qcow2");
            fs::metadata(rig.path("o.qcow2")).unwrap().len()
        };
        let (ours, theirs) = (size(OURS), size("qemu-img"));
        assert!(ours <= theirs + (1 << 18), "{arguments}: {ours} {theirs}");
    }
    // Everything of an image with nothing below, its zeroes too.
    rig.ours("convert -O raw top.qcow2 top.raw");
    rig.ours("convert -f raw -O qcow2 -B other.raw -F raw top.raw o.qcow2");
    rig.same_content("top.raw", "o.qcow2");
}

#[test]
fn arguments_that_do_not_go_together_are_refused_as_by_qemu_img() {
    let Some(rig) = Rig::empty() else { return };
    super::chain(&rig);
    rig.qemu_img("create -q -f raw r.raw 1M");
    for arguments in [
        "-C -c -O qcow2",
        "-C -S 4k",
        "-C --salvage",
        "-C -S 0",
        "-S 4097",
        "-S 1k",
        "-S 100M",
        "-r x",
        "-m 0",
        "-c -W -O qcow2",
        "-B base.qcow2 -O qcow2",
        "-F raw -O qcow2",
        "--bitmaps -O qcow2",
        "-n -O qcow2",
        "--target-is-zero -n",
        "-n -o size=5M",
        "-o nosuch=1",
        "-O nosuch",
    ] {
        rig.qemu_img("create -q -f raw o.raw 1M");
        rig.both(&format!("convert -f raw {arguments} r.raw o.raw"));
    }
}

#[test]
fn a_copy_keeps_to_its_rate() {
    let Some(rig) = Rig::empty() else { return };
    fs::write(rig.path("a.raw"), vec![7; 8 << 20]).unwrap();
    let began = SystemTime::now();
    rig.ours("convert -f raw -O qcow2 -r 16M a.raw o.qcow2");
    let took = began.elapsed().unwrap();
    assert!(took >= Duration::from_millis(400), "{took:?}");
    rig.same_content("a.raw", "o.qcow2");
}
