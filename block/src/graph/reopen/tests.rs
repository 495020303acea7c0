//! Nodes that get other options while they are in use.

use super::*;
use crate::backend::BackendKind;
use crate::bitmap::DirtyBitmap;
use crate::clock::Clock;
use crate::driver::WriteFlags;
use crate::executor::Executor;
use crate::format::qcow2::BackingRef;
use crate::node::AttachedBitmap;
use crate::open::{BlockdevRef, DriverOptions};
use crate::testing::{have_tool, tool};
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

/// The new node asks for its file, too, as long as it is there.
#[test]
fn an_image_that_cannot_be_reopened_goes_on() {
    let Some(chain) = Chain::new() else { return };
    let DriverOptions::Qcow2(own) = chain.image("top").driver else { panic!() };
    let BlockdevRef::Nested(file) = own.file else { panic!() };
    chain.executor.block_on(chain.graph.open(&file)).unwrap();
    let image = |read_only| BlockdevOptions {
        node_name: Some("top".into()),
        read_only: Some(read_only),
        ..BlockdevOptions::qcow2(BlockdevRef::Name("top-file".into()))
    };
    let disk = chain.executor.block_on(chain.graph.open(&image(false))).unwrap();
    let root = chain.graph.add_backend(BackendKind::Device, "d", &disk, EdgePerms::READ_WRITE);
    drop(disk);
    assert_eq!(chain.reopen(image(true)).unwrap_err().kind(), ErrorKind::ReadOnly);
    let data = IoBuf::from_vec(&[7; 512]);
    chain.executor.block_on(root.unwrap().write(0, data, WriteFlags::NONE)).unwrap();
}

/// An image whose own file and backing file have names that only their parent's options give them.
struct Chain {
    executor: Executor,
    graph: BlockGraph,
    folder: tempfile::TempDir,
}

impl Chain {
    fn new() -> Option<Chain> {
        if !have_tool("qemu-img") {
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        for name in ["base", "top"] {
            let path = folder.path().join(name).display().to_string();
            tool("qemu-img", &["create", "-q", "-f", "qcow2", &path, "64K"]);
        }
        let executor = Executor::new(Clock::real()).unwrap();
        let graph = BlockGraph::new(executor.clone());
        Some(Chain { executor, graph, folder })
    }

    fn image(&self, name: &str) -> BlockdevOptions {
        let path = self.folder.path().join(name).display().to_string();
        let file = BlockdevOptions {
            node_name: Some(format!("{name}-file")),
            ..BlockdevOptions::file(path)
        };
        BlockdevOptions {
            node_name: Some(name.to_owned()),
            ..BlockdevOptions::qcow2(BlockdevRef::nested(file))
        }
    }

    fn top(&self) -> BlockdevOptions {
        let mut top = self.image("top");
        if let DriverOptions::Qcow2(own) = &mut top.driver {
            own.backing = BackingRef::Node(BlockdevRef::nested(self.image("base")));
        }
        top
    }

    fn reopen(&self, options: BlockdevOptions) -> Result<()> {
        self.executor.block_on(self.graph.reopen(&[options]))
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<_> =
            self.graph.nodes().iter().map(|node| node.name().to_owned()).collect();
        names.sort();
        names
    }

    fn is_read_only(&self, name: &str) -> bool {
        self.graph.node(name).unwrap().is_read_only()
    }
}

#[test]
fn children_that_are_described_by_their_names_are_reopened_in_their_places() {
    let Some(chain) = Chain::new() else { return };
    chain.executor.block_on(chain.graph.open(&chain.top())).unwrap();
    let names = ["base", "base-file", "top", "top-file"];
    assert_eq!(chain.names(), names);
    chain.reopen(BlockdevOptions { read_only: Some(true), ..chain.top() }).unwrap();
    assert_eq!(chain.names(), names, "nothing is left of the old ones");
    assert!(names.iter().all(|name| chain.is_read_only(name)));
    // The image below by itself, though it came with the one above and goes with it.
    let base = BlockdevOptions { read_only: Some(false), ..chain.image("base") };
    chain.reopen(base).unwrap();
    assert!(!chain.is_read_only("base") && chain.is_read_only("top"));
    chain.executor.block_on(chain.graph.remove("top")).unwrap();
    assert!(chain.names().is_empty());
}

#[test]
fn what_is_below_an_image_has_to_be_said_again() {
    let Some(chain) = Chain::new() else { return };
    chain.executor.block_on(chain.graph.open(&chain.top())).unwrap();
    let refused = chain.reopen(chain.image("top")).unwrap_err().to_string();
    assert_eq!(refused, "backing is missing for 'top'");
    let mut alone = chain.image("top");
    if let DriverOptions::Qcow2(own) = &mut alone.driver {
        own.backing = BackingRef::None;
    }
    chain.reopen(alone).unwrap();
    assert_eq!(chain.names(), ["top", "top-file"]);
}

#[test]
fn no_node_comes_to_lie_below_itself() {
    let Some(chain) = Chain::new() else { return };
    chain.executor.block_on(chain.graph.open(&chain.top())).unwrap();
    let over = |name: &str, backing: &str| {
        let mut image = chain.image(name);
        if let DriverOptions::Qcow2(own) = &mut image.driver {
            own.backing = BackingRef::Node(BlockdevRef::Name(backing.to_owned()));
        }
        image.read_only = Some(true);
        chain.reopen(image).unwrap_err().to_string()
    };
    let cycle = |name: &str, backing: &str| {
        format!("Making '{backing}' a backing child of '{name}' would create a cycle")
    };
    assert_eq!(over("base", "top"), cycle("base", "top"));
    assert_eq!(over("base", "base"), cycle("base", "base"));
    assert_eq!(chain.names(), ["base", "base-file", "top", "top-file"]);
    assert!(!chain.is_read_only("top") && chain.graph.node("top").unwrap().is_active());
}

/// The image above would go on with the tables that it read from the old file.
#[test]
fn no_other_file_takes_the_place_of_one_that_is_in_use() {
    let Some(chain) = Chain::new() else { return };
    chain.executor.block_on(chain.graph.open(&chain.image("top"))).unwrap();
    let path = chain.folder.path().join("base").display().to_string();
    let file = |path| BlockdevOptions {
        node_name: Some("top-file".into()),
        ..BlockdevOptions::file(path)
    };
    let refused = chain.reopen(file(path)).unwrap_err().to_string();
    assert_eq!(refused, "Cannot change the option 'filename'");
    chain.reopen(file(chain.folder.path().join("top").display().to_string())).unwrap();
}

/// The same for one that has no name of its own, and for one that others may use, too.
#[test]
fn no_other_file_is_opened_in_the_place_of_a_child() {
    let Some(chain) = Chain::new() else { return };
    let over = |name: &str| {
        let path = chain.folder.path().join(name).display().to_string();
        BlockdevOptions {
            node_name: Some("disk".into()),
            ..BlockdevOptions::qcow2(BlockdevRef::nested(BlockdevOptions::file(path)))
        }
    };
    chain.executor.block_on(chain.graph.open(&over("top"))).unwrap();
    let refused = chain.reopen(over("base")).unwrap_err().to_string();
    assert_eq!(refused, "Cannot change the option 'filename'");
    chain.reopen(over("top")).unwrap();
    assert_eq!(chain.names().len(), 2, "{:?}", chain.names());
    chain.executor.block_on(chain.graph.remove("disk")).unwrap();
    assert!(chain.names().is_empty());
    let path = chain.folder.path().join("top").display().to_string();
    let file = BlockdevOptions { node_name: Some("f".into()), ..BlockdevOptions::file(path) };
    chain.executor.block_on(chain.graph.open(&file)).unwrap();
    let image = BlockdevOptions {
        node_name: Some("disk".into()),
        ..BlockdevOptions::qcow2(BlockdevRef::Name("f".into()))
    };
    chain.executor.block_on(chain.graph.open(&image)).unwrap();
    let refused = chain.reopen(over("top")).unwrap_err().to_string();
    assert_eq!(refused, "Cannot change the option 'file.driver'");
}

#[test]
fn what_was_opened_with_a_node_becomes_read_only_with_it_and_writable_again() {
    let Some(chain) = Chain::new() else { return };
    chain.executor.block_on(chain.graph.open(&chain.top())).unwrap();
    let named = |read_only: bool| {
        let mut image = BlockdevOptions { read_only: Some(read_only), ..chain.image("top") };
        if let DriverOptions::Qcow2(own) = &mut image.driver {
            own.file = BlockdevRef::Name("top-file".into());
            own.backing = BackingRef::Node(BlockdevRef::Name("base".into()));
        }
        image
    };
    let base = chain.graph.node("base").unwrap();
    for read_only in [true, false, true] {
        chain.reopen(named(read_only)).unwrap();
        assert_eq!(chain.is_read_only("top"), read_only);
        assert_eq!(chain.is_read_only("top-file"), read_only);
        assert!(chain.graph.node("base").unwrap().is_same(&base), "nothing has changed for it");
    }
    // What a child was told itself stays so.
    let file = chain.image("top").driver;
    let DriverOptions::Qcow2(image) = file else { panic!() };
    let BlockdevRef::Nested(file) = image.file else { panic!() };
    chain.reopen(BlockdevOptions { read_only: Some(true), ..*file }).unwrap();
    assert_eq!(chain.reopen(named(false)).unwrap_err().kind(), ErrorKind::ReadOnly);
    assert!(chain.is_read_only("top") && chain.graph.node("top").unwrap().is_active());
}

/// Its bitmaps would be lost, and refcounts that were put off be wrong.
#[test]
fn a_child_that_is_left_behind_is_closed_in_order() {
    let Some(chain) = Chain::new() else { return };
    let path = chain.folder.path().join("top").display().to_string();
    tool("qemu-img", &["amend", "-f", "qcow2", "-o", "lazy_refcounts=on", &path]);
    let over =
        |file| BlockdevOptions { node_name: Some("disk".into()), ..BlockdevOptions::raw(file) };
    let top = BlockdevRef::nested(BlockdevOptions { node_name: None, ..chain.image("top") });
    chain.executor.block_on(chain.graph.open(&chain.image("base"))).unwrap();
    let disk = chain.executor.block_on(chain.graph.open(&over(top))).unwrap();
    let root = chain.graph.add_backend(BackendKind::Device, "d", &disk, EdgePerms::READ_WRITE);
    let (root, data) = (root.unwrap(), IoBuf::from_vec(&[7; 512]));
    chain.executor.block_on(root.write(0, data, WriteFlags::NONE)).unwrap();
    drop(disk);
    chain.reopen(over(BlockdevRef::Name("base".into()))).unwrap();
    assert_eq!(chain.names().len(), 3, "{:?}", chain.names());
    tool("qemu-img", &["check", "-q", "-f", "qcow2", &path]);
}

#[test]
fn a_node_that_another_process_owns_stays_so_beside_others() {
    let rig = Rig::new();
    let other = tempfile::NamedTempFile::new().unwrap();
    other.as_file().set_len(1 << 16).unwrap();
    let other = other.path().to_str().unwrap();
    let other =
        BlockdevOptions { node_name: Some("other".into()), ..BlockdevOptions::raw_file(other) };
    let node = rig.executor.block_on(rig.graph.open(&other)).unwrap();
    rig.executor.block_on(rig.graph.inactivate(node.name())).unwrap();
    drop(node);
    rig.reopen(&[rig.options(), other]).unwrap();
    let active: Vec<_> = rig.graph.nodes().iter().map(BlockNode::is_active).collect();
    assert_eq!(active.iter().filter(|active| **active).count(), 2, "a disk and its file");
    assert!(rig.node().is_active() && !rig.graph.node("other").unwrap().is_active());
}
