//! Seeded random requests, compared with a model, and then by QEMU.

use super::rig::{Rig, check, check_but_for_leaks, open, options};
use crate::driver::WriteFlags;
use crate::node::BlockNode;
use crate::testing::{CONFORMANCE_LEN, Model, Rng, conformance};

/// Images that differ in everything that the driver treats differently.
const SHAPES: [&str; 12] = [
    "",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=4096,refcount_bits=1",
    "cluster_size=2M",
    "refcount_bits=2,cluster_size=1024",
    "extended_l2=on,cluster_size=16k",
    "extended_l2=on,cluster_size=64k",
    "lazy_refcounts=on",
    "compression_type=zstd",
    "preallocation=metadata,cluster_size=8k",
];

async fn step(model: &mut Model, node: &BlockNode, rng: &mut Rng) {
    let align = [1, 512, 4096, 65536][usize::try_from(rng.below(4)).unwrap()];
    let longest = if rng.one_in(6) { 512 << 10 } else { 20 << 10 };
    let range = rng.range(model.len() as u64, align, longest.max(align));
    let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
    match rng.below(16) {
        0..=6 => {
            let byte = rng.bits().to_le_bytes()[0];
            let bytes: Vec<u8> = range.clone().map(|at| byte ^ at.to_le_bytes()[0]).collect();
            let flags =
                WriteFlags { fua: rng.one_in(8), compressed: rng.one_in(5), ..WriteFlags::NONE };
            model.write(range.start, &bytes, flags).await.unwrap();
        }
        7..=9 => {
            let flags = if rng.one_in(2) { WriteFlags::UNMAP } else { WriteFlags::NONE };
            model.write_zeroes(range, flags).await.unwrap();
        }
        10..=11 => model.discard(range).await.unwrap(),
        12 => node.flush().await.unwrap(),
        13 => model.check_map().await,
        _ => model.check(range).await,
    }
}

/// Random requests on one image, closed and opened again a few times.
fn random(
    rig: &Rig,
    shape: &str,
    size: u64,
    seed: u64,
    tune: impl Fn(&str) -> super::super::Qcow2Options,
) {
    let path = rig.create("image.qcow2", shape, &size.to_string());
    random_on(rig, &path, seed, tune);
}

fn random_on(rig: &Rig, path: &str, seed: u64, tune: impl Fn(&str) -> super::super::Qcow2Options) {
    let mut rng = Rng::new(seed);
    let mut bytes: Option<Vec<u8>> = None;
    for _ in 0..3 {
        let image = open(tune(path));
        let now = image.on(async |node| {
            let mut model = Model::learn(node, 0..node.len()).await;
            if let Some(bytes) = &bytes {
                assert!(model.bytes() == bytes, "another content after it was opened again");
            }
            for _ in 0..120 {
                step(&mut model, node, &mut rng).await;
            }
            model.check(0..model.len()).await;
            model.bytes().to_vec()
        });
        image.close();
        check(path);
        let len = std::fs::metadata(path).unwrap().len();
        assert!(len < 16 << 20, "the file has {len} bytes");
        assert!(rig.content(path) == now, "QEMU reads something else");
        bytes = Some(now);
    }
}

#[test]
fn random_requests_on_images_of_every_shape() {
    let Some(rig) = Rig::new() else { return };
    for (seed, shape) in SHAPES.iter().enumerate() {
        eprintln!("shape '{shape}'");
        random(&rig, shape, (1 << 20) + 777 * 512, seed as u64, options);
    }
}

#[test]
fn random_requests_with_the_smallest_caches() {
    let Some(rig) = Rig::new() else { return };
    for (seed, shape) in
        ["cluster_size=512", "", "extended_l2=on,cluster_size=16k"].iter().enumerate()
    {
        random(&rig, shape, 4 << 20, 100 + seed as u64, |path| super::super::Qcow2Options {
            l2_cache_size: Some(0),
            refcount_cache_size: Some(0),
            l2_cache_entry_size: Some(512),
            ..options(path)
        });
    }
}

#[test]
fn random_requests_over_a_backing_file() {
    let Some(rig) = Rig::new() else { return };
    let base = rig.create("base.qcow2", "", "700k");
    rig.qemu_io(&base, &["write -P 0x5a 0 700k", "write -z 64k 64k"]);
    let shapes = [
        "",
        "cluster_size=512",
        "extended_l2=on,cluster_size=32k",
        "compat=0.10",
        "cluster_size=2k,compat=0.10",
        "extended_l2=on,preallocation=metadata",
    ];
    for (seed, shape) in shapes.iter().enumerate() {
        let shape = format!(
            "{shape}{}backing_file=base.qcow2,backing_fmt=qcow2",
            if shape.is_empty() { "" } else { "," }
        );
        random(&rig, &shape, 1 << 20, 200 + seed as u64, options);
    }
}

#[test]
fn random_requests_with_a_data_file() {
    let Some(rig) = Rig::new() else { return };
    let shapes = [
        ("off", "cluster_size=64k"),
        ("on", "cluster_size=64k"),
        ("off", "extended_l2=on"),
        ("on", "extended_l2=on"),
        ("off", "extended_l2=on,preallocation=metadata"),
        ("off", "cluster_size=512"),
    ];
    for (seed, (raw, more)) in shapes.iter().enumerate() {
        let data = rig.path("data.raw");
        let shape = format!("{more},data_file={data},data_file_raw={raw}");
        random(&rig, &shape, 1 << 20, 300 + seed as u64, options);
        if *raw == "on" {
            let content = rig.content(&rig.path("image.qcow2"));
            assert!(
                std::fs::read(&data).unwrap()[..content.len()] == content,
                "the data file is not raw"
            );
        }
    }
}

#[test]
fn random_requests_on_an_image_with_snapshots() {
    let Some(rig) = Rig::new() else { return };
    for (seed, shape) in
        ["", "cluster_size=1024", "extended_l2=on,cluster_size=16k"].iter().enumerate()
    {
        let path = rig.create("image.qcow2", shape, "1M");
        rig.qemu_io(&path, &["write -P 0x11 0 600k", "write -z 100k 64k"]);
        crate::testing::tool("qemu-img", &["snapshot", "-c", "first", &path]);
        rig.qemu_io(&path, &["write -P 0x22 300k 100k"]);
        let before = rig.content(&path);
        crate::testing::tool("qemu-img", &["snapshot", "-c", "second", &path]);
        random_on(&rig, &path, 400 + seed as u64, options);
        crate::testing::tool("qemu-img", &["snapshot", "-a", "second", &path]);
        check(&path);
        assert!(rig.content(&path) == before, "a snapshot has changed");
    }
}

#[test]
fn conformance_of_images_of_every_shape() {
    let Some(rig) = Rig::new() else { return };
    for shape in SHAPES {
        let path = rig.create("image.qcow2", shape, &CONFORMANCE_LEN.to_string());
        let image = open(options(&path));
        let executor = image.executor.clone();
        image.on(async |node| conformance(&executor, node, 7).await);
        image.close();
        // Requests that were given up may have left leaks.
        check_but_for_leaks(&path);
    }
}
