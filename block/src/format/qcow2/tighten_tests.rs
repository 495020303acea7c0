use super::super::create::CreateOptions;
use super::super::header::Header;
use super::super::test_rig::Rig;
use super::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// A number of the header, or of a table.
fn word(bytes: &[u8], at: u64) -> u64 {
    let at = usize::try_from(at).unwrap();
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// How many refcount blocks and L2 tables there are.
fn tables(rig: &Rig) -> (usize, usize) {
    let bytes = rig.bytes("a");
    let header = Header::parse(&bytes).unwrap();
    let used = |at: u64, entries: u64| {
        (0..entries).filter(|entry| word(&bytes, at + entry * 8) != 0).count()
    };
    let blocks = used(header.refcount_table_offset, header.refcount_table_bytes() / 8);
    (blocks, used(header.l1.offset, header.l1.entries.into()))
}

/// Takes the disk away behind `len`, as a resize does before it gives the tables back.
fn shorten(rig: &Rig, len: u64) {
    rig.qemu_io("a", &[&format!("discard {len} {}", 8 * MIB - len)]);
    let keep = rig.on("a", async |file| {
        let geometry = Header::load(file).await.unwrap().geometry;
        let keep = geometry.l1_entries_for(len);
        tighten(file, keep).await.unwrap();
        keep
    });
    assert!(tables(rig).1 as u64 <= keep);
}

#[test]
fn tables_that_describe_nothing_are_given_back_with_the_end_of_the_file() {
    let Some(rig) = Rig::with_qemu() else { return };
    // With the smallest clusters the refcount table itself has moved behind the data.
    for (cluster_size, refcount_bits, most) in [(512, 16, 16 * MIB), (4096, 64, 512 * KIB)] {
        let small = CreateOptions { cluster_size, refcount_bits, ..CreateOptions::new(8 * MIB) };
        rig.create("a", &small);
        rig.qemu_io("a", &["write -P 3 0 8M"]);
        let (blocks, l2) = tables(&rig);
        assert!(blocks > 4 && l2 > 3, "{blocks} {l2}");
        shorten(&rig, 256 * KIB);
        rig.assert_clean("a");
        let left = tables(&rig);
        assert!(left.0 <= blocks / 4 && left.1 <= l2 / 4, "{left:?} of {blocks} and {l2}");
        let len = rig.bytes("a").len() as u64;
        assert!(len <= most, "the file has {len} bytes");
        rig.qemu_io("a", &["read -P 3 0 256k", "write -P 4 4M 1M", "read -P 4 4M 1M"]);
        rig.assert_clean("a");
    }
}

#[test]
fn what_a_snapshot_has_stays() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.create("a", &CreateOptions { cluster_size: 4096, ..CreateOptions::new(8 * MIB) });
    rig.qemu_io("a", &["write -c -P 4 5M 64k", "write -P 3 0 5M"]);
    rig.qemu_img(&["snapshot", "-c", "one", "a"]);
    rig.on("a", async |file| tighten(file, 0).await).unwrap();
    rig.assert_clean("a");
    rig.qemu_io("a", &["read -P 0 0 8M", "write -P 5 0 1M"]);
    rig.qemu_img(&["snapshot", "-a", "one", "a"]);
    rig.qemu_io("a", &["read -P 3 0 5M", "read -P 4 5M 64k"]);
    rig.assert_clean("a");
}

#[test]
fn clusters_of_a_data_file_have_no_refcounts_to_lower() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.qemu_img(&["create", "-q", "-f", "qcow2", "-o", "data_file=data", "a", "8M"]);
    rig.qemu_io("a", &["write -P 3 0 1M"]);
    rig.on("a", async |file| tighten(file, 0).await).unwrap();
    rig.assert_clean("a");
    rig.qemu_io("a", &["read -P 0 0 1M", "write -P 4 0 1M", "read -P 4 0 1M"]);
}
