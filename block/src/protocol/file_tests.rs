#![expect(
    clippy::cast_possible_truncation,
    reason = "patterns of bytes, and offsets of small disks"
)]

use std::process::Command;

use tempfile::TempDir;

use super::*;
use crate::clock::Clock;
use crate::graph::{BlockGraph, Generations};
use crate::io::RingChoice;
use crate::node::{BlockNode, NodeOptions};
use crate::open::{BlockdevOptions, BlockdevRef, DriverOptions};
use crate::{BackendKind, BlockBackend};

/// A directory on a real disk with an image of a pattern.
struct Image {
    directory: TempDir,
    len: u64,
}

impl Image {
    fn new(len: u64) -> Image {
        Image::below(".", len)
    }

    fn below(parent: &str, len: u64) -> Image {
        let image = Image { directory: tempfile::tempdir_in(parent).unwrap(), len };
        let bytes: Vec<u8> = (0..len).map(|at| (at / 512 % 251) as u8 + 1).collect();
        std::fs::write(image.path(), bytes).unwrap();
        image
    }

    fn path(&self) -> String {
        self.directory.path().join("disk.img").display().to_string()
    }

    fn bytes(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    fn options(&self) -> BlockdevOptions {
        BlockdevOptions { node_name: Some("n0".into()), ..BlockdevOptions::raw_file(self.path()) }
    }
}

fn graph(choice: RingChoice) -> (Executor, BlockGraph) {
    let executor = Executor::new(Clock::real()).unwrap();
    executor.set_ring_choice(choice);
    (executor.clone(), BlockGraph::new(executor))
}

/// Somebody who may write, so that the node below may be written to.
fn writer(graph: &BlockGraph, node: &BlockNode) -> BlockBackend {
    graph.add_backend(BackendKind::Device, "d0", node, EdgePerms::READ_WRITE).unwrap()
}

/// A graph with a guest's disk over the image.
fn machine(options: &BlockdevOptions) -> Result<(Executor, BlockGraph, BlockBackend)> {
    let (executor, graph) = graph(RingChoice::Auto);
    let node = executor.block_on(graph.open(options))?;
    let perms = if node.is_read_only() { EdgePerms::READ } else { EdgePerms::READ_WRITE };
    let root = graph.add_backend(BackendKind::Device, "d0", &node, perms)?;
    Ok((executor, graph, root))
}

fn inactive(image: &Image) -> BlockdevOptions {
    BlockdevOptions { active: Some(false), ..image.options() }
}

/// What `qemu-io` says to `command` on the image, and whether it was content.
fn qemu_io(image: &Image, arguments: &[&str], command: &str) -> (bool, String) {
    let output = Command::new("qemu-io")
        .args(["-f", "raw"])
        .args(arguments)
        .args(["-c", command])
        .arg(image.path())
        .output()
        .unwrap();
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (output.status.success(), text.concat())
}

#[test]
fn reads_writes_and_flushes_reach_the_file() {
    for choice in [RingChoice::Auto, RingChoice::ThreadPool] {
        let image = Image::new(1 << 20);
        let (executor, graph) = graph(choice);
        executor.block_on(async {
            let node = graph.open(&image.options()).await.unwrap();
            assert_eq!((node.len(), node.format()), (1 << 20, "raw"));
            let _root = writer(&graph, &node);
            let buf = IoBuf::alloc(5000);
            node.read(777, buf.clone()).await.unwrap();
            assert_eq!(buf.to_vec(), image.bytes()[777..5777]);
            node.write(99, IoBuf::from_vec(&[0xaa; 333]), WriteFlags::FUA).await.unwrap();
            node.flush().await.unwrap();
            assert!(image.bytes()[99..432].iter().all(|byte| *byte == 0xaa));
            assert_eq!(node.stats().write.bytes, 333);
        });
    }
}

#[test]
fn missing_and_impossible_files_are_refused_with_their_name() {
    let (executor, graph) = graph(RingChoice::Auto);
    let open = |path: &str| executor.block_on(graph.open(&BlockdevOptions::raw_file(path)));
    let error = open("/nonexistent/disk.img").unwrap_err();
    assert_eq!(
        error.to_string(),
        "Could not open '/nonexistent/disk.img': No such file or directory"
    );
    assert_eq!(error.kind(), ErrorKind::NotFound);
    let error = open("/dev/null").unwrap_err();
    assert!(error.to_string().contains("neither a regular file nor a block device"), "{error}");
    assert!(graph.nodes().is_empty(), "nothing may be left behind");
}

#[test]
fn past_the_page_cache_unaligned_requests_keep_their_neighbours() {
    for parent in [".", "/dev/shm"] {
        let image = Image::below(parent, (1 << 18) + 1000);
        let mut options = image.options();
        options.cache = Some(crate::CacheOptions { direct: Some(true), no_flush: None });
        let (executor, graph) = graph(RingChoice::Auto);
        let node = match executor.block_on(graph.open(&options)) {
            Ok(node) => node,
            Err(error) => {
                eprintln!("skipped on {parent}: {error}");
                continue;
            }
        };
        let mut model = image.bytes();
        let _root = writer(&graph, &node);
        executor.block_on(async {
            for (at, len) in [(0, 1), (511, 2), (4095, 4098), (1000, 100_000), (1 << 18, 1000)] {
                let bytes: Vec<u8> = (0..len).map(|byte| (byte * 7 + at) as u8).collect();
                model[at..at + len].copy_from_slice(&bytes);
                node.write(at as u64, IoBuf::from_vec(&bytes), WriteFlags::NONE).await.unwrap();
                let back = IoBuf::alloc(len);
                node.read(at as u64, back.clone()).await.unwrap();
                assert_eq!(back.to_vec(), bytes);
            }
            node.flush().await.unwrap();
        });
        assert!(image.bytes()[..model.len()] == model);
    }
}

#[test]
fn concurrent_writes_to_parts_of_one_block_are_all_kept() {
    let image = Image::new(1 << 16);
    let mut options = image.options();
    options.cache = Some(crate::CacheOptions { direct: Some(true), no_flush: None });
    let (executor, graph) = graph(RingChoice::Auto);
    let node = executor.block_on(graph.open(&options)).unwrap();
    assert!(node.children()[0].node().limits().request_alignment >= 512);
    let _root = writer(&graph, &node);
    // Odd pieces, so that neighbours share blocks; all at once.
    let writers: Vec<_> = (0..200_u64)
        .map(|number| {
            let node = node.clone();
            executor.spawn(async move {
                let bytes = [u8::try_from(number).unwrap(); 37];
                node.write(number * 37, IoBuf::from_vec(&bytes), WriteFlags::NONE).await
            })
        })
        .collect();
    for writer in writers {
        executor.block_on(writer).unwrap();
    }
    let bytes = image.bytes();
    for number in 0..200 {
        assert!(bytes[number * 37..][..37].iter().all(|byte| usize::from(*byte) == number));
    }
}

#[test]
fn map_follows_holes_and_data() {
    for parent in [".", "/dev/shm"] {
        let image = Image::below(parent, 1 << 20);
        let (executor, graph) = graph(RingChoice::Auto);
        executor.block_on(async {
            let node = graph.open(&image.options()).await.unwrap();
            let _root = writer(&graph, &node);
            let discard = 1 << 16..3 << 16;
            let flags = WriteFlags::UNMAP;
            // Without `discard=unmap` on the node zeroes keep their space.
            node.write_zeroes(discard.clone(), flags).await.unwrap();
            assert_eq!(extents(&node).await.iter().map(|it| it.1).sum::<u64>(), 1 << 20);
            let file = node.children()[0].node();
            file.discard(discard).await.unwrap();
            let expected = [
                (ExtentKind::Data, 1 << 16),
                (ExtentKind::Zero, 2 << 16),
                (ExtentKind::Data, 13 << 16),
            ];
            assert_eq!(extents(&node).await, expected);
            // A write into the hole must be seen although the hole was looked at before.
            node.write(2 << 16, IoBuf::from_vec(&[1; 4096]), WriteFlags::NONE).await.unwrap();
            assert_eq!(extents(&node).await.len(), 5);
            node.resize(2 << 20).await.unwrap();
            assert_eq!(extents(&node).await.last(), Some(&(ExtentKind::Zero, 1 << 20)));
            node.resize(1 << 10).await.unwrap();
            assert_eq!(node.len(), 1 << 10);
            assert_eq!(image.bytes().len(), 1 << 10);
        });
    }
}

async fn extents(node: &BlockNode) -> Vec<(ExtentKind, u64)> {
    let (mut all, mut at) = (Vec::new(), 0);
    while at < node.len() {
        let extent = node.map(at..node.len()).await.unwrap();
        all.push((extent.kind, extent.len));
        at += extent.len;
    }
    all
}

#[test]
fn zeroes_are_zeroes_whether_the_file_system_helps_or_not() {
    for parent in [".", "/dev/shm"] {
        for flags in [WriteFlags::NONE, WriteFlags::UNMAP, WriteFlags::FUA] {
            let image = Image::below(parent, 1 << 20);
            let (executor, graph) = graph(RingChoice::Auto);
            let mut model = image.bytes();
            executor.block_on(async {
                let node = graph.open(&image.options()).await.unwrap();
                let _root = writer(&graph, &node);
                for range in [5..6, 4096..8192, 10_000..700_001, 1_048_575..1_048_576] {
                    let bytes = range.start..range.end;
                    model[bytes.start as usize..bytes.end as usize].fill(0);
                    node.write_zeroes(range, flags).await.unwrap();
                }
            });
            assert!(image.bytes() == model);
        }
    }
}

#[test]
fn two_machines_and_qemu_keep_off_each_others_image() {
    let image = Image::new(image_len());
    let (_executor, _graph, _root) = machine(&image.options()).unwrap();
    // A second ferry, wanting to write or to read.
    let error = machine(&image.options()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Locked);
    let hint = format!("Is another process using the image [{}]?", image.path());
    assert_eq!(error.to_string(), format!("Failed to get \"write\" lock: {hint}"));
    let reader = BlockdevOptions { read_only: Some(true), ..image.options() };
    let error = machine(&reader).err().unwrap();
    assert_eq!(error.to_string(), format!("Failed to get shared \"write\" lock: {hint}"));
    // QEMU's tools, likewise, unless they insist.
    let (good, text) = qemu_io(&image, &[], "write 0 512");
    assert!(!good && text.contains("Failed to get \"write\" lock"), "{text}");
    let (good, text) = qemu_io(&image, &["-r", "-U"], "read 0 512");
    assert!(good, "{text}");
    let shared = BlockdevOptions { force_share: Some(true), ..reader };
    machine(&shared).unwrap();
}

/// The very bytes that QEMU 7.2 was seen to lock for a guest's writable disk.
#[test]
fn the_locked_bytes_are_those_of_qemu() {
    use std::os::unix::fs::MetadataExt;
    let image = Image::new(image_len());
    let _machine = machine(&image.options()).unwrap();
    let number = format!(":{} ", std::fs::metadata(image.path()).unwrap().ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap();
    let mut held: Vec<&str> = locks
        .lines()
        .filter(|line| line.contains(&number))
        .map(|line| &line[line.find("OFDLCK").unwrap()..])
        .map(|line| {
            assert!(line.contains(" READ "), "{line}");
            line.split_once(&number).unwrap().1
        })
        .collect();
    held.sort_unstable();
    assert_eq!(held, ["100 101", "201 201"]);
}

#[test]
fn readers_share_an_image_and_exclude_writers() {
    let image = Image::new(image_len());
    let reader = BlockdevOptions { read_only: Some(true), ..image.options() };
    let first = machine(&reader).unwrap();
    let second = machine(&reader).unwrap();
    assert!(qemu_io(&image, &["-r"], "read 0 512").0);
    assert_eq!(machine(&image.options()).err().unwrap().kind(), ErrorKind::Locked);
    assert!(!qemu_io(&image, &[], "write 0 512").0);
    drop((first, second));
    drop(machine(&image.options()).unwrap());
    assert!(qemu_io(&image, &[], "write 0 512").0);
}

#[test]
fn an_image_that_qemu_writes_is_refused() {
    let image = Image::new(image_len());
    let mut qemu = Command::new("qemu-io")
        .args(["-f", "raw", &image.path()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut refused = None;
    for _ in 0..200 {
        match machine(&image.options()) {
            Err(error) => {
                refused = Some(error);
                break;
            }
            Ok(machine) => drop(machine),
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert_eq!(refused.unwrap().kind(), ErrorKind::Locked);
    drop(qemu.stdin.take());
    qemu.wait().unwrap();
    machine(&image.options()).unwrap();
}

/// Nobody who has no parent writing through it needs a lock, as with QEMU.
#[test]
fn locks_follow_who_uses_a_node() {
    let image = Image::new(image_len());
    let (executor, graph) = graph(RingChoice::Auto);
    let node = executor.block_on(graph.open(&image.options())).unwrap();
    assert!(qemu_io(&image, &[], "write 0 512").0, "an idle node locks nothing");
    let perms = EdgePerms::READ_WRITE;
    let root = graph.add_backend(BackendKind::Device, "d0", &node, perms).unwrap();
    assert!(!qemu_io(&image, &[], "write 0 512").0);
    let error = graph.add_backend(BackendKind::Export, "e0", &node, perms).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionConflict);
    assert!(!qemu_io(&image, &[], "write 0 512").0, "a refused root changes nothing");
    drop(root);
    assert!(qemu_io(&image, &[], "write 0 512").0);
    // The lock is somebody else's: the root is refused and nothing of ours stays behind.
    let other = machine(&image.options()).unwrap();
    let error = graph.add_backend(BackendKind::Device, "d0", &node, perms).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    drop(other);
    graph.add_backend(BackendKind::Device, "d0", &node, perms).unwrap();
}

#[test]
fn locking_can_be_left_to_others() {
    let image = Image::new(image_len());
    let file = FileOptions { locking: Some(Locking::Off), ..FileOptions::new(image.path()) };
    let file = BlockdevOptions::new(DriverOptions::File(file));
    let driver = BlockdevOptions::raw(BlockdevRef::nested(file)).driver;
    let unlocked = BlockdevOptions { driver, ..image.options() };
    let _first = machine(&unlocked).unwrap();
    let _second = machine(&image.options()).unwrap();
    machine(&unlocked).unwrap();
}

/// The disk's part of a migration over shared storage: DESIGN section 10, steps 3 and 4.
#[test]
fn ownership_moves_from_one_process_to_another() {
    let image = Image::new(image_len());
    let (source, source_graph, source_root) = machine(&image.options()).unwrap();
    let (dest, dest_graph, dest_root) = machine(&inactive(&image)).unwrap();
    // The destination reads before it owns, and may not write.
    dest.block_on(dest_root.read(0, IoBuf::alloc(512))).unwrap();
    let write = |root: &BlockBackend| {
        let root = root.clone();
        async move { root.write(0, IoBuf::from_vec(&[9; 512]), WriteFlags::NONE).await }
    };
    assert_eq!(dest.block_on(write(&dest_root)).unwrap_err().kind(), ErrorKind::Inactive);
    // Too early: the source still owns it.
    let error = dest.block_on(dest_graph.activate_all(None)).unwrap_err();
    assert!(error.to_string().starts_with("Failed to get \"write\" lock"), "{error}");
    assert!(dest_graph.nodes().iter().all(|node| !node.is_active()));
    // The last thing the source does makes the image longer.
    let error = source.block_on(source_root.resize(image.len + 512)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PermissionDenied, "a guest's disk does not resize itself");
    source.block_on(source_root.node().resize(image.len + 512)).unwrap();
    source.block_on(source_graph.inactivate_all()).unwrap();
    let error = source.block_on(write(&source_root)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Inactive);
    dest.block_on(dest_graph.activate_all(None)).unwrap();
    assert_eq!(dest_root.len(), image.len + 512, "the length is read again");
    dest.block_on(write(&dest_root)).unwrap();
    // The source cannot have it back while the destination lives.
    let error = source.block_on(source_graph.activate_all(None)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Locked);
    assert!(!qemu_io(&image, &[], "write 0 512").0);
    assert!(image.bytes()[..512] == [9; 512]);
}

#[test]
fn the_mark_tells_whether_somebody_has_written_since() {
    let image = Image::new(image_len());
    let (source, graph, root) = machine(&image.options()).unwrap();
    let marks: Generations = source.block_on(graph.generations()).unwrap();
    if !marks.unmarked().is_empty() {
        eprintln!("skipped: no extended attributes here");
        return;
    }
    source.block_on(graph.inactivate_all()).unwrap();
    // Nobody took it: the source goes on.
    source.block_on(graph.activate_all(Some(&marks))).unwrap();
    // Going on is a new beginning too.
    let marks = source.block_on(graph.generations()).unwrap();
    source.block_on(graph.inactivate_all()).unwrap();
    // A destination runs, writes and dies: the lock is free, the mark is not the same.
    let dest = machine(&inactive(&image)).unwrap();
    dest.0.block_on(dest.1.activate_all(None)).unwrap();
    drop(dest);
    let error = source.block_on(graph.activate_all(Some(&marks))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::OwnershipUnknown);
    assert!(error.to_string().contains(&image.path()), "{error}");
    assert!(!root.node().is_active());
    // No lock may stay with who was refused.
    drop(machine(&image.options()).unwrap());
    // An operator decides.
    source.block_on(graph.activate_all(None)).unwrap();
}

#[test]
fn reading_an_image_leaves_no_mark() {
    let image = Image::new(image_len());
    let reader = BlockdevOptions { read_only: Some(true), ..image.options() };
    let (executor, graph, _root) = machine(&reader).unwrap();
    let file = executor.block_on(graph.nodes()[0].generation()).unwrap();
    assert!(matches!(file, None | Some(0)));
}

#[test]
fn inactivation_waits_for_writes_that_nobody_awaits() {
    let image = Image::new(1 << 20);
    let (executor, graph) = graph(RingChoice::Auto);
    executor.block_on(async {
        let options = FileMode::default();
        let driver = FileDriver::open(&executor, image.path(), options).await.unwrap();
        let node = graph.add(Some("f0"), driver, NodeOptions::default()).await.unwrap();
        for number in 0..16_u64 {
            let bytes = IoBuf::from_vec(&[0xee; 1 << 16]);
            let mut write = Box::pin(node.write(number << 16, bytes, WriteFlags::NONE));
            std::future::poll_fn(|cx| {
                assert!(write.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
        }
        graph.inactivate_all().await.unwrap();
    });
    assert!(image.bytes().iter().all(|byte| *byte == 0xee));
}

/// Longer than the bytes that are locked, so that content and locks could meet.
fn image_len() -> u64 {
    64 << 10
}

#[test]
fn the_last_sector_of_a_file_may_be_cut_off() {
    for (choice, parent) in [(RingChoice::Auto, "."), (RingChoice::ThreadPool, "/dev/shm")] {
        let image = Image::below(parent, 1000);
        let (executor, graph) = graph(choice);
        executor.block_on(async {
            let node = graph.open(&image.options()).await.unwrap();
            assert_eq!(node.len(), 1024);
            let root = writer(&graph, &node);
            let all = IoBuf::from_vec(&[0xee; 1024]);
            root.read(0, all.clone()).await.unwrap();
            assert_eq!(all.to_vec(), [&image.bytes()[..], &[0; 24]].concat());
            assert_eq!(root.map(0..1024).await.unwrap().kind, ExtentKind::Data);
            let tail = Extent { kind: ExtentKind::Zero, len: 24 };
            assert_eq!(root.map(1000..1024).await.unwrap(), tail);
            root.write(1010, IoBuf::from_vec(&[5; 14]), WriteFlags::NONE).await.unwrap();
            assert_eq!((node.len(), image.bytes().len()), (1024, 1024));
            assert_eq!(image.bytes()[1000..], [[0; 10].as_slice(), &[5; 14]].concat());
            let beyond = root.write(1024, IoBuf::alloc(1), WriteFlags::NONE).await;
            assert_eq!(beyond.unwrap_err().kind(), ErrorKind::OutOfRange);
        });
    }
}

#[test]
fn the_last_sector_is_read_past_the_page_cache_too() {
    let image = Image::new(5000);
    let cache = crate::open::CacheOptions { direct: Some(true), no_flush: None };
    let options = BlockdevOptions { cache: Some(cache), ..image.options() };
    let (executor, _graph, root) = machine(&options).unwrap();
    executor.block_on(async {
        let all = IoBuf::from_vec(&[0xee; 5120]);
        root.read(0, all.clone()).await.unwrap();
        assert_eq!(all.to_vec(), [&image.bytes()[..], &[0; 120]].concat());
        root.write(5010, IoBuf::from_vec(&[5; 10]), WriteFlags::NONE).await.unwrap();
        root.read(0, all.clone()).await.unwrap();
        assert_eq!(all.to_vec()[5000..5020], [[0; 10], [5; 10]].concat());
    });
}
