//! What changes the length of an image, and what is below it.

use std::fs;
use std::os::unix::fs::MetadataExt;

use serde_json::Value;

use super::chain;
use super::rig::{OURS, Rig};

#[test]
fn lengths_change_as_qemu_img_changes_them() {
    let Some(rig) = Rig::empty() else { return };
    chain(&rig);
    rig.ours("resize base.qcow2 +6M");
    rig.qemu_img("check base.qcow2");
    rig.ours("resize --shrink base.qcow2 2M");
    rig.qemu_img("check base.qcow2");
    rig.both("resize base.qcow2 3000000");
    rig.same_json("info --output json base.qcow2");
}

/// QEMU gives back what described the end of the disk, too.
#[test]
fn a_shorter_disk_needs_a_shorter_file() {
    let Some(rig) = Rig::empty() else { return };
    for cluster in ["512", "4k", "64k"] {
        for name in ["a.qcow2", "b.qcow2"] {
            rig.qemu_img(&format!("create -q -f qcow2 -o cluster_size={cluster} {name} 16M"));
            rig.qemu_io(name, &["write -P 5 0 16M"]);
        }
        rig.ours("resize --shrink a.qcow2 1M");
        rig.qemu_img("resize -q --shrink b.qcow2 1M");
        rig.qemu_img("check a.qcow2");
        rig.same_content("a.qcow2", "b.qcow2");
        let [ours, theirs] =
            ["a.qcow2", "b.qcow2"].map(|name| rig.path(name).metadata().unwrap().len());
        assert!(ours <= theirs, "{cluster}: {ours} {theirs}");
    }
}

#[test]
fn the_last_subcluster_of_a_disk_is_made_zero_as_a_whole() {
    let Some(rig) = Rig::empty() else { return };
    rig.qemu_img("create -q -f qcow2 -o extended_l2=on a.qcow2 1M");
    rig.qemu_io("a.qcow2", &["write -P 5 0 1M"]);
    rig.ours("resize -q --shrink a.qcow2 520k");
    rig.ours("resize -q a.qcow2 567k");
    rig.qemu_io("a.qcow2", &["read -P 5 0 520k", "read -P 0 520k 47k"]);
    let map = String::from_utf8(rig.qemu_img("map a.qcow2").stdout).unwrap();
    assert_eq!(map.lines().count(), 2, "{map}");
}

/// What is read of its data file by itself is what the image shows.
#[test]
fn an_image_with_a_raw_data_file_has_all_its_clusters() {
    let Some(rig) = Rig::empty() else { return };
    rig.ours("create -q -f qcow2 -o data_file=data.raw,data_file_raw=on a.qcow2 1M");
    rig.ours("resize -q a.qcow2 3M");
    rig.same_json("map --output json a.qcow2");
    let map = rig.qemu_img("map --output json a.qcow2").stdout;
    assert!(!String::from_utf8_lossy(&map).contains("\"present\": false"));
    rig.qemu_img("check a.qcow2");
    assert_eq!(fs::metadata(rig.path("data.raw")).unwrap().len(), 3 << 20);
}

#[test]
fn what_an_image_grows_by_is_allocated_as_asked() {
    let Some(rig) = Rig::empty() else { return };
    for (mode, cluster) in
        [("metadata", "512"), ("metadata", "64k"), ("falloc", "4k"), ("full", "64k")]
    {
        for name in ["a.qcow2", "b.qcow2"] {
            let create = format!("create -q -f qcow2 -o cluster_size={cluster} {name} 1000k");
            rig.qemu_img(&create);
            rig.qemu_io(name, &["write -P 5 0 1000k"]);
        }
        rig.ours(&format!("resize --preallocation={mode} a.qcow2 +3M"));
        rig.qemu_img(&format!("resize -q --preallocation={mode} b.qcow2 +3M"));
        rig.qemu_img("check a.qcow2");
        rig.same_content("a.qcow2", "b.qcow2");
        let sizes = || ["a.qcow2", "b.qcow2"].map(|name| rig.path(name).metadata().unwrap());
        let [ours, theirs] = sizes().map(|file| file.blocks() * 512);
        assert!(ours.abs_diff(theirs) <= 512 << 10, "{mode} {cluster}: {ours} {theirs}");
        // Everything has its place: writing needs no more of the file.
        let [before, _] = sizes().map(|file| file.len());
        rig.qemu_io("a.qcow2", &["write -P 6 1000k 3M"]);
        assert_eq!(sizes()[0].len(), before, "{mode} {cluster}");
        rig.qemu_img("check a.qcow2");
    }
}

#[test]
fn tables_for_what_an_image_grows_by_need_no_data() {
    let Some(rig) = Rig::empty() else { return };
    rig.qemu_img("create -q -f qcow2 a.qcow2 1M");
    rig.ours("resize --preallocation=metadata a.qcow2 +128M");
    rig.qemu_img("check a.qcow2");
    let blocks = rig.path("a.qcow2").metadata().unwrap().blocks();
    assert!(blocks * 512 < 1 << 20, "{} bytes are allocated", blocks * 512);
    // What is given places is mapped as holes, in a data file, too.
    rig.same_json("map --output json a.qcow2");
    rig.qemu_img("create -q -f qcow2 -o data_file=d.raw,preallocation=falloc b.qcow2 4M");
    rig.qemu_io("b.qcow2", &["write -P 5 1M 64k"]);
    rig.same_json("map --output json b.qcow2");
}

#[test]
fn zeroes_stay_zeroes_when_an_image_is_put_below() {
    let Some(rig) = Rig::empty() else { return };
    for options in [
        "cluster_size=64k",
        "extended_l2=on",
        "compat=0.10",
        "data_file=data.raw",
        "data_file=data.raw,extended_l2=on",
    ] {
        rig.qemu_img("create -q -f qcow2 below.qcow2 2M");
        rig.qemu_io("below.qcow2", &["write -P 7 0 2M"]);
        rig.qemu_img(&format!("create -q -f qcow2 -o {options} alone.qcow2 1500k"));
        rig.qemu_io("alone.qcow2", &["write -P 1 64k 100k"]);
        rig.qemu_img("convert -O raw alone.qcow2 before.raw");
        rig.ours("rebase -b below.qcow2 -F qcow2 alone.qcow2");
        rig.qemu_img("check alone.qcow2");
        rig.same_content("before.raw", "alone.qcow2");
        // Below a shorter image nothing is below: zeroes there are written down, too.
        rig.qemu_img("create -q -f qcow2 short.qcow2 500k");
        rig.qemu_img(&format!(
            "create -q -f qcow2 -o {options} -b short.qcow2 -F qcow2 long.qcow2 1500k"
        ));
        rig.qemu_img("convert -O raw long.qcow2 before.raw");
        rig.ours("rebase -b below.qcow2 -F qcow2 long.qcow2");
        rig.qemu_img("check long.qcow2");
        rig.same_content("before.raw", "long.qcow2");
    }
}

#[test]
fn an_image_is_not_made_in_the_place_of_the_one_below_it() {
    let Some(rig) = Rig::empty() else { return };
    rig.qemu_img("create -q -f qcow2 a.qcow2 4M");
    rig.qemu_io("a.qcow2", &["write -P 1 0 1M"]);
    fs::create_dir(rig.path("d")).unwrap();
    std::os::unix::fs::symlink("../a.qcow2", rig.path("d/link")).unwrap();
    let before = fs::read(rig.path("a.qcow2")).unwrap();
    for arguments in [
        "create -f qcow2 -b a.qcow2 -F qcow2 a.qcow2",
        "create -f qcow2 -b ./a.qcow2 -F raw a.qcow2",
        "create -f qcow2 -b ../a.qcow2 -F qcow2 d/link",
        "create -f qcow2 -u -b a.qcow2 -F qcow2 a.qcow2 4M",
        r#"create -f qcow2 -b json:{"driver":"qcow2","file":{"driver":"file","filename":"a.qcow2"}} -F qcow2 a.qcow2"#,
        r#"create -f qcow2 -b a.qcow2 -F qcow2 json:{"driver":"file","filename":"a.qcow2"}"#,
        "create -f qcow2 -o data_file=a.qcow2 -b d/link -F qcow2 b.qcow2",
        "convert -f raw -O qcow2 -B a.qcow2 -F qcow2 d/link a.qcow2",
    ] {
        let refused = rig.run(OURS, arguments);
        assert_eq!(refused.status.code(), Some(1), "{arguments}: {refused:?}");
        assert!(fs::read(rig.path("a.qcow2")).unwrap() == before, "{arguments}");
    }
    rig.both("create -q -f qcow2 -b a.qcow2 -F qcow2 a.qcow2");
    // What cannot be done is refused before the old content is lost.
    assert!(!rig.run(OURS, "create -f raw -o preallocation=metadata a.qcow2 1M").status.success());
    assert!(fs::read(rig.path("a.qcow2")).unwrap() == before);
}

#[test]
fn a_base_that_is_named_takes_a_copy() {
    let Some(rig) = Rig::empty() else { return };
    chain(&rig);
    let before = fs::read(rig.path("top.qcow2")).unwrap();
    rig.ours("commit -q -b base.qcow2 top.qcow2");
    assert!(before == fs::read(rig.path("top.qcow2")).unwrap());
    rig.same_content("base.qcow2", "top.qcow2");
}

#[test]
fn another_image_below_changes_nothing_that_is_read() {
    let Some(rig) = Rig::empty() else { return };
    chain(&rig);
    rig.qemu_img("create -q -f qcow2 -b top.qcow2 -F qcow2 leaf.qcow2");
    rig.qemu_io("leaf.qcow2", &["write -P 9 100k 300k", "write -z 5M 64k"]);
    rig.qemu_img("convert -O raw leaf.qcow2 before.raw");
    rig.ours("rebase -b base.qcow2 -F qcow2 leaf.qcow2");
    rig.qemu_img("check leaf.qcow2");
    rig.same_content("before.raw", "leaf.qcow2");
    let info = |key: &str| {
        let output = rig.qemu_img("info --output json leaf.qcow2").stdout;
        serde_json::from_slice::<Value>(&output).unwrap()[key].clone()
    };
    assert_eq!(info("backing-filename"), "base.qcow2");
    rig.ours("rebase -f qcow2 -p -b= leaf.qcow2");
    assert_eq!(info("backing-filename"), Value::Null);
    rig.same_content("before.raw", "leaf.qcow2");
    rig.ours("rebase -u -b nosuch.raw -F raw leaf.qcow2");
    assert_eq!(info("backing-filename-format"), "raw");
    for arguments in ["rebase leaf.qcow2", "rebase -b nosuch.qcow2 -F qcow2 base.qcow2"] {
        rig.both(arguments);
    }
}

#[test]
fn what_is_committed_is_below_and_gone_above() {
    let Some(rig) = Rig::empty() else { return };
    chain(&rig);
    rig.qemu_img("create -q -f qcow2 -b top.qcow2 -F qcow2 leaf.qcow2 14M");
    rig.qemu_io("leaf.qcow2", &["write -P 9 100k 300k", "write -z 0 64k", "write -P 1 13M 1M"]);
    rig.qemu_img("convert -O raw leaf.qcow2 before.raw");
    rig.same_text("commit -d -b nosuch.qcow2 leaf.qcow2");
    let output = rig.ours("commit leaf.qcow2");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "Image committed.\n");
    for image in ["leaf.qcow2", "top.qcow2"] {
        rig.qemu_img(&format!("check {image}"));
        rig.same_content("before.raw", image);
    }
    assert!(fs::metadata(rig.path("leaf.qcow2")).unwrap().len() < 400 << 10);
    rig.ours("commit -q -d -b base.qcow2 leaf.qcow2");
    rig.qemu_img("check base.qcow2");
    rig.same_content("before.raw", "base.qcow2");
    rig.both("commit base.qcow2");
}

#[test]
fn an_image_with_more_than_its_disk_is_emptied_by_a_commit() {
    let Some(rig) = Rig::empty() else { return };
    let cases = [
        ("data_file=data.raw", None),
        ("compat=0.10", None),
        ("refcount_bits=1", Some("bitmap --add top.qcow2 bitmap0")),
        ("refcount_bits=16", Some("snapshot -c before top.qcow2")),
    ];
    for (options, more) in cases {
        rig.qemu_img("create -q -f qcow2 base.qcow2 4M");
        rig.qemu_img(&format!("create -q -f qcow2 -b base.qcow2 -F qcow2 -o {options} top.qcow2"));
        rig.qemu_io("top.qcow2", &["write -P 9 1M 1M"]);
        if let Some(more) = more {
            rig.qemu_img(more);
        }
        rig.ours("commit -q top.qcow2");
        let map = rig.qemu_img("map top.qcow2").stdout;
        let map = String::from_utf8_lossy(&map);
        assert!(map.contains("base.qcow2") && !map.contains("top.qcow2"), "{options}: {map}");
        rig.qemu_img("check top.qcow2");
        rig.same_json("info --output json base.qcow2");
        rig.qemu_io("top.qcow2", &["read -P 9 1M 1M", "write -P 7 0 64k"]);
        let info = rig.qemu_img("info top.qcow2").stdout;
        let info = String::from_utf8_lossy(&info);
        assert_eq!(info.contains("bitmap0"), options == "refcount_bits=1", "{info}");
    }
}

/// An image is written as its name says: this one has faults.
#[test]
fn what_is_below_is_opened_as_its_name_says() {
    let Some(rig) = Rig::empty() else { return };
    rig.qemu_img("create -q -f qcow2 base.qcow2 1M");
    let name = "json:{'driver':'qcow2','file':{'driver':'blkdebug','inject-error':[{'event':'write_aio',\
                'errno':28,'once':true}],'image':{'driver':'file','filename':'base.qcow2'}}}";
    rig.qemu_img(&format!("create -q -f qcow2 -b {name} -F qcow2 top.qcow2"));
    rig.qemu_io("top.qcow2", &["write -P 9 0 64k"]);
    let before = fs::read(rig.path("top.qcow2")).unwrap();
    let options = "driver=qcow2,file.driver=file,file.filename=top.qcow2";
    for named in ["top.qcow2", &format!("--image-opts {options}")] {
        rig.both(&format!("commit {named}"));
        let after = fs::read(rig.path("top.qcow2")).unwrap();
        assert_eq!(after, before, "what was not committed was given up");
    }
    rig.qemu_img("check base.qcow2");
}

/// Who puts another image below by options commits to that one, whatever the image's header says.
#[test]
fn what_the_user_puts_below_is_committed_to() {
    let Some(rig) = Rig::empty() else { return };
    for name in ["base.qcow2", "other.qcow2"] {
        rig.qemu_img(&format!("create -q -f qcow2 {name} 1M"));
    }
    rig.qemu_img("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    rig.qemu_io("top.qcow2", &["write -P 9 0 64k"]);
    let before = fs::read(rig.path("base.qcow2")).unwrap();
    let options = "driver=qcow2,file.driver=file,file.filename=top.qcow2,backing.driver=qcow2,\
                   backing.file.driver=file,backing.file.filename=other.qcow2";
    rig.ours(&format!("commit --image-opts {options}"));
    assert_eq!(fs::read(rig.path("base.qcow2")).unwrap(), before);
    rig.qemu_io("other.qcow2", &["read -P 9 0 64k"]);
}

#[test]
fn an_image_behind_filters_is_committed_and_emptied() {
    let Some(rig) = Rig::empty() else { return };
    let image = |depth: usize| {
        let file = "file.".repeat(depth);
        format!("{file}driver=qcow2,{file}file.driver=file,{file}file.filename=top.qcow2")
    };
    let throttled = "--object throttle-group,id=t,limits.bps-total=1073741824 --image-opts driver=throttle,throttle-group=t";
    for options in [
        format!("{throttled},{}", image(1)),
        "--image-opts driver=blkdebug,image.driver=qcow2,image.file.filename=top.qcow2".to_owned(),
        format!("--image-opts driver=copy-on-read,{}", image(1)),
        format!("--image-opts driver=compress,{}", image(1)),
        format!("--image-opts driver=copy-on-read,file.driver=compress,{}", image(2)),
    ] {
        for (keep, what) in [("", "top.qcow2"), (" -d", "base.qcow2")] {
            rig.qemu_img("create -q -f qcow2 base.qcow2 4M");
            rig.qemu_img("create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2 8M");
            rig.qemu_io("top.qcow2", &["write -P 9 1M 1M", "write -P 8 6M 64k"]);
            rig.qemu_img("convert -O raw top.qcow2 before.raw");
            rig.both(&format!("commit -d {options}"));
            rig.ours(&format!("commit{keep} {options}"));
            for image in ["base.qcow2", "top.qcow2"] {
                rig.qemu_img(&format!("check {image}"));
                rig.same_content("before.raw", image);
            }
            let map = rig.qemu_img("map top.qcow2").stdout;
            let above = String::from_utf8_lossy(&map).contains("top.qcow2");
            assert_eq!(above, what == "base.qcow2", "{options}{keep}");
        }
    }
    // A raw disk whose bytes are those of an image has nothing below it.
    rig.qemu_io("top.qcow2", &["write -P 7 1M 1M"]);
    let before = fs::read(rig.path("base.qcow2")).unwrap();
    rig.both(&format!("commit --image-opts driver=raw,{}", image(1)));
    assert_eq!(fs::read(rig.path("base.qcow2")).unwrap(), before);
}
