//! Images that QEMU wrote, read by this driver.

use super::rig::{Rig, open, options};

#[test]
fn what_qemu_wrote_reads_the_same() {
    let Some(rig) = Rig::new() else { return };
    let shapes = [
        "",
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=2M",
        "extended_l2=on,cluster_size=16k",
        "refcount_bits=1",
    ];
    for shape in shapes {
        let path = rig.create("image.qcow2", shape, "5000k");
        rig.qemu_io(
            &path,
            &[
                "write -P 1 0 1000",
                "write -P 2 100k 300k",
                "write -P 3 4900k 100k",
                "write -z 200k 64k",
                "discard 128k 64k",
                "write -P 4 1234k 1",
            ],
        );
        let content = rig.content(&path);
        let image = open(options(&path));
        assert!(image.content() == content, "{shape}");
    }
}

#[test]
fn compressed_clusters_of_qemu_read_the_same() {
    let Some(rig) = Rig::new() else { return };
    let raw = rig.path("source.raw");
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7 % 251).to_le_bytes()[0]).collect();
    std::fs::write(&raw, &bytes).unwrap();
    for shape in [
        "cluster_size=64k",
        "compression_type=zstd",
        "cluster_size=4k",
        "compression_type=zstd,cluster_size=2M",
    ] {
        let path = rig.path("packed.qcow2");
        crate::testing::tool(
            "qemu-img",
            &["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", shape, &raw, &path],
        );
        let image = open(options(&path));
        assert!(image.content()[..bytes.len()] == bytes, "{shape}");
    }
}

#[test]
fn a_chain_of_fifty_images_reads_through() {
    let Some(rig) = Rig::new() else { return };
    rig.create("0.qcow2", "cluster_size=4k", "1M");
    for number in 1..50 {
        let below = format!("{}.qcow2", number - 1);
        let path = rig.create(
            &format!("{number}.qcow2"),
            &format!("cluster_size=4k,backing_file={below},backing_fmt=qcow2"),
            "1M",
        );
        rig.qemu_io(&path, &[&format!("write -P {number} {}k 8k", number * 16)]);
    }
    let path = rig.path("49.qcow2");
    let content = rig.content(&path);
    let image = open(options(&path));
    assert!(image.content() == content);
}
