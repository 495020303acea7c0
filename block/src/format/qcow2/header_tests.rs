use super::*;
use crate::testing::{have_tool, tool};

/// The header of an image that `qemu-img create` made with `options`.
fn made_by_qemu(options: &[&str]) -> Option<Vec<u8>> {
    if !have_tool("qemu-img") {
        return None;
    }
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("a.qcow2");
    let path = path.to_str().unwrap();
    tool("qemu-img", &[&["create", "-q", "-f", "qcow2"], options, &[path, "8M"]].concat());
    let mut bytes = std::fs::read(path).unwrap();
    bytes.truncate(2 << 20);
    Some(bytes)
}

fn sample() -> Vec<u8> {
    let incompatible = Incompatible::NONE;
    let header = Header {
        geometry: Geometry::new(Version::V3, 16, 4, incompatible).unwrap(),
        size: 1 << 30,
        backing_file: Some("base.img".into()),
        l1: Table { offset: 0x30000, entries: 2 },
        refcount_table_offset: 0x10000,
        refcount_table_clusters: 1,
        snapshots: Table::default(),
        incompatible,
        compatible: Compatible::NONE,
        autoclear: Autoclear::BITMAPS,
        compression: Compression::Zlib,
        extensions: Extensions {
            backing_format: Some("raw".into()),
            bitmaps: Some(BitmapsExtension {
                count: 1,
                directory_size: 32,
                directory_offset: 0x50000,
            }),
            generation: Some(7),
            ..Extensions::default()
        },
        more_fields: Vec::new(),
    };
    header.serialise().unwrap()
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    bytes[at..at + field.len()].copy_from_slice(field);
}

#[test]
fn headers_of_qemu_are_written_back_byte_for_byte() {
    let backing = ["-u", "-b", "some/base.raw", "-F", "raw"];
    let cases: [&[&str]; 8] = [
        &[],
        &["-o", "compat=0.10"],
        &["-o", "cluster_size=512,refcount_bits=1"],
        &["-o", "cluster_size=2M,refcount_bits=64,lazy_refcounts=on"],
        &["-o", "extended_l2=on,compression_type=zstd"],
        &backing,
        &["-o", "compat=0.10", "-u", "-b", "b", "-F", "qcow2"],
        &["-o", "cluster_size=1k", "-u", "-b", "b", "-F", "qcow2"],
    ];
    for options in cases {
        let Some(bytes) = made_by_qemu(options) else { return };
        let header = Header::parse(&bytes).unwrap();
        assert_eq!(header.size, 8 << 20);
        let own = header.serialise().unwrap();
        assert_eq!(own, bytes[..own.len()], "{options:?}");
        header.check_against(1 << 40).unwrap();
    }
}

#[test]
fn unknown_extensions_and_fields_survive_a_rewrite() {
    let mut bytes = sample();
    // A longer header, and an extension of a type that nobody knows in front of the others.
    let fields = bytes[..112].to_vec();
    let rest = bytes[112..].to_vec();
    let more = [0x12, 0x34, 0, 0, 0, 0, 0, 1];
    let unknown = [0xab, 0xcd, 0, 1, 0, 0, 0, 3, b'x', b'y', b'z', 0, 0, 0, 0, 0];
    bytes = [&fields[..], &more, &unknown, &rest].concat();
    bytes.truncate(1 << 16);
    put(&mut bytes, 100, &120_u32.to_be_bytes());
    let old_at = u64::from_be_bytes(bytes[8..16].try_into().unwrap());
    put(&mut bytes, 8, &(old_at + 24).to_be_bytes());
    let header = Header::parse(&bytes).unwrap();
    let again = header.serialise().unwrap();
    assert_eq!(Header::parse(&again).unwrap(), header);
    assert_eq!(again[112..120], more);
    assert!(again.windows(16).any(|window| window == unknown));
    assert_eq!(header.extensions.generation, Some(7));
    assert_eq!(header.backing_file.as_deref(), Some("base.img"));
}

#[test]
fn each_field_that_lies_is_named() {
    let cases: [(usize, &[u8], &str); 25] = [
        (0, b"QFI\0", "not in qcow2 format"),
        (4, &[0, 0, 0, 4], "Unsupported qcow2 version 4"),
        (8, &[0, 0, 0, 0, 0, 1, 0, 1], "backing_file_offset"),
        (8, &[0, 0, 0, 0, 0, 0, 0, 1], "backing_file_offset"),
        (16, &[0, 0, 4, 0], "backing_file_size is 1024"),
        (20, &[0, 0, 0, 8], "cluster_bits is 8"),
        (20, &[0, 0, 0, 22], "cluster_bits is 22"),
        (24, &[0xff; 8], "size is 18446744073709551615"),
        (24, &[0x0f; 8], "size is"),
        (24, &[0, 0, 0, 1, 0, 0, 0, 0], "l1_size is 2, but 8 entries"),
        (32, &[0, 0, 0, 1], "encrypted (AES)"),
        (32, &[0, 0, 0, 2], "encrypted (LUKS)"),
        (32, &[0, 0, 0, 9], "crypt_method 9"),
        (36, &[0xff; 4], "l1 table has"),
        (40, &[0, 0, 0, 0, 0, 3, 2, 0], "l1 table is 0x30200"),
        (40, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0], "offset of the l1 table"),
        (48, &[0; 8], "offset of the refcount table"),
        (56, &[0, 0, 0, 0], "refcount_table_clusters is 0"),
        (56, &[0xff; 4], "refcount table has"),
        (60, &[0xff; 4], "nb_snapshots is 4294967295"),
        (60, &[0, 0, 0, 1], "offset of the snapshot table"),
        (72, &[0x80, 0, 0, 0, 0, 0, 0, 0], "Unknown incompatible feature: 8000000000000000"),
        (96, &[0, 0, 0, 7], "refcount_order is 7"),
        (100, &[0, 1, 0, 8], "header_length is 65544"),
        (104, &[1], "compression_type is 1"),
    ];
    for (at, field, what) in cases {
        let mut bytes = sample();
        put(&mut bytes, at, field);
        let error = Header::parse(&bytes).unwrap_err().to_string();
        assert!(error.contains(what), "byte {at}: '{error}' does not say '{what}'");
    }
}

#[test]
fn unknown_features_are_called_by_the_name_in_the_table() {
    let mut bytes = sample();
    let table = bytes.windows(9).position(|window| window == b"dirty bit").unwrap() - 2;
    bytes[table + 1] = 17;
    put(&mut bytes, 72, &(1_u64 << 17).to_be_bytes());
    let error = Header::parse(&bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert_eq!(error.to_string(), "Unsupported qcow2 feature(s): dirty bit");
}

#[test]
fn extensions_that_lie_are_refused() {
    let bitmaps = |at: usize, field: &[u8]| {
        let mut bytes = sample();
        let extension = [0x23, 0x85, 0x28, 0x75];
        let start = bytes.windows(4).position(|window| window == extension).unwrap();
        put(&mut bytes, start + at, field);
        Header::parse(&bytes).unwrap_err().to_string()
    };
    assert!(bitmaps(4, &[0xff; 4]).contains("0x23852875 is 4294967295 bytes long"));
    assert!(bitmaps(4, &[0, 0, 0, 16]).contains("has 16 bytes, not 24"));
    assert!(bitmaps(8, &[0, 0, 0, 0]).contains("nb_bitmaps is 0"));
    assert!(bitmaps(8, &[0, 1, 0, 0]).contains("nb_bitmaps is 65536"));
    assert!(bitmaps(12, &[0, 0, 0, 1]).contains("reserved field"));
    assert!(bitmaps(16, &[0xff; 8]).contains("bitmap_directory_size"));
    assert!(bitmaps(24, &[0, 0, 0, 0, 0, 5, 0, 1]).contains("bitmap_directory_offset is 0x50001"));
    // The generation mark's type becomes that of the bitmaps: the last one counts.
    let mut bytes = sample();
    let start = bytes.windows(4).position(|window| window == b"ferg").unwrap();
    put(&mut bytes, start, &[0x23, 0x85, 0x28, 0x75]);
    assert!(Header::parse(&bytes).unwrap_err().to_string().contains("has 8 bytes, not 24"));
}

#[test]
fn a_header_cut_anywhere_or_with_any_byte_changed_never_panics() {
    let bytes = sample();
    for len in 0..700 {
        // Past the end mark and the name nothing is missing.
        if Header::parse(&bytes[..len]).is_ok() {
            assert!(len >= 104, "a header of {len} bytes");
        }
    }
    for at in 0..700 {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            if let Ok(header) = Header::parse(&bytes) {
                let again = Header::parse(&header.serialise().unwrap()).unwrap();
                assert_eq!(again.serialise().unwrap(), header.serialise().unwrap());
            }
        }
    }
}

/// A power failure may leave some sectors of a header old and others new.
#[test]
fn a_torn_header_can_be_read() {
    let new = sample();
    let mut header = Header::parse(&new).unwrap();
    header.extensions.bitmaps = None;
    header.extensions.generation = Some(6);
    let old = header.serialise().unwrap();
    let sectors = |bytes: &[u8]| bytes.chunks(512).map(<[u8]>::to_vec).collect::<Vec<_>>();
    let (old, new) = (sectors(&old), sectors(&new));
    for torn in 0..16_usize {
        let pick = |(at, pair): (usize, (&Vec<u8>, &Vec<u8>))| {
            if at < 4 && torn >> at & 1 != 0 { pair.0.clone() } else { pair.1.clone() }
        };
        let bytes: Vec<u8> = old.iter().zip(&new).enumerate().flat_map(pick).collect();
        let header = Header::parse(&bytes).unwrap();
        let is_old = torn & 1 != 0;
        assert_eq!(header.extensions.generation, Some(if is_old { 6 } else { 7 }));
        assert_eq!(header.extensions.bitmaps.is_none(), is_old);
        assert_eq!(header.extensions.backing_format.as_deref(), Some("raw"));
        assert_eq!(header.backing_file.as_deref(), Some("base.img"));
        assert_eq!(header.extensions.feature_names, feature::name_table());
    }
}
