//! The `blkdebug` filter: makes requests fail, wait or stop, addressed by operation, range, count
//! and moment.

mod config;
mod options;
mod rules;

use std::cell::RefCell;
use std::ops::Range;

use crate::buf::IoBuf;
use crate::driver::{BlockDriver, Extent, ExtentKind, Limits, WriteFlags};
use crate::edge::{ChildRole, Edge, EdgePerms};
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;
use crate::graph::BlockGraph;
use crate::node::BlockNode;
use crate::notify::Notify;
use crate::open::Opening;

use config::Config;
pub use options::{BlkdebugOptions, Event, InjectError, IoType, PermName, SetState};
use rules::{Effect, Rules};

impl BlkdebugOptions {
    pub(crate) async fn open(&self, opening: &Opening<'_>) -> Result<BlockNode> {
        let image = opening.child(&self.image, ChildRole::Filtered).await?;
        let mut options = self.clone();
        if let Some(path) = &self.config {
            let more = Config::load(opening.graph().executor(), path).await?;
            options.inject_error.splice(0..0, more.inject_error);
            options.set_state.splice(0..0, more.set_state);
        }
        opening.add(BlkdebugDriver::new(opening.graph(), &image, &options)?).await
    }

    /// The limits that it pretends to have.
    fn limits(&self) -> Result<Limits> {
        let check = |what: &str, value: u64, unit: u64| {
            if value != 0 && value.is_multiple_of(unit) {
                return Ok(value);
            }
            let context = format!("Cannot meet constraints with {what} {value}");
            Err(Error::new(ErrorKind::InvalidArgument, context))
        };
        let power = |what: &str, value: u32, unit: u32| {
            check(what, u64::from(value), u64::from(unit))?;
            if value.is_power_of_two() {
                return Ok(value);
            }
            let context = format!("Cannot meet constraints with {what} {value}");
            Err(Error::new(ErrorKind::InvalidArgument, context))
        };
        let align = power("align", self.align.unwrap_or(1), 1)?;
        let unit = u64::from(align);
        let whole = !(unit - 1);
        let longest = |what: &str, value: Option<u64>, unit: u64| match value {
            Some(value) => check(what, value, unit),
            None => Ok(whole),
        };
        let zero = power("opt-write-zero", self.opt_write_zero.unwrap_or(align), align)?;
        let discard = power("opt-discard", self.opt_discard.unwrap_or(align), align)?;
        let zeroes = longest("max-write-zero", self.max_write_zero, u64::from(zero))?;
        let discards = longest("max-discard", self.max_discard, u64::from(discard))?;
        Ok(Limits {
            request_alignment: align,
            memory_alignment: 1,
            max_transfer: longest("max-transfer", self.max_transfer, unit)?,
            max_zeroes: zeroes.min(discards),
            discard_granularity: discard.max(zero),
        })
    }
}

/// A filter that hurts.
pub struct BlkdebugDriver {
    image: Edge,
    executor: Executor,
    limits: Limits,
    rules: RefCell<Rules>,
    /// The tags of requests that stand still.
    suspended: RefCell<Vec<String>>,
    changed: Notify,
}

impl BlkdebugDriver {
    /// A filter over `image`.
    pub fn new(
        graph: &BlockGraph,
        image: &BlockNode,
        options: &BlkdebugOptions,
    ) -> Result<BlkdebugDriver> {
        let rules = Rules::new(&options.inject_error, &options.set_state)?;
        let limits = options.limits()?;
        Ok(BlkdebugDriver {
            image: graph.filter_edge_with(image, ChildRole::Filtered, options.perms())?,
            executor: graph.executor().clone(),
            limits,
            rules: RefCell::new(rules),
            suspended: RefCell::default(),
            changed: Notify::new(),
        })
    }

    /// Another fault, from now on.
    pub fn inject(&self, error: &InjectError) -> Result<()> {
        self.rules.borrow_mut().inject(error)
    }

    /// No fault strikes any more.
    pub fn heal(&self) {
        self.rules.borrow_mut().clear();
    }

    /// The next request that comes to `event` stops there until [`resume`](Self::resume).
    pub fn suspend(&self, event: Event, tag: &str) {
        self.rules.borrow_mut().break_at(event, tag);
    }

    /// Lets requests go on that stopped at breakpoints of this tag, or takes the breakpoints away.
    pub fn resume(&self, tag: &str) -> Result<()> {
        let waiting = self.rules.borrow_mut().remove_break(tag);
        let mut suspended = self.suspended.borrow_mut();
        let before = suspended.len();
        suspended.retain(|other| other != tag);
        if before == suspended.len() && !waiting {
            let context = format!("no request stands at breakpoint '{tag}'");
            return Err(Error::new(ErrorKind::NotFound, context));
        }
        drop(suspended);
        self.changed.notify_all();
        Ok(())
    }

    /// Whether a request stands at a breakpoint of this tag.
    pub fn is_suspended(&self, tag: &str) -> bool {
        self.suspended.borrow().iter().any(|other| other == tag)
    }

    /// Waits until a request stands at a breakpoint of this tag.
    pub async fn wait_suspended(&self, tag: &str) {
        self.changed.wait_until(|| self.is_suspended(tag)).await;
    }

    /// The state that rules look at; 1 at first.
    pub fn state(&self) -> u32 {
        self.rules.borrow().state()
    }

    /// An event, with the wait at a breakpoint if there is one.
    async fn happen(&self, event: Event) {
        let Some(tag) = self.rules.borrow_mut().happen(event) else { return };
        self.suspended.borrow_mut().push(tag.clone());
        self.changed.notify_all();
        let stands = Suspended { driver: self, tag: &tag };
        self.changed.wait_until(|| !self.is_suspended(&tag)).await;
        drop(stands);
    }

    /// What the rules do to a request before it begins.
    async fn strike(&self, iotype: IoType, at: Range<u64>) -> Result<()> {
        let struck = self.rules.borrow_mut().strike(iotype, &at);
        let Some(Effect { delay, errno, immediately }) = struck else { return Ok(()) };
        if let Some(time) = delay {
            self.executor.sleep(time).await;
        }
        let Some(errno) = errno else { return Ok(()) };
        if !immediately {
            self.executor.yield_now().await;
        }
        Err(Error::from_errno(errno, "injected by blkdebug"))
    }
}

/// A request at a breakpoint; given up there, it no longer stands.
struct Suspended<'a> {
    driver: &'a BlkdebugDriver,
    tag: &'a str,
}

impl Drop for Suspended<'_> {
    fn drop(&mut self) {
        self.driver.suspended.borrow_mut().retain(|other| other != self.tag);
    }
}

impl BlockDriver for BlkdebugDriver {
    const FORMAT: &'static str = "blkdebug";

    fn limits(&self) -> Limits {
        self.limits
    }

    fn len(&self) -> u64 {
        self.image.len()
    }

    fn filename(&self) -> Option<String> {
        self.image.node().filename()
    }

    fn children(&self) -> Vec<Edge> {
        vec![self.image.clone()]
    }

    fn set_permissions(&self, _held: EdgePerms) -> Result<()> {
        Ok(())
    }

    async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        self.happen(Event::ReadAio).await;
        self.strike(IoType::Read, at..at + into.len() as u64).await?;
        self.image.read(at, into).await
    }

    async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        self.happen(Event::WriteAio).await;
        self.happen(Event::Pwritev).await;
        self.strike(IoType::Write, at..at + from.len() as u64).await?;
        self.image.write(at, from, flags).await?;
        self.happen(Event::PwritevDone).await;
        Ok(())
    }

    async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        self.happen(Event::PwritevZero).await;
        self.strike(IoType::WriteZeroes, range.clone()).await?;
        self.image.write_zeroes(range, flags).await?;
        self.happen(Event::PwritevDone).await;
        Ok(())
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.strike(IoType::Discard, range.clone()).await?;
        self.image.discard(range).await
    }

    async fn flush(&self) -> Result<()> {
        self.happen(Event::FlushToDisk).await;
        self.strike(IoType::Flush, 0..0).await?;
        self.image.flush().await
    }

    async fn map(&self, range: Range<u64>) -> Result<Extent> {
        self.strike(IoType::BlockStatus, range.clone()).await?;
        self.image.map(range).await
    }

    async fn resize(&self, len: u64) -> Result<()> {
        self.image.resize(len).await
    }

    async fn grow(&self, len: u64) -> Result<ExtentKind> {
        self.image.grow(len).await
    }

    async fn refresh(&self) -> Result<()> {
        Ok(())
    }

    async fn activate(&self, _only_if: Option<u64>) -> Result<()> {
        Ok(())
    }

    async fn inactivate(&self) -> Result<()> {
        Ok(())
    }

    async fn generation(&self) -> Result<Option<u64>> {
        self.image.node().generation().await
    }
}

#[cfg(test)]
#[path = "blkdebug_tests.rs"]
mod tests;
