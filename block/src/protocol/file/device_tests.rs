use std::fs::{self, File};
use std::os::fd::AsFd;
use std::process::Command;

use tempfile::TempDir;

use super::*;
use crate::buf::IoBuf;
use crate::clock::Clock;
use crate::driver::WriteFlags;
use crate::executor::Executor;
use crate::graph::BlockGraph;
use crate::open::BlockdevOptions;
use crate::sys;

const LEN: u64 = 1 << 20;

/// A device over a file, until it is dropped.
struct Loop {
    folder: TempDir,
    path: String,
}

impl Loop {
    /// `None` where this process may not have one.
    fn new() -> Option<Loop> {
        let folder = tempfile::tempdir_in(".").unwrap();
        File::create(folder.path().join("file")).unwrap().set_len(LEN).unwrap();
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
        let file = File::options().write(true).open(self.folder.path().join("file")).unwrap();
        file.set_len(len).unwrap();
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
        node.resize(2 * LEN).await.unwrap_err();
        look_again(node).await.unwrap();
        assert_eq!(node.len(), LEN, "nobody has told the node");
        for other in [LEN / 2, 3 * LEN] {
            assert_eq!(node.resize(other).await.unwrap_err().kind(), ErrorKind::Unsupported);
        }
        node.resize(2 * LEN).await.unwrap();
        assert_eq!(node.len(), 2 * LEN);
        node.write(2 * LEN - 512, IoBuf::from_vec(&[7; 512]), WriteFlags::NONE).await.unwrap();
    });
}
