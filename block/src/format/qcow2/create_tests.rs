use super::super::header::{Compression, Version};
use super::super::test_rig::Rig;
use super::*;

const MIB: u64 = 1 << 20;

/// Options of ours and the same for qemu-img.
fn matrix() -> Vec<(CreateOptions, String)> {
    let plain = CreateOptions::new(100 * MIB);
    let mut cases = vec![(plain.clone(), String::new())];
    for (text, version) in [("compat=0.10", Version::V2), ("compat=1.1", Version::V3)] {
        cases.push((CreateOptions { version, ..plain.clone() }, text.into()));
        for bits in [9, 12, 21] {
            let cluster_size = 1 << bits;
            let options = CreateOptions { version, cluster_size, ..plain.clone() };
            cases.push((options, format!("{text},cluster_size={cluster_size}")));
        }
    }
    for order in 0..7 {
        let options = CreateOptions { refcount_bits: 1 << order, ..plain.clone() };
        cases.push((options, format!("refcount_bits={}", 1 << order)));
    }
    cases.push((
        CreateOptions { lazy_refcounts: true, ..plain.clone() },
        "lazy_refcounts=on".into(),
    ));
    let zstd = CreateOptions { compression: Compression::Zstd, ..plain.clone() };
    cases.push((zstd, "compression_type=zstd".into()));
    let small = CreateOptions { extended_l2: true, cluster_size: 1 << 14, ..plain.clone() };
    cases.push((small, "extended_l2=on,cluster_size=16k".into()));
    for (name, preallocation) in [
        ("metadata", Preallocation::Metadata),
        ("falloc", Preallocation::Falloc),
        ("full", Preallocation::Full),
    ] {
        let options = CreateOptions { preallocation, size: 3 * MIB + 512, ..plain.clone() };
        cases.push((options.clone(), format!("preallocation={name}")));
        let options = CreateOptions { extended_l2: true, ..options };
        cases.push((options, format!("preallocation={name},extended_l2=on")));
    }
    let backing_file = Some("base.raw".to_owned());
    let backing_format = Some("raw".to_owned());
    let backed = CreateOptions { backing_file, backing_format, ..plain };
    cases.push((backed.clone(), "backing_file=base.raw,backing_fmt=raw".into()));
    let backed =
        CreateOptions { extended_l2: true, preallocation: Preallocation::Metadata, ..backed };
    let text = "backing_file=base.raw,backing_fmt=raw,extended_l2=on,preallocation=metadata";
    cases.push((backed, text.into()));
    cases
}

/// Without the two things that may differ: the name, and how much the host has allocated.
fn comparable(info: &str) -> Vec<&str> {
    let differs = |line: &&str| !line.contains("filename\"") && !line.contains("actual-size");
    info.lines().filter(differs).collect()
}

#[test]
fn images_are_what_qemu_makes_of_the_same_options() {
    let Some(rig) = Rig::with_qemu() else { return };
    rig.set_bytes("base.raw", &vec![7; 100 << 20]);
    for (options, text) in matrix() {
        rig.create("own", &options);
        let size = options.size.to_string();
        let flags: &[&str] = if text.is_empty() { &[] } else { &["-o", &text] };
        rig.qemu_img(&[&["create", "-q", "-f", "qcow2"], flags, &["qemu", &size]].concat());
        rig.assert_clean("own");
        let [own, qemu] = ["own", "qemu"].map(|name| {
            let info = rig.qemu_img(&["info", "--output", "json", name]);
            let info: Vec<String> = comparable(&info).into_iter().map(str::to_owned).collect();
            (info, rig.qemu_check(name).number("allocated-clusters"))
        });
        assert_eq!(own, qemu, "{text}");
        rig.qemu_img(&["compare", "-q", "own", "qemu"]);
        rig.qemu_io("own", &["write -P 3 64k 1M", "read -P 3 64k 1M"]);
        rig.assert_clean("own");
    }
}

#[test]
fn an_external_data_file_is_as_long_as_the_disk() {
    let Some(rig) = Rig::with_qemu() else { return };
    for raw in [false, true] {
        let options = CreateOptions {
            data_file: Some("own.data".into()),
            data_file_raw: raw,
            ..CreateOptions::new(5 * MIB)
        };
        rig.on_both(["own", "own.data"], async |file, data| {
            create(file, Some(data), &options).await.unwrap();
        });
        assert_eq!(rig.bytes("own.data").len(), 5 << 20);
        let text = if raw { "data_file=q.data,data_file_raw=on" } else { "data_file=q.data" };
        rig.qemu_img(&["create", "-q", "-f", "qcow2", "-o", text, "qemu", "5M"]);
        rig.assert_clean("own");
        let info = rig.qemu_img(&["info", "--output", "json", "own"]);
        let wanted = rig.qemu_img(&["info", "--output", "json", "qemu"]);
        let wanted = wanted.replace("q.data", "own.data");
        assert_eq!(comparable(&info), comparable(&wanted));
        rig.qemu_img(&["compare", "-q", "own", "qemu"]);
        rig.qemu_io("own", &["write -P 3 64k 1M"]);
        assert_eq!(rig.bytes("own.data")[65536], 3);
        rig.assert_clean("own");
    }
}

#[test]
fn what_a_raw_data_file_holds_is_what_the_image_shows() {
    let Some(rig) = Rig::with_qemu() else { return };
    for extended_l2 in [false, true] {
        let options = CreateOptions {
            data_file: Some("own.data".into()),
            data_file_raw: true,
            extended_l2,
            ..CreateOptions::new(MIB)
        };
        rig.on_both(["own", "own.data"], async |file, data| {
            create(file, Some(data), &options).await.unwrap();
        });
        // As a write leaves it that was not flushed when the host went down: tables take no part in it.
        let mut bytes = rig.bytes("own.data");
        bytes[5120..6144].fill(9);
        rig.set_bytes("own.data", &bytes);
        rig.qemu_io("own", &["read -P 9 5k 1k", "read -P 0 6k 1018k"]);
        rig.assert_clean("own");
    }
}

#[test]
fn a_huge_disk_is_made_at_once_in_a_small_file() {
    let Some(rig) = Rig::with_qemu() else { return };
    let options = CreateOptions::new(1 << 40);
    let started = crate::clock::Clock::real().now();
    rig.create("a", &options);
    let took = crate::clock::Clock::real().now() - started;
    println!("1 TiB in {took} ns");
    assert!(rig.bytes("a").len() < 1 << 20);
    rig.assert_clean("a");
    // The refcount table and the L1 table are several clusters each.
    let options = CreateOptions { cluster_size: 512, ..CreateOptions::new(64 << 30) };
    rig.create("a", &options);
    rig.assert_clean("a");
}

#[test]
fn options_that_do_not_go_together_are_refused_and_the_file_is_left_alone() {
    let plain = CreateOptions::new(MIB);
    let name = Some("other".to_owned());
    let cases = [
        (CreateOptions { size: 513, ..plain.clone() }, "multiple of 512"),
        (CreateOptions { cluster_size: 1000, ..plain.clone() }, "power of two between 512"),
        (CreateOptions { cluster_size: 1 << 22, ..plain.clone() }, "power of two between 512"),
        (CreateOptions { refcount_bits: 128, ..plain.clone() }, "may not exceed 64"),
        (CreateOptions { refcount_bits: 1, version: Version::V2, ..plain.clone() }, "1.1 or above"),
        (
            CreateOptions { extended_l2: true, version: Version::V2, ..plain.clone() },
            "1.1 and above",
        ),
        (CreateOptions { extended_l2: true, cluster_size: 4096, ..plain.clone() }, "16384"),
        (CreateOptions { data_file_raw: true, ..plain.clone() }, "requires data-file"),
        (CreateOptions { backing_format: name.clone(), ..plain.clone() }, "without backing file"),
        (CreateOptions { backing_file: Some("x".repeat(1024)), ..plain.clone() }, "1023"),
        (CreateOptions { data_file: name.clone(), ..plain.clone() }, "both a name and a node"),
        (CreateOptions { size: 1 << 60, ..plain.clone() }, "size is too large"),
        (
            CreateOptions { backing_file: name, preallocation: Preallocation::Full, ..plain },
            "Backing file and preallocation",
        ),
    ];
    let rig = Rig::new();
    rig.set_bytes("a", b"precious");
    for (options, what) in cases {
        let result = rig.on("a", async |file| create(file, None, &options).await);
        let error = result.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
        assert!(error.to_string().contains(what), "'{error}' does not say '{what}'");
    }
    assert_eq!(rig.bytes("a"), b"precious");
}
