//! Images in a folder, opened by this driver and looked at by QEMU.

use std::process::Command;
use std::rc::Rc;

use super::super::Qcow2Options;
use crate::clock::Clock;
use crate::executor::Executor;
use crate::graph::BlockGraph;
use crate::node::BlockNode;
use crate::open::{BlockdevOptions, BlockdevRef, DiscardMode, DriverOptions};
use crate::testing::{have_tool, tool};
use crate::{BackendKind, BlockBackend, EdgePerms};

/// A folder of images.
pub(super) struct Rig {
    folder: Rc<tempfile::TempDir>,
}

/// An image in use, with a device on it.
pub(super) struct Open {
    pub(super) executor: Executor,
    pub(super) graph: BlockGraph,
    pub(super) node: BlockNode,
    _root: BlockBackend,
}

impl Rig {
    /// A folder, if QEMU's tools are there.
    pub(super) fn new() -> Option<Rig> {
        let have = have_tool("qemu-img") && have_tool("qemu-io");
        have.then(|| Rig { folder: Rc::new(tempfile::tempdir_in("/dev/shm").unwrap()) })
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_str().unwrap().to_owned()
    }

    /// `qemu-img create -f qcow2`; returns the path.
    pub(super) fn create(&self, name: &str, options: &str, size: &str) -> String {
        let path = self.path(name);
        let mut arguments = vec!["create", "-q", "-f", "qcow2"];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        arguments.extend([path.as_str(), size]);
        tool("qemu-img", &arguments);
        path
    }

    /// Runs commands of qemu-io on an image.
    pub(super) fn qemu_io(&self, path: &str, commands: &[&str]) {
        let mut arguments = vec!["-f", "qcow2"];
        for command in commands {
            arguments.extend(["-c", command]);
        }
        arguments.push(path);
        let text = tool("qemu-io", &arguments);
        assert!(!text.contains("failed"), "{commands:?}: {text}");
    }

    /// What QEMU reads of the image.
    pub(super) fn content(&self, path: &str) -> Vec<u8> {
        let raw = self.path("content.raw");
        tool("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", path, &raw]);
        std::fs::read(raw).unwrap()
    }
}

/// QEMU finds nothing wrong, not even leaks.
pub(super) fn check(path: &str) {
    tool("qemu-img", &["check", path]);
}

/// QEMU finds nothing wrong but leaks.
pub(super) fn check_but_for_leaks(path: &str) {
    // The kernel gives up the locks of a process that was killed a little after its end.
    for _ in 0..100 {
        let output = Command::new("qemu-img").args(["check", path]).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        if !text.contains("lock") {
            assert!(matches!(output.status.code(), Some(0 | 3)), "{path}: {text}");
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("{path} stays locked");
}

pub(super) fn options(path: &str) -> Qcow2Options {
    Qcow2Options::new(BlockdevRef::nested(BlockdevOptions::file(path)))
}

pub(super) fn blockdev(options: Qcow2Options) -> BlockdevOptions {
    BlockdevOptions {
        node_name: Some("disk".into()),
        discard: Some(DiscardMode::Unmap),
        ..BlockdevOptions::new(DriverOptions::Qcow2(Box::new(options)))
    }
}

/// Opens an image for writing.
pub(super) fn open(options: Qcow2Options) -> Open {
    open_blockdev(&blockdev(options), EdgePerms::READ_WRITE)
}

pub(super) fn open_blockdev(options: &BlockdevOptions, perms: EdgePerms) -> Open {
    let executor = Executor::new(Clock::real()).unwrap();
    let graph = BlockGraph::new(executor.clone());
    let node = executor.block_on(graph.open(options)).unwrap();
    let root = graph.add_backend(BackendKind::Device, "d0", &node, perms).unwrap();
    Open { executor, graph, node, _root: root }
}

impl Open {
    /// Runs something on the node.
    pub(super) fn on<T>(&self, work: impl AsyncFnOnce(&BlockNode) -> T) -> T {
        self.executor.block_on(work(&self.node))
    }

    /// All that is in it.
    pub(super) fn content(&self) -> Vec<u8> {
        self.on(async |node| {
            let buf = crate::IoBuf::alloc(usize::try_from(node.len()).unwrap());
            node.read(0, buf.clone()).await.unwrap();
            buf.to_vec()
        })
    }

    /// Closes it as a program does that ends well.
    pub(super) fn close(self) {
        self.executor.block_on(self.graph.inactivate_all()).unwrap();
    }
}
