//! What images would need, of many kinds and options, beside what `qemu-img` says.

use std::fs;

use super::Rig;

/// Images of every kind that a source can be.
fn sources(rig: &Rig) -> Vec<&'static str> {
    fs::write(rig.path("odd.raw"), vec![7; (1 << 20) + 5]).unwrap();
    let holes = fs::File::create(rig.path("holes.raw")).unwrap();
    holes.set_len(9 << 20).unwrap();
    for (name, options) in [
        ("old.qcow2", "compat=0.10"),
        ("reserved.qcow2", "preallocation=metadata"),
        ("taken.qcow2", "preallocation=falloc"),
        ("parts.qcow2", "preallocation=metadata,extended_l2=on"),
        ("data.qcow2", "data_file=data.raw"),
    ] {
        rig.qemu_img(&format!("create -q -f qcow2 -o {options} {name} 64M"));
        let fill = ["write -P 1 0 1M", "write -P 2 10M 70k", "write -z 20M 1M"];
        rig.qemu_io(name, &fill);
    }
    rig.qemu_img("create -q -f qcow2 -b old.qcow2 -F qcow2 top.qcow2 100M");
    rig.qemu_io("top.qcow2", &["write -P 3 90M 100k", "write -z 0 64k"]);
    let images =
        "odd.raw holes.raw old.qcow2 reserved.qcow2 taken.qcow2 parts.qcow2 data.qcow2 top.qcow2";
    images.split(' ').collect()
}

const TARGETS: [&str; 12] = [
    "raw",
    "qcow2",
    "qcow2 -o cluster_size=512",
    "qcow2 -o cluster_size=4k,refcount_bits=64",
    "qcow2 -o cluster_size=2M,refcount_bits=1",
    "qcow2 -o compat=0.10",
    "qcow2 -o extended_l2=on,cluster_size=16k",
    "qcow2 -o preallocation=metadata",
    "qcow2 -o preallocation=full,cluster_size=4k",
    "qcow2 -o data_file=x",
    "qcow2 -o data_file=x,data_file_raw=on,preallocation=falloc",
    "qcow2 -o backing_file=holes.raw,backing_fmt=raw",
];

#[test]
fn images_of_all_kinds_need_what_qemu_img_says() {
    let Some(rig) = Rig::empty() else { return };
    for source in sources(&rig) {
        for target in TARGETS {
            rig.same_json(&format!("measure --output json -O {target} {source}"));
        }
    }
    // Bitmaps belong to the image and not to its snapshots, and are copied with either.
    rig.qemu_img("snapshot -c one old.qcow2");
    rig.qemu_img("create -q -f qcow2 marked.qcow2 8M");
    rig.qemu_img("bitmap --add -g 4k marked.qcow2 bitmap0");
    rig.qemu_img("snapshot -c one marked.qcow2");
    for source in ["old.qcow2", "marked.qcow2"] {
        rig.same_json(&format!("measure --output json -O qcow2 -l one {source}"));
    }
}

#[test]
fn disks_of_every_length_need_what_qemu_img_says() {
    let Some(rig) = Rig::empty() else { return };
    for target in TARGETS {
        for size in ["0", "1", "513", "64k", "1049089", "5G", "16T", "2P", "7E", "8E", "-1"] {
            let arguments = format!("measure --output json -O {target} --size {size}");
            let (own, qemu) = (rig.run(super::OURS, &arguments), rig.run("qemu-img", &arguments));
            assert_eq!(
                own.status.success(),
                qemu.status.success(),
                "{arguments}: {own:?} {qemu:?}"
            );
            if qemu.status.success() {
                rig.same_json(&arguments);
            }
        }
    }
    for source in ["-l one", "-f raw", "--image-opts"] {
        rig.both(&format!("measure --size 1M {source}"));
    }
}
