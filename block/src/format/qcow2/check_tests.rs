use super::super::create::CreateOptions;
use super::super::header::Version;
use super::super::snapshot::load_snapshots;
use super::super::test_rig::{Rig, forget_disk_sizes};
use super::*;
use crate::testing::Rng;

fn checked(rig: &Rig, name: &str, repair: Option<Repair>) -> CheckReport {
    rig.on(name, async |file| check(file, repair).await).unwrap()
}

/// An image with data, holes, compressed clusters, a snapshot and, in version 3, a bitmap.
fn lived_in(rig: &Rig, options: &str, version: Version) {
    rig.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "a", "8M"]);
    rig.qemu_io("a", &["write -P 1 0 1M", "write -P 2 3M 300k", "write -c -P 3 5M 64k"]);
    rig.qemu_img(&["snapshot", "-c", "first", "a"]);
    rig.qemu_io("a", &["write -P 4 512k 1M", "write -P 5 7M 64k", "discard 3M 128k"]);
    if version == Version::V3 {
        rig.qemu_img(&["bitmap", "--add", "a", "b0"]);
        rig.qemu_io("a", &["write -z 2M 64k", "write -P 6 100k 100k"]);
    }
}

const OPTIONS: [(&str, Version); 6] = [
    ("compat=1.1", Version::V3),
    ("compat=0.10", Version::V2),
    ("cluster_size=4096,refcount_bits=8", Version::V3),
    ("cluster_size=512,refcount_bits=64", Version::V3),
    ("extended_l2=on,cluster_size=16k", Version::V3),
    ("cluster_size=64k,refcount_bits=2", Version::V3),
];

#[test]
fn sound_images_are_found_sound_with_qemus_numbers() {
    let Some(rig) = Rig::with_qemu() else { return };
    for (options, version) in OPTIONS {
        lived_in(&rig, options, version);
        let (own, qemu) = (checked(&rig, "a", None), rig.qemu_check("a"));
        assert!(own.is_clean(), "{options}: {:?}", own.messages);
        let numbers = [
            ("total-clusters", own.total_clusters),
            ("allocated-clusters", own.allocated_clusters),
            ("compressed-clusters", own.compressed_clusters),
            ("fragmented-clusters", own.fragmented_clusters),
            ("image-end-offset", own.image_end_offset),
        ];
        for (key, own) in numbers {
            assert_eq!(own, qemu.number(key), "{key} with {options}: {}", qemu.json);
        }
        std::fs::remove_file(rig.path("a")).unwrap();
    }
}

/// Changes one byte in some metadata cluster: the header's tables, an L1 or L2 table, a refcount.
fn damage(rig: &Rig, rng: &mut Rng) -> String {
    let mut bytes = rig.bytes("a");
    let header = Header::parse(&bytes).unwrap();
    let word = |at: u64| {
        let at = usize::try_from(at).unwrap();
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
    };
    let clean = |entry: u64| entry & 0x00ff_ffff_ffff_fe00;
    let block = clean(word(header.refcount_table_offset));
    let l2 = (0..u64::from(header.l1.entries))
        .map(|index| clean(word(header.l1.offset + index * 8)))
        .find(|&at| at != 0)
        .unwrap();
    let (what, at) = match rng.below(4) {
        0 => ("refcount table", header.refcount_table_offset + rng.below(8)),
        1 => ("refcount block", block + rng.below(64)),
        2 => ("L1 table", header.l1.offset + rng.below(u64::from(header.l1.entries).min(4) * 8)),
        _ => ("L2 table", l2 + rng.below(128)),
    };
    let at = usize::try_from(at).unwrap();
    let bit = 1 << rng.below(8);
    bytes[at] ^= bit;
    rig.set_bytes("a", &bytes);
    format!("{what}, byte {at:#x}, bit {bit:#x}")
}

#[test]
fn damage_is_found_as_qemu_finds_it_and_repaired_to_its_satisfaction() {
    let Some(rig) = Rig::with_qemu() else { return };
    let mut rng = Rng::new(3);
    for (options, version) in OPTIONS {
        lived_in(&rig, options, version);
        let good = rig.bytes("a");
        for _ in 0..14 {
            rig.set_bytes("a", &good);
            let damage = damage(&rig, &mut rng);
            let what = format!("{options}: {damage}");
            let (own, qemu) = (checked(&rig, "a", None), rig.qemu_check("a"));
            let numbers = ["corruptions", "leaks", "check-errors"].map(|key| qemu.number(key));
            let sound = numbers == [0; 3];
            assert_eq!(own.is_clean(), sound, "{what}: {} {:?}", qemu.errors, own.messages);
            // QEMU counts a table behind the end of the file twice, and goes on with refcount
            // structures that make no sense; where that cannot be the numbers are the same.
            if damage.starts_with("refcount block") {
                let found = [own.corruptions, own.leaks, own.check_errors];
                assert_eq!(found, numbers, "{what}: {} {:?}", qemu.errors, own.messages);
            }
            let left = checked(&rig, "a", Some(Repair::All));
            if left.is_clean() {
                rig.assert_clean("a");
            } else {
                // An entry that points to the wrong place cannot be guessed.
                assert!(!damage.starts_with("refcount"), "{what}: {:?}", left.messages);
            }
        }
        std::fs::remove_file(rig.path("a")).unwrap();
    }
}

#[test]
fn leaks_are_freed_without_touching_anything_else() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.create("a", &CreateOptions::new(8 << 20));
    rig.qemu_io("a", &["write -P 1 0 1M"]);
    let mut bytes = rig.bytes("a");
    // The refcount block of this layout is the third cluster; clusters 9 and 10 hold data.
    bytes[0x20000 + 18] = 1;
    bytes[0x20000 + 21] = 9;
    rig.set_bytes("a", &bytes);
    let found = checked(&rig, "a", None);
    // The entries say that each cluster has one reference, which is what the refcounts deny.
    assert_eq!((found.leaks, found.corruptions), (2, 2));
    let qemu = rig.qemu_check("a");
    assert_eq!((qemu.number("leaks"), qemu.number("corruptions")), (2, 2));
    let left = checked(&rig, "a", Some(Repair::Leaks));
    assert_eq!((left.leaks, left.leaks_fixed, left.corruptions), (0, 2, 0));
    rig.assert_clean("a");
}

/// A snapshot whose end was cut short: what it shared with the disk is the disk's alone.
#[test]
fn what_a_lost_snapshot_leaves_behind_is_no_corruption() {
    let Some(rig) = Rig::with_qemu() else { return };
    for (options, _) in OPTIONS {
        rig.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "a", "8M"]);
        rig.qemu_io("a", &["write -P 1 0 1M", "write -c -P 3 5M 64k"]);
        rig.qemu_img(&["snapshot", "-c", "first", "a"]);
        let mut bytes = rig.bytes("a");
        bytes[60..72].fill(0);
        rig.set_bytes("a", &bytes);
        let found = checked(&rig, "a", None);
        assert_eq!(found.corruptions, 0, "{options}: {:?}", found.messages);
        let left = checked(&rig, "a", Some(Repair::Leaks));
        assert_eq!(left.leaks_fixed, found.leaks, "{options}: {:?}", left.messages);
        assert!(left.is_clean() && left.corruptions_fixed > 0, "{options}: {:?}", left.messages);
        rig.assert_clean("a");
        std::fs::remove_file(rig.path("a")).unwrap();
    }
}

#[test]
fn wiped_refcount_structures_are_made_anew() {
    let Some(rig) = Rig::with_qemu() else { return };
    for (options, version) in OPTIONS {
        lived_in(&rig, options, version);
        let mut bytes = rig.bytes("a");
        let header = Header::parse(&bytes).unwrap();
        let at = usize::try_from(header.refcount_table_offset).unwrap();
        bytes[at..at + 8].fill(0);
        rig.set_bytes("a", &bytes);
        let left = checked(&rig, "a", Some(Repair::Leaks));
        assert_ne!(left.corruptions, 0);
        let left = checked(&rig, "a", Some(Repair::All));
        assert!(left.is_clean() && left.corruptions_fixed > 0, "{options}: {:?}", left.messages);
        rig.assert_clean("a");
        rig.qemu_io("a", &["read -P 5 7M 64k", "write -P 9 0 8M", "read -P 9 0 8M"]);
        rig.assert_clean("a");
        std::fs::remove_file(rig.path("a")).unwrap();
    }
}

#[test]
fn the_dirty_and_corrupt_bits_go_when_all_is_well() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.create("a", &CreateOptions::new(8 << 20));
    let mut bytes = rig.bytes("a");
    bytes[79] = 3;
    rig.set_bytes("a", &bytes);
    assert!(checked(&rig, "a", None).is_clean());
    assert_eq!(rig.bytes("a")[79], 3);
    checked(&rig, "a", Some(Repair::All));
    assert_eq!(rig.bytes("a")[79], 0);
    rig.qemu_io("a", &["write 0 64k"]);
}

#[test]
fn clusters_kept_at_impossible_places_are_let_go() {
    let Some(rig) = Rig::with_qemu() else { return };
    for (options, entry_bytes) in [("compat=1.1", 8), ("extended_l2=on", 16)] {
        rig.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "a", "8M"]);
        rig.qemu_io("a", &["write -P 1 0 192k", "write -z 64k 128k"]);
        let mut bytes = rig.bytes("a");
        let header = Header::parse(&bytes).unwrap();
        let word = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        let l1 = usize::try_from(header.l1.offset).unwrap();
        let l2 = usize::try_from(word(l1) & 0x00ff_ffff_ffff_fe00).unwrap();
        bytes[l2 + entry_bytes + 6] |= 2;
        rig.set_bytes("a", &bytes);
        assert_eq!(checked(&rig, "a", None).corruptions, rig.qemu_check("a").number("corruptions"));
        let left = checked(&rig, "a", Some(Repair::All));
        assert!(left.is_clean() && left.corruptions_fixed == 1, "{options}: {:?}", left.messages);
        assert!(left.messages.iter().any(|message| matches!(message, Message::Repair(_))));
        rig.assert_clean("a");
        rig.qemu_io("a", &["read -P 1 0 64k", "read -P 0 64k 128k"]);
        // With data there nothing can be done.
        let mut bytes = rig.bytes("a");
        bytes[l2 + 6] |= 2;
        rig.set_bytes("a", &bytes);
        let left = checked(&rig, "a", Some(Repair::All));
        assert_eq!(left.corruptions, 1, "{options}: {:?}", left.messages);
        std::fs::remove_file(rig.path("a")).unwrap();
    }
}

#[test]
fn snapshots_that_do_not_say_how_long_the_disk_was_are_completed() {
    let Some(rig) = Rig::with_qemu() else { return };
    let old = CreateOptions { version: Version::V2, ..CreateOptions::new(8 << 20) };
    rig.create("a", &old);
    rig.qemu_io("a", &["write -P 1 0 1M"]);
    rig.qemu_img(&["snapshot", "-c", "one", "a"]);
    forget_disk_sizes(&rig, "a");
    let found = checked(&rig, "a", None);
    assert_eq!(found.corruptions, 1, "{:?}", found.messages);
    assert_eq!(rig.qemu_check("a").number("corruptions"), 1);
    let left = checked(&rig, "a", Some(Repair::All));
    assert!(left.is_clean() && left.corruptions_fixed == 1, "{:?}", left.messages);
    rig.assert_clean("a");
    rig.qemu_img(&["snapshot", "-a", "one", "a"]);
    rig.qemu_io("a", &["read -P 1 0 1M"]);
}

/// Gives the snapshots of the image more extra data, so that they have these many bytes of it.
fn stretch_snapshots(rig: &Rig, lengths: &[usize]) {
    let mut bytes = rig.bytes("a");
    let header = Header::parse(&bytes).unwrap();
    let table = usize::try_from(header.snapshots.offset).unwrap();
    let (mut at, mut new) = (table, Vec::new());
    for len in lengths {
        let short = |at: usize| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        let names = short(at + 12) + short(at + 14);
        new.extend(&bytes[at..at + 36]);
        new.extend(u32::try_from(*len).unwrap().to_be_bytes());
        new.extend(&bytes[at + 40..at + 64]);
        new.extend((24..*len).map(|index| index.to_le_bytes()[0]));
        new.extend(&bytes[at + 64..at + 64 + names]);
        new.resize(new.len().next_multiple_of(8), 0);
        at += (64 + names).next_multiple_of(8);
    }
    // It is the last thing in the file.
    bytes.truncate(table);
    bytes.extend(new);
    rig.set_bytes("a", &bytes);
}

#[test]
fn extra_data_of_snapshots_that_nobody_reads_is_cut_off_as_qemu_cuts_it() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.create("a", &CreateOptions::new(8 << 20));
    rig.qemu_io("a", &["write -P 1 0 1M"]);
    rig.qemu_img(&["snapshot", "-c", "one", "a"]);
    rig.qemu_io("a", &["write -P 2 0 64k"]);
    rig.qemu_img(&["snapshot", "-c", "two", "a"]);
    rig.qemu_img(&["snapshot", "-c", "three", "a"]);
    stretch_snapshots(&rig, &[2000, 1024, 1025]);
    let bad = rig.bytes("a");
    // Who only uses the image must not lose anything by it.
    let listed =
        || rig.on("a", async |file| load_snapshots(file, &Header::load(file).await.unwrap()).await);
    let refused = listed().unwrap_err();
    assert!(refused.to_string().contains("snapshot 0 has 2000 bytes"), "{refused}");
    let found = checked(&rig, "a", None);
    assert_eq!((found.corruptions, found.leaks, found.check_errors), (2, 0, 0));
    assert_eq!(rig.bytes("a"), bad);
    let left = checked(&rig, "a", Some(Repair::All));
    assert!(left.is_clean() && left.corruptions_fixed == 2, "{:?}", left.messages);
    rig.assert_clean("a");
    let (bytes, own) = (rig.bytes("a"), listed().unwrap());
    // But for the refcounts and the table, which has moved, every cluster is what it was.
    let clusters = |bytes: &[u8]| bytes.chunks(1 << 16).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (now, before) = (clusters(&bytes), clusters(&bad));
    let moved = Header::parse(&bytes).unwrap().snapshots.offset >> 16;
    let differ: Vec<usize> =
        (0..now.len() - 1).filter(|&index| now[index] != before[index]).collect();
    assert_eq!(differ, [0, 2, usize::try_from(moved).unwrap()]);
    rig.set_bytes("a", &bad);
    rig.qemu_img(&["check", "-q", "-r", "all", "a"]);
    assert_eq!(own, listed().unwrap());
    assert_eq!(own.snapshots[0].more.len(), 1000);
    rig.set_bytes("a", &bytes);
    rig.qemu_img(&["snapshot", "-a", "one", "a"]);
    rig.qemu_io("a", &["read -P 1 0 1M"]);
}

/// Clusters of bitmaps that nobody can find are in use all the same.
#[test]
fn nothing_is_freed_while_it_is_not_known_what_bitmaps_have() {
    let Some(rig) = Rig::with_qemu() else { return };
    lived_in(&rig, "compat=1.1", Version::V3);
    let mut bytes = rig.bytes("a");
    let directory = Header::parse(&bytes).unwrap().bitmaps().unwrap().directory_offset;
    // The first letter of its name.
    bytes[usize::try_from(directory).unwrap() + 24] = 0xff;
    rig.set_bytes("a", &bytes);
    for repair in [Repair::Leaks, Repair::All] {
        let report = checked(&rig, "a", Some(repair));
        assert_eq!(report.check_errors, 1, "{:?}", report.messages);
        assert!(rig.bytes("a") == bytes, "{repair:?} has changed something");
    }
}
