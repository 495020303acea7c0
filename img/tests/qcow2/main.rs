//! qcow2 images, with `qemu-img` as the judge.

#![expect(clippy::unwrap_used, reason = "a test that cannot run its programs has failed")]

mod chain;
mod copy;
mod measure;
#[path = "../rig/mod.rs"]
mod rig;

use std::fs;
use std::process::{Command, Output};

use rig::{OURS, Rig};
use serde_json::Value;

impl Rig {
    fn ours(&self, arguments: &str) -> Output {
        let output = self.run(OURS, arguments);
        assert!(output.status.success(), "{arguments}: {output:?}");
        output
    }

    fn qemu_img(&self, arguments: &str) -> Output {
        let output = self.run("qemu-img", arguments);
        assert!(output.status.success(), "{arguments}: {output:?}");
        output
    }

    /// Requests by qemu-io, one after the other.
    fn qemu_io(&self, name: &str, commands: &[&str]) {
        let commands = commands.iter().flat_map(|command| ["-c", command]);
        let output = Command::new("qemu-io")
            .args(["-f", "qcow2"])
            .args(commands)
            .arg(name)
            .current_dir(self.0.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    fn same_content(&self, first: &str, second: &str) {
        let output = self.run("qemu-img", &format!("compare {first} {second}"));
        assert!(output.status.success(), "{first} {second}: {output:?}");
    }
}

/// A chain of two with data, zeroes, a snapshot and a bitmap.
fn chain(rig: &Rig) {
    rig.qemu_img("create -q -f qcow2 base.qcow2 10M");
    rig.qemu_io("base.qcow2", &["write -P 5 0 1M", "write -P 4 5M 128k"]);
    rig.qemu_img("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 12M");
    rig.qemu_io("top.qcow2", &["write -P 6 1M 1M", "write -z 3M 1M", "write -P 7 11M 128k"]);
    rig.qemu_img("snapshot -c first top.qcow2");
    rig.qemu_img("bitmap --add -g 128k top.qcow2 bitmap0");
}

const CREATIONS: [&str; 9] = [
    "a.qcow2 1G",
    "-o compat=0.10,cluster_size=4k a.qcow2 10M",
    "-o lazy_refcounts=on,refcount_bits=1 a.qcow2 1.5M",
    "-o preallocation=metadata a.qcow2 3M",
    "-o preallocation=full a.qcow2 1M",
    "-o extended_l2=on,cluster_size=128k,compression_type=zstd a.qcow2 5T",
    "-o cluster_size=2M,refcount_bits=64 a.qcow2 700",
    "-b base.qcow2 -F qcow2 a.qcow2",
    "-u -b nosuch.raw -F raw a.qcow2 1M",
];

#[test]
fn new_images_are_what_qemu_img_makes() {
    let Some(rig) = Rig::empty() else { return };
    chain(&rig);
    for arguments in CREATIONS {
        let arguments = format!("create -f qcow2 {arguments}");
        let info = |program: &str| {
            fs::remove_file(rig.path("a.qcow2")).ok();
            let output = rig.run(program, &arguments);
            assert!(output.status.success(), "{arguments}: {output:?}");
            let info = rig.qemu_img("info --output json a.qcow2").stdout;
            let mut info: Value = serde_json::from_slice(&info).unwrap();
            info["actual-size"].take();
            (output.stdout, info)
        };
        assert_eq!(info(OURS), info("qemu-img"), "{arguments}");
        fs::remove_file(rig.path("a.qcow2")).unwrap();
        rig.ours(&arguments);
        if !arguments.contains("-u") {
            rig.qemu_img("check a.qcow2");
        }
    }
    for arguments in [
        "create -f qcow2 a.qcow2",
        "create -f qcow2 -o nosuch=1 a.qcow2 1M",
        "create -f qcow2 -o cluster_size=3k a.qcow2 1M",
        "create -f qcow2 -b base.qcow2 a.qcow2",
        "create -f qcow2 -b nosuch.qcow2 -F qcow2 a.qcow2",
        "create -f qcow2 -F qcow2 a.qcow2 1M",
    ] {
        rig.both(arguments);
    }
}

#[test]
fn images_are_described_as_qemu_img_does() {
    let Some(rig) = Rig::empty() else { return };
    chain(&rig);
    rig.qemu_img("create -q -f qcow2 -o data_file=d.raw,data_file_raw=on ext.qcow2 1M");
    rig.qemu_img("create -q -f qcow2 -o compat=0.10 old.qcow2 1M");
    fs::create_dir(rig.path("dir")).unwrap();
    rig.qemu_img("create -q -f qcow2 -b ../base.qcow2 -F qcow2 dir/deep.qcow2");
    for image in ["top", "base", "ext", "old", "dir/deep"] {
        rig.same_json(&format!("info --output json {image}.qcow2"));
        rig.same_text(&format!("info {image}.qcow2"));
    }
    // As a crash leaves an image with lazy refcounts: an incompatible feature, bit 0.
    let mut image = fs::read(rig.path("base.qcow2")).unwrap();
    image[79] |= 1;
    fs::write(rig.path("dirty.qcow2"), image).unwrap();
    rig.same_json("info --output json dirty.qcow2");
    rig.same_text("info dirty.qcow2");
    rig.same_json("info --backing-chain --output json top.qcow2");
    rig.same_text("info --backing-chain top.qcow2");
    rig.same_text("snapshot -l top.qcow2");
    rig.same_text("snapshot -l base.qcow2");
}

#[test]
fn checks_find_what_qemu_img_finds() {
    let Some(rig) = Rig::empty() else { return };
    chain(&rig);
    for arguments in ["check top.qcow2", "check -f qcow2 base.qcow2"] {
        rig.same_text(arguments);
    }
    rig.same_json("check --output json top.qcow2");
    rig.same_json("check --output json base.qcow2");
    rig.both("check nosuch.qcow2");
    fs::write(rig.path("a.raw"), [0; 4096]).unwrap();
    rig.both("check a.raw");
    // A cluster that nobody uses, then an entry that points to one that is used by another.
    let mut image = fs::read(rig.path("base.qcow2")).unwrap();
    let blocks = usize::try_from(u64::from_be_bytes(image[0x10000..0x10008].try_into().unwrap()));
    let free = blocks.unwrap() + 2 * 60;
    image[free..free + 2].copy_from_slice(&1_u16.to_be_bytes());
    fs::write(rig.path("leak.qcow2"), &image).unwrap();
    rig.same_json("check --output json leak.qcow2");
    rig.ours("check -r leaks leak.qcow2");
    rig.qemu_img("check leak.qcow2");
    image[free - 2 * 60 + 10..free - 2 * 60 + 12].fill(0);
    fs::write(rig.path("bad.qcow2"), &image).unwrap();
    let (ours, _) = rig.both("check --output json bad.qcow2");
    assert_eq!(ours.status.code(), Some(2));
    rig.ours("check -r all bad.qcow2");
    rig.qemu_img("check bad.qcow2");
}

#[test]
fn lengths_are_foretold_as_qemu_img_does() {
    let Some(rig) = Rig::empty() else { return };
    chain(&rig);
    rig.qemu_img("convert -O raw top.qcow2 a.raw");
    for arguments in [
        "measure -O qcow2 --output json a.raw",
        "measure -O qcow2 --output json -f raw -o cluster_size=4k,refcount_bits=8 a.raw",
        "measure -O qcow2 --output json -o extended_l2=on,cluster_size=64k --size 1T",
        "measure -O qcow2 --output json -o preallocation=full --size 10G",
        "measure -O raw --output json top.qcow2",
        "measure --output json --size 5M",
    ] {
        rig.same_json(arguments);
    }
    rig.same_text("measure -O qcow2 a.raw");
    rig.both("measure -O qcow2 --size 1M a.raw");
    rig.both("measure -O qcow2");
}

#[test]
fn copies_to_and_from_qcow2_hold_the_same() {
    let Some(rig) = Rig::empty() else { return };
    chain(&rig);
    for (arguments, target) in [
        ("convert -O raw top.qcow2 o.raw", "o.raw"),
        ("convert -O qcow2 top.qcow2 o.qcow2", "o.qcow2"),
        ("convert -O qcow2 -m 16 -W o.raw p.qcow2", "p.qcow2"),
        ("convert -O qcow2 -c o.raw c.qcow2", "c.qcow2"),
        ("convert -O qcow2 -c -o compression_type=zstd,cluster_size=128k o.raw z.qcow2", "z.qcow2"),
        ("convert -O qcow2 -o preallocation=metadata o.raw m.qcow2", "m.qcow2"),
        ("convert -O qcow2 -B base.qcow2 -F qcow2 top.qcow2 b.qcow2", "b.qcow2"),
        ("convert -O raw c.qcow2 q.raw", "q.raw"),
        ("convert -S 0 -O qcow2 top.qcow2 s.qcow2", "s.qcow2"),
    ] {
        rig.ours(arguments);
        rig.same_content("top.qcow2", target);
        if target.ends_with("qcow2") {
            rig.qemu_img(&format!("check {target}"));
        }
    }
    let size = |name: &str| fs::metadata(rig.path(name)).unwrap().len();
    assert!(size("c.qcow2") < 600 << 10, "{}", size("c.qcow2"));
    assert!(size("o.qcow2") < 3 << 20, "{}", size("o.qcow2"));
    assert!(size("b.qcow2") < 2 << 20, "{}", size("b.qcow2"));
    rig.same_text("compare top.qcow2 o.qcow2");
    rig.same_text("compare top.qcow2 base.qcow2");
    rig.same_text("compare -s top.qcow2 base.qcow2");
}

#[test]
fn maps_are_those_of_qemu_img() {
    let Some(rig) = Rig::empty() else { return };
    chain(&rig);
    rig.qemu_img("create -q -f qcow2 -o cluster_size=4k small.qcow2 3M");
    rig.qemu_io("small.qcow2", &["write 1M 100k", "write -z 1032k 12k", "discard 1100k 8k"]);
    rig.same_json("map --output json base.qcow2");
    rig.same_json("map --output json top.qcow2");
    rig.same_json("map --output json small.qcow2");
    rig.same_json("map --output json -s 1M -l 3M top.qcow2");
    rig.same_text("map base.qcow2");
    rig.same_text("map top.qcow2");
    // Half a million clusters, each of which is looked up once. If each look-up took time in proportion to the
    // image, this would be seen as a test that hangs.
    rig.qemu_img("create -q -f qcow2 -o cluster_size=512,preallocation=full many.qcow2 256M");
    rig.same_json("map --output json many.qcow2");
}

#[test]
fn snapshots_are_taken_applied_and_deleted() {
    let Some(rig) = Rig::empty() else { return };
    chain(&rig);
    rig.qemu_img("convert -O raw base.qcow2 before.raw");
    rig.ours("snapshot -c one base.qcow2");
    rig.qemu_io("base.qcow2", &["write -P 1 100k 2M"]);
    rig.ours("snapshot -c two base.qcow2");
    rig.qemu_img("check base.qcow2");
    rig.same_text("snapshot -l base.qcow2");
    rig.ours("snapshot -a one base.qcow2");
    rig.same_content("before.raw", "base.qcow2");
    rig.ours("snapshot -d one base.qcow2");
    rig.qemu_img("check base.qcow2");
    rig.same_text("snapshot -l base.qcow2");
    for arguments in ["snapshot -a nosuch base.qcow2", "snapshot -d nosuch base.qcow2"] {
        rig.both(arguments);
    }
}

#[test]
fn bitmaps_change_as_qemu_img_changes_them() {
    let Some(rig) = Rig::empty() else { return };
    let same = |steps: &[&str]| {
        let infos = [OURS, "qemu-img"].map(|program| {
            rig.qemu_img("create -q -f qcow2 a.qcow2 10M");
            rig.qemu_img("create -q -f qcow2 b.qcow2 10M");
            rig.qemu_img("bitmap --add b.qcow2 other");
            rig.qemu_io("b.qcow2", &["write 1M 100k"]);
            for step in steps {
                let output = rig.run(program, step);
                assert!(output.status.success(), "{program} {step}: {output:?}");
            }
            rig.qemu_img("check a.qcow2");
            let info = rig.qemu_img("info --output json a.qcow2").stdout;
            let info: Value = serde_json::from_slice(&info).unwrap();
            // The bits, by way of a fresh bitmap that only this one is merged into.
            info["format-specific"]["data"]["bitmaps"].clone()
        });
        assert_eq!(infos[0], infos[1], "{steps:?}");
    };
    same(&["bitmap --add a.qcow2 x"]);
    same(&["bitmap --add --disable --granularity 4k a.qcow2 x", "bitmap --add a.qcow2 y"]);
    same(&["bitmap --add a.qcow2 x", "bitmap --remove a.qcow2 x"]);
    same(&[
        "bitmap --add a.qcow2 x",
        "bitmap --merge other -b b.qcow2 -F qcow2 a.qcow2 x",
        "bitmap --add --merge x --disable a.qcow2 y",
        "bitmap --clear --enable a.qcow2 y",
    ]);
    rig.qemu_img("create -q -f qcow2 -o compat=0.10 old.qcow2 10M");
    for arguments in [
        "bitmap a.qcow2 x",
        "bitmap --add a.qcow2 y",
        "bitmap --remove a.qcow2 nosuch",
        "bitmap --merge nosuch a.qcow2 x",
        "bitmap --add old.qcow2 x",
        "bitmap --remove --add --remove a.qcow2 nosuch",
        "bitmap --add --remove --add --remove a.qcow2 z",
        "bitmap --clear -g 4k a.qcow2 y",
        "bitmap --clear -b b.qcow2 a.qcow2 y",
        "bitmap --merge x -F qcow2 a.qcow2 y",
    ] {
        rig.both(arguments);
    }
}

#[test]
fn a_copy_takes_the_bitmaps_along() {
    let Some(rig) = Rig::empty() else { return };
    chain(&rig);
    rig.qemu_io("top.qcow2", &["write -P 3 2M 64k"]);
    let bitmaps = |name: &str| {
        let output = rig.qemu_img(&format!("info --output json {name}")).stdout;
        serde_json::from_slice::<Value>(&output).unwrap()["format-specific"]["data"]["bitmaps"]
            .clone()
    };
    rig.ours("convert --bitmaps -O qcow2 top.qcow2 o.qcow2");
    rig.qemu_img("check o.qcow2");
    rig.same_content("top.qcow2", "o.qcow2");
    assert_eq!(bitmaps("o.qcow2"), bitmaps("top.qcow2"));
    rig.ours("convert -O qcow2 top.qcow2 o.qcow2");
    assert_eq!(bitmaps("o.qcow2"), Value::Null);
    for arguments in [
        "convert --bitmaps -O raw top.qcow2 o.raw",
        "convert --skip-broken-bitmaps -O qcow2 top.qcow2 o.qcow2",
    ] {
        rig.both(arguments);
    }
}

#[test]
fn options_are_amended_as_qemu_img_does() {
    let Some(rig) = Rig::empty() else { return };
    chain(&rig);
    for options in [
        "lazy_refcounts=on",
        "refcount_bits=64",
        "compat=0.10",
        "compat=1.1,lazy_refcounts=off",
        "size=14M",
        "size=0",
        "refcount_bits=1,compat=1.1",
    ] {
        let info = |program: &str| {
            rig.qemu_img("create -q -f qcow2 -b base.qcow2 -F qcow2 a.qcow2 12M");
            rig.qemu_io("a.qcow2", &["write -P 3 1M 200k"]);
            let output = rig.run(program, &format!("amend -f qcow2 -o {options} a.qcow2"));
            assert!(output.status.success(), "{program} {options}: {output:?}");
            rig.qemu_img("check a.qcow2");
            let info = rig.qemu_img("info --output json a.qcow2").stdout;
            let mut info: Value = serde_json::from_slice(&info).unwrap();
            info["actual-size"].take();
            info
        };
        assert_eq!(info(OURS), info("qemu-img"), "{options}");
    }
    fs::write(rig.path("a.raw"), [0; 4096]).unwrap();
    for arguments in [
        "amend -o cluster_size=4k base.qcow2",
        "amend -o nosuch=1 base.qcow2",
        "amend -o backing_file=x.raw,backing_fmt=raw base.qcow2",
        "amend -f raw -o size=1M a.raw",
    ] {
        rig.both(arguments);
    }
}

#[test]
fn objects_are_taken_by_every_subcommand() {
    let Some(rig) = Rig::empty() else { return };
    chain(&rig);
    fs::write(rig.path("word"), "x").unwrap();
    for object in [
        "secret,id=s,data=x",
        "secret,id=s,file=word,format=raw",
        "qom-type=secret,id=s,data=eA==,format=base64",
        "secret,data=x",
        "secret,id=s",
        "secret,id=s,data=x,file=word",
        "secret,id=s,file=nosuch",
        "secret,id=s,data=x,nosuch=1",
        "nosuch,id=s",
        "throttle-group,id=t,limits.bps-total=1048576,limits.iops-read=9",
        "throttle-group,id=t,limits.bps-total=1,limits.bps-read=1",
        "throttle-group,id=t,limits.nosuch=1",
        "throttle-group,limits.bps-total=1",
        "tls-creds-x509,id=t,dir=nosuch,endpoint=client",
    ] {
        rig.both(&format!("info --object {object} base.qcow2"));
    }
    for arguments in [
        "amend --object O -o lazy_refcounts=on base.qcow2",
        "bitmap --object O --add base.qcow2 x",
        "check --object O base.qcow2",
        "commit --object O -d top.qcow2",
        "compare --object O top.qcow2 top.qcow2",
        "convert --object O -O raw top.qcow2 o.raw",
        "create --object O -f qcow2 n.qcow2 1M",
        "dd --object O if=base.qcow2 of=o.raw",
        "map --object O base.qcow2",
        "measure --object O base.qcow2",
        "rebase --object O -u -b base.qcow2 -F qcow2 top.qcow2",
        "resize --object O base.qcow2 20M",
        "snapshot --object O -l base.qcow2",
    ] {
        rig.ours(&arguments.replace("--object O", "--object secret,id=s,data=x"));
    }
}

/// The names of options that both know, but for what ferry refuses: encryption, and what only btrfs has.
#[test]
fn formats_tell_their_options() {
    let Some(rig) = Rig::empty() else { return };
    let names = |output: &Output| -> Vec<String> {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let names = text.lines().filter_map(|line| Some(line.trim().split_once('=')?.0.to_owned()));
        names.filter(|name| !name.starts_with("encrypt") && name != "nocow").collect()
    };
    for asked in [
        "create -f qcow2 -o help x.qcow2",
        "create -f raw -o ? x.raw",
        "convert -O qcow2 -o size=1M,help x.raw x.qcow2",
        "amend -f qcow2 -o help",
        "amend -f raw -o help",
        "create -f nosuch -o help",
    ] {
        let (ours, theirs) = rig.both(asked);
        let mut expected = names(&theirs);
        // qemu-img lists the image below and then refuses to amend it.
        expected.retain(|name| !asked.starts_with("amend") || !name.starts_with("backing_"));
        assert_eq!(names(&ours), expected, "{asked}");
    }
}

/// The last of an option that is given twice counts, and progress is told as programs read it.
#[test]
fn arguments_are_taken_as_scripts_give_them() {
    let Some(rig) = Rig::empty() else { return };
    rig.ours("create -q -f raw -f qcow2 a.qcow2 64M");
    rig.ours("create -q -f qcow2 -o size=1M -o cluster_size=4k b.qcow2");
    // What `check` ends with for an image that is corrupt is nothing else's status.
    for misused in ["check -r foo b.qcow2", "check --output foo b.qcow2", "check", "nosuch"] {
        let (ours, _) = rig.both(misused);
        assert_eq!(ours.status.code(), Some(1), "{misused}");
    }
    rig.qemu_io("a.qcow2", &["write -P 1 0 64M"]);
    let shown = |output: Output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (last, rest) = (text.ends_with("    (100.00/100%)\r\n"), text.split('\r').count());
        (last, rest > 10 && text.starts_with("    (0.00/100%)\r    ("))
    };
    for convert in ["convert -p -O raw a.qcow2 a.raw", "convert -p -O qcow2 a.qcow2 c.qcow2"] {
        let (ours, theirs) = rig.both(convert);
        assert_eq!((shown(ours), shown(theirs)), ((true, true), (true, true)), "{convert}");
    }
}

/// A data file is found from where the user is, not from where the image is; an image that cannot be is
/// refused before anything is written.
#[test]
fn names_and_sizes_are_taken_as_qemu_img_takes_them() {
    let Some(rig) = Rig::empty() else { return };
    fs::create_dir(rig.path("sub")).unwrap();
    rig.ours("create -q -f qcow2 -o data_file=data.raw sub/a.qcow2 1M");
    rig.qemu_io("sub/a.qcow2", &["write -P 5 0 1M"]);
    assert_eq!(fs::read(rig.path("data.raw")).unwrap(), vec![5; 1 << 20]);
    rig.ours("convert -O raw sub/a.qcow2 copy.raw");
    assert_eq!(fs::read(rig.path("copy.raw")).unwrap(), vec![5; 1 << 20]);
    for options in ["file.filename=sub/a.qcow2", "driver=qcow2,file.filename=sub/a.qcow2"] {
        rig.same_json(&format!("map --output json --image-opts {options}"));
    }
    for arguments in
        ["-o size=2M none.qcow2 1M", "-o cluster_size=512 none.qcow2 1E", "-o size=2M a.qcow2"]
    {
        rig.both(&format!("create -q -f qcow2 {arguments}"));
    }
    rig.both("create -q -f raw -o size=2M none.qcow2 1M");
    rig.both("convert -c -O qcow2 -o preallocation=metadata copy.raw none.qcow2");
    rig.both("measure -O raw -o cluster_size=4k copy.raw");
    rig.both("resize -q --preallocation=full sub/a.qcow2 1M");
    assert!(!rig.path("none.qcow2").exists());
    rig.both("convert -c -O qcow2 -o data_file=none.raw copy.raw none.qcow2");
}
