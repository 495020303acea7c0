use super::*;
use crate::clock::Clock;
use crate::executor::Executor;
use crate::open::{BlockdevOptions, DriverOptions};
use crate::{BackendKind, EdgePerms};

fn graph() -> (Executor, BlockGraph, tempfile::NamedTempFile) {
    let executor = Executor::new(Clock::real()).unwrap();
    let file = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    std::fs::write(file.path(), (0..=255).cycle().take(1 << 16).collect::<Vec<u8>>()).unwrap();
    (executor.clone(), BlockGraph::new(executor), file)
}

fn over(file: BlockdevRef, offset: u64, size: Option<u64>) -> BlockdevOptions {
    let window = RawOptions { file, offset: Some(offset), size, guessed: false };
    BlockdevOptions::new(DriverOptions::Raw(window))
}

fn window(path: &str, offset: u64, size: Option<u64>) -> BlockdevOptions {
    over(BlockdevRef::nested(BlockdevOptions::file(path)), offset, size)
}

#[test]
fn a_window_shows_and_changes_only_its_bytes() {
    let (executor, graph, file) = graph();
    let path = file.path().to_str().unwrap();
    executor.block_on(async {
        let node = graph.open(&window(path, 1000, Some(500))).await.unwrap();
        assert_eq!(node.len(), 500);
        let root =
            graph.add_backend(BackendKind::Device, "d0", &node, EdgePerms::READ_WRITE).unwrap();
        let buf = IoBuf::alloc(500);
        root.read(0, buf.clone()).await.unwrap();
        assert_eq!(buf.to_vec(), std::fs::read(path).unwrap()[1000..1500]);
        root.write(0, IoBuf::from_vec(&[7; 500]), WriteFlags::NONE).await.unwrap();
        root.write_zeroes(10..20, WriteFlags::NONE).await.unwrap();
        let bytes = std::fs::read(path).unwrap();
        assert_eq!((bytes[999], bytes[1000], bytes[1010], bytes[1499]), (231, 7, 0, 7));
        assert_eq!(bytes[1500], 220);
        assert!(root.write(499, IoBuf::alloc(2), WriteFlags::NONE).await.is_err());
        let error = node.resize(600).await.unwrap_err();
        assert!(error.to_string().contains("Cannot resize fixed-size raw disks"), "{error}");
    });
}

#[test]
fn without_a_size_the_window_follows_the_file() {
    let (executor, graph, file) = graph();
    let path = file.path().to_str().unwrap();
    executor.block_on(async {
        let node = graph.open(&window(path, 4096, None)).await.unwrap();
        assert_eq!(node.len(), (1 << 16) - 4096);
        let _root = graph.add_backend(BackendKind::Device, "d0", &node, EdgePerms::READ_WRITE);
        node.resize(8192).await.unwrap();
        assert_eq!((node.len(), std::fs::read(path).unwrap().len()), (8192, 12288));
    });
}

#[test]
fn a_window_that_leaves_the_file_is_refused() {
    let (executor, graph, file) = graph();
    let path = file.path().to_str().unwrap();
    for (offset, size) in [(0, Some((1 << 16) + 1)), (1 << 17, None), (u64::MAX, Some(2))] {
        let error = executor.block_on(graph.open(&window(path, offset, size))).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(graph.nodes().is_empty());
    }
}

#[test]
fn two_windows_of_one_node_share_it_for_reading() {
    let (executor, graph, file) = graph();
    let path = file.path().to_str().unwrap();
    executor.block_on(async {
        let name = Some("whole".to_owned());
        let file = BlockdevOptions { node_name: name, ..BlockdevOptions::file(path) };
        graph.open(&file).await.unwrap();
        let half = |offset| over(BlockdevRef::Name("whole".into()), offset, Some(1 << 15));
        let first = graph.open(&half(0)).await.unwrap();
        let second = graph.open(&half(1 << 15)).await.unwrap();
        let _a = graph.add_backend(BackendKind::Device, "a", &first, EdgePerms::READ).unwrap();
        let _b = graph.add_backend(BackendKind::Device, "b", &second, EdgePerms::READ).unwrap();
        let writer = graph.add_backend(BackendKind::Export, "c", &second, EdgePerms::READ_WRITE);
        assert_eq!(writer.unwrap_err().kind(), ErrorKind::PermissionConflict);
    });
}

#[test]
fn an_image_that_was_taken_for_raw_never_comes_to_look_like_something_else() {
    let (executor, graph, _) = graph();
    // Not in memory, where no request waits for another.
    let file = tempfile::NamedTempFile::new_in(".").unwrap();
    std::fs::write(file.path(), [5; 16384]).unwrap();
    let path = file.path().to_str().unwrap();
    executor.block_on(async {
        let mut options = BlockdevOptions::raw_file(path);
        if let DriverOptions::Raw(raw) = &mut options.driver {
            raw.guessed = true;
        }
        let node = graph.open(&options).await.unwrap();
        let write =
            async |at, bytes: &[u8]| node.write(at, IoBuf::from_vec(bytes), WriteFlags::NONE).await;
        let before = std::fs::read(path).unwrap();
        let whole = [b"QFI\xfb\0\0\0\x03".as_slice(), &[0; 8192]].concat();
        let error = write(0, &whole).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PermissionDenied);
        assert!(error.to_string().contains("'qcow2'"), "{error}");
        // Not in pieces either, one after the other or at once.
        write(0, b"QFI").await.unwrap();
        assert!(write(3, b"\xfb").await.is_err());
        write(0, b"xx").await.unwrap();
        let part = |at, bytes: &[u8]| {
            let (node, bytes) = (node.clone(), IoBuf::from_vec(bytes));
            executor.spawn(async move { node.write(at, bytes, WriteFlags::NONE).await })
        };
        let (one, other) = (part(0, b"QF"), part(2, b"I\xfb"));
        assert!(one.await.is_err() != other.await.is_err());
        // Elsewhere and otherwise it is a disk like any other.
        write(512, &whole).await.unwrap();
        write(0, &before).await.unwrap();
        assert!(std::fs::read(path).unwrap() == before);
    });
}

/// What is behind the end of a file that became shorter would be lost to the window.
#[test]
fn nobody_else_changes_the_length_below_a_window_in_use() {
    let (executor, graph, file) = graph();
    let path = file.path().to_str().unwrap();
    executor.block_on(async {
        let named = BlockdevOptions { node_name: Some("f".into()), ..BlockdevOptions::file(path) };
        let below = graph.open(&named).await.unwrap();
        let node = graph.open(&over(BlockdevRef::Name("f".into()), 4096, None)).await.unwrap();
        let all = EdgePerms { needs: Perms::WRITE | Perms::RESIZE, shares: Perms::ALL };
        let root = graph.add_backend(BackendKind::Device, "d0", &node, all).unwrap();
        let resize = EdgePerms { needs: Perms::RESIZE, shares: Perms::ALL };
        let refused = graph.add_backend(BackendKind::Job, "j", &below, resize);
        assert_eq!(refused.err().unwrap().kind(), ErrorKind::PermissionConflict);
        root.resize(8192).await.unwrap();
        assert_eq!(below.len(), 12288);
    });
}
