//! What tests of graphs over real images share.

use super::BlockGraph;
use crate::backend::{BackendKind, BlockBackend};
use crate::buf::IoBuf;
use crate::clock::Clock;
use crate::driver::WriteFlags;
use crate::edge::EdgePerms;
use crate::error::Result;
use crate::executor::Executor;
use crate::format::qcow2::BackingRef;
use crate::job::create::{CreateImage, create_image};
use crate::node::BlockNode;
use crate::open::{BlockdevOptions, BlockdevRef, DriverOptions};

/// Bytes of every disk.
const SIZE: u64 = 1 << 20;

/// A graph, and a folder for its images.
pub(super) struct Rig {
    pub(super) executor: Executor,
    pub(super) graph: BlockGraph,
    folder: tempfile::TempDir,
}

impl Rig {
    pub(super) fn new() -> Rig {
        let executor = Executor::new(Clock::real()).unwrap();
        let graph = BlockGraph::new(executor.clone());
        Rig { executor, graph, folder: tempfile::tempdir().unwrap() }
    }

    pub(super) fn run<T>(&self, work: impl Future<Output = T>) -> T {
        self.executor.block_on(work)
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    /// A raw node over a new file of zeroes.
    pub(super) fn raw(&self, name: &str) -> BlockNode {
        std::fs::File::create(self.path(name)).unwrap().set_len(SIZE).unwrap();
        let options = BlockdevOptions::raw_file(self.path(name));
        self.open(BlockdevOptions { node_name: Some(name.into()), ..options })
    }

    /// A new qcow2 image that says to be over `below`, opened with `backing`.
    pub(super) fn image(&self, name: &str, below: &str, backing: BackingRef) -> BlockNode {
        let (path, below) = (self.path(name), (self.path(below), "raw".to_owned()));
        for image in [CreateImage::file(&path, 0), CreateImage::overlay(&path, SIZE, below)] {
            self.run(create_image(&self.graph, &image)).unwrap();
        }
        let file = BlockdevRef::nested(BlockdevOptions::file(path));
        let mut options = BlockdevOptions::qcow2(file);
        if let DriverOptions::Qcow2(qcow2) = &mut options.driver {
            qcow2.backing = backing;
        }
        self.open(BlockdevOptions { node_name: Some(name.into()), ..options })
    }

    pub(super) fn open(&self, options: BlockdevOptions) -> BlockNode {
        self.run(self.graph.open(&options)).unwrap()
    }

    pub(super) fn export(&self, node: &BlockNode) -> BlockBackend {
        let perms = EdgePerms::READ_WRITE;
        self.graph.add_backend(BackendKind::Export, "e", node, perms).unwrap()
    }

    pub(super) fn try_write(&self, root: &BlockBackend, at: u64, byte: u8) -> Result<()> {
        let data = IoBuf::from_vec(&[byte; 4096]);
        self.run(root.write(at, data, WriteFlags::NONE))
    }

    pub(super) fn write(&self, root: &BlockBackend, at: u64, byte: u8) {
        self.try_write(root, at, byte).unwrap();
    }

    pub(super) fn read(&self, root: &BlockBackend, at: u64) -> u8 {
        let buf = IoBuf::alloc(4096);
        self.run(root.read(at, buf.clone())).unwrap();
        buf.to_vec()[4095]
    }
}
