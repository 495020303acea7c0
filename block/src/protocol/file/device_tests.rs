use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::process::Command;

use tempfile::TempDir;

use super::*;
use crate::backend::BackendKind;
use crate::buf::IoBuf;
use crate::clock::Clock;
use crate::driver::WriteFlags;
use crate::edge::{ChildRole, EdgePerms, Perms};
use crate::executor::Executor;
use crate::format::qcow2::Qcow2Options;
use crate::format::qcow2::create::{CreateOptions, create};
use crate::graph::BlockGraph;
use crate::node::BlockNode;
use crate::open::{BlockdevOptions, BlockdevRef, DriverOptions};
use crate::sys;

const LEN: u64 = 1 << 20;
/// What every byte of a device was before.
const OLD: u8 = 0xee;
const CLUSTER: usize = 1 << 16;
/// For who lays an image out.
const WHOLE: EdgePerms = EdgePerms { needs: Perms::ALL, shares: Perms::NONE };

/// A device over a file, until it is dropped.
struct Loop {
    folder: TempDir,
    path: String,
}

/// Makes the file so long. What is new of it was something before.
fn lengthen(folder: &TempDir, len: u64) {
    let path = folder.path().join("file");
    let mut file = File::options().create(true).append(true).open(path).unwrap();
    let more = len - file.metadata().unwrap().len();
    io::copy(&mut io::repeat(OLD).take(more), &mut file).unwrap();
}

impl Loop {
    /// `None` where this process may not have one.
    fn new() -> Option<Loop> {
        let folder = tempfile::tempdir_in(".").unwrap();
        lengthen(&folder, LEN);
        let mut setup = Command::new("losetup");
        setup.args(["--show", "-f"]).arg(folder.path().join("file"));
        let made = setup.output().ok().filter(|made| made.status.success());
        let Some(made) = made else {
            eprintln!("skipped: no loop devices here");
            return None;
        };
        let path = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        Some(Loop { folder, path })
    }

    fn grow(&self, len: u64) {
        lengthen(&self.folder, len);
        let told = Command::new("losetup").args(["-c", &self.path]).status().unwrap();
        assert!(told.success());
    }

    /// How often it was told to make everything durable.
    fn flushes(&self) -> u64 {
        let name = self.path.trim_start_matches("/dev/");
        let counters = fs::read_to_string(format!("/sys/block/{name}/stat")).unwrap();
        counters.split_whitespace().nth(15).unwrap().parse().unwrap()
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        Command::new("losetup").args(["-d", &self.path]).status().unwrap();
    }
}

fn with_device(direct: bool, test: impl AsyncFnOnce(&Loop, &BlockNode)) {
    let Some(device) = Loop::new() else { return };
    let executor = Executor::new(Clock::real()).unwrap();
    executor.block_on(async {
        let graph = BlockGraph::new(executor.clone());
        let cache = Some(crate::CacheOptions { direct: Some(direct), no_flush: None });
        let options = BlockdevOptions { cache, ..BlockdevOptions::raw_file(device.path.clone()) };
        let node = graph.open(&options).await.unwrap();
        test(&device, &node).await;
    });
}

#[test]
fn what_is_in_memory_of_a_device_is_its_name_only() {
    assert!(!sys::is_tmpfs(File::open("/dev/null").unwrap().as_fd()));
}

#[test]
fn a_flush_goes_to_the_device() {
    for direct in [false, true] {
        with_device(direct, async |device, node| {
            for flags in [WriteFlags::NONE, WriteFlags::FUA] {
                let before = device.flushes();
                node.write(4096, IoBuf::from_vec(&[7; 4096]), flags).await.unwrap();
                if !flags.fua {
                    node.flush().await.unwrap();
                }
                assert!(device.flushes() > before, "{flags:?}, direct: {direct}");
            }
        });
    }
}

#[test]
fn a_device_that_was_extended_is_as_long_as_it_is() {
    with_device(false, async |device, node| {
        device.grow(2 * LEN);
        assert_eq!(node.len(), LEN);
        node.look_again().await.unwrap();
        assert_eq!(node.len(), LEN, "nobody has told the node");
        for other in [LEN / 2, 3 * LEN] {
            assert_eq!(node.resize(other).await.unwrap_err().kind(), ErrorKind::Unsupported);
        }
        node.resize(2 * LEN).await.unwrap();
        assert_eq!(node.len(), 2 * LEN);
        node.write(2 * LEN - 512, IoBuf::from_vec(&[7; 512]), WriteFlags::NONE).await.unwrap();
    });
}

/// Writes the first sectors of clusters from the one at `at` on, as long as there is room; where that ends.
async fn fill(image: &BlockNode, mut at: u64) -> u64 {
    loop {
        match image.write(at, IoBuf::from_vec(&[7; 512]), WriteFlags::NONE).await {
            Ok(()) => at += CLUSTER as u64,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
                return at;
            }
        }
    }
}

#[test]
fn an_image_on_a_device_goes_on_when_that_is_extended() {
    let Some(device) = Loop::new() else { return };
    let executor = Executor::new(Clock::real()).unwrap();
    executor.block_on(async {
        let graph = BlockGraph::new(executor.clone());
        let file = graph.open(&BlockdevOptions::file(device.path.clone())).await.unwrap();
        let edge = graph.edge(&file, ChildRole::File, WHOLE).unwrap();
        create(&edge, None, &CreateOptions::new(16 * LEN)).await.unwrap();
        drop(edge);
        let image = BlockdevOptions::qcow2(BlockdevRef::Name(file.name().to_owned()));
        let image = graph.open(&image).await.unwrap();
        let needs = EdgePerms { needs: Perms::WRITE, shares: Perms::ALL };
        let _disk = graph.add_backend(BackendKind::Device, "disk", &image, needs).unwrap();

        let full = fill(&image, 0).await;
        device.grow(4 * LEN);
        let end = fill(&image, full).await;
        assert_eq!(end - full, 3 * LEN, "all of it is used");
        for at in (0..end).step_by(CLUSTER) {
            let cluster = IoBuf::alloc(CLUSTER);
            image.read(at, cluster.clone()).await.unwrap();
            let bytes = cluster.to_vec();
            assert!(bytes[..512].iter().all(|byte| *byte == 7), "{at:#x}");
            assert!(bytes[512..].iter().all(|byte| *byte == 0), "{at:#x} shows what was there");
        }
        image.flush().await.unwrap();
    });
}

#[test]
fn a_data_file_on_a_device_goes_on_when_that_is_extended() {
    let Some(device) = Loop::new() else { return };
    let executor = Executor::new(Clock::real()).unwrap();
    executor.block_on(async {
        let graph = BlockGraph::new(executor.clone());
        let empty = async |name: &str| {
            let path = device.folder.path().join(name);
            fs::write(&path, []).unwrap();
            graph.open(&BlockdevOptions::file(path.to_str().unwrap())).await.unwrap()
        };
        let (file, whole) = (empty("image").await, empty("whole").await);
        let edge = graph.edge(&file, ChildRole::File, WHOLE).unwrap();
        let whole = graph.edge(&whole, ChildRole::Data, WHOLE).unwrap();
        let options =
            CreateOptions { data_file: Some("whole".into()), ..CreateOptions::new(4 * LEN) };
        create(&edge, Some(&whole), &options).await.unwrap();
        drop((edge, whole));
        // The device is to be shorter than the disk.
        let data = graph.open(&BlockdevOptions::file(device.path.clone())).await.unwrap();
        let options = Qcow2Options {
            data_file: Some(BlockdevRef::Name(data.name().to_owned())),
            ..Qcow2Options::new(BlockdevRef::Name(file.name().to_owned()))
        };
        let image = BlockdevOptions::new(DriverOptions::Qcow2(Box::new(options)));
        let image = graph.open(&image).await.unwrap();
        let needs = EdgePerms { needs: Perms::WRITE, shares: Perms::ALL };
        let _disk = graph.add_backend(BackendKind::Device, "disk", &image, needs).unwrap();

        assert_eq!(fill(&image, 0).await, LEN, "the device is full");
        device.grow(2 * LEN);
        assert_eq!(fill(&image, LEN).await, 2 * LEN, "all of it is used");
        let last = IoBuf::alloc(CLUSTER);
        image.read(2 * LEN - CLUSTER as u64, last.clone()).await.unwrap();
        let last = last.to_vec();
        assert!(last[..512].iter().all(|byte| *byte == 7));
        assert!(last[512..].iter().all(|byte| *byte == 0), "it shows what was there");
        image.flush().await.unwrap();
    });
}
