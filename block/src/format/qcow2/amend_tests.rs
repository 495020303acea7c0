use super::super::create::CreateOptions;
use super::super::test_rig::{Rig, forget_disk_sizes};
use super::*;

fn amended(rig: &Rig, options: &AmendOptions) -> Result<()> {
    rig.on("a", async |file| amend(file, options).await)
}

#[test]
fn versions_widths_and_backing_files_change_and_qemu_agrees() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.set_bytes("base.raw", &vec![7; 8 << 20]);
    rig.create("a", &CreateOptions { version: Version::V2, ..CreateOptions::new(8 << 20) });
    rig.qemu_io("a", &["write -P 1 0 1M", "write -c -P 2 3M 64k"]);
    rig.qemu_img(&["snapshot", "-c", "one", "a"]);
    let up = AmendOptions {
        version: Some(Version::V3),
        lazy_refcounts: Some(true),
        ..AmendOptions::default()
    };
    amended(&rig, &up).unwrap();
    rig.assert_clean("a");
    let info = rig.qemu_img(&["info", "a"]);
    assert!(info.contains("compat: 1.1") && info.contains("lazy refcounts: true"), "{info}");
    for bits in [64, 8, 2, 16] {
        let width = AmendOptions { refcount_bits: Some(bits), ..AmendOptions::default() };
        amended(&rig, &width).unwrap();
        rig.assert_clean("a");
        assert!(rig.qemu_img(&["info", "a"]).contains(&format!("refcount bits: {bits}")));
    }
    let narrow = AmendOptions { refcount_bits: Some(1), ..AmendOptions::default() };
    let error = amended(&rig, &narrow).unwrap_err();
    assert!(error.to_string().contains("too many for 1 bits"), "{error}");
    rig.assert_clean("a");
    let down = AmendOptions { version: Some(Version::V2), ..AmendOptions::default() };
    amended(&rig, &down).unwrap();
    rig.assert_clean("a");
    rig.qemu_io("a", &["read -P 1 0 1M", "read -P 2 3M 64k", "read -P 0 4M 4M"]);

    let backing = Backing { file: "base.raw".into(), format: Some("raw".into()) };
    let backed = AmendOptions { backing: Some(Some(backing)), ..AmendOptions::default() };
    amended(&rig, &backed).unwrap();
    rig.qemu_io("a", &["read -P 1 0 1M", "read -P 7 4M 4M"]);
    let bare = AmendOptions { backing: Some(None), ..AmendOptions::default() };
    amended(&rig, &bare).unwrap();
    rig.qemu_io("a", &["read -P 0 4M 4M"]);
    rig.assert_clean("a");
}

#[test]
fn zero_clusters_are_expanded_for_version_2() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.set_bytes("base.raw", &vec![7; 8 << 20]);
    for backing in [None, Some("base.raw")] {
        let backing_format = backing.map(|_| "raw".to_owned());
        let backing_file = backing.map(str::to_owned);
        rig.create(
            "a",
            &CreateOptions { backing_file, backing_format, ..CreateOptions::new(8 << 20) },
        );
        rig.qemu_io("a", &["write -P 1 0 2M", "write -z 512k 512k", "write -z 4M 1M"]);
        rig.qemu_img(&["snapshot", "-c", "one", "a"]);
        rig.qemu_io("a", &["write -z 0 256k", "write -z 6M 64k", "write -P 2 7M 64k"]);
        let reads = [
            "read -P 0 0 256k",
            "read -P 1 256k 256k",
            "read -P 0 512k 512k",
            "read -P 1 1M 1M",
            "read -P 0 4M 1M",
            "read -P 0 6M 64k",
            "read -P 2 7M 64k",
        ];
        rig.qemu_io("a", &reads);
        let down = AmendOptions { version: Some(Version::V2), ..AmendOptions::default() };
        amended(&rig, &down).unwrap();
        rig.assert_clean("a");
        assert!(rig.qemu_img(&["info", "a"]).contains("compat: 0.10"));
        rig.qemu_io("a", &reads);
        rig.qemu_img(&["snapshot", "-a", "one", "a"]);
        let old = ["read -P 1 0 512k", "read -P 0 512k 512k", "read -P 1 1M 1M", "read -P 0 4M 1M"];
        rig.qemu_io("a", &old);
        let below = if backing.is_some() { "read -P 7 6M 2M" } else { "read -P 0 6M 2M" };
        rig.qemu_io("a", &[below]);
        rig.assert_clean("a");
    }
}

#[test]
fn what_version_2_cannot_say_is_refused() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.create("a", &CreateOptions::new(8 << 20));
    let before = rig.bytes("a");
    let down = AmendOptions { version: Some(Version::V2), ..AmendOptions::default() };
    rig.qemu_img(&["bitmap", "--add", "a", "b"]);
    assert!(amended(&rig, &down).unwrap_err().to_string().contains("bitmaps"));
    let raw = AmendOptions { data_file_raw: Some(true), ..AmendOptions::default() };
    assert_eq!(amended(&rig, &raw).unwrap_err().kind(), ErrorKind::InvalidArgument);
    rig.set_bytes("a", &before);
    rig.assert_clean("a");
    // A snapshot of a disk of another length.
    rig.qemu_img(&["snapshot", "-c", "short", "a"]);
    rig.qemu_img(&["resize", "-q", "a", "16M"]);
    let before = rig.bytes("a");
    assert!(amended(&rig, &down).unwrap_err().to_string().contains("'short'"));
    assert!(rig.bytes("a") == before);
    rig.qemu_img(&["snapshot", "-d", "short", "a"]);
    amended(&rig, &down).unwrap();
    rig.assert_clean("a");
}

#[test]
fn a_new_width_completes_snapshots_that_do_not_say_how_long_the_disk_was() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.create("a", &CreateOptions { version: Version::V2, ..CreateOptions::new(8 << 20) });
    rig.qemu_io("a", &["write -P 1 0 1M"]);
    rig.qemu_img(&["snapshot", "-c", "one", "a"]);
    forget_disk_sizes(&rig, "a");
    let before = rig.bytes("a");
    let refused = AmendOptions { data_file: Some("b".into()), ..AmendOptions::default() };
    assert_eq!(amended(&rig, &refused).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert!(rig.bytes("a") == before);
    let width = AmendOptions { refcount_bits: Some(64), ..AmendOptions::default() };
    amended(&rig, &width).unwrap();
    rig.assert_clean("a");
    rig.qemu_img(&["snapshot", "-a", "one", "a"]);
    rig.qemu_io("a", &["read -P 1 0 1M"]);
}

#[test]
fn a_table_that_is_nowhere_keeps_an_image_from_version_2() {
    let rig = Rig::new();
    rig.create("a", &CreateOptions::new(8 << 20));
    let good = rig.bytes("a");
    let l1 = usize::try_from(Header::parse(&good).unwrap().l1.offset).unwrap();
    // Unaligned, and behind the end of the file.
    for place in [0x42a00_u64, 0x7000_0000] {
        let mut bytes = good.clone();
        bytes[l1..l1 + 8].copy_from_slice(&(1 << 63 | place).to_be_bytes());
        rig.set_bytes("a", &bytes);
        let down = AmendOptions { version: Some(Version::V2), ..AmendOptions::default() };
        let error = amended(&rig, &down).unwrap_err();
        assert!(error.to_string().contains(&format!("{place:#x}")), "{error}");
        assert_eq!(rig.bytes("a"), bytes);
    }
}

/// A cluster that was shared with something that is gone has leaked a reference.
#[test]
fn a_new_width_finds_out_who_is_the_only_one() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.create("a", &CreateOptions::new(8 << 20));
    rig.qemu_io("a", &["write -P 1 0 64k"]);
    let mut bytes = rig.bytes("a");
    let header = Header::parse(&bytes).unwrap();
    let word = |bytes: &[u8], at: u64| {
        let at = usize::try_from(at).unwrap();
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00
    };
    let l2 = word(&bytes, header.l1.offset);
    let cluster = word(&bytes, l2) >> header.geometry.cluster_bits();
    let block = word(&bytes, header.refcount_table_offset);
    bytes[usize::try_from(l2).unwrap()] &= 0x7f;
    bytes[usize::try_from(block + cluster * 2).unwrap() + 1] = 2;
    rig.set_bytes("a", &bytes);
    let found = rig.qemu_check("a");
    assert_eq!((found.number("corruptions"), found.number("leaks")), (0, 1), "{}", found.json);
    for refcount_bits in [8, 16] {
        let refcount_bits = Some(refcount_bits);
        amended(&rig, &AmendOptions { refcount_bits, ..AmendOptions::default() }).unwrap();
        rig.assert_clean("a");
    }
}
