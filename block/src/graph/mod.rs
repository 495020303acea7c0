//! [`BlockGraph`]: the nodes of one thread, their names, and everything that changes how they hang
//! together.

mod bitmaps;
mod drain;
mod edit;
mod export;
mod internal;
mod ownership;
mod perms;
mod read_only;
mod reopen;
mod snapshot;
#[cfg(test)]
mod test_rig;
mod turn;

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use crate::backend::{BackendId, BackendInner, BackendKind, BlockBackend};
use crate::driver::BlockDriver;
use crate::edge::{ChildRole, Edge, EdgeInner, EdgePerms, Parent, PermRule};
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;
use crate::filter::mirror_top::MirrorTop;
use crate::node::{BlockNode, NodeInner, NodeOptions};
use crate::notify::Notify;
use crate::protocol::file::FileDriver;
use crate::protocol::nbd::NbdDriver;
use crate::ranges::RangeLocks;

pub use bitmaps::{BitmapChange, BitmapOptions, BitmapSource};
pub use drain::Drained;
pub use edit::Edit;
pub use ownership::Generations;
pub use snapshot::{ExternalSnapshot, check_top};
pub use turn::Turn;

use drain::DrainInner;

/// Longest name of a node or device, bytes, as QMP clients expect.
pub const MAX_NAME: usize = 31;

/// The graph of one thread; clones are the same graph.
#[derive(Clone)]
pub struct BlockGraph(pub(crate) Rc<GraphInner>);

pub(crate) struct GraphInner {
    executor: Executor,
    /// Every node that lives, in the order they were added.
    nodes: RefCell<Vec<Weak<NodeInner>>>,
    /// The nodes that live until they are removed by name.
    owned: RefCell<Vec<BlockNode>>,
    backends: RefCell<Vec<Weak<BackendInner>>>,
    drains: RefCell<Vec<Weak<DrainInner>>>,
    /// Told when gates have been shut.
    drain_began: Rc<Notify>,
    turns: RangeLocks,
    next_auto_name: Cell<u32>,
    next_backend: Cell<u64>,
    extensions: RefCell<BTreeMap<TypeId, Rc<dyn Any>>>,
}

impl BlockGraph {
    /// An empty graph on the thread of `executor`.
    pub fn new(executor: Executor) -> BlockGraph {
        BlockGraph(Rc::new(GraphInner {
            executor,
            nodes: RefCell::default(),
            owned: RefCell::default(),
            backends: RefCell::default(),
            drains: RefCell::default(),
            drain_began: Rc::default(),
            turns: RangeLocks::new(),
            next_auto_name: Cell::new(100),
            next_backend: Cell::new(1),
            extensions: RefCell::default(),
        }))
    }

    /// The executor of its thread.
    pub fn executor(&self) -> &Executor {
        &self.0.executor
    }

    /// What `T` hangs on this graph, made by `make` the first time: one of each type.
    pub fn extension<T: 'static>(&self, make: impl FnOnce() -> T) -> Rc<T> {
        let found = self.0.extensions.borrow().get(&TypeId::of::<T>()).cloned();
        if let Some(found) = found.and_then(|found| found.downcast::<T>().ok()) {
            return found;
        }
        let made = Rc::new(make());
        self.0.extensions.borrow_mut().insert(TypeId::of::<T>(), made.clone());
        made
    }

    /// Adds a node over `driver`. Without a name it gets one that users cannot choose.
    ///
    /// The node takes the edges that the driver made, and write ownership unless
    /// `options.active` is off. Nothing is left behind when that fails.
    pub async fn add(
        &self,
        name: Option<&str>,
        driver: impl BlockDriver,
        options: NodeOptions,
    ) -> Result<BlockNode> {
        let name = match name {
            Some(name) => {
                check_name(name, "node-name")?;
                self.check_unused(name)?;
                name.to_owned()
            }
            None => self.auto_name(),
        };
        self.insert(name, driver, options).await
    }

    /// [`add`](BlockGraph::add) under a name that has been checked.
    pub(crate) async fn insert(
        &self,
        name: String,
        driver: impl BlockDriver,
        options: NodeOptions,
    ) -> Result<BlockNode> {
        let node = BlockNode::new(name, Box::new(driver), options, self.0.executor.clone());
        for edge in node.children() {
            edge.0.parent.replace(Parent::Node(Rc::downgrade(&node.0)));
            edge.node().meet_parent(&node);
        }
        self.0.nodes.borrow_mut().push(Rc::downgrade(&node.0));
        if options.active {
            node.activate(None).await?;
        }
        if options.owned {
            self.0.owned.borrow_mut().push(node.clone());
        }
        Ok(node)
    }

    /// An edge to `node` for a driver that is being built, with permissions of its own.
    pub fn edge(&self, node: &BlockNode, role: ChildRole, perms: EdgePerms) -> Result<Edge> {
        self.attach(node, role, PermRule::Fixed(perms), Parent::None)
    }

    /// An edge to `node` for a filter that is being built: what its parents do and share is passed
    /// on to `node`.
    pub fn filter_edge(&self, node: &BlockNode, role: ChildRole) -> Result<Edge> {
        self.filter_edge_with(node, role, EdgePerms::IDLE)
    }

    /// [`filter_edge`](BlockGraph::filter_edge) for a filter that does more to `node` than its
    /// parents ask for, or shares less: `own`, as soon as anybody uses the filter.
    pub fn filter_edge_with(
        &self,
        node: &BlockNode,
        role: ChildRole,
        own: EdgePerms,
    ) -> Result<Edge> {
        self.attach(node, role, PermRule::PassOn(own), Parent::None)
    }

    /// An edge for an image that is being opened to the one below it.
    pub fn backing_edge(&self, node: &BlockNode) -> Result<Edge> {
        self.attach(node, ChildRole::Backing, PermRule::Backing, Parent::None)
    }

    fn attach(
        &self,
        node: &BlockNode,
        role: ChildRole,
        rule: PermRule,
        parent: Parent,
    ) -> Result<Edge> {
        let node = &node.entrance();
        let edge = Edge(Rc::new(EdgeInner {
            role,
            rule: Cell::new(rule),
            granted: Cell::new(EdgePerms::IDLE),
            parent: RefCell::new(parent),
            node: RefCell::new(node.clone()),
            graph: Rc::downgrade(&self.0),
        }));
        node.0.parents.borrow_mut().push(Rc::downgrade(&edge.0));
        if let PermRule::Fixed(perms) = rule
            && perms != EdgePerms::IDLE
        {
            // Refused: dropping the edge takes it out of the node's parents again.
            perms::grant(vec![(edge.clone(), perms)])?;
        }
        Ok(edge)
    }

    /// Makes a root over `node`, or over the filter of the job that copies it. Device names are unique;
    /// jobs and exports pass their id.
    ///
    /// Fails with the conflict when others do not share what `perms` needs, or need what it does
    /// not share. A device over an inactive node gets its permissions with the ownership. Its gate
    /// starts closed if the node is being drained.
    pub fn add_backend(
        &self,
        kind: BackendKind,
        name: &str,
        node: &BlockNode,
        perms: EdgePerms,
    ) -> Result<BlockBackend> {
        if kind == BackendKind::Device {
            check_name(name, "device id")?;
            self.check_unused(name)?;
        }
        let id = BackendId(self.0.next_backend.get());
        self.0.next_backend.set(id.0 + 1);
        let edge =
            self.attach(node, ChildRole::Root, PermRule::Fixed(EdgePerms::IDLE), Parent::None)?;
        let backend = BlockBackend::new(id, kind, name, edge.clone(), self.0.executor.clone());
        // The edge must know its parent before permissions are checked: messages name it.
        edge.0.parent.replace(Parent::Backend(Rc::downgrade(&backend.0)));
        let waits = kind == BackendKind::Device && !node.is_active();
        backend.0.waits_for.set(waits.then_some(perms));
        let perms = if waits { EdgePerms::IDLE } else { perms };
        edge.0.rule.set(PermRule::Fixed(perms));
        perms::grant(vec![(edge, perms)])?;
        self.0.backends.borrow_mut().push(Rc::downgrade(&backend.0));
        self.join_drains(&backend);
        Ok(backend)
    }

    /// Every node, in the order they were added.
    pub fn nodes(&self) -> Vec<BlockNode> {
        self.0.live_nodes()
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<BlockNode> {
        // The newest: one that is reopened has its successor's name until that has its place.
        self.nodes().into_iter().rev().find(|node| node.name() == name)
    }

    fn named(&self, name: &str) -> Result<BlockNode> {
        self.node(name).ok_or_else(|| {
            let context = format!("Failed to find node with node-name='{name}'");
            Error::new(ErrorKind::NotFound, context)
        })
    }

    /// Every root, in the order they were made.
    pub fn backends(&self) -> Vec<BlockBackend> {
        let mut backends = self.0.backends.borrow_mut();
        backends.retain(|backend| backend.strong_count() != 0);
        backends.iter().filter_map(Weak::upgrade).map(BlockBackend).collect()
    }

    /// The device of that name.
    pub fn backend(&self, name: &str) -> Option<BlockBackend> {
        self.backends()
            .into_iter()
            .find(|backend| backend.kind() == BackendKind::Device && backend.name() == name)
    }

    /// The node a QMP client means: the root node of the device of that name, else the node.
    pub fn device_or_node(&self, name: &str) -> Result<BlockNode> {
        let device = self.backend(name).map(|backend| backend.node());
        device.or_else(|| self.node(name)).ok_or_else(|| {
            let context = format!("Cannot find device='{name}' nor node-name='{name}'");
            Error::new(ErrorKind::NotFound, context)
        })
    }

    /// Takes a node out that nobody uses, after it and all that goes with it was written out and left
    /// clean. Where that can never be done any more, it is taken out as it is.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let node = self.named(name)?;
        self.check_removable(&node)?;
        // Formats leave their images as the next program likes to find them.
        let going = self.goes_with(&node);
        let given_up = match ownership::give_up(&going).await {
            Err(error) if going.iter().any(BlockNode::is_lost) => {
                tracing::warn!("node '{name}' is removed as it is: {error}");
                Vec::new()
            }
            given_up => given_up?,
        };
        drop(going);
        if let Err(error) = self.check_removable(&node) {
            // Somebody has begun to use it meanwhile.
            ownership::take_back(&given_up).await?;
            return Err(error);
        }
        self.disown(&node);
        Ok(())
    }

    /// Closes a node that nobody owns or uses, with all that goes with it: formats leave their images as
    /// the next program likes to find them.
    pub(crate) async fn close(&self, node: BlockNode) -> Result<()> {
        ownership::give_up(&self.goes_with(&node)).await.map(drop)
    }

    /// Closes `node` if nobody owns or uses it any more: whoever let go of it last sees to that, or the node
    /// would be dropped as it is.
    pub async fn release(&self, node: BlockNode) {
        let unused = |node: &BlockNode| !self.is_owned(node) && node.0.live_parents().is_empty();
        if !unused(&node) {
            return;
        }
        let mut closed = ownership::give_up(&self.goes_with(&node)).await;
        if let Ok(given_up) = &closed
            && !unused(&node)
        {
            // Somebody has found it by its name meanwhile.
            closed = ownership::take_back(given_up).await.map(|()| Vec::new());
        }
        if let Err(error) = closed {
            tracing::error!("node '{}' is not closed in order: {error}", node.name());
        }
    }

    fn check_removable(&self, node: &BlockNode) -> Result<()> {
        snapshot::check_top(node)?;
        let name = node.name();
        if !node.0.live_parents().is_empty() {
            return Err(Error::new(ErrorKind::Busy, format!("Node {name} is in use")));
        }
        if !self.0.owned.borrow().iter().any(|owned| owned.is_same(node)) {
            let context = format!("Node {name} is not owned by the monitor");
            return Err(Error::new(ErrorKind::InvalidArgument, context));
        }
        Ok(())
    }

    /// Whether users may remove `node` by name.
    pub fn is_owned(&self, node: &BlockNode) -> bool {
        self.0.owned.borrow().iter().any(|owned| owned.is_same(node))
    }

    /// Leaves `node` to its parents: it goes when they do.
    pub fn disown(&self, node: &BlockNode) {
        let mut owned = self.0.owned.borrow_mut();
        let place = owned.iter().position(|owned| owned.is_same(node));
        let gone = place.map(|place| owned.remove(place));
        // What a driver does when it goes may need the list.
        drop(owned);
        drop(gone);
    }

    fn check_unused(&self, name: &str) -> Result<()> {
        if self.node(name).is_some() {
            let context = format!("Duplicate nodes with node-name='{name}'");
            return Err(Error::new(ErrorKind::AlreadyExists, context));
        }
        if self.backend(name).is_some() {
            let context = format!("node-name={name} is conflicting with a device id");
            return Err(Error::new(ErrorKind::AlreadyExists, context));
        }
        Ok(())
    }

    fn auto_name(&self) -> String {
        let number = self.0.next_auto_name.get();
        self.0.next_auto_name.set(number.wrapping_add(1));
        format!("#block{number}")
    }
}

impl GraphInner {
    fn live_nodes(&self) -> Vec<BlockNode> {
        let mut nodes = self.nodes.borrow_mut();
        nodes.retain(|node| node.strong_count() != 0);
        nodes.iter().filter_map(Weak::upgrade).map(BlockNode).collect()
    }

    /// An edge to `node` is gone: what its parents do together may have become less.
    pub(crate) fn parent_gone(&self, node: &BlockNode) {
        perms::shrink(node);
    }
}

impl BlockNode {
    /// Where users of this node come in: at the filter of the job that must see what they change and will
    /// move them, if there is one.
    fn entrance(&self) -> BlockNode {
        let filter = |edge: &Edge| match &*edge.0.parent.borrow() {
            Parent::Node(parent) if edge.role() == ChildRole::Filtered => {
                parent.upgrade().map(BlockNode).filter(|node| node.format() == MirrorTop::FORMAT)
            }
            _ => None,
        };
        self.0.live_parents().iter().find_map(filter).unwrap_or_else(|| self.clone())
    }

    /// Whether what was written to it can never be made durable: whoever flushed it has been told, or has
    /// given it up.
    fn is_lost(&self) -> bool {
        self.driver().is_some_and(NbdDriver::is_abandoned)
            || self.driver().is_some_and(FileDriver::has_lost)
    }

    /// The job that holds this node, by its id.
    pub(crate) fn job(&self) -> Option<String> {
        self.0.live_parents().iter().find_map(|edge| match &*edge.0.parent.borrow() {
            Parent::Backend(root) => {
                let root = root.upgrade().filter(|root| root.kind == BackendKind::Job);
                root.map(|root| root.name.clone())
            }
            Parent::Node(_) | Parent::None => None,
        })
    }
}

impl NodeInner {
    /// The edges that point here.
    pub(crate) fn live_parents(&self) -> Vec<Edge> {
        self.parents.borrow().iter().filter_map(Weak::upgrade).map(Edge).collect()
    }
}

/// Names start with a letter and go on with letters, digits, `-`, `.` and `_`.
fn check_name(name: &str, what: &str) -> Result<()> {
    let mut chars = name.chars();
    let good = chars.next().is_some_and(|first| first.is_ascii_alphabetic())
        && chars.all(|char| char.is_ascii_alphanumeric() || "-._".contains(char));
    if !good {
        return Err(Error::new(ErrorKind::InvalidArgument, format!("Invalid {what}: '{name}'")));
    }
    if name.len() > MAX_NAME {
        let context = format!("Invalid {what}: '{name}' is longer than {MAX_NAME} characters");
        return Err(Error::new(ErrorKind::InvalidArgument, context));
    }
    Ok(())
}

#[cfg(test)]
#[path = "../graph_tests.rs"]
mod tests;
