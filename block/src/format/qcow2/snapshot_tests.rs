use super::super::super::header::Header;
use super::super::super::test_rig::Rig;
use super::*;

const OPTIONS: [&str; 5] = [
    "compat=1.1",
    "compat=0.10",
    "cluster_size=512,refcount_bits=32",
    "cluster_size=4k,refcount_bits=64",
    "extended_l2=on,cluster_size=16k",
];

fn names(rig: &Rig) -> Vec<(String, String)> {
    let table = rig.on("a", async |file| {
        let header = Header::load(file).await?;
        load_snapshots(file, &header).await
    });
    let table = table.unwrap().snapshots;
    table.into_iter().map(|snapshot| (snapshot.id, snapshot.name)).collect()
}

fn either(id_or_name: &str) -> SnapshotRef {
    SnapshotRef::Either(id_or_name.to_owned())
}

fn pair(id: &str, name: &str) -> (String, String) {
    (id.to_owned(), name.to_owned())
}

#[test]
fn snapshots_of_both_programs_are_taken_gone_back_to_and_deleted_by_both() {
    let Some(rig) = Rig::with_qemu() else { return };
    for options in OPTIONS {
        rig.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "a", "8M"]);
        rig.qemu_io("a", &["write -P 1 0 1M", "write -c -P 2 3M 64k"]);
        let when = Moment { seconds: 1_700_000_000, nanoseconds: 5, vm_clock_nsec: 61_000_000_000 };
        rig.on("a", async |file| create_snapshot(file, "own", when).await).unwrap();
        rig.assert_clean("a");
        let list = rig.qemu_img(&["snapshot", "-l", "a"]);
        assert!(list.contains("own") && list.contains("00:01:01.000"), "{list}");

        rig.qemu_io("a", &["write -P 3 512k 1M", "write -P 4 3M 4k", "read -P 1 0 512k"]);
        rig.qemu_img(&["snapshot", "-c", "theirs", "a"]);
        assert_eq!(names(&rig), [pair("1", "own"), pair("2", "theirs")]);
        rig.qemu_io("a", &["write -P 5 0 4M"]);
        rig.assert_clean("a");

        rig.on("a", async |file| apply_snapshot(file, "theirs").await).unwrap();
        rig.assert_clean("a");
        rig.qemu_io("a", &["read -P 1 0 512k", "read -P 3 512k 1M", "read -P 4 3M 4k"]);
        rig.qemu_img(&["snapshot", "-a", "1", "a"]);
        rig.qemu_io("a", &["read -P 1 0 1M", "read -P 0 1M 512k", "read -P 2 3M 64k"]);
        rig.on("a", async |file| delete_snapshot(file, &either("2")).await).unwrap();
        rig.assert_clean("a");
        rig.on("a", async |file| delete_snapshot(file, &either("own")).await).unwrap();
        rig.assert_clean("a");
        assert_eq!(names(&rig), []);
        rig.qemu_io("a", &["read -P 1 0 1M", "write -P 9 0 8M", "read -P 9 0 8M"]);
        rig.assert_clean("a");
        std::fs::remove_file(rig.path("a")).unwrap();
    }
}

#[test]
fn a_snapshot_of_another_length_brings_its_length_back() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.qemu_img(&["create", "-q", "-f", "qcow2", "a", "8M"]);
    rig.qemu_io("a", &["write -P 1 0 1M"]);
    rig.on("a", async |file| create_snapshot(file, "short", Moment::default()).await).unwrap();
    rig.qemu_img(&["resize", "-q", "a", "2G"]);
    rig.qemu_io("a", &["write -P 2 1G 1M"]);
    rig.on("a", async |file| apply_snapshot(file, "short").await).unwrap();
    rig.assert_clean("a");
    assert!(rig.qemu_img(&["info", "a"]).contains("8388608 bytes"));
}

#[test]
fn refcounts_that_are_too_narrow_refuse_a_snapshot_and_nothing_changes() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.qemu_img(&["create", "-q", "-f", "qcow2", "-o", "refcount_bits=1", "a", "8M"]);
    rig.qemu_io("a", &["write -P 1 0 1M"]);
    let before = rig.bytes("a");
    let result = rig.on("a", async |file| create_snapshot(file, "x", Moment::default()).await);
    assert_eq!(result.unwrap_err().kind(), ErrorKind::NoSpace);
    assert_eq!(rig.bytes("a"), before);
}

#[test]
fn hundreds_of_snapshots_make_the_refcount_table_grow() {
    let Some(rig) = Rig::with_qemu() else { return };
    let options = "cluster_size=512,refcount_bits=16";
    rig.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "a", "2M"]);
    rig.qemu_io("a", &["write -P 1 0 1M"]);
    for number in 0..300 {
        let name = format!("snapshot number {number}");
        rig.on("a", async |file| create_snapshot(file, &name, Moment::default()).await).unwrap();
    }
    rig.assert_clean("a");
    for number in (1..=300).rev() {
        let id = number.to_string();
        rig.on("a", async |file| delete_snapshot(file, &either(&id)).await).unwrap();
    }
    rig.assert_clean("a");
    rig.qemu_io("a", &["read -P 1 0 1M"]);
}

#[test]
fn what_is_not_there_or_cannot_be_is_refused() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.qemu_img(&["create", "-q", "-f", "qcow2", "a", "8M"]);
    rig.qemu_img(&["snapshot", "-c", "one", "a"]);
    let missing =
        rig.on("a", async |file| delete_snapshot(file, &either("two")).await).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let mut bytes = rig.bytes("a");
    let header = Header::parse(&bytes).unwrap();
    let at = usize::try_from(header.snapshots.offset).unwrap();
    // The L1 table's length, then the length of the extra data.
    for (field, what) in [(8, "L1 table has"), (36, "before its 1 snapshots do")] {
        bytes[at + field] ^= 0x7f;
        rig.set_bytes("a", &bytes);
        let error = rig.on("a", async |file| apply_snapshot(file, "one").await).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
        bytes[at + field] ^= 0x7f;
    }
    bytes[60..64].copy_from_slice(&65536_u32.to_be_bytes());
    rig.set_bytes("a", &bytes);
    let error = rig.on("a", async |file| delete_snapshot(file, &either("one")).await).unwrap_err();
    assert!(error.to_string().contains("ends after"), "{error}");
}

#[test]
fn a_disk_without_bytes_has_snapshots_too() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.qemu_img(&["create", "-q", "-f", "qcow2", "a", "0"]);
    rig.on("a", async |file| create_snapshot(file, "empty", Moment::default()).await).unwrap();
    rig.assert_clean("a");
    rig.qemu_img(&["resize", "-q", "a", "1M"]);
    rig.qemu_io("a", &["write -P 3 0 1M"]);
    rig.on("a", async |file| apply_snapshot(file, "empty").await).unwrap();
    rig.assert_clean("a");
    rig.on("a", async |file| apply_snapshot(file, "1").await).unwrap();
    rig.assert_clean("a");
    rig.on("a", async |file| delete_snapshot(file, &either("empty")).await).unwrap();
    rig.assert_clean("a");
    rig.qemu_img(&["resize", "-q", "a", "1M"]);
    rig.qemu_io("a", &["write -P 4 0 1M", "read -P 4 0 1M"]);
    rig.assert_clean("a");
}

/// As QEMU does: what a program left that was killed while it took a snapshot is in nobody's way.
#[test]
fn an_image_that_was_not_closed_is_put_in_order_first() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.qemu_img(&["create", "-q", "-f", "qcow2", "a", "8M"]);
    rig.qemu_io("a", &["write -P 1 0 1M"]);
    let mut bytes = rig.bytes("a");
    // The dirty bit, and a reference too many to the cluster behind the L2 table.
    bytes[79] |= 1;
    bytes[0x20000 + 5 * 2 + 1] = 2;
    rig.set_bytes("a", &bytes);
    let when = Moment::default();
    rig.on("a", async |file| create_snapshot(file, "own", when).await).unwrap();
    rig.assert_clean("a");
    assert_eq!(rig.bytes("a")[79] & 1, 0);
    rig.qemu_io("a", &["read -P 1 0 1M"]);
}
