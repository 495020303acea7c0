use super::*;
use crate::backend::BackendKind;
use crate::bitmap::DirtyBitmap;
use crate::clock::Clock;
use crate::driver::WriteFlags;
use crate::executor::Executor;
use crate::node::AttachedBitmap;
use crate::open::BlockdevRef;
use crate::{IoBuf, Perms};

struct Rig {
    executor: Executor,
    graph: BlockGraph,
    file: tempfile::NamedTempFile,
}

impl Rig {
    /// A raw node `disk` over a file of 64 KiB.
    fn new() -> Rig {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 16).unwrap();
        let executor = Executor::new(Clock::real()).unwrap();
        let graph = BlockGraph::new(executor.clone());
        let rig = Rig { executor, graph, file };
        rig.executor.block_on(rig.graph.open(&rig.options())).unwrap();
        rig
    }

    fn options(&self) -> BlockdevOptions {
        let path = self.file.path().to_str().unwrap();
        BlockdevOptions { node_name: Some("disk".into()), ..BlockdevOptions::raw_file(path) }
    }

    fn reopen(&self, options: &[BlockdevOptions]) -> Result<()> {
        self.executor.block_on(self.graph.reopen(options))
    }

    fn node(&self) -> BlockNode {
        self.graph.node("disk").unwrap()
    }

    fn write(&self, root: &crate::BlockBackend, byte: u8) -> Result<()> {
        let data = IoBuf::from_vec(&[byte; 512]);
        self.executor.block_on(root.write(0, data, WriteFlags::NONE))
    }
}

#[test]
fn a_node_in_use_becomes_read_only_and_writable_again() {
    let rig = Rig::new();
    let read = EdgePerms { needs: Perms::CONSISTENT_READ, shares: Perms::ALL };
    let reader = rig.graph.add_backend(BackendKind::Export, "e", &rig.node(), read).unwrap();
    let bits = DirtyBitmap::new(1 << 16, 512).unwrap();
    rig.node().attach_bitmap(AttachedBitmap::new(Some("b".into()), bits));
    let read_only = BlockdevOptions { read_only: Some(true), ..rig.options() };
    rig.reopen(&[read_only]).unwrap();
    assert!(rig.node().is_read_only() && reader.node().is_same(&rig.node()));
    let names: Vec<_> = rig.node().bitmaps().iter().map(|bitmap| bitmap.name.clone()).collect();
    assert_eq!(names, [Some("b".to_owned())]);
    rig.reopen(&[rig.options()]).unwrap();
    assert_eq!(rig.graph.nodes().len(), 2, "nothing is left of the old ones");
    let root = rig.graph.add_backend(BackendKind::Device, "d", &rig.node(), EdgePerms::READ_WRITE);
    rig.write(&root.unwrap(), 7).unwrap();
    assert_eq!(std::fs::read(rig.file.path()).unwrap()[..512], [7; 512]);
    assert!(rig.node().bitmaps()[0].bits.borrow().dirty_bytes() > 0);
}

#[test]
fn what_cannot_be_opened_leaves_everything_as_it_was() {
    let rig = Rig::new();
    let root = rig.graph.add_backend(BackendKind::Device, "d", &rig.node(), EdgePerms::READ_WRITE);
    let root = root.unwrap();
    let before = rig.node();
    let read_only = BlockdevOptions { read_only: Some(true), ..rig.options() };
    let refused = rig.reopen(&[read_only]).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ReadOnly, "{refused}");
    let missing = BlockdevOptions {
        node_name: Some("disk".into()),
        ..BlockdevOptions::raw(BlockdevRef::Name("nosuch".into()))
    };
    assert_eq!(rig.reopen(&[missing]).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(rig.node().is_same(&before) && rig.node().is_active());
    rig.write(&root, 9).unwrap();
    assert_eq!(std::fs::read(rig.file.path()).unwrap()[..512], [9; 512]);
}

#[test]
fn only_nodes_that_are_there_are_reopened_and_only_as_what_they_are() {
    let rig = Rig::new();
    let text = |options: BlockdevOptions| rig.reopen(&[options]).unwrap_err().to_string();
    let other = BlockdevOptions { node_name: Some("nosuch".into()), ..rig.options() };
    assert_eq!(text(other), "Failed to find node with node-name='nosuch'");
    let nameless = BlockdevOptions { node_name: None, ..rig.options() };
    assert_eq!(text(nameless), "node-name not specified");
    let other = BlockdevOptions { node_name: Some("disk".into()), ..BlockdevOptions::file("x") };
    assert_eq!(text(other), "Cannot change the option 'driver'");
    let twice = rig.reopen(&[rig.options(), rig.options()]).unwrap_err().to_string();
    assert_eq!(twice, "Node disk is to be reopened twice");
}
