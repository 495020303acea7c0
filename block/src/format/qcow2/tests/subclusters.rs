//! Clusters with subclusters of different kinds: what is done to some leaves the others alone.

use super::rig::{Rig, check, open, options};
use crate::{IoBuf, WriteFlags};

#[test]
fn a_write_to_zeroes_leaves_what_is_below_the_subclusters_beside_them() {
    let Some(rig) = Rig::new() else { return };
    let base = rig.create("base.qcow2", "", "64k");
    rig.qemu_io(&base, &["write -P 5 0 64k"]);
    // Subclusters of 512 bytes.
    let shape = "extended_l2=on,cluster_size=16k,backing_file=base.qcow2,backing_fmt=qcow2";
    let path = rig.create("image.qcow2", shape, "64k");
    let image = open(options(&path));
    image.on(async |node| {
        node.write_zeroes(4096..8192, WriteFlags::NONE).await.unwrap();
        node.write(4608, IoBuf::from_vec(&[7; 1024]), WriteFlags::NONE).await.unwrap();
    });
    image.close();
    let beside = ["read -P 5 0 4k", "read -P 0 4k 512", "read -P 5 8k 56k"];
    rig.qemu_io(&path, &beside);
    rig.qemu_io(&path, &["read -P 7 4608 1k", "read -P 0 5632 2560"]);
    check(&path);
}

#[test]
fn zeroes_reach_a_raw_data_file_also_where_the_image_has_nothing() {
    let Some(rig) = Rig::new() else { return };
    let data = rig.path("data.raw");
    let shape = format!("extended_l2=on,data_file={data},data_file_raw=on");
    let path = rig.create("image.qcow2", &shape, "64k");
    // QEMU allocates no subclusters. A power failure may leave data there that the image does not show.
    std::fs::write(&data, vec![7; 64 << 10]).unwrap();
    let image = open(options(&path));
    image.on(async |node| node.write_zeroes(512..1536, WriteFlags::NONE).await.unwrap());
    image.close();
    assert!(std::fs::read(&data).unwrap()[512..1536].iter().all(|byte| *byte == 0));
    rig.qemu_io(&path, &["read -P 0 0 2k"]);
    check(&path);
}
