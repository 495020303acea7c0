//! A guest's writes on their way through the mirror's filter.
//!
//! In `background` mode a write goes to the source and marks its granules when it is over, before the
//! guest hears of it, also when it failed (rule 1). In `write-blocking` mode it goes to both sides: it
//! first waits for everything that works on its granules (rule 3), and it is copied, because the guest
//! may change its buffer between the two writes (rule 6).

use std::ops::Range;

use super::copy;
use super::state::Mirror;
use crate::buf::IoBuf;
use crate::driver::{ExtentKind, WriteFlags};
use crate::edge::Edge;
use crate::error::{Error, Result};
use crate::executor::race;
use crate::job::IoOperation;
use crate::ranges::RangeGuard;

/// A guest writes `from` at `at`.
pub(crate) async fn write(
    mirror: &Mirror,
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
    let through = target.write(at, bounced, WriteFlags::NONE);
    change.finish(race(through, mirror.ctx.cancelled()).await);
    drop(held);
    Ok(())
}

/// A guest makes `range` zero.
pub(crate) async fn write_zeroes(
    mirror: &Mirror,
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
    let through = copy::write_zeroes(mirror, target, range);
    change.finish(race(through, mirror.ctx.cancelled()).await);
    drop(held);
    Ok(())
}

/// A guest needs `range` no longer. The source then reads as old data or as zeroes there, and so must the
/// target: zeroes go through at once, anything else is left to the copier.
pub(crate) async fn discard(
    mirror: &Mirror,
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
        let through = copy::write_zeroes(mirror, target, range);
        change.finish(race(through, mirror.ctx.cancelled()).await);
    }
    drop(held);
    Ok(())
}

/// Waits for everything that works on the granules of `range`; `None` if writes do not go through, or
/// the job ended meanwhile.
async fn begin_write_through<'a>(mirror: &'a Mirror, range: &Range<u64>) -> Option<Held<'a>> {
    if !mirror.writes_through() {
        return None;
    }
    let claim = mirror.busy.lock(mirror.granules(range), true);
    let held = race(claim, mirror.ctx.cancelled()).await?;
    mirror.writes_through().then_some(Held { mirror, range: Some(held) })
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
