//! What a simulated disk does to its medium, and when.

use std::cell::Cell;
use std::ops::Range;
use std::time::Duration;

use super::{Medium, SECTOR, State, usize_of, usize_range};
use crate::buf::IoBuf;
use crate::driver::WriteFlags;
use crate::error::{Error, ErrorKind, Result};
use crate::testing::fault::{Effect, Fault, SimOp};

impl State {
    /// Part of an operation's time.
    pub(super) async fn delay(&self) {
        let Range { start, end } = self.options.latency;
        let spread = u64::try_from((end - start).as_nanos()).unwrap_or(u64::MAX);
        let extra = Duration::from_nanos(self.rng.borrow_mut().below(spread.max(1)));
        let whole = start + extra;
        if !whole.is_zero() {
            self.executor.sleep(whole / 2).await;
        }
    }

    /// The start of an operation: its delay, then the fault it meets, if any.
    pub(super) async fn begin(&self, op: SimOp, range: &Range<u64>) -> Result<UnderWay<'_>> {
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
    pub(super) fn tear(&self, len: usize) -> usize {
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

    pub(super) async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        let op = self.begin(SimOp::Write, &(at..at + from.len() as u64)).await?;
        // The bytes are looked at only now, late, as a disk's DMA does.
        self.put_torn(at, &from.to_vec(), true, &op).await?;
        if flags.fua {
            self.make_durable();
        }
        Ok(())
    }

    pub(super) async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        let op = self.begin(SimOp::Zeroes, &range).await?;
        let zeroes = vec![0; usize_of(range.end - range.start)];
        self.put_torn(range.start, &zeroes, !flags.may_unmap, &op).await?;
        if flags.fua {
            self.make_durable();
        }
        Ok(())
    }

    pub(super) async fn discard(&self, range: Range<u64>) -> Result<()> {
        let op = self.begin(SimOp::Discard, &range).await?;
        let zeroes = vec![0; usize_of(range.end - range.start)];
        // Half of the discards do nothing, as the contract allows.
        if self.rng.borrow_mut().one_in(2) {
            self.put_torn(range.start, &zeroes, false, &op).await?;
        }
        Ok(())
    }

    pub(super) async fn flush(&self) -> Result<()> {
        let op = self.begin(SimOp::Flush, &(0..0)).await?;
        self.make_durable();
        self.delay().await;
        op.check()?;
        let mut counts = self.counts.get();
        counts.flushes += 1;
        self.counts.set(counts);
        Ok(())
    }

    pub(super) async fn resize(&self, len: u64) -> Result<()> {
        self.delay().await;
        let mut medium = self.medium.borrow_mut();
        let (old, len) = (medium.bytes.len(), usize_of(len));
        // What a shorter file loses does not come back when it grows again.
        medium.unflushed.push(old.min(len)..old.max(len));
        medium.bytes.resize(len, 0);
        medium.set_data_len();
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

/// Counts an operation while it is under way.
pub(super) struct UnderWay<'a> {
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

    pub(super) fn check(&self) -> Result<()> {
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
