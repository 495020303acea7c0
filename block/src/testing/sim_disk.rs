//! [`SimDisk`]: a disk in memory whose latency, faults and crashes come from a seed.
//!
//! It behaves as badly as a real disk may: a write reaches the medium in pieces, somewhere between its
//! start and its end; a read takes its bytes in pieces too; what was not flushed may or may not survive
//! a crash, sector by sector.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::fault::{Effect, Fault, SimOp};
use super::rng::Rng;
use crate::bitmap::DirtyBitmap;
use crate::buf::IoBuf;
use crate::driver::{BlockDriver, Extent, ExtentKind, Limits, WriteFlags};
use crate::edge::{Edge, EdgePerms};
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;
use crate::notify::Notify;

/// The unit that survives a crash as a whole, in bytes.
const SECTOR: usize = 512;
/// How long a disk can become: it takes up memory. Bytes.
const LONGEST: u64 = 256 << 20;

/// What a simulated disk is like.
#[derive(Clone, Debug)]
pub struct SimOptions {
    /// Bytes.
    pub len: u64,
    /// Decides latencies, tearing and what survives a crash.
    pub seed: u64,
    /// How long an operation takes, from and to.
    pub latency: Range<Duration>,
    /// What it can take in one request.
    pub limits: Limits,
    /// Whether its length can be changed, as that of a file can.
    pub resizable: bool,
}

impl SimOptions {
    /// A disk of `len` bytes that takes 50 to 500 microseconds for everything.
    pub fn new(len: u64, seed: u64) -> SimOptions {
        let latency = Duration::from_micros(50)..Duration::from_micros(500);
        SimOptions { len, seed, latency, limits: Limits::NONE, resizable: false }
    }

    /// The same without any delay.
    #[must_use]
    pub fn instant(mut self) -> SimOptions {
        self.latency = Duration::ZERO..Duration::ZERO;
        self
    }
}

/// How often a simulated disk was asked for what, and for how many bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SimCounts {
    /// Reads, and their bytes.
    pub reads: (u64, u64),
    /// Writes, and their bytes.
    pub writes: (u64, u64),
    /// Writes of zeroes, and their bytes.
    pub zeroes: (u64, u64),
    /// Flushes that succeeded.
    pub flushes: u64,
    /// Most operations under way at once.
    pub deepest: u64,
    /// Times a write began while another one of the same bytes was under way.
    pub overlaps: u64,
}

/// A disk in memory. Clones are the same disk: keep one to look at it and to make it fail.
#[derive(Clone)]
pub struct SimDisk(Rc<State>);

struct State {
    executor: Executor,
    options: SimOptions,
    rng: RefCell<Rng>,
    medium: RefCell<Medium>,
    faults: RefCell<Vec<Fault>>,
    counts: Cell<SimCounts>,
    under_way: Cell<u64>,
    /// What the writes under way change.
    writing: RefCell<Vec<Range<u64>>>,
    /// Raised by a crash: what was under way before fails.
    epoch: Cell<u64>,
    /// Raised to let operations go that hang.
    releases: Cell<u64>,
    changed: Notify,
}

struct Medium {
    /// What a read gives.
    bytes: Vec<u8>,
    /// What survives a crash for certain.
    durable: Vec<u8>,
    /// Where something was written since the last flush, in order.
    unflushed: Vec<Range<usize>>,
    /// Which 4 KiB pieces hold data: the rest is zero and `map` says so.
    data: DirtyBitmap,
}

impl SimDisk {
    /// A disk of zeroes on the clock of `executor`.
    ///
    /// # Panics
    /// The length is more than memory can hold.
    pub fn new(executor: &Executor, options: SimOptions) -> SimDisk {
        let len = usize::try_from(options.len).expect("a disk that fits in memory");
        let medium = Medium {
            bytes: vec![0; len],
            durable: vec![0; len],
            unflushed: Vec::new(),
            data: DirtyBitmap::new(options.len, 4096).expect("a disk that fits"),
        };
        SimDisk(Rc::new(State {
            executor: executor.clone(),
            rng: RefCell::new(Rng::new(options.seed)),
            options,
            medium: RefCell::new(medium),
            faults: RefCell::default(),
            counts: Cell::default(),
            under_way: Cell::new(0),
            writing: RefCell::default(),
            epoch: Cell::new(0),
            releases: Cell::new(0),
            changed: Notify::new(),
        }))
    }

    /// Puts `bytes` at `at`, durably and at once.
    pub fn fill(&self, at: u64, bytes: &[u8]) {
        let mut medium = self.0.medium.borrow_mut();
        let range = usize_range(at, bytes.len());
        medium.bytes[range.clone()].copy_from_slice(bytes);
        medium.durable[range].copy_from_slice(bytes);
        medium.data.mark(at..at + bytes.len() as u64);
    }

    /// Everything a read would give now.
    pub fn contents(&self) -> Vec<u8> {
        self.0.medium.borrow().bytes.clone()
    }

    /// Everything that is durable for certain.
    pub fn durable(&self) -> Vec<u8> {
        self.0.medium.borrow().durable.clone()
    }

    /// Bytes that hold data, in 4 KiB pieces.
    pub fn data_bytes(&self) -> u64 {
        self.0.medium.borrow().data.dirty_bytes()
    }

    /// From now on `fault` happens.
    pub fn inject(&self, fault: Fault) {
        self.0.faults.borrow_mut().push(fault);
    }

    /// Faults that can still happen.
    pub fn faults_left(&self) -> usize {
        self.0.faults.borrow().len()
    }

    /// No fault happens any more; what hangs goes on.
    pub fn heal(&self) {
        self.0.faults.borrow_mut().clear();
        self.0.releases.set(self.0.releases.get() + 1);
        self.0.changed.notify_all();
    }

    /// The power fails: all that is under way fails, and of each sector written since the last flush the
    /// old content or the new one survives.
    pub fn crash(&self) {
        let state = &self.0;
        let mut medium = state.medium.borrow_mut();
        let mut rng = state.rng.borrow_mut();
        let Medium { bytes, durable, unflushed, .. } = &mut *medium;
        // A length that was not flushed may or may not survive, too.
        let len = if rng.one_in(2) { durable.len() } else { bytes.len() };
        durable.resize(len.max(bytes.len()), 0);
        for range in unflushed.drain(..) {
            let range = range.start.min(bytes.len())..range.end.min(bytes.len());
            for start in range.clone().step_by(SECTOR) {
                let sector = start..range.end.min(start + SECTOR);
                if rng.one_in(2) {
                    durable[sector.clone()].copy_from_slice(&bytes[sector]);
                }
            }
        }
        durable.resize(len, 0);
        bytes.clone_from(durable);
        medium.set_data_len();
        medium.data.mark_all();
        state.epoch.set(state.epoch.get() + 1);
        state.changed.notify_all();
    }

    /// What it was asked for so far.
    pub fn counts(&self) -> SimCounts {
        self.0.counts.get()
    }

    /// Operations under way now.
    pub fn under_way(&self) -> u64 {
        self.0.under_way.get()
    }
}

impl Medium {
    /// The length has changed.
    fn set_data_len(&mut self) {
        self.data.resize(self.bytes.len() as u64).expect("a disk that fits");
    }
}

impl State {
    /// Part of an operation's time.
    async fn delay(&self) {
        let Range { start, end } = self.options.latency;
        let spread = u64::try_from((end - start).as_nanos()).unwrap_or(u64::MAX);
        let extra = Duration::from_nanos(self.rng.borrow_mut().below(spread.max(1)));
        let whole = start + extra;
        if !whole.is_zero() {
            self.executor.sleep(whole / 2).await;
        }
    }

    /// The start of an operation: its delay, then the fault it meets, if any.
    async fn begin(&self, op: SimOp, range: &Range<u64>) -> Result<UnderWay<'_>> {
        let changes = matches!(op, SimOp::Write | SimOp::Zeroes | SimOp::Discard);
        let under_way = UnderWay::new(self, range.clone(), changes);
        let mut counts = self.counts.get();
        let bytes = range.end - range.start;
        match op {
            SimOp::Read => counts.reads = (counts.reads.0 + 1, counts.reads.1 + bytes),
            SimOp::Write => counts.writes = (counts.writes.0 + 1, counts.writes.1 + bytes),
            SimOp::Zeroes => counts.zeroes = (counts.zeroes.0 + 1, counts.zeroes.1 + bytes),
            SimOp::Flush | SimOp::Map | SimOp::Discard => {}
        }
        counts.deepest = counts.deepest.max(self.under_way.get());
        self.counts.set(counts);
        if range.end > self.medium.borrow().bytes.len() as u64 {
            return Err(Error::new(ErrorKind::OutOfRange, "past the end of the simulated disk"));
        }
        let effect = Fault::strike(&mut self.faults.borrow_mut(), op, range);
        self.delay().await;
        match effect {
            None => {}
            Some(Effect::Delay(duration)) => self.executor.sleep(duration).await,
            Some(Effect::Hang) => {
                let before = self.releases.get();
                self.changed.wait_until(|| self.releases.get() != before || under_way.lost()).await;
            }
            Some(Effect::Fail(kind)) => {
                if op == SimOp::Write && self.rng.borrow_mut().one_in(2) {
                    under_way.torn.set(Some(kind));
                } else {
                    return Err(injected(kind, op));
                }
            }
        }
        under_way.check()?;
        Ok(under_way)
    }

    /// A place to tear a transfer of `len` bytes at.
    fn tear(&self, len: usize) -> usize {
        let sectors = (len / SECTOR) as u64;
        usize::try_from(self.rng.borrow_mut().below(sectors + 1)).unwrap_or(0) * SECTOR
    }

    fn put(&self, at: u64, bytes: &[u8], data: bool) {
        let mut medium = self.medium.borrow_mut();
        let range = usize_range(at, bytes.len());
        medium.bytes[range.clone()].copy_from_slice(bytes);
        medium.unflushed.push(range);
        let touched = at..at + bytes.len() as u64;
        if data { medium.data.mark(touched) } else { medium.data.clear(touched) }
    }

    /// Puts `bytes` in two pieces with time between them.
    async fn put_torn(&self, at: u64, bytes: &[u8], data: bool, op: &UnderWay<'_>) -> Result<()> {
        let tear = self.tear(bytes.len());
        self.put(at, &bytes[..tear], data);
        self.delay().await;
        op.check()?;
        if let Some(kind) = op.torn.get() {
            return Err(injected(kind, SimOp::Write));
        }
        self.put(at + tear as u64, &bytes[tear..], data);
        Ok(())
    }

    fn make_durable(&self) {
        let mut medium = self.medium.borrow_mut();
        let Medium { bytes, durable, unflushed, .. } = &mut *medium;
        durable.resize(bytes.len(), 0);
        for range in unflushed.drain(..) {
            let range = range.start.min(bytes.len())..range.end.min(bytes.len());
            durable[range.clone()].copy_from_slice(&bytes[range]);
        }
    }
}

fn injected(kind: ErrorKind, op: SimOp) -> Error {
    Error::from_errno(kind.errno(), format!("injected fault in {op:?}")).with_kind(kind)
}

fn usize_range(at: u64, len: usize) -> Range<usize> {
    let start = usize::try_from(at).unwrap_or(usize::MAX);
    start..start.saturating_add(len)
}

/// Counts an operation while it is under way.
struct UnderWay<'a> {
    state: &'a State,
    epoch: u64,
    /// What it changes.
    writes: Option<Range<u64>>,
    /// The write fails after part of it reached the medium.
    torn: Cell<Option<ErrorKind>>,
}

impl<'a> UnderWay<'a> {
    fn new(state: &'a State, range: Range<u64>, changes: bool) -> UnderWay<'a> {
        state.under_way.set(state.under_way.get() + 1);
        if changes {
            let mut writing = state.writing.borrow_mut();
            let overlaps = |other: &Range<u64>| other.start < range.end && range.start < other.end;
            let mut counts = state.counts.get();
            counts.overlaps += u64::from(writing.iter().any(overlaps));
            state.counts.set(counts);
            writing.push(range.clone());
        }
        let writes = changes.then_some(range);
        UnderWay { state, epoch: state.epoch.get(), writes, torn: Cell::new(None) }
    }

    fn lost(&self) -> bool {
        self.epoch != self.state.epoch.get()
    }

    fn check(&self) -> Result<()> {
        if self.lost() {
            return Err(Error::new(ErrorKind::Disconnected, "the simulated disk lost power"));
        }
        Ok(())
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.state.under_way.set(self.state.under_way.get() - 1);
        let mut writing = self.state.writing.borrow_mut();
        if let Some(at) = writing.iter().position(|range| Some(range) == self.writes.as_ref()) {
            writing.swap_remove(at);
        }
    }
}

impl BlockDriver for SimDisk {
    const FORMAT: &'static str = "sim";

    fn limits(&self) -> Limits {
        self.0.options.limits
    }

    fn len(&self) -> u64 {
        self.0.medium.borrow().bytes.len() as u64
    }

    fn filename(&self) -> Option<String> {
        None
    }

    fn children(&self) -> Vec<Edge> {
        Vec::new()
    }

    fn set_permissions(&self, _held: EdgePerms) -> Result<()> {
        Ok(())
    }

    async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        let op = self.0.begin(SimOp::Read, &(at..at + into.len() as u64)).await?;
        let tear = self.0.tear(into.len());
        for piece in [0..tear, tear..into.len()] {
            let from = usize_range(at + piece.start as u64, piece.len());
            into.slice(piece).copy_from(&self.0.medium.borrow().bytes[from]);
            self.0.delay().await;
            op.check()?;
        }
        Ok(())
    }

    async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        let op = self.0.begin(SimOp::Write, &(at..at + from.len() as u64)).await?;
        // The bytes are looked at only now, late, as a disk's DMA does.
        self.0.put_torn(at, &from.to_vec(), true, &op).await?;
        if flags.fua {
            self.0.make_durable();
        }
        Ok(())
    }

    async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        let op = self.0.begin(SimOp::Zeroes, &range).await?;
        let zeroes = vec![0; usize_of(range.end - range.start)];
        self.0.put_torn(range.start, &zeroes, !flags.may_unmap, &op).await?;
        if flags.fua {
            self.0.make_durable();
        }
        Ok(())
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        let op = self.0.begin(SimOp::Discard, &range).await?;
        let zeroes = vec![0; usize_of(range.end - range.start)];
        // Half of the discards do nothing, as the contract allows.
        if self.0.rng.borrow_mut().one_in(2) {
            self.0.put_torn(range.start, &zeroes, false, &op).await?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<()> {
        let op = self.0.begin(SimOp::Flush, &(0..0)).await?;
        self.0.make_durable();
        self.0.delay().await;
        op.check()?;
        let mut counts = self.0.counts.get();
        counts.flushes += 1;
        self.0.counts.set(counts);
        Ok(())
    }

    async fn map(&self, range: Range<u64>) -> Result<Extent> {
        let op = self.0.begin(SimOp::Map, &range).await?;
        op.check()?;
        let medium = self.0.medium.borrow();
        let here = medium.data.is_dirty(range.start);
        let data = medium.data.next_dirty(range.start, u64::MAX);
        let end = match (here, data) {
            (true, Some(run)) => run.end,
            (false, Some(run)) => run.start,
            (_, None) => range.end,
        };
        let kind = if here { ExtentKind::Data } else { ExtentKind::Zero };
        Ok(Extent { kind, len: end.min(range.end) - range.start })
    }

    async fn resize(&self, len: u64) -> Result<()> {
        if !self.0.options.resizable {
            return Err(Error::new(ErrorKind::Unsupported, "a simulated disk keeps its length"));
        }
        if len > LONGEST {
            return Err(Error::new(ErrorKind::NoSpace, "a simulated disk is in memory"));
        }
        self.0.delay().await;
        let mut medium = self.0.medium.borrow_mut();
        let (old, len) = (medium.bytes.len(), usize_of(len));
        // What a shorter file loses does not come back when it grows again.
        medium.unflushed.push(old.min(len)..old.max(len));
        medium.bytes.resize(len, 0);
        medium.set_data_len();
        Ok(())
    }

    async fn activate(&self, _only_if: Option<u64>) -> Result<()> {
        Ok(())
    }

    async fn inactivate(&self) -> Result<()> {
        self.flush().await
    }

    async fn generation(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}

fn usize_of(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

#[cfg(test)]
#[path = "sim_disk_tests.rs"]
mod tests;
