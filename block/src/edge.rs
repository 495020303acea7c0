//! Edges: what a parent holds of a node, with the permissions that it needs and shares.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::{BitAnd, BitOr, Not, Range};
use std::rc::{Rc, Weak};

use crate::backend::BackendInner;
use crate::buf::IoBuf;
use crate::driver::{Extent, ExtentKind, WriteFlags};
use crate::error::Result;
use crate::graph::GraphInner;
use crate::node::{BlockNode, NodeInner};

/// A set of permissions on a node's content. The same set, with the same numbers, as QEMU's, which
/// are the offsets of its lock bytes in a file; but that for QEMU to grow and to shrink are one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Perms(u8);

impl Perms {
    /// Nothing.
    pub const NONE: Perms = Perms(0);
    /// Reading gives what was written last.
    pub const CONSISTENT_READ: Perms = Perms(1);
    /// Changing the content.
    pub const WRITE: Perms = Perms(2);
    /// Writing what would have been read anyway.
    pub const WRITE_UNCHANGED: Perms = Perms(4);
    /// Making it shorter.
    pub const SHRINK: Perms = Perms(8);
    /// Making it longer: who was told the length before need not mind.
    pub const GROW: Perms = Perms(16);
    /// Changing the length.
    pub const RESIZE: Perms = Perms(Perms::SHRINK.0 | Perms::GROW.0);
    /// Everything.
    pub const ALL: Perms = Perms(31);

    /// Whether all of `other` is in it.
    pub fn contains(self, other: Perms) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether it has nothing.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Those of QEMU's permissions of which something is in it, with their numbers and names.
    pub fn each(self) -> impl Iterator<Item = (u8, &'static str)> {
        const EACH: [(Perms, &str); 4] = [
            (Perms::CONSISTENT_READ, "consistent read"),
            (Perms::WRITE, "write"),
            (Perms::WRITE_UNCHANGED, "write unchanged"),
            (Perms::RESIZE, "resize"),
        ];
        let each = (0..).zip(EACH).filter(move |(_, (perm, _))| !(self & *perm).is_empty());
        each.map(|(number, (_, name))| (number, name))
    }

    /// With all of those of QEMU's permissions of which something is in it.
    pub(crate) fn whole(self) -> Perms {
        if (self & Perms::RESIZE).is_empty() { self } else { self | Perms::RESIZE }
    }
}

impl BitOr for Perms {
    type Output = Perms;
    fn bitor(self, other: Perms) -> Perms {
        Perms(self.0 | other.0)
    }
}

impl BitAnd for Perms {
    type Output = Perms;
    fn bitand(self, other: Perms) -> Perms {
        Perms(self.0 & other.0)
    }
}

impl Not for Perms {
    type Output = Perms;
    fn not(self) -> Perms {
        Perms(!self.0 & Perms::ALL.0)
    }
}

impl fmt::Display for Perms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (_, name)) in self.each().enumerate() {
            write!(f, "{}{name}", if index == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// What one parent, or all parents together, do to a node and let others do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EdgePerms {
    /// What is done.
    pub needs: Perms,
    /// What others may do meanwhile.
    pub shares: Perms,
}

impl EdgePerms {
    /// Does nothing, minds nothing.
    pub const IDLE: EdgePerms = EdgePerms { needs: Perms::NONE, shares: Perms::ALL };

    /// Reads, and shares everything but changes.
    pub const READ: EdgePerms = EdgePerms {
        needs: Perms::CONSISTENT_READ,
        shares: Perms(Perms::CONSISTENT_READ.0 | Perms::WRITE_UNCHANGED.0),
    };

    /// Reads and writes, and shares what a guest's disk shares.
    pub const READ_WRITE: EdgePerms = EdgePerms {
        needs: Perms(Perms::CONSISTENT_READ.0 | Perms::WRITE.0),
        shares: Perms(Perms::CONSISTENT_READ.0 | Perms::WRITE_UNCHANGED.0 | Perms::RESIZE.0),
    };

    /// What an overlay does to the image below it when `self` is done to the overlay. Who lets others change
    /// the overlay may see the image below change as well.
    pub(crate) fn of_backing(self) -> EdgePerms {
        let shared = self.shares.contains(Perms::WRITE);
        EdgePerms {
            needs: self.needs & Perms::CONSISTENT_READ,
            shares: if shared { Perms::ALL } else { EdgePerms::READ.shares },
        }
    }

    /// Both at once: needs together, shares what both share.
    #[must_use]
    pub fn combined(self, other: EdgePerms) -> EdgePerms {
        EdgePerms { needs: self.needs | other.needs, shares: self.shares & other.shares }
    }
}

/// What a child is to its parent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ChildRole {
    /// The node of a device, job or export.
    Root,
    /// The container of a format.
    File,
    /// Guest data kept outside the container.
    Data,
    /// What lies below where this node has nothing.
    Backing,
    /// The node that a filter passes everything to.
    Filtered,
    /// The node that a copy goes to.
    Target,
}

impl ChildRole {
    /// Its name in messages.
    pub fn name(self) -> &'static str {
        match self {
            ChildRole::Root => "root",
            ChildRole::File => "file",
            ChildRole::Data => "data-file",
            ChildRole::Backing => "backing",
            ChildRole::Filtered => "filtered",
            ChildRole::Target => "target",
        }
    }
}

/// How an edge's permissions come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PermRule {
    /// Always these.
    Fixed(EdgePerms),
    /// What the parent node's own parents do and share, passed on; with these besides, once there
    /// are any.
    PassOn(EdgePerms),
    /// What the parent node's own parents make of an image below it; see [`EdgePerms::of_backing`].
    Backing,
}

/// Who holds an edge.
#[derive(Clone)]
pub(crate) enum Parent {
    /// Not attached yet: the driver is being built and its node does not exist.
    None,
    Node(Weak<NodeInner>),
    Backend(Weak<BackendInner>),
}

pub(crate) struct EdgeInner {
    pub(crate) role: ChildRole,
    pub(crate) rule: Cell<PermRule>,
    pub(crate) granted: Cell<EdgePerms>,
    pub(crate) parent: RefCell<Parent>,
    pub(crate) node: RefCell<BlockNode>,
    pub(crate) graph: Weak<GraphInner>,
}

/// A hold of a node by a parent. Clones are the same hold; the last one dropped gives it up.
///
/// I/O goes through edges, and a graph edit re-points them: never keep the node of an edge across
/// an await.
#[derive(Clone)]
pub struct Edge(pub(crate) Rc<EdgeInner>);

impl Edge {
    /// What the child is to the parent.
    pub fn role(&self) -> ChildRole {
        self.0.role
    }

    /// The node it points to now.
    pub fn node(&self) -> BlockNode {
        self.0.node.borrow().clone()
    }

    /// What its parent does and shares now.
    pub fn perms(&self) -> EdgePerms {
        self.0.granted.get()
    }

    /// Length of the node in bytes.
    pub fn len(&self) -> u64 {
        self.0.node.borrow().len()
    }

    /// Whether the node has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// See [`BlockNode::read`].
    pub async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        self.node().read(at, into).await
    }

    /// See [`BlockNode::write`].
    pub async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        self.node().write(at, from, flags).await
    }

    /// See [`BlockNode::write_zeroes`].
    pub async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        self.node().write_zeroes(range, flags).await
    }

    /// See [`BlockNode::discard`].
    pub async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.node().discard(range).await
    }

    /// See [`BlockNode::flush`].
    pub async fn flush(&self) -> Result<()> {
        self.node().flush().await
    }

    /// See [`BlockNode::map`].
    pub async fn map(&self, range: Range<u64>) -> Result<Extent> {
        self.node().map(range).await
    }

    /// See [`BlockNode::resize`].
    pub async fn resize(&self, len: u64) -> Result<()> {
        self.node().resize(len).await
    }

    /// See [`BlockNode::grow`].
    pub async fn grow(&self, len: u64) -> Result<ExtentKind> {
        self.node().grow(len).await
    }
}

impl fmt::Debug for Edge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Edge({} -> {})", self.role().name(), self.0.node.borrow().name())
    }
}

impl Drop for EdgeInner {
    fn drop(&mut self) {
        let node = self.node.borrow().clone();
        let this: *const EdgeInner = self;
        node.forget_parent(this);
        if let Some(graph) = self.graph.upgrade() {
            graph.parent_gone(&node);
        }
    }
}
