//! The same on real files: raw over file, on an I/O thread, on whatever ring the host gives.

use std::cell::{Cell, RefCell};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::rc::Rc;

use super::rig::{KIB, MIB, pattern};
use crate::backend::{BackendKind, BlockBackend};
use crate::clock::Clock;
use crate::driver::WriteFlags;
use crate::edge::EdgePerms;
use crate::executor::Executor;
use crate::graph::BlockGraph;
use crate::io::RingChoice;
use crate::io_thread::{IoThread, IoThreadOptions};
use crate::job::JobRegistry;
use crate::job::mirror::{self, CopyMode, MirrorOptions, SyncMode};
use crate::open::{BlockdevOptions, BlockdevRef};
use crate::testing::{Model, Rng, have_tool, tool};

const LEN: u64 = 96 * MIB;
/// Only so much at the start and at the end holds data.
const DATA: u64 = 12 * MIB;

fn open(name: &str, path: &Path) -> BlockdevOptions {
    let path = path.to_str().unwrap();
    BlockdevOptions { node_name: Some(name.into()), ..BlockdevOptions::raw_file(path) }
}

/// A guest that writes to its own part until told to stop, then compares all of it.
async fn guest(device: BlockBackend, part: std::ops::Range<u64>, stop: Rc<Cell<bool>>) -> u64 {
    let mut rng = Rng::new(part.start);
    let start = usize::try_from(part.start).unwrap();
    let ledger = Rc::new(RefCell::new(pattern(7, LEN)[start..].to_vec()));
    let mut writes = 0;
    while !stop.get() {
        let range = rng.range(DATA, 512, 64 * KIB);
        let len = usize::try_from(range.end - range.start).unwrap();
        let bytes = vec![rng.bits().to_le_bytes()[0]; len];
        let buf = crate::buf::IoBuf::from_vec(&bytes);
        let flags = if rng.one_in(32) { WriteFlags::FUA } else { WriteFlags::NONE };
        device.write(part.start + range.start, buf, flags).await.unwrap();
        let at = usize::try_from(range.start).unwrap();
        ledger.borrow_mut()[at..at + len].copy_from_slice(&bytes);
        writes += 1;
    }
    let now = Model::learn(&device.node(), part).await;
    let expected = ledger.borrow();
    assert!(now.bytes() == &expected[..now.len()], "an acknowledged write is lost");
    writes
}

async fn back_and_forth(graph: BlockGraph, paths: [std::path::PathBuf; 2], mode: CopyMode) {
    let names = ["a", "b"];
    for (name, path) in names.iter().zip(&paths) {
        graph.open(&open(name, path)).await.unwrap();
    }
    let node = graph.node("a").unwrap();
    let perms = EdgePerms::READ_WRITE;
    let device = graph.add_backend(BackendKind::Device, "d0", &node, perms).unwrap();
    drop(node);
    let stop = Rc::new(Cell::new(false));
    let guests = [0..DATA, LEN - DATA..LEN]
        .map(|part| graph.executor().spawn(guest(device.clone(), part, Rc::clone(&stop))));
    for round in 0..6 {
        let target = names[1 - round % 2];
        let options =
            MirrorOptions { copy_mode: mode, ..MirrorOptions::new("d0", target, SyncMode::Full) };
        let id = mirror::start(&graph, options).await.unwrap();
        let job = JobRegistry::of(&graph).find(&id).unwrap();
        while !job.info().ready {
            graph.executor().sleep(std::time::Duration::from_millis(1)).await;
        }
        job.complete().unwrap();
        job.concluded().await;
        assert_eq!(device.node().name(), target, "{:?}", job.info());
    }
    stop.set(true);
    for guest in guests {
        assert!(guest.await > 0);
    }
    device.flush().await.unwrap();
}

/// Its bitmaps would stay in use, which loses them.
#[test]
fn a_source_that_nobody_keeps_is_closed_in_order() {
    if !have_tool("qemu-img") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a", "b"].map(|name| folder.path().join(name).display().to_string());
    for path in &paths {
        tool("qemu-img", &["create", "-q", "-f", "qcow2", path, "16M"]);
    }
    tool("qemu-img", &["bitmap", "--add", &paths[0], "b0"]);
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    executor.block_on(async {
        for (name, path) in ["a", "b"].iter().zip(&paths) {
            let file = BlockdevRef::nested(BlockdevOptions::file(path));
            let name = Some((*name).to_owned());
            let image = BlockdevOptions { node_name: name, ..BlockdevOptions::qcow2(file) };
            graph.open(&image).await.unwrap();
        }
        let node = graph.node("a").unwrap();
        let perms = EdgePerms::READ_WRITE;
        let device = graph.add_backend(BackendKind::Device, "d0", &node, perms).unwrap();
        graph.disown(&node);
        drop(node);
        let data = crate::buf::IoBuf::from_vec(&[7; 4096]);
        device.write(0, data, WriteFlags::NONE).await.unwrap();
        let id = mirror::start(&graph, MirrorOptions::new("d0", "b", SyncMode::Full)).await;
        let job = JobRegistry::of(&graph).find(&id.unwrap()).unwrap();
        while !job.info().ready {
            executor.sleep(std::time::Duration::from_millis(1)).await;
        }
        job.complete().unwrap();
        job.concluded().await;
        assert_eq!(device.node().name(), "b");
        assert!(graph.node("a").is_none());
    });
    let info = tool("qemu-img", &["info", "--output=json", &paths[0]]);
    assert!(info.contains(r#""name": "b0""#) && !info.contains("in-use"), "{info}");
}

#[test]
fn raw_files_back_and_forth_under_load() {
    for (ring, mode) in [
        (RingChoice::Auto, CopyMode::Background),
        (RingChoice::Auto, CopyMode::WriteBlocking),
        (RingChoice::ThreadPool, CopyMode::Background),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a.raw", "b.raw"].map(|name| folder.path().join(name));
        let data = usize::try_from(DATA).unwrap();
        let bytes = pattern(7, LEN);
        for path in &paths {
            std::fs::File::create(path).unwrap().set_len(LEN).unwrap();
        }
        let first = std::fs::OpenOptions::new().write(true).open(&paths[0]).unwrap();
        first.write_all_at(&bytes[..data], 0).unwrap();
        first.write_all_at(&bytes[bytes.len() - data..], LEN - DATA).unwrap();
        let thread = IoThread::spawn("mirror", IoThreadOptions { ring, ..Default::default() });
        let thread = thread.unwrap();
        let both = paths.clone();
        thread.handle().call_blocking(move |graph| back_and_forth(graph, both, mode)).unwrap();
        thread.stop().unwrap();
        // What no guest wrote is a hole on both, and so it was never copied.
        for path in &paths {
            let used = std::fs::metadata(path).unwrap().blocks() * 512;
            assert!(used <= 2 * DATA + MIB, "{} uses {used} bytes", path.display());
        }
    }
}
