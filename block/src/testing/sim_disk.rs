//! [`SimDisk`]: a disk in memory whose latency, faults and crashes come from a seed.
//!
//! It behaves as badly as a real disk may: a write reaches the medium in pieces, somewhere between its
//! start and its end, also when nobody waits for it any more; a read takes its bytes in pieces too; what
//! was not flushed may or may not survive a crash, sector by sector.

mod ops;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use super::fault::{Fault, SimOp};
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

    /// What changes the disk, as a task of its own: who gives a request up does not stop it.
    async fn carry<F>(&self, work: impl FnOnce(Rc<State>) -> F) -> Result<()>
    where
        F: Future<Output = Result<()>> + 'static,
    {
        self.0.executor.spawn(work(Rc::clone(&self.0))).await
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

fn usize_range(at: u64, len: usize) -> Range<usize> {
    let start = usize::try_from(at).unwrap_or(usize::MAX);
    start..start.saturating_add(len)
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
        self.carry(|state| async move { state.write(at, from, flags).await }).await
    }

    async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        self.carry(|state| async move { state.write_zeroes(range, flags).await }).await
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.carry(|state| async move { state.discard(range).await }).await
    }

    async fn flush(&self) -> Result<()> {
        self.carry(|state| async move { state.flush().await }).await
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
        self.carry(|state| async move { state.resize(len).await }).await
    }
    async fn grow(&self, len: u64) -> Result<ExtentKind> {
        self.resize(len).await.map(|()| ExtentKind::Zero)
    }
    async fn refresh(&self) -> Result<()> {
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
