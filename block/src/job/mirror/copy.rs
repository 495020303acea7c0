//! One copy operation: a claimed run of granules, from source to target.

use std::ops::Range;
use std::rc::Rc;

use super::state::Mirror;
use crate::backend::{BlockBackend, Pass};
use crate::driver::{Extent, ExtentKind, WriteFlags};
use crate::edge::Edge;
use crate::error::{Error, Result};
use crate::job::IoOperation;
use crate::ranges::RangeGuard;

/// An operation that failed: on which side, and why.
type Failed = (IoOperation, Error);

/// The right to do I/O on both sides while an operation lasts.
pub(super) struct Passes {
    source: Pass,
    target: Pass,
}

impl Passes {
    /// Waits outside both gates until both are open.
    pub(super) async fn enter(mirror: &Mirror) -> Passes {
        let (source, target) = mirror.source.enter_both(&mirror.target).await;
        Passes { source, target }
    }
}

/// Starts copying `range`, which the caller has claimed: its dirty bits are clear and `held` keeps others
/// away from it until the operation is over.
///
/// The passes were taken before the claim: nobody waits at a gate with a range held, which a guest's write
/// inside another gate may be waiting for.
pub(super) fn start(mirror: &Rc<Mirror>, range: Range<u64>, held: RangeGuard, io: Passes) {
    let under_way = UnderWay::new(Rc::clone(mirror), range.end - range.start);
    // Charged before it runs, so that the loop sees it; what costs nothing is given back.
    mirror.ctx.charge(range.end - range.start);
    // Detached: it owns its buffer and its claim, and ends by itself even when the job was dropped.
    drop(mirror.ctx.executor().spawn(async move {
        let mirror = Rc::clone(&under_way.mirror);
        let outcome = copy(&mirror, range.clone(), &io).await;
        match &outcome {
            // Rule 4: before anything else.
            Err(_) => mirror.mark(range.clone()),
            Ok(()) => {
                mirror.add_done(range.end - range.start);
                mirror.partial.borrow_mut().clear(range.clone());
            }
        }
        drop(under_way);
        if let Err((operation, error)) = outcome {
            mirror.failed(operation, error);
        }
        drop(held);
        drop(io);
        mirror.changed();
    }));
}

/// Copies `range` extent by extent.
async fn copy(mirror: &Mirror, range: Range<u64>, io: &Passes) -> std::result::Result<(), Failed> {
    let mut at = range.start;
    while at < range.end && !mirror.over.get() {
        let extent = source_extent(mirror, at..range.end, io).await;
        let end = at + extent.len;
        if extent.kind == ExtentKind::Data {
            copy_data(mirror, at..end, io).await?;
        } else {
            mirror.ctx.refund(extent.len);
            write_zeroes(mirror, mirror.target.edge(), at..end).await.map_err(on_target)?;
        }
        at = end;
    }
    Ok(())
}

/// What the source holds at the start of `range`. Where it cannot say, its bytes are read.
async fn source_extent(mirror: &Mirror, range: Range<u64>, io: &Passes) -> Extent {
    let whole = range.end - range.start;
    let data = Extent { kind: ExtentKind::Data, len: whole };
    match io.source.map(range).await {
        Ok(extent) if extent.len == 0 || extent.len > whole => data,
        // Nothing in this layer, but something may be below: reading looks through all layers.
        Ok(extent) if extent.kind == ExtentKind::Absent && has_backing(&mirror.source) => {
            Extent { kind: ExtentKind::Data, ..extent }
        }
        Ok(extent) => extent,
        Err(error) => {
            tracing::debug!(%error, "the source cannot tell what it holds, so it is read");
            data
        }
    }
}

/// Whether another layer shows where `root`'s node has nothing. A filter, and `raw`, says of itself what the
/// node below it says, and so it has what that one has.
pub(super) fn has_backing(root: &BlockBackend) -> bool {
    root.node().backing().is_some()
}

async fn copy_data(
    mirror: &Mirror,
    range: Range<u64>,
    io: &Passes,
) -> std::result::Result<(), Failed> {
    let buffer = mirror.take_buffer();
    let mut at = range.start;
    while at < range.end && !mirror.over.get() {
        let len = mirror.piece().min(range.end - at);
        let piece = buffer.slice(0..usize::try_from(len).unwrap_or(usize::MAX));
        io.source.read(at, piece.clone()).await.map_err(on_source)?;
        mirror.target_data.borrow_mut().mark(at..at + len);
        io.target.write(at, piece, mirror.write_flags()).await.map_err(on_target)?;
        at += len;
    }
    mirror.return_buffer(buffer);
    Ok(())
}

/// Makes `range` of the target read as zeroes, which costs nothing where it is known to.
pub(super) async fn write_zeroes(mirror: &Mirror, target: &Edge, range: Range<u64>) -> Result<()> {
    if !mirror.target_data.borrow().any_dirty(range.clone()) {
        return Ok(());
    }
    let flags = WriteFlags { may_unmap: true, ..mirror.write_flags() };
    target.write_zeroes(range.clone(), flags).await?;
    mirror.target_data.borrow_mut().clear(range);
    Ok(())
}

fn on_source(error: Error) -> Failed {
    (IoOperation::Read, error)
}

fn on_target(error: Error) -> Failed {
    (IoOperation::Write, error)
}

/// Counts an operation for as long as it runs.
struct UnderWay {
    mirror: Rc<Mirror>,
    bytes: u64,
}

impl UnderWay {
    fn new(mirror: Rc<Mirror>, bytes: u64) -> UnderWay {
        mirror.ops.set(mirror.ops.get() + 1);
        mirror.op_bytes.set(mirror.op_bytes.get() + bytes);
        UnderWay { mirror, bytes }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.mirror.ops.set(self.mirror.ops.get() - 1);
        self.mirror.op_bytes.set(self.mirror.op_bytes.get() - self.bytes);
        self.mirror.show_progress();
    }
}
