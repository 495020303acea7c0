//! [`BlockNode`]: the wrapper that every driver sits in.
//!
//! It does for all of them what none should do by itself: check the range, refuse writes where they
//! are not allowed, align and split, write zeroes by hand where the driver cannot, count, and mark
//! dirty bitmaps.

mod align;
mod attached;
mod offload;
mod origin;
mod stats;
mod stored;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Range;
use std::rc::{Rc, Weak};

use crate::buf::IoBuf;
use crate::driver::{
    BlockDriver, DynDriver, Extent, ExtentKind, Limits, LocalBoxFuture, WriteFlags,
};
use crate::edge::{ChildRole, Edge, EdgeInner, EdgePerms};
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;
use crate::open::{DetectZeroes, DiscardMode};
use crate::ranges::RangeLocks;

pub use attached::{AttachedBitmap, BitmapUse};
pub(crate) use origin::Origin;
pub use stats::{BlockStats, OpStats};
pub(crate) use stats::{Counters, OpKind};

/// How a node is to behave, whatever its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeOptions {
    /// Refuse writes.
    pub read_only: bool,
    /// Whether the host's page cache is bypassed; only told, the driver does it.
    pub direct: bool,
    /// What to do with discards.
    pub discard: DiscardMode,
    /// Whether to look for zeroes in writes.
    pub detect_zeroes: DetectZeroes,
    /// Take write ownership at once; a migration's destination does not.
    pub active: bool,
    /// The graph keeps it until [`crate::BlockGraph::remove`]; otherwise its parents do.
    pub owned: bool,
}

impl Default for NodeOptions {
    fn default() -> NodeOptions {
        NodeOptions {
            read_only: false,
            direct: false,
            discard: DiscardMode::Unmap,
            detect_zeroes: DetectZeroes::Off,
            active: true,
            owned: true,
        }
    }
}

/// A node of a block graph: a cheap handle, clones are the same node.
#[derive(Clone)]
pub struct BlockNode(pub(crate) Rc<NodeInner>);

pub(crate) struct NodeInner {
    pub(crate) name: String,
    pub(crate) driver: Box<dyn DynDriver>,
    pub(crate) limits: Limits,
    pub(crate) options: NodeOptions,
    /// Whether it refuses writes now; see [`crate::BlockGraph::set_read_only`].
    pub(crate) read_only: Cell<bool>,
    pub(crate) active: Cell<bool>,
    /// What its parents do together, as the driver was last told.
    pub(crate) held: Cell<EdgePerms>,
    pub(crate) parents: RefCell<Vec<Weak<EdgeInner>>>,
    executor: Executor,
    counters: Counters,
    bitmaps: RefCell<Vec<Rc<AttachedBitmap>>>,
    origin: RefCell<Option<Rc<Origin>>>,
    /// Writes under way, when the driver's alignment makes read-modify-write possible.
    writes: RangeLocks,
}

impl BlockNode {
    pub(crate) fn new(
        name: String,
        driver: Box<dyn DynDriver>,
        options: NodeOptions,
        executor: Executor,
    ) -> BlockNode {
        BlockNode(Rc::new(NodeInner {
            name,
            limits: driver.limits(),
            driver,
            options,
            read_only: Cell::new(options.read_only),
            active: Cell::new(false),
            held: Cell::new(EdgePerms::IDLE),
            parents: RefCell::default(),
            executor,
            counters: Counters::default(),
            bitmaps: RefCell::default(),
            origin: RefCell::default(),
            writes: RangeLocks::new(),
        }))
    }

    /// Its name, unique in its graph.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The driver's name, as in QMP's `driver`.
    pub fn format(&self) -> &'static str {
        self.0.driver.format()
    }

    /// The driver, if it is a `D`: for operations that only one format has.
    pub fn driver<D: BlockDriver>(&self) -> Option<&D> {
        self.0.driver.as_any().downcast_ref()
    }

    /// The driver's file name, if it has one.
    pub fn filename(&self) -> Option<String> {
        self.0.driver.filename()
    }

    /// The options it was added with, and whether it is read-only now.
    pub fn options(&self) -> NodeOptions {
        NodeOptions { read_only: self.is_read_only(), ..self.0.options }
    }

    /// Whether it refuses writes.
    pub fn is_read_only(&self) -> bool {
        self.0.read_only.get()
    }

    /// Whether this process owns it, so that it may write.
    pub fn is_active(&self) -> bool {
        self.0.active.get()
    }

    /// Length in bytes, as last known.
    pub fn len(&self) -> u64 {
        self.0.driver.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What its driver can take in one request; the node itself takes anything in range.
    pub fn limits(&self) -> Limits {
        self.0.limits
    }

    /// The edges to the nodes below.
    pub fn children(&self) -> Vec<Edge> {
        self.0.driver.children()
    }

    /// What its parents do and share, all together.
    pub fn perms(&self) -> EdgePerms {
        self.0.held.get()
    }

    /// Whether both are handles of one node.
    pub fn is_same(&self, other: &BlockNode) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    /// The counters so far.
    pub fn stats(&self) -> BlockStats {
        self.0.counters.snapshot()
    }

    /// The bitmaps on it.
    pub fn bitmaps(&self) -> Vec<Rc<AttachedBitmap>> {
        self.0.bitmaps.borrow().clone()
    }

    /// Records every write from now on in `bitmap`, when it completes.
    pub fn attach_bitmap(&self, bitmap: Rc<AttachedBitmap>) {
        self.0.bitmaps.borrow_mut().push(bitmap);
    }

    /// Stops recording.
    pub fn detach_bitmap(&self, bitmap: &Rc<AttachedBitmap>) {
        self.0.bitmaps.borrow_mut().retain(|other| !Rc::ptr_eq(other, bitmap));
    }

    /// Fills `into` with the bytes from `at`.
    pub async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        let range = self.check_range("read", at, into.len())?;
        if range.is_empty() {
            return Ok(());
        }
        let op = self.begin(OpKind::Read, &range);
        let result = if self.is_simple(at, &into) {
            self.0.driver.read(at, into).await
        } else {
            // Boxed, like every path that is rare: the future of the common one stays small.
            Box::pin(self.read_unaligned(at, into)).await
        };
        op.finish(result, "read")
    }

    /// Writes `from` at `at`. What the buffer holds may change meanwhile.
    pub async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        let range = self.check_range("write", at, from.len())?;
        self.check_writable("write")?;
        if range.is_empty() {
            return Ok(());
        }
        let op = self.begin(OpKind::Write, &range);
        let detect = self.0.options.detect_zeroes;
        let result = if detect != DetectZeroes::Off && from.is_zero() {
            let may_unmap = detect == DetectZeroes::Unmap;
            Box::pin(self.zeroes(range, WriteFlags { may_unmap, ..flags })).await
        } else if self.is_simple(at, &from) && self.0.limits.request_alignment == 1 {
            self.0.driver.write(at, from, flags).await
        } else {
            Box::pin(self.write_aligned(at, from, flags)).await
        };
        op.finish(result, "write")
    }

    /// Makes `range` read as zeroes.
    pub async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        self.check_bounds("write zeroes", &range)?;
        self.check_writable("write zeroes")?;
        let op = self.begin(OpKind::Write, &range);
        let result = self.zeroes(range, flags).await;
        op.finish(result, "write zeroes")
    }

    /// The content of `range` is no longer needed. A driver that cannot discard ignores it.
    pub async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.check_bounds("discard", &range)?;
        self.check_writable("discard")?;
        if self.0.options.discard == DiscardMode::Ignore {
            return Ok(());
        }
        let op = self.begin(OpKind::Discard, &range);
        let result = self.discard_aligned(range).await;
        op.finish(result, "discard")
    }

    /// Makes everything written before durable.
    pub async fn flush(&self) -> Result<()> {
        // A node that may not write has nothing to make durable.
        if self.is_read_only() || !self.0.active.get() {
            return Ok(());
        }
        let op = self.begin(OpKind::Flush, &(0..0));
        let result = self.0.driver.flush().await;
        op.finish(result, "flush")
    }

    /// What the bytes at the start of `range` are.
    pub async fn map(&self, range: Range<u64>) -> Result<Extent> {
        self.check_bounds("map", &range)?;
        if range.is_empty() {
            let context = format!("map of nothing on node '{}'", self.name());
            return Err(Error::new(ErrorKind::InvalidArgument, context));
        }
        let asked = range.end - range.start;
        let extent = self.0.driver.map(range).await.map_err(|error| self.explain(error, "map"))?;
        // A driver that reports nothing would make its callers loop for ever.
        Ok(Extent { len: extent.len.clamp(1, asked), ..extent })
    }

    /// Changes the length.
    ///
    /// # Errors
    /// Those of the driver, which may have changed the length before it failed.
    pub async fn resize(&self, len: u64) -> Result<()> {
        self.change_length(len, self.0.driver.resize(len)).await
    }

    /// Makes it longer, at least `len` bytes; see [`BlockDriver::grow`].
    ///
    /// # Errors
    /// Those of the driver, which may have changed the length before it failed.
    pub async fn grow(&self, len: u64) -> Result<ExtentKind> {
        self.change_length(len, self.0.driver.grow(len)).await
    }

    async fn change_length<T>(&self, to: u64, change: LocalBoxFuture<'_, Result<T>>) -> Result<T> {
        self.check_writable("resize")?;
        // Also who gives the change up half way: the driver may have another length by then.
        let followed = Followed { node: self, old: self.len(), to };
        let changed = change.await;
        drop(followed);
        changed.map_err(|error| self.explain(error, "resize"))
    }

    /// Asks who decides on the length of what this node passes everything to how long that is now, for
    /// [`resize`](BlockNode::resize) to go by. Requests go on meanwhile. What is below an image is left alone.
    ///
    /// # Errors
    /// A server does not accept one connection more in time, or has another disk there now.
    pub async fn look_again(&self) -> Result<()> {
        // What another process owns is not ours to resize.
        for node in self.passes_to().filter(BlockNode::is_active) {
            node.0.driver.refresh().await?;
        }
        Ok(())
    }

    fn record(&self, range: Range<u64>) {
        self.0.bitmaps.borrow().iter().for_each(|it| it.bits.borrow_mut().record(range.clone()));
    }

    /// Sees to everything that goes by the length, which was `old`.
    fn follow_length(&self, old: u64) {
        let len = self.len();
        for bitmap in self.0.bitmaps.borrow().iter() {
            let mut bits = bitmap.bits.borrow_mut();
            if let Err(error) = bits.resize(len) {
                tracing::warn!("bitmap of node '{}' is lost: {error}", self.name());
                bits.mark_inconsistent();
            } else if len > old {
                bits.record(old..len);
            }
        }
        self.tell_length();
    }

    /// The generation mark kept with the image.
    pub async fn generation(&self) -> Result<Option<u64>> {
        self.0.driver.generation().await.map_err(|error| self.explain(error, "read the mark of"))
    }

    /// Takes write ownership of this node alone; see [`crate::BlockDriver::activate`].
    pub(crate) async fn activate(&self, only_if: Option<u64>) -> Result<()> {
        for edge in self.children() {
            check_owned_together(&edge.node(), edge.role(), self)?;
        }
        let result = self.0.driver.activate(only_if).await;
        result.map_err(|error| self.explain(error, "activate"))?;
        if let Err(error) = self.load_bitmaps().await {
            // Nothing was written yet, so there is nothing that giving it up could lose.
            self.0.driver.inactivate().await?;
            return Err(self.explain(error, "load the bitmaps of"));
        }
        self.0.active.set(true);
        Ok(())
    }

    /// Gives write ownership of this node alone up, with nothing in flight.
    pub(crate) async fn inactivate(&self) -> Result<()> {
        let stored = self.store_bitmaps().await;
        stored.map_err(|error| self.explain(error, "store the bitmaps of"))?;
        let result = self.0.driver.inactivate().await;
        result.map_err(|error| self.explain(error, "inactivate"))?;
        self.0.active.set(false);
        self.leave_bitmaps();
        Ok(())
    }

    pub(crate) fn forget_parent(&self, edge: *const EdgeInner) {
        self.0.parents.borrow_mut().retain(|parent| !std::ptr::eq(parent.as_ptr(), edge));
    }

    fn check_range(&self, verb: &str, at: u64, len: usize) -> Result<Range<u64>> {
        let end = u64::try_from(len).ok().and_then(|len| at.checked_add(len));
        match end {
            Some(end) if end <= self.len() => Ok(at..end),
            _ => Err(self.out_of_range(verb, at, len)),
        }
    }

    fn check_bounds(&self, verb: &str, range: &Range<u64>) -> Result<()> {
        if range.start <= range.end && range.end <= self.len() {
            return Ok(());
        }
        Err(self.out_of_range(verb, range.start, range.end.saturating_sub(range.start)))
    }

    #[cold]
    fn out_of_range(&self, verb: &str, at: u64, len: impl fmt::Display) -> Error {
        let (name, size) = (self.name(), self.len());
        let context = format!("{verb} of {len} bytes at {at} leaves node '{name}' of {size} bytes");
        Error::new(ErrorKind::OutOfRange, context)
    }

    fn check_writable(&self, verb: &str) -> Result<()> {
        if self.0.active.get() && !self.is_read_only() {
            return Ok(());
        }
        Err(self.not_writable(verb))
    }

    #[cold]
    fn not_writable(&self, verb: &str) -> Error {
        let name = self.name();
        if self.is_read_only() {
            Error::new(ErrorKind::ReadOnly, format!("cannot {verb}: node '{name}' is read-only"))
        } else {
            let context =
                format!("cannot {verb}: node '{name}' is inactive, another process may own it");
            Error::new(ErrorKind::Inactive, context)
        }
    }

    #[cold]
    fn explain(&self, error: Error, verb: &str) -> Error {
        if error.kind() == ErrorKind::Locked {
            // It begins with the words that scripts look for, and names the file itself.
            return error;
        }
        error.context(format!("cannot {verb} node '{}'", self.name()))
    }

    fn begin<'a>(&'a self, kind: OpKind, range: &Range<u64>) -> Op<'a> {
        let started = self.0.executor.turn_time();
        Op { node: self, kind, start: range.start, end: range.end, started, done: false }
    }
}

/// Refuses a child that another process may own to a parent that this one owns: the parent would take requests that the
/// child refuses.
pub(crate) fn check_owned_together(
    child: &BlockNode,
    role: ChildRole,
    parent: &BlockNode,
) -> Result<()> {
    if child.is_active() {
        return Ok(());
    }
    let (child, role, parent) = (child.name(), role.name(), parent.name());
    let text = format!("Inactive '{child}' can't be a {role} child of active '{parent}'");
    Err(Error::new(ErrorKind::Inactive, text))
}

/// A change of the length under way: at its end, whichever that is, everything that goes by the length hears of it.
struct Followed<'a> {
    node: &'a BlockNode,
    old: u64,
    to: u64,
}

impl Drop for Followed<'_> {
    fn drop(&mut self) {
        if self.node.len() != self.old {
            self.node.follow_length(self.old);
        }
        // What was to go and is there still may have lost what it held.
        self.node.record(self.to..self.node.len());
    }
}

/// A request under way: counts it at its end, and marks bitmaps if it may have changed anything.
struct Op<'a> {
    node: &'a BlockNode,
    kind: OpKind,
    start: u64,
    end: u64,
    started: u64,
    done: bool,
}

impl Op<'_> {
    fn finish(mut self, result: Result<()>, verb: &str) -> Result<()> {
        self.done = result.is_ok();
        // The counters and bitmaps are updated by the drop, before the caller hears of it.
        match result {
            Ok(()) => Ok(()),
            Err(error) => Err(self.node.explain(error, verb)),
        }
    }
}

impl Drop for Op<'_> {
    fn drop(&mut self) {
        let inner = &*self.node.0;
        let ns = inner.executor.turn_time().saturating_sub(self.started);
        inner.counters.count(self.kind, self.end, self.end - self.start, ns, self.done);
        if matches!(self.kind, OpKind::Write | OpKind::Discard) {
            // Also when it failed or was given up: nobody knows how much of it has landed.
            self.node.record(self.start..self.end);
        }
    }
}

impl fmt::Debug for BlockNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlockNode({} '{}')", self.format(), self.name())
    }
}

#[cfg(test)]
#[path = "../node_tests.rs"]
mod tests;
