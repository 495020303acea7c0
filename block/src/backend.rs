//! [`BlockBackend`]: a root of the graph, through which a device, job or export does its I/O.
//!
//! A root has a gate. [`crate::BlockGraph::drain`] closes the gates of all roots that reach a node
//! and waits for what is inside. Requests that come meanwhile wait at the gate and look up their
//! node only once it opens, so that a graph edit made in between redirects them. Edges inside the
//! graph have no gates: a request that is inside can always finish.
//!
//! A root whose owner goes for good is [retired](BlockBackend::retire): requests that wait at its gate
//! are given up, which harms nobody, because they have not begun. One whose user goes is retired
//! [for a while](BlockBackend::retire_for_now), until the next user may come.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Range;
use std::rc::Rc;

use crate::buf::IoBuf;
use crate::driver::{Extent, WriteFlags};
use crate::edge::{Edge, EdgePerms, Perms};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::throttle::{Direction, ThrottleGroup, ThrottleMember};
use crate::node::{BlockNode, BlockStats, Counters, OpKind};
use crate::notify::Notify;

/// Identifies a root for as long as the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendId(pub(crate) u64);

/// Who a root belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendKind {
    /// A guest's disk. Its name is unique among devices and nodes.
    Device,
    /// A job; all roots of a job bear its id.
    Job,
    /// An export to other programs.
    Export,
}

impl BackendKind {
    fn name(self) -> &'static str {
        match self {
            BackendKind::Device => "block device",
            BackendKind::Job => "job",
            BackendKind::Export => "export",
        }
    }
}

/// A root of the graph. Clones are the same root; the last one dropped lets the node go.
#[derive(Clone)]
pub struct BlockBackend(pub(crate) Rc<BackendInner>);

pub(crate) struct BackendInner {
    pub(crate) id: BackendId,
    pub(crate) kind: BackendKind,
    pub(crate) name: String,
    pub(crate) edge: Edge,
    pub(crate) gate: Rc<Gate>,
    counters: Counters,
    executor: crate::executor::Executor,
    tag: RefCell<Option<String>>,
    /// What a device will do once this process owns its disk. Until then it does nothing, and
    /// somebody else may fill the disk.
    pub(crate) waits_for: Cell<Option<EdgePerms>>,
    throttle: RefCell<Option<Rc<ThrottleMember>>>,
    /// Who is told of another length.
    resized: RefCell<Option<LengthSink>>,
}

/// Who is told of a length in bytes.
type LengthSink = Rc<dyn Fn(u64)>;

/// Counts who is inside and keeps others out while it is closed.
#[derive(Default)]
pub(crate) struct Gate {
    closed: Cell<u32>,
    inside: Cell<u32>,
    /// While this is not 0 nobody gets in, however open it is.
    retired: Cell<u32>,
    changed: Notify,
}

impl Gate {
    pub(crate) fn close(&self) {
        self.closed.set(self.closed.get() + 1);
    }

    pub(crate) fn open(&self) {
        self.closed.set(self.closed.get() - 1);
        if self.closed.get() == 0 {
            self.changed.notify_all();
        }
    }

    fn retire(&self) {
        self.retired.set(self.retired.get() + 1);
        self.changed.notify_all();
    }

    pub(crate) fn is_open(&self) -> bool {
        self.closed.get() == 0
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.inside.get() == 0
    }

    /// Waits until nobody is inside.
    pub(crate) async fn quiet(&self) {
        self.changed.wait_until(|| self.is_quiet()).await;
    }
}

/// The right to do I/O through a root without waiting at its gate. A drain waits until it is
/// dropped, so hold one over everything that must not be cut in two, and nothing else.
pub struct Pass {
    backend: Rc<BackendInner>,
}

impl Pass {
    fn new(backend: &BlockBackend) -> Pass {
        let gate = &backend.0.gate;
        gate.inside.set(gate.inside.get() + 1);
        Pass { backend: Rc::clone(&backend.0) }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let gate = &self.backend.gate;
        gate.inside.set(gate.inside.get() - 1);
        if gate.is_quiet() && !gate.is_open() {
            gate.changed.notify_all();
        }
    }
}

/// A root is retired while this lives.
pub struct Retirement {
    gate: Rc<Gate>,
}

impl Drop for Retirement {
    fn drop(&mut self) {
        self.gate.retired.set(self.gate.retired.get() - 1);
    }
}

impl BlockBackend {
    pub(crate) fn new(
        id: BackendId,
        kind: BackendKind,
        name: &str,
        edge: Edge,
        executor: crate::executor::Executor,
    ) -> BlockBackend {
        BlockBackend(Rc::new(BackendInner {
            id,
            kind,
            name: name.to_owned(),
            edge,
            gate: Rc::default(),
            counters: Counters::default(),
            executor,
            tag: RefCell::default(),
            waits_for: Cell::default(),
            throttle: RefCell::default(),
            resized: RefCell::default(),
        }))
    }

    /// Its number.
    pub fn id(&self) -> BackendId {
        self.0.id
    }

    /// The name of the device, or the id of the job or export.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Who it belongs to.
    pub fn kind(&self) -> BackendKind {
        self.0.kind
    }

    /// The node it holds now; a graph edit may change that at any await.
    pub fn node(&self) -> BlockNode {
        self.0.edge.node()
    }

    /// The edge to that node.
    pub fn edge(&self) -> &Edge {
        &self.0.edge
    }

    /// Length of the node in bytes.
    pub fn len(&self) -> u64 {
        self.0.edge.len()
    }

    /// Whether the node has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What went through this root so far.
    pub fn stats(&self) -> BlockStats {
        self.0.counters.snapshot()
    }

    /// Whether nothing is inside its gate.
    pub fn is_quiet(&self) -> bool {
        self.0.gate.is_quiet()
    }

    /// How many requests are inside its gate.
    pub fn in_flight(&self) -> u32 {
        self.0.gate.inside.get()
    }

    /// Free text for queries, such as the path of the device that uses it.
    pub fn tag(&self) -> Option<String> {
        self.0.tag.borrow().clone()
    }

    /// Sets that text.
    pub fn set_tag(&self, tag: impl Into<String>) {
        self.0.tag.replace(Some(tag.into()));
    }

    /// Tells `told` the length in bytes whenever that may have become another one.
    pub fn on_resize(&self, told: impl Fn(u64) + 'static) {
        self.0.resized.replace(Some(Rc::new(told)));
    }

    /// The group whose limits hold for it, if any: what `block_set_io_throttle` put it into.
    pub fn throttle(&self) -> Option<ThrottleGroup> {
        self.0.throttle.borrow().as_ref().map(|member| member.group().clone())
    }

    /// Puts it into a group, or into none. What waits for an old group's limits goes on at once.
    pub fn set_throttle(&self, group: Option<&ThrottleGroup>) {
        let gate = Rc::clone(&self.0.gate);
        // A drain waits for what is inside the gate, so that must not be held up.
        let member = group.map(|group| Rc::new(group.join(move || !gate.is_open())));
        if let Some(old) = self.0.throttle.replace(member) {
            old.leave();
        }
    }

    /// Lets nobody in any more, and gives up what waits at the gate. What is inside goes on to its
    /// end, without waiting for the root's own limits. For an owner that goes away and must not wait for
    /// whoever shut the gate.
    pub fn retire(&self) {
        self.0.gate.retire();
        self.set_throttle(None);
    }

    /// Lets nobody in, and gives up what waits at the gate, until the result is dropped. What is inside goes on.
    /// For an owner whose only user is gone.
    pub fn retire_for_now(&self) -> Retirement {
        self.0.gate.retire();
        Retirement { gate: Rc::clone(&self.0.gate) }
    }

    /// Whether it is [retired](BlockBackend::retire), for good or for now.
    pub fn is_retired(&self) -> bool {
        self.0.gate.retired.get() > 0
    }

    /// A pass at once, even while the gate is shut: for what comes in through another root, which lets it
    /// finish, and works here too.
    pub(crate) fn pass(&self) -> Pass {
        Pass::new(self)
    }

    /// Waits until the gate is open, then goes in.
    ///
    /// # Errors
    /// `Cancelled`: the root is retired.
    pub async fn enter(&self) -> Result<Pass> {
        let gate = &self.0.gate;
        if !gate.is_open() {
            gate.changed.wait_until(|| gate.is_open() || self.is_retired()).await;
        }
        if self.is_retired() { Err(self.gone()) } else { Ok(Pass::new(self)) }
    }

    #[cold]
    fn gone(&self) -> Error {
        let context = format!("{} goes away, so this was given up", self.0.describe());
        Error::new(ErrorKind::Cancelled, context)
    }

    /// Goes into two roots at the same moment, waiting outside both until both are open. Entering
    /// one after the other could wait inside the first for a drain that waits for the first.
    pub async fn enter_both(&self, other: &BlockBackend) -> (Pass, Pass) {
        loop {
            for backend in [self, other] {
                let gate = &backend.0.gate;
                gate.changed.wait_until(|| gate.is_open()).await;
            }
            if self.0.gate.is_open() && other.0.gate.is_open() {
                return (Pass::new(self), Pass::new(other));
            }
        }
    }

    /// Enters, then [`Pass::read`].
    pub async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        self.enter().await?.read(at, into).await
    }

    /// Enters, then [`Pass::write`].
    pub async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        self.enter().await?.write(at, from, flags).await
    }

    /// Enters, then [`Pass::write_zeroes`].
    pub async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        self.enter().await?.write_zeroes(range, flags).await
    }

    /// Enters, then [`Pass::discard`].
    pub async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.enter().await?.discard(range).await
    }

    /// Enters, then [`Pass::flush`].
    pub async fn flush(&self) -> Result<()> {
        self.enter().await?.flush().await
    }

    /// Enters, then [`Pass::map`].
    pub async fn map(&self, range: Range<u64>) -> Result<Extent> {
        self.enter().await?.map(range).await
    }

    /// Enters, then resizes the node; see [`BlockNode::resize`].
    pub async fn resize(&self, len: u64) -> Result<()> {
        let pass = self.enter().await?;
        pass.check(if len < self.len() { Perms::SHRINK } else { Perms::GROW })?;
        pass.backend.edge.resize(len).await
    }
}

impl Pass {
    /// See [`BlockNode::read`].
    pub async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        let range = at..at.saturating_add(into.len() as u64);
        self.admit(Direction::Read, &range).await;
        let started = self.backend.executor.turn_time();
        let result = self.backend.edge.read(at, into).await;
        self.count(OpKind::Read, &range, started, result)
    }

    /// See [`BlockNode::write`].
    pub async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        self.check(Perms::WRITE)?;
        let range = at..at.saturating_add(from.len() as u64);
        self.admit(Direction::Write, &range).await;
        let started = self.backend.executor.turn_time();
        let result = self.backend.edge.write(at, from, flags).await;
        self.count(OpKind::Write, &range, started, result)
    }

    /// See [`BlockNode::write_zeroes`].
    pub async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        self.check(Perms::WRITE)?;
        self.admit(Direction::Write, &range).await;
        let started = self.backend.executor.turn_time();
        let result = self.backend.edge.write_zeroes(range.clone(), flags).await;
        self.count(OpKind::Write, &range, started, result)
    }

    /// See [`BlockNode::discard`].
    pub async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.check(Perms::WRITE)?;
        self.admit(Direction::Write, &range).await;
        let started = self.backend.executor.turn_time();
        let result = self.backend.edge.discard(range.clone()).await;
        self.count(OpKind::Discard, &range, started, result)
    }

    /// See [`BlockNode::flush`].
    pub async fn flush(&self) -> Result<()> {
        let started = self.backend.executor.turn_time();
        let result = self.backend.edge.flush().await;
        self.count(OpKind::Flush, &(0..0), started, result)
    }

    /// See [`BlockNode::map`].
    pub async fn map(&self, range: Range<u64>) -> Result<Extent> {
        self.backend.edge.map(range).await
    }

    /// Waits for the limits that hold for this root.
    async fn admit(&self, direction: Direction, range: &Range<u64>) {
        let member = self.backend.throttle.borrow().clone();
        if let Some(member) = member {
            // Boxed: the future of a request without limits stays small.
            let bytes = range.end.saturating_sub(range.start);
            Box::pin(member.admit(direction, bytes)).await;
        }
    }

    /// Who forgot to ask for a permission would get past the checks of all others.
    fn check(&self, perm: Perms) -> Result<()> {
        let granted = self.backend.edge.perms().needs;
        if granted.contains(perm) { Ok(()) } else { Err(self.refused(perm)) }
    }

    #[cold]
    fn refused(&self, perm: Perms) -> Error {
        let who = self.backend.describe();
        let node = self.backend.edge.node();
        if self.backend.waits_for.get().is_some() {
            let context = format!("{who} does not own node '{}' yet", node.name());
            return Error::new(ErrorKind::Inactive, context);
        }
        let context =
            format!("{who} has not asked for the permission '{perm}' on node '{}'", node.name());
        Error::new(ErrorKind::PermissionDenied, context)
    }

    fn count(
        &self,
        kind: OpKind,
        range: &Range<u64>,
        started: u64,
        result: Result<()>,
    ) -> Result<()> {
        let ns = self.backend.executor.turn_time().saturating_sub(started);
        let bytes = range.end.saturating_sub(range.start);
        self.backend.counters.count(kind, range.end, bytes, ns, result.is_ok());
        result
    }
}

impl BackendInner {
    /// The node under it is another one, or has another length.
    pub(crate) fn tell_length(&self) {
        let told = self.resized.borrow().clone();
        if let Some(told) = told {
            told(self.edge.len());
        }
    }

    /// How messages call it: `block device 'd0'`.
    pub(crate) fn describe(&self) -> String {
        format!("{} '{}'", self.kind.name(), self.name)
    }
}

impl fmt::Debug for BlockBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockBackend({} -> '{}')", self.0.describe(), self.node().name())
    }
}

#[cfg(test)]
#[path = "backend_tests.rs"]
mod tests;
