//! What of the old disk is where, and who may touch it now.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::ops::Range;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use super::OnCbwError;
use crate::bitmap::DirtyBitmap;
use crate::buf::IoBuf;
use crate::driver::{Extent, ExtentKind, WriteFlags};
use crate::edge::Edge;
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;
use crate::ranges::RangeLocks;

/// Smallest granule that is copied, bytes.
const MIN_GRANULE: u64 = 64 << 10;
/// Longest piece that is copied at once, bytes.
const MAX_COPY: u64 = 1 << 20;

/// The state of one snapshot, granule by granule.
pub(super) struct State {
    executor: Executor,
    policy: OnCbwError,
    timeout: Option<Duration>,
    /// Belongs to the snapshot.
    accessible: RefCell<DirtyBitmap>,
    /// Belongs to the snapshot and is in the source only.
    pending: RefCell<DirtyBitmap>,
    /// Is in the target.
    saved: RefCell<DirtyBitmap>,
    /// Copies under way.
    copies: RangeLocks,
    /// Snapshot reads from the source (shared): what they read must not change under them.
    reads: RangeLocks,
    broken: Cell<bool>,
}

impl State {
    pub(super) fn new(
        executor: &Executor,
        len: u64,
        target_unit: u32,
        policy: OnCbwError,
        timeout: Option<Duration>,
    ) -> Result<State> {
        let granule = u64::from(target_unit).clamp(MIN_GRANULE, MAX_COPY);
        let clean = DirtyBitmap::new(len, granule).map_err(|error| {
            Error::new(ErrorKind::InvalidArgument, format!("the snapshot's bitmap: {error}"))
        })?;
        let mut full = clean.clone();
        full.mark_all();
        Ok(State {
            executor: executor.clone(),
            policy,
            timeout,
            accessible: RefCell::new(full.clone()),
            pending: RefCell::new(full),
            saved: RefCell::new(clean),
            copies: RangeLocks::new(),
            reads: RangeLocks::new(),
            broken: Cell::new(false),
        })
    }

    /// Only what is dirty in `only` belongs to the snapshot.
    pub(super) fn restrict(&self, only: &DirtyBitmap) -> Result<()> {
        let mut accessible = self.accessible.borrow_mut();
        if only.len() != accessible.len() {
            let context = "the bitmap of the snapshot is of a disk of another length";
            return Err(Error::new(ErrorKind::InvalidArgument, context));
        }
        accessible.clear_all();
        let mut at = 0;
        while let Some(run) = only.next_dirty(at, u64::MAX) {
            accessible.mark(run.clone());
            at = run.end;
        }
        self.pending.replace(accessible.clone());
        Ok(())
    }

    /// Returns once `range` of the source may change: its old content is saved or given up, and no
    /// reader of the snapshot looks at it.
    pub(super) async fn before_write(
        &self,
        source: &Edge,
        target: &Edge,
        range: Range<u64>,
    ) -> Result<()> {
        if self.broken.get() {
            return Ok(());
        }
        let area = self.round(&range);
        if let Err(error) = self.save_in_time(source, target, area.clone()).await {
            match self.policy {
                OnCbwError::BreakGuestWrite => return Err(error),
                OnCbwError::BreakSnapshot => {
                    tracing::warn!("a snapshot is broken: {error}");
                    self.broken.set(true);
                }
            }
        }
        // From now on nobody reads this from the source any more: only those who do are awaited.
        drop(self.reads.lock(area, true).await);
        Ok(())
    }

    /// The granules that `range` touches.
    fn round(&self, range: &Range<u64>) -> Range<u64> {
        let accessible = self.accessible.borrow();
        let (granule, len) = (accessible.granularity(), accessible.len());
        let end = range.end.checked_next_multiple_of(granule).unwrap_or(len);
        (range.start & !(granule - 1))..end.min(len)
    }

    /// [`save`](State::save) within the time that a user gave.
    async fn save_in_time(&self, source: &Edge, target: &Edge, area: Range<u64>) -> Result<()> {
        let Some(timeout) = self.timeout else { return self.save(source, target, area).await };
        let mut save = pin!(self.save(source, target, area));
        let mut timer = pin!(self.executor.sleep(timeout));
        poll_fn(|cx| {
            if let Poll::Ready(result) = save.as_mut().poll(cx) {
                return Poll::Ready(result);
            }
            timer.as_mut().poll(cx).map(|()| {
                let context = format!("copying old content took longer than {timeout:?}");
                Err(Error::new(ErrorKind::TimedOut, context))
            })
        })
        .await
    }

    /// Copies what of `area` is still only in the source.
    async fn save(&self, source: &Edge, target: &Edge, area: Range<u64>) -> Result<()> {
        while let Some(run) = self.next_pending(&area) {
            let guard = self.copies.lock(run.clone(), true).await;
            // Another write may have saved some of it while this one waited, and changed it since.
            let still = self.next_pending(&run);
            if let Some(run) = still {
                self.copy(source, target, run.clone()).await?;
                self.pending.borrow_mut().clear(run.clone());
                self.saved.borrow_mut().mark(run);
            }
            drop(guard);
        }
        Ok(())
    }

    /// The first part of `area`, which is whole granules, that is only in the source.
    fn next_pending(&self, area: &Range<u64>) -> Option<Range<u64>> {
        let run = self.pending.borrow().next_dirty(area.start, MAX_COPY)?;
        (run.start < area.end).then(|| run.start..run.end.min(area.end))
    }

    async fn copy(&self, source: &Edge, target: &Edge, run: Range<u64>) -> Result<()> {
        let buf = IoBuf::alloc(usize::try_from(run.end - run.start).unwrap_or(usize::MAX));
        source.read(run.start, buf.clone()).await?;
        if buf.is_zero() {
            target.write_zeroes(run, WriteFlags::UNMAP).await
        } else {
            target.write(run.start, buf, WriteFlags::NONE).await
        }
    }

    /// Refuses what does not belong to the snapshot, and everything once it is broken.
    fn check(&self, range: &Range<u64>) -> Result<()> {
        if self.broken.get() {
            let context = "the snapshot is broken: old content could not be saved";
            return Err(Error::new(ErrorKind::PermissionDenied, context));
        }
        let accessible = self.accessible.borrow();
        let mut at = range.start;
        while at < range.end {
            match accessible.next_dirty(at, u64::MAX) {
                Some(run) if run.start <= at => at = run.end,
                _ => {
                    let context = "this part of the disk does not belong to the snapshot";
                    return Err(Error::new(ErrorKind::PermissionDenied, context));
                }
            }
        }
        Ok(())
    }

    /// Whether the start of `range` is in the target, and for how many bytes that is the same.
    fn place(&self, range: &Range<u64>) -> (bool, Range<u64>) {
        let saved = self.saved.borrow();
        match saved.next_dirty(range.start, u64::MAX) {
            Some(run) if run.start <= range.start => (true, range.start..run.end.min(range.end)),
            Some(run) => (false, range.start..run.start.min(range.end)),
            None => (false, range.clone()),
        }
    }

    /// Reads old content.
    pub(super) async fn read(
        &self,
        source: &Edge,
        target: &Edge,
        at: u64,
        into: IoBuf,
    ) -> Result<()> {
        let mut rest = at..at.saturating_add(into.len() as u64);
        while rest.start < rest.end {
            self.check(&rest)?;
            let (saved, piece) = self.place(&rest);
            let slice = |range: &Range<u64>| {
                let offset = |at: u64| usize::try_from(at).unwrap_or(usize::MAX);
                into.slice(offset(range.start - at)..offset(range.end - at))
            };
            if saved {
                target.read(piece.start, slice(&piece)).await?;
            } else {
                let guard = self.reads.lock(piece.clone(), false).await;
                // A write may have come first, and what it saved is in the target now.
                self.check(&piece)?;
                if self.place(&piece) != (false, piece.clone()) {
                    continue;
                }
                source.read(piece.start, slice(&piece)).await?;
                // Once the snapshot is broken, writes wait for nobody any more.
                self.check(&piece)?;
                drop(guard);
            }
            rest.start = piece.end;
        }
        Ok(())
    }

    /// What old content is. What was saved is never said to be absent: the images below the target
    /// have nothing to do with it.
    pub(super) async fn map(
        &self,
        source: &Edge,
        target: &Edge,
        range: Range<u64>,
    ) -> Result<Extent> {
        let whole = self.accessible_part(&range)?;
        loop {
            let (saved, piece) = self.place(&whole);
            let place = if saved { target } else { source };
            let found = place.node().map_above(None, piece.clone()).await?;
            let seen = piece.start..piece.start + found.len;
            self.check(&seen)?;
            // A write may have come meanwhile: what was seen was no longer old content, which is in the target now.
            if self.place(&seen) != (saved, seen) {
                continue;
            }
            let zero = matches!(found.kind, ExtentKind::Zero | ExtentKind::Absent);
            let kind = if zero { ExtentKind::Zero } else { ExtentKind::Data };
            return Ok(Extent { kind, len: found.len });
        }
    }

    /// The first part of `range` that belongs to the snapshot.
    fn accessible_part(&self, range: &Range<u64>) -> Result<Range<u64>> {
        let run = self.accessible.borrow().next_dirty(range.start, u64::MAX);
        let end = run.filter(|run| run.start <= range.start).map_or(range.end, |run| run.end);
        let part = range.start..end.min(range.end);
        self.check(&part)?;
        Ok(part)
    }

    /// Old content of the granules inside `range` is no longer needed.
    pub(super) async fn forget(&self, target: &Edge, range: Range<u64>) -> Result<()> {
        let granule = self.accessible.borrow().granularity();
        let len = self.accessible.borrow().len();
        let start = range.start.checked_next_multiple_of(granule).unwrap_or(len);
        let end = if range.end >= len { len } else { range.end & !(granule - 1) };
        if start >= end {
            return Ok(());
        }
        let guard = self.copies.lock(start..end, true).await;
        for bitmap in [&self.accessible, &self.pending] {
            bitmap.borrow_mut().clear(start..end);
        }
        let result = target.discard(start..end).await;
        drop(guard);
        result
    }
}
