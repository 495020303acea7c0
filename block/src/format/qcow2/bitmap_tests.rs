use super::super::container::{read_at, write_at};
use super::super::create::CreateOptions;
use super::super::header::{BitmapsExtension, Header};
use super::super::test_rig::Rig;
use super::*;
use crate::bitmap::{BitmapState, DirtyBitmap};
use crate::error::{ErrorKind, Result};

type Loaded = Vec<(BitmapEntry, Result<DirtyBitmap>)>;

fn load(rig: &Rig, name: &str) -> Result<Loaded> {
    rig.on(name, async |file| {
        let header = Header::load(file).await?;
        let Some(extension) = header.bitmaps() else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for entry in load_directory(file, extension, header.geometry).await? {
            let bits = load_bitmap(file, &header, &entry).await;
            all.push((entry, bits));
        }
        Ok(all)
    })
}

fn dirty(bitmap: &DirtyBitmap) -> Vec<(u64, u64)> {
    let (mut runs, mut from) = (Vec::new(), 0);
    while let Some(run) = bitmap.next_dirty(from, u64::MAX) {
        from = run.end;
        runs.push((run.start, run.end));
    }
    runs
}

#[test]
fn bitmaps_of_qemu_are_read_and_written_back_for_it() {
    let Some(rig) = Rig::with_qemu() else { return };
    for options in ["cluster_size=64k", "cluster_size=512", "cluster_size=4k,refcount_bits=1"] {
        rig.qemu_img(&["create", "-q", "-f", "qcow2", "-o", options, "a", "64M"]);
        rig.qemu_img(&["bitmap", "--add", "-g", "512", "a", "fine"]);
        rig.qemu_img(&["bitmap", "--add", "-g", "1M", "--disable", "a", "coarse"]);
        rig.qemu_io("a", &["write 0 4k", "write 40M 1M"]);
        let loaded = load(&rig, "a").unwrap();
        let [(fine, bits), (coarse, none)] = &loaded[..] else { panic!("{loaded:?}") };
        assert_eq!((fine.name.as_str(), fine.auto, fine.in_use), ("fine", true, false));
        assert_eq!((coarse.name.as_str(), coarse.auto), ("coarse", false));
        let bits = bits.as_ref().unwrap();
        assert_eq!(dirty(bits), [(0, 4096), (40 << 20, 41 << 20)]);
        assert_eq!(none.as_ref().unwrap().state(), BitmapState::Disabled);

        let mut more = DirtyBitmap::new(64 << 20, 65536).unwrap();
        more.mark(5 << 20..6 << 20);
        let store = [
            ToStore::Kept(fine),
            ToStore::Bits { name: "own", bits: &more },
            ToStore::Bits { name: "copy", bits },
        ];
        rig.on("a", async |file| store_bitmaps(file, &store).await).unwrap();
        rig.assert_clean("a");
        let info = rig.qemu_img(&["info", "--output", "json", "a"]);
        for name in ["fine", "own", "copy"] {
            assert!(info.contains(&format!("\"name\": \"{name}\"")), "{info}");
        }
        assert!(!info.contains("coarse") && !info.contains("in-use"), "{info}");
        // QEMU loads them, merges ours into its own, and records in all of them.
        rig.qemu_img(&["bitmap", "--merge", "own", "a", "fine"]);
        rig.qemu_io("a", &["write 63M 64k"]);
        let loaded = load(&rig, "a").unwrap();
        let own = loaded.iter().find(|(entry, _)| entry.name == "own").unwrap();
        let end = (63 << 20) + 65536;
        assert_eq!(dirty(own.1.as_ref().unwrap()), [(5 << 20, 6 << 20), (63 << 20, end)]);
        let fine = loaded.iter().find(|(entry, _)| entry.name == "fine").unwrap();
        let runs = dirty(fine.1.as_ref().unwrap());
        assert_eq!(runs, [(0, 4096), (5 << 20, 6 << 20), (40 << 20, 41 << 20), (63 << 20, end)]);
        rig.on("a", async |file| store_bitmaps(file, &[]).await).unwrap();
        rig.assert_clean("a");
        assert!(load(&rig, "a").unwrap().is_empty());
        std::fs::remove_file(rig.path("a")).unwrap();
    }
}

#[test]
fn storing_again_and_again_does_not_make_the_file_grow() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.create("a", &CreateOptions::new(1 << 30));
    let mut bits = DirtyBitmap::new(1 << 30, 65536).unwrap();
    bits.mark(0..1 << 20);
    let mut lengths = Vec::new();
    for _ in 0..10 {
        let store = [ToStore::Bits { name: "b", bits: &bits }];
        rig.on("a", async |file| store_bitmaps(file, &store).await).unwrap();
        lengths.push(rig.bytes("a").len());
    }
    assert_eq!(lengths[2], lengths[9], "{lengths:?}");
    rig.assert_clean("a");
}

#[test]
fn bitmaps_in_use_are_inconsistent_until_they_are_stored_again() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.create("a", &CreateOptions::new(1 << 30));
    let mut bits = DirtyBitmap::new(1 << 30, 65536).unwrap();
    bits.mark(0..1);
    let mut still = bits.clone();
    still.disable().unwrap();
    let store = [
        ToStore::Bits { name: "auto", bits: &bits },
        ToStore::Bits { name: "still", bits: &still },
    ];
    rig.on("a", async |file| store_bitmaps(file, &store).await).unwrap();
    let before = rig.on("a", async |file| mark_in_use(file).await).unwrap();
    assert!(before.iter().all(|entry| !entry.in_use));
    let info = rig.qemu_img(&["info", "a"]);
    assert_eq!(info.matches("in-use").count(), 2, "{info}");
    rig.assert_clean("a");
    let loaded = load(&rig, "a").unwrap();
    let state = |index: usize| loaded[index].1.as_ref().unwrap().state();
    assert_eq!((state(0), state(1)), (BitmapState::Inconsistent, BitmapState::Inconsistent));
    rig.on("a", async |file| store_bitmaps(file, &store).await).unwrap();
    assert!(load(&rig, "a").unwrap()[0].1.as_ref().unwrap().is_dirty(0));
    rig.assert_clean("a");
}

/// A disk may have become longer than its bitmaps can be before the host crashed.
#[test]
fn bitmaps_in_use_are_no_reason_not_to_open_a_long_disk() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.create("a", &CreateOptions::new(1 << 30));
    let bits = DirtyBitmap::new(1 << 30, 512).unwrap();
    let store =
        [ToStore::Bits { name: "b", bits: &bits }, ToStore::Bits { name: "c", bits: &bits }];
    rig.on("a", async |file| store_bitmaps(file, &store).await).unwrap();
    let load_all = || {
        rig.on("a", async |file| {
            let header = Header { size: 1 << 60, ..Header::load(file).await? };
            load_bitmaps(file, &header).await
        })
    };
    assert_eq!(load_all().unwrap_err().kind(), ErrorKind::Unsupported);
    rig.on("a", async |file| mark_in_use(file).await).unwrap();
    let lost = load_all().unwrap();
    assert!(lost.iter().all(|(_, bits)| bits.state() == BitmapState::Inconsistent));
    // And they stay for who is to see that they are lost.
    let lost = DirtyBitmap::inconsistent(1 << 30, 512).unwrap();
    let store = [ToStore::Bits { name: "b", bits: &lost }];
    rig.on("a", async |file| store_bitmaps(file, &store).await).unwrap();
    rig.assert_clean("a");
    assert_eq!(rig.qemu_img(&["info", "a"]).matches("in-use").count(), 1);
    assert_eq!(load(&rig, "a").unwrap()[0].1.as_ref().unwrap().state(), BitmapState::Inconsistent);
}

/// So many entries that point to one table describe 2^64 bytes of bits.
#[test]
fn bits_that_no_number_counts_are_too_many() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.create("a", &CreateOptions::new(1 << 30));
    let bits = DirtyBitmap::new(1 << 30, 512).unwrap();
    let names: Vec<String> = (0..8192).map(|number| format!("b{number}")).collect();
    let store: Vec<_> =
        names.iter().map(|name| ToStore::Bits { name, bits: &bits }).take(1).collect();
    rig.on("a", async |file| store_bitmaps(file, &store).await).unwrap();
    let refused = rig.on("a", async |file| {
        let mut header = Header { size: 1 << 63, ..Header::load(file).await? };
        let entry =
            load_directory(file, header.bitmaps().unwrap(), header.geometry).await?.remove(0);
        let entries: Vec<_> =
            names.iter().map(|name| BitmapEntry { name: name.clone(), ..entry.clone() }).collect();
        let directory = directory::serialise(&entries);
        let directory_offset = file.len().next_multiple_of(header.geometry.cluster_size());
        file.resize(directory_offset + (4 << 20)).await?;
        write_at(file, directory_offset, &directory).await?;
        let (count, directory_size) = (8192, directory.len() as u64);
        header.extensions.bitmaps =
            Some(BitmapsExtension { count, directory_size, directory_offset });
        load_bitmaps(file, &header).await
    });
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("the bitmaps have 18446744073709551615 bytes of bits"), "{refused}");
}

#[test]
fn without_the_autoclear_bit_there_are_no_bitmaps() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.create("a", &CreateOptions::new(1 << 20));
    rig.qemu_img(&["bitmap", "--add", "a", "b"]);
    let mut bytes = rig.bytes("a");
    assert_eq!(bytes[95], 1);
    bytes[95] = 0;
    rig.set_bytes("a", &bytes);
    assert!(load(&rig, "a").unwrap().is_empty());
}

#[test]
fn directories_that_lie_are_refused() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.create("a", &CreateOptions::new(1 << 20));
    rig.qemu_img(&["bitmap", "--add", "a", "b"]);
    let good = rig.bytes("a");
    let at = Header::parse(&good).unwrap().bitmaps().unwrap().directory_offset;
    let at = usize::try_from(at).unwrap();
    let entry = rig.on("a", async |file| read_at(file, at as u64, 32).await).unwrap();
    assert_eq!(entry[24], b'b');
    let cases: [(usize, &[u8], &str); 8] = [
        (0, &[0xff; 8], "the table of bitmap 'b'"),
        (8, &[0xff; 4], "the table of bitmap 'b'"),
        (8, &[0, 0, 0, 2], "does not fit the disk"),
        (12, &[0xff; 4], "flags 0xffffffff"),
        (16, &[2], "type 2"),
        (17, &[63], "granularity_bits of bitmap 'b' is 63"),
        (18, &[0xff; 2], "the bitmap directory ends in bitmap 0"),
        (20, &[0, 0, 0, 8], "the bitmap directory ends in bitmap 0"),
    ];
    for (field, value, what) in cases {
        let mut bytes = good.clone();
        bytes[at + field..at + field + value.len()].copy_from_slice(value);
        rig.set_bytes("a", &bytes);
        let error = match load(&rig, "a") {
            Err(error) => error,
            Ok(mut loaded) => loaded.remove(0).1.unwrap_err(),
        };
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(what), "byte {field}: '{error}' does not say '{what}'");
    }
}

/// No program opens an image with a bitmap whose table has no entries.
#[test]
fn a_disk_without_bytes_gets_no_bitmap() {
    let rig = Rig::new();
    rig.create("a", &CreateOptions::new(0));
    let before = rig.bytes("a");
    let bits = DirtyBitmap::new(0, 65536).unwrap();
    let store = [ToStore::Bits { name: "none", bits: &bits }];
    let error = rig.on("a", async |file| store_bitmaps(file, &store).await).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    assert!(rig.bytes("a") == before);
}
