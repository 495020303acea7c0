//! The `nbd` driver: a disk that an NBD server exports.
//!
//! A `Session` has the requests, its links the connections; both outlive neither the driver nor an
//! order to [`abandon`] them.

mod command;
mod connect;
mod filename;
mod incoming;
mod link;
mod negotiate;
mod options;
mod session;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::time::Duration;

use crate::buf::IoBuf;
use crate::driver::{BlockDriver, Extent, ExtentKind, Limits, WriteFlags, whole_sectors};
use crate::edge::{Edge, EdgePerms};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::BlockGraph;
use crate::nbd::proto::{HeaderStyle, export, state};
use crate::net::{TlsCreds, TlsEndpoint};
use crate::node::BlockNode;
use crate::open::Opening;

use command::{Answer, Command};
use connect::Target;
use session::Session;

pub use options::NbdOptions;

/// A disk of a server.
pub struct NbdDriver {
    session: Rc<Session>,
    options: NbdOptions,
    limits: Limits,
    /// Bytes. The server's disk may have become longer: a node changes its length when it is told to.
    len: Cell<u64>,
    active: Cell<bool>,
}

/// The sessions of a graph by node name.
#[derive(Default)]
struct Sessions(RefCell<BTreeMap<String, Weak<Session>>>);

impl NbdOptions {
    pub(crate) async fn open(&self, opening: &Opening<'_>) -> Result<BlockNode> {
        let graph = opening.graph();
        let tls = match &self.tls_creds {
            Some(id) => Some(TlsCreds::find(graph, id, TlsEndpoint::Client)?),
            None => None,
        };
        let target = Target { options: self.clone(), tls };
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        let (open, reconnect) = (seconds(self.open_timeout), seconds(self.reconnect_delay));
        let session = Session::open(graph.executor(), target, open, reconnect).await?;
        let mut options = opening.node_options();
        let read_only = session.facts().can(export::READ_ONLY);
        if read_only && !options.read_only {
            if opening.options().auto_read_only != Some(true) {
                let context = format!("{}: the export is read-only", self.filename());
                return Err(Error::new(ErrorKind::ReadOnly, context));
            }
            options.read_only = true;
        }
        let driver = NbdDriver::new(Rc::clone(&session), self.clone());
        let node = opening.add_with(driver, options).await?;
        let sessions = graph.extension(Sessions::default);
        let mut sessions = sessions.0.borrow_mut();
        sessions.retain(|_, session| session.strong_count() != 0);
        sessions.insert(node.name().to_owned(), Rc::downgrade(&session));
        Ok(node)
    }
}

/// Gives the connections of an `nbd` node up at once: every request under way fails, and so does
/// every other from now on. The way out when a server hangs (QMP's `yank`). Whether there is such a
/// node.
pub fn abandon(graph: &BlockGraph, node_name: &str) -> bool {
    let session = graph.extension(Sessions::default).0.borrow().get(node_name).cloned();
    let session = session.and_then(|session| session.upgrade());
    session.inspect(|session| session.abandon()).is_some()
}

/// The names of the nodes that can be abandoned (QMP's `query-yank`).
pub fn abandonable(graph: &BlockGraph) -> Vec<String> {
    let sessions = graph.extension(Sessions::default);
    let sessions = sessions.0.borrow();
    let alive = sessions.iter().filter(|(_, session)| session.strong_count() != 0);
    alive.map(|(name, _)| name.clone()).collect()
}

/// What the server says of the first bytes of a range, read as if it were their allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// They take no space. Of another context than the allocation this is the lowest bit: dirty.
    pub hole: bool,
    /// They read as zeroes. Of another context: the bit above.
    pub zero: bool,
    /// For how many bytes this holds: at least one, at most what was asked about.
    pub len: u64,
}

impl NbdDriver {
    /// What the context that `x-dirty-bitmap` names says of the first bytes of `range`; `None` when
    /// the user named none.
    ///
    /// # Errors
    /// The server answers with an error, or not at all.
    pub async fn chosen_status(&self, range: Range<u64>) -> Result<Option<Status>> {
        match self.options.x_dirty_bitmap {
            Some(_) => self.status(range).await,
            None => Ok(None),
        }
    }

    /// What the context that was agreed on says; `None` when the server knows nothing.
    async fn status(&self, range: Range<u64>) -> Result<Option<Status>> {
        let asked = range.end - range.start;
        let Some(range) = self.inside(range) else {
            return Ok(Some(Status { hole: true, zero: true, len: asked }));
        };
        // Whole blocks around what is asked for, as many as a length can say.
        let block = u64::from(self.limits.request_alignment);
        let start = range.start & !(block - 1);
        let len = (range.end - start).next_multiple_of(block).min(self.limits.max_zeroes);
        let around = start..start + len;
        let Answer::Status(found) = self.request(Command::Status { range: around }).await? else {
            return Ok(None);
        };
        let len = found.len.saturating_sub(range.start - start).min(range.end - range.start);
        let (hole, zero) = (found.flags & state::HOLE != 0, found.flags & state::ZERO != 0);
        Ok(Some(Status { hole, zero, len }))
    }

    fn new(session: Rc<Session>, options: NbdOptions) -> NbdDriver {
        let facts = session.facts();
        let block = u64::from(facts.min_block);
        // What a 32-bit length can say, in whole blocks.
        let longest = match facts.style {
            HeaderStyle::Extended => i64::MAX as u64,
            HeaderStyle::Simple | HeaderStyle::Structured => u64::from(u32::MAX),
        };
        let limits = Limits {
            request_alignment: facts.min_block,
            memory_alignment: 1,
            max_transfer: u64::from(facts.max_payload),
            max_zeroes: longest & !(block - 1),
            discard_granularity: facts.min_block,
        };
        NbdDriver {
            session,
            options,
            limits,
            len: Cell::new(whole_sectors(facts.size)),
            active: Cell::new(false),
        }
    }

    /// Whether its connections were given up; see [`abandon`].
    pub(crate) fn is_abandoned(&self) -> bool {
        self.session.is_over()
    }

    /// Bytes that the server does best at once and whole: a cluster of its image, if it tells.
    pub(crate) fn preferred_block(&self) -> u32 {
        self.session.facts().preferred_block
    }

    async fn request(&self, command: Command) -> Result<Answer> {
        self.session.request(command).await
    }

    /// Whether the server makes single writes durable; otherwise it is flushed after each that
    /// has to be.
    fn has_fua(&self) -> bool {
        self.session.facts().can(export::SEND_FUA)
    }

    /// What of a range the server has: the last sector of an export may be cut off.
    fn inside(&self, range: Range<u64>) -> Option<Range<u64>> {
        let end = range.end.min(self.session.facts().size);
        (range.start < end).then_some(range.start..end)
    }

    /// A buffer for what the server has from `at`, and one for what lies behind its end.
    fn split(&self, at: u64, buf: IoBuf) -> (IoBuf, Option<IoBuf>) {
        let there = self.session.facts().size.saturating_sub(at);
        match usize::try_from(there) {
            Ok(there) if there < buf.len() => {
                (buf.slice(0..there), Some(buf.slice(there..buf.len())))
            }
            _ => (buf, None),
        }
    }

    fn need(&self, flag: u16, what: &str) -> Result<()> {
        if self.session.facts().can(flag) {
            return Ok(());
        }
        let context = format!("the server of {} {what}", self.options.filename());
        Err(Error::new(ErrorKind::Unsupported, context))
    }
}

impl Drop for NbdDriver {
    fn drop(&mut self) {
        self.session.close();
    }
}

impl BlockDriver for NbdDriver {
    const FORMAT: &'static str = "nbd";

    fn limits(&self) -> Limits {
        self.limits
    }

    fn len(&self) -> u64 {
        self.len.get()
    }

    fn filename(&self) -> Option<String> {
        Some(self.options.filename())
    }

    fn children(&self) -> Vec<Edge> {
        Vec::new()
    }

    fn set_permissions(&self, _held: EdgePerms) -> Result<()> {
        Ok(())
    }

    async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        let (into, beyond) = self.split(at, into);
        if let Some(beyond) = beyond {
            beyond.fill_zero();
        }
        if !into.is_empty() {
            self.request(Command::Read { at, into }).await?;
        }
        Ok(())
    }

    async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        let fua = flags.fua && self.has_fua();
        let (from, beyond) = self.split(at, from);
        // Zeroes are what is there already.
        if beyond.is_some_and(|beyond| !beyond.is_zero()) {
            let (name, end) = (self.options.filename(), self.session.facts().size);
            return Err(Error::new(ErrorKind::NoSpace, format!("{name} ends at byte {end}")));
        }
        if !from.is_empty() {
            self.request(Command::Write { at, from, fua }).await?;
        }
        if flags.fua && !fua { self.flush().await } else { Ok(()) }
    }

    async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        self.need(export::SEND_WRITE_ZEROES, "cannot write zeroes")?;
        if flags.no_fallback {
            self.need(export::SEND_FAST_ZERO, "does not tell whether zeroes are cheap")?;
        }
        let fua = flags.fua && self.has_fua();
        let wire = WriteFlags { fua, ..flags };
        if let Some(range) = self.inside(range) {
            self.request(Command::WriteZeroes { range, flags: wire }).await?;
        }
        if flags.fua && !fua { self.flush().await } else { Ok(()) }
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.need(export::SEND_TRIM, "cannot discard")?;
        if let Some(range) = self.inside(range) {
            self.request(Command::Trim { range }).await?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        if self.session.facts().can(export::SEND_FLUSH) {
            self.request(Command::Flush).await?;
        }
        Ok(())
    }

    async fn map(&self, range: Range<u64>) -> Result<Extent> {
        let asked = range.end - range.start;
        // What the user has chosen to see instead says nothing about the content.
        let told = self.options.x_dirty_bitmap.is_none() && self.session.facts().context.is_some();
        let status = if told { self.status(range).await? } else { None };
        Ok(match status {
            // A hole that is not said to be zero may read as anything.
            Some(Status { zero: true, len, .. }) => Extent { kind: ExtentKind::Zero, len },
            Some(Status { len, .. }) => Extent { kind: ExtentKind::Data, len },
            None => Extent { kind: ExtentKind::Data, len: asked },
        })
    }

    async fn resize(&self, len: u64) -> Result<()> {
        let (there, name) = (self.session.facts().size, self.options.filename());
        if len == whole_sectors(there) {
            self.len.set(len);
        }
        if len == self.len() {
            return Ok(());
        }
        let context = if len < self.len() {
            format!("{name} cannot be shortened while it is in use over NBD")
        } else {
            format!("{name} has {there} bytes, says its server: it has to be resized there first")
        };
        Err(Error::new(ErrorKind::Unsupported, context))
    }

    async fn grow(&self, len: u64) -> Result<ExtentKind> {
        let there = whole_sectors(self.session.facts().size);
        // What the server said when it was last connected to: a write must not wait for one connection more.
        self.resize(there.max(len)).await.map(|()| ExtentKind::Data)
    }

    async fn refresh(&self) -> Result<()> {
        self.session.look_again().await?;
        if !self.active.get() {
            self.len.set(whole_sectors(self.session.facts().size));
        }
        Ok(())
    }

    async fn activate(&self, _only_if: Option<u64>) -> Result<()> {
        self.active.set(true);
        Ok(())
    }

    async fn inactivate(&self) -> Result<()> {
        self.flush().await?;
        self.active.set(false);
        Ok(())
    }

    async fn generation(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}

#[cfg(test)]
#[path = "nbd_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "peer_tests.rs"]
mod peer_tests;

#[cfg(test)]
#[path = "tls_tests.rs"]
mod tls_tests;

#[cfg(test)]
#[path = "data_tests.rs"]
mod data_tests;

#[cfg(test)]
#[path = "outage_tests.rs"]
mod outage_tests;

#[cfg(test)]
#[path = "growth_tests.rs"]
mod growth_tests;

#[cfg(test)]
#[path = "chaos_tests.rs"]
mod chaos_tests;
