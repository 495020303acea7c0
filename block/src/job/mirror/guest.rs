//! A guest's writes on their way through the mirror's filter.
//!
//! In `background` mode a write goes to the source and marks its granules when it is over, before the
//! guest hears of it, also when it failed (rule 1). In `write-blocking` mode it goes to both sides: it
//! first waits for everything that works on its granules (rule 3), and it is copied, because the guest
//! may change its buffer between the two writes (rule 6).

use std::future::Future;
use std::ops::Range;
use std::rc::Rc;

use super::copy;
use super::state::Mirror;
use crate::buf::IoBuf;
use crate::driver::{ExtentKind, WriteFlags};
use crate::edge::Edge;
use crate::error::{Error, Result};
use crate::executor::{Carried, race};
use crate::job::IoOperation;
use crate::ranges::RangeGuard;

/// A guest writes `from` at `at`.
pub(crate) async fn write(
    mirror: &Rc<Mirror>,
    source: &Edge,
    target: &Edge,
    at: u64,
    from: IoBuf,
    flags: WriteFlags,
) -> Result<()> {
    let range = at..at.saturating_add(from.len() as u64);
    let change = Change::new(mirror, range.clone());
    let Some(held) = begin_write_through(mirror, &range).await else {
        return source.write(at, from, flags).await;
    };
    let bounced = IoBuf::alloc(from.len());
    bounced.copy_from_buf(&from);
    source.write(at, bounced.clone(), flags).await?;
    mirror.target_data.borrow_mut().mark(range);
    let (edge, how) = (target.clone(), mirror.write_flags());
    let half = async move { edge.write(at, bounced, how).await };
    change.finish(through(mirror, half).await);
    drop(held);
    Ok(())
}

/// A guest makes `range` zero.
pub(crate) async fn write_zeroes(
    mirror: &Rc<Mirror>,
    source: &Edge,
    target: &Edge,
    range: Range<u64>,
    flags: WriteFlags,
) -> Result<()> {
    let change = Change::new(mirror, range.clone());
    let Some(held) = begin_write_through(mirror, &range).await else {
        return source.write_zeroes(range, flags).await;
    };
    source.write_zeroes(range.clone(), flags).await?;
    change.finish(zeroes_through(mirror, target, range).await);
    drop(held);
    Ok(())
}

/// A guest needs `range` no longer. The source then reads as old data or as zeroes there, and so must the
/// target: zeroes go through at once, anything else is left to the copier.
pub(crate) async fn discard(
    mirror: &Rc<Mirror>,
    source: &Edge,
    target: &Edge,
    range: Range<u64>,
) -> Result<()> {
    let change = Change::new(mirror, range.clone());
    let Some(held) = begin_write_through(mirror, &range).await else {
        return source.discard(range).await;
    };
    source.discard(range.clone()).await?;
    if reads_as_zeroes(mirror, source, range.clone()).await {
        change.finish(zeroes_through(mirror, target, range).await);
    }
    drop(held);
    Ok(())
}

async fn zeroes_through(
    mirror: &Rc<Mirror>,
    target: &Edge,
    range: Range<u64>,
) -> Option<Result<()>> {
    let (whole, edge) = (Rc::clone(mirror), target.clone());
    through(mirror, async move { copy::write_zeroes(&whole, &edge, range).await }).await
}

/// The target's half of a change; `None` if the job is cancelled over it. Then the guest goes on, but the
/// target stays in use until it has answered: what comes late would destroy what the next one writes there.
async fn through(
    mirror: &Mirror,
    half: impl Future<Output = Result<()>> + 'static,
) -> Option<Result<()>> {
    let pass = mirror.target.pass();
    let half = Carried::new(mirror.ctx.executor(), async move {
        let result = half.await;
        drop(pass);
        result
    });
    race(half, mirror.ctx.cancelled()).await
}

/// Waits for everything that works on the granules of `range`; `None` if writes do not go through, or
/// the job ended meanwhile, or the copier has to bring whole granules.
async fn begin_write_through<'a>(mirror: &'a Mirror, range: &Range<u64>) -> Option<Held<'a>> {
    if !mirror.writes_through() {
        return None;
    }
    let claim = mirror.busy.lock(mirror.granules(range), true);
    let held = race(claim, mirror.ctx.cancelled()).await?;
    let through = mirror.writes_through() && mirror.may_be_alone(range);
    through.then_some(Held { mirror, range: Some(held) })
}

async fn reads_as_zeroes(mirror: &Mirror, source: &Edge, range: Range<u64>) -> bool {
    let mut at = range.start;
    while at < range.end {
        match source.map(at..range.end).await {
            Ok(extent) if extent.len == 0 || extent.kind == ExtentKind::Data => return false,
            Ok(extent)
                if extent.kind == ExtentKind::Absent && copy::has_backing(&mirror.source) =>
            {
                return false;
            }
            Ok(extent) => at += extent.len,
            Err(_) => return false,
        }
    }
    true
}

/// The granules of a write that goes through. The copier hears when they are free again.
struct Held<'a> {
    mirror: &'a Mirror,
    range: Option<RangeGuard>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        drop(self.range.take());
        self.mirror.changed();
    }
}

/// A change of the source. However it ends, its granules are dirty, unless the target got it too.
struct Change<'a> {
    mirror: &'a Mirror,
    range: Range<u64>,
    on_target: bool,
}

impl<'a> Change<'a> {
    fn new(mirror: &'a Mirror, range: Range<u64>) -> Change<'a> {
        Change { mirror, range, on_target: false }
    }

    /// The end of the target's half; `None` if the job was cancelled over it. The guest is not told of
    /// a target's error: its write is on its disk.
    fn finish(mut self, outcome: Option<Result<()>>) {
        match outcome {
            Some(Ok(())) => {
                self.on_target = true;
                self.mirror.clear(self.range.clone());
            }
            Some(Err(error)) => self.target_failed(error),
            None => {}
        }
    }

    fn target_failed(self, error: Error) {
        let mirror = self.mirror;
        // Rule 4: the bits first.
        drop(self);
        mirror.failed(IoOperation::Write, error);
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        if !self.on_target {
            self.mirror.mark(self.range.clone());
        }
    }
}
