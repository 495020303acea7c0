use super::super::check::check;
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

/// Makes the image one with `blocks` more refcount blocks, each of which says of nothing that it is
/// in use but of the next one.
fn chain_blocks(rig: &Rig, blocks: u64) {
    const PER_BLOCK: u64 = 256;
    const TABLE: u64 = 100;
    let mut bytes = rig.bytes("a");
    let first = Header::parse(&bytes).unwrap().refcount_table_offset;
    let first = word(&bytes, first);
    bytes.resize(usize::try_from(512 * PER_BLOCK * blocks).unwrap(), 0);
    let mut put = |at: u64, data: &[u8]| {
        let at = usize::try_from(at).unwrap();
        bytes[at..at + data.len()].copy_from_slice(data);
    };
    let clusters = (blocks + 1) * 8 / 512 + 1;
    put(48, &(TABLE * 512).to_be_bytes());
    put(56, &u32::try_from(clusters).unwrap().to_be_bytes());
    put(TABLE * 512, &first.to_be_bytes());
    (TABLE..TABLE + clusters).for_each(|cluster| put(first + cluster * 2, &[0, 1]));
    let mut before = first;
    for index in 1..=blocks {
        // The last cluster that the block before describes.
        let at = (index * PER_BLOCK - 1) * 512;
        put(before + (PER_BLOCK - 1) * 2, &[0, 1]);
        put(TABLE * 512 + index * 8, &at.to_be_bytes());
        before = at;
    }
    rig.set_bytes("a", &bytes);
}

#[test]
fn a_chain_of_blocks_that_describe_each_other_takes_a_few_reads_of_each() {
    let rig = Rig::new();
    let small = CreateOptions { cluster_size: 512, ..CreateOptions::new(MIB) };
    rig.create("a", &small);
    chain_blocks(&rig, 500);
    assert_eq!(tables(&rig).0, 501);
    let stats = rig.on("a", async |file| {
        tighten(file, u64::MAX).await.unwrap();
        file.node().stats()
    });
    assert_eq!(tables(&rig).0, 1);
    assert!(rig.bytes("a").len() <= 200 * 512);
    assert!(stats.read.ops < 3 * 501, "{} reads", stats.read.ops);
    assert!(stats.write.ops + stats.flush.ops < 32, "{stats:?}");
    // Blocks that contradict each other are left alone.
    chain_blocks(&rig, 20);
    let mut bytes = rig.bytes("a");
    bytes[100 * 512 + 16 * 8..][..8].fill(0);
    rig.set_bytes("a", &bytes);
    let error = rig.on("a", async |file| tighten(file, u64::MAX).await).unwrap_err();
    assert!(error.to_string().contains("is in use, but its refcount is 0"), "{error}");
    assert_eq!(rig.bytes("a"), bytes);
}

#[test]
fn the_end_of_an_enormous_file_is_found_by_its_refcounts() {
    let rig = Rig::new();
    rig.create("a", &CreateOptions { cluster_size: 512, ..CreateOptions::new(MIB) });
    let len = rig.bytes("a").len() as u64;
    let file = std::fs::File::options().write(true).open(rig.path("a")).unwrap();
    file.set_len(1 << 50).unwrap();
    rig.on("a", async |file| tighten(file, u64::MAX).await).unwrap();
    assert_eq!(file.metadata().unwrap().len(), len);
}

/// The places that a refcount table had on its way, before anything pointed to it, are free again.
#[test]
fn a_refcount_table_that_grows_twice_at_once_leaves_nothing_behind() {
    let rig = Rig::new();
    let options =
        CreateOptions { cluster_size: 512, refcount_bits: 64, ..CreateOptions::new(1 << 20) };
    rig.create("a", &options);
    rig.on("a", async |file| {
        let mut image = AtRest::open(file).await.unwrap();
        let mut last = 0;
        for _ in 0..20_000 {
            last = image.allocate(512).await.unwrap();
        }
        image.write_refcounts().await.unwrap();
        file.resize(file.len().max(last + 512)).await.unwrap();
        let report = check(file, None).await.unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 20_000));
    });
}

/// Blocks that are made for clusters which were free go behind them, not among them.
#[test]
fn refcount_blocks_of_a_long_free_stretch_do_not_go_into_it() {
    let rig = Rig::new();
    let options =
        CreateOptions { cluster_size: 512, refcount_bits: 64, ..CreateOptions::new(1 << 20) };
    rig.create("a", &options);
    rig.on("a", async |file| {
        file.resize(4 * MIB).await.unwrap();
        let mut image = AtRest::open(file).await.unwrap();
        image.allocate(512 * 1000).await.unwrap();
        let last = image.allocate(512 * 5000).await.unwrap();
        image.write_refcounts().await.unwrap();
        file.resize(file.len().max(last + 512 * 5000)).await.unwrap();
        let report = check(file, None).await.unwrap();
        assert_eq!((report.corruptions, report.leaks), (0, 6000), "{:?}", report.messages);
    });
}
