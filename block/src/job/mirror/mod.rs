//! The mirror job: copies a node to a target while a guest uses it, keeps the copy equal, and in the end
//! puts the target in the source's place.
//!
//! The loop is `MirrorJob::run`. Its rules:
//!
//! 1. A guest's write marks its granules dirty when it completes, before the guest hears of it, also when
//!    it failed: `guest`, through the filter `filter::mirror_top`.
//! 2. Bits are clear before anyone asks what the source holds or reads it: `state::Mirror::claim`.
//! 3. Two operations on one granule never overlap: both `claim` and write-through hold its range lock.
//! 4. A failed copy sets its bits again before anything else happens: `copy::start`.
//! 5. READY only after a flush of the target. To finish: shut the gates, look again, flush, pivot, and only
//!    then open the gates: the end of `run`, then `end`. When the gates are shut: `hold`.
//! 6. What is written through is copied first, because the guest may change it between the two writes:
//!    `guest`.

pub(crate) mod guest;

mod copy;
mod end;
mod hold;
mod options;
mod scan;
mod start;
mod state;

use std::rc::Rc;

pub use options::{CopyMode, MirrorOptions, SyncMode};
pub use start::start;

pub(crate) use state::Mirror;

use hold::{Held, Hold};

use crate::error::{Error, ErrorKind, Result};
use crate::executor::race;
use crate::graph::{BlockGraph, Drained};
use crate::job::{IoOperation, Job, JobCtx, JobKind, Settle};
use crate::node::BlockNode;

/// A ready mirror that was clean gathers writes for so long before it copies them (ns), and a failed
/// operation is not repeated sooner.
const SLICE_NS: u64 = 100_000_000;

/// The mirror job.
struct MirrorJob {
    mirror: Rc<Mirror>,
    graph: BlockGraph,
    filter: BlockNode,
    hold: Hold,
    /// While it is there, nobody can change the source. When `run` returns, both sides are equal.
    held: Option<Held>,
}

impl Job for MirrorJob {
    const KIND: JobKind = JobKind::Mirror;

    async fn run(&mut self, ctx: &JobCtx) -> Result<()> {
        let mirror = Rc::clone(&self.mirror);
        check_sizes(&mirror)?;
        scan::find_dirty(&mirror).await;
        let mut flushed_ahead = false;
        loop {
            if ctx.should_pause() || mirror.has_failed() {
                self.held = None;
                ctx.wait_until(|| mirror.ops.get() == 0).await;
                mirror.failure()?;
                ctx.pause_point().await;
                continue;
            }
            let guest_waits = self.is_guest_held();
            if let Some(time) = mirror.not_before(guest_waits) {
                self.wait_for_time(time, guest_waits).await;
                continue;
            }
            let finish = ctx.is_ready() && ctx.should_finish();
            if finish && !flushed_ahead {
                // So that little is left to flush while the guest is held up.
                flushed_ahead = self.flush_target().await;
                continue;
            }
            if mirror.dirty_bytes() > 0 {
                if !self.copy_next().await {
                    self.wait_for_change().await;
                }
                if !guest_waits && self.hold.is_due(&mirror) {
                    self.hold_guest().await;
                }
            } else if mirror.ops.get() > 0 {
                self.wait_for_change().await;
            } else if !ctx.is_ready() {
                // Both sides are equal. What is written from here on is only a change to the copy.
                self.held = None;
                if self.flush_target().await {
                    mirror.synced.set(mirror.writes_through() && mirror.dirty_bytes() == 0);
                    self.hold.begin_again();
                    ctx.ready();
                }
            } else if !finish {
                ctx.rest(self.wait_while_clean()).await;
            } else if let Some(time) = self.hold.paused_until(ctx.now()) {
                ctx.wait_before(time, || ctx.should_pause() || mirror.dirty_bytes() > 0).await;
            } else if !guest_waits {
                self.hold_guest().await;
            } else if self.flush_target().await {
                return Ok(());
            }
        }
    }

    async fn settle(self, _ctx: &JobCtx, how: Settle) -> Result<()> {
        self.end(how).await
    }
}

impl MirrorJob {
    /// Starts copying the next dirty run. False if as many operations run as may, or all that is dirty is
    /// being worked on.
    async fn copy_next(&self) -> bool {
        let mirror = &self.mirror;
        if !mirror.has_slot() {
            return false;
        }
        let io = copy::Passes::enter(mirror).await;
        let Some((range, held)) = mirror.claim() else { return false };
        copy::start(mirror, range, held, io);
        true
    }

    /// Shuts the gates of everybody who can change the source, and waits for what is inside. Then the
    /// loop looks again at what is dirty.
    async fn drain_source(&self) -> Drained {
        let mirror = &self.mirror;
        let own = [mirror.source.id(), mirror.target.id()];
        self.graph.drain(&end::lowest_replaced(&self.graph, mirror), &own).await
    }

    /// Drains the source for as long as a guest may be held up.
    async fn hold_guest(&mut self) {
        let ctx = &self.mirror.ctx;
        let since = ctx.now();
        let until = self.hold.deadline(since);
        match race(self.drain_source(), ctx.executor().sleep_until(until)).await {
            Some(drained) => self.held = Some(Held { drained, since, until }),
            None => self.hold.ran_out(&self.mirror, since),
        }
    }

    /// Whether the guest is held up. If that has taken too long, it is let go here.
    fn is_guest_held(&mut self) -> bool {
        let now = self.mirror.ctx.now();
        if let Some(held) = self.held.take_if(|held| held.until <= now) {
            self.hold.ran_out(&self.mirror, held.since);
        }
        self.held.is_some()
    }

    /// Whether the target is durable now; if not, the user's policy was applied, or the guest could not be
    /// held up for so long.
    async fn flush_target(&mut self) -> bool {
        let ctx = &self.mirror.ctx;
        let (began, until) = (ctx.now(), self.held.as_ref().map(|held| held.until));
        let flushing = self.mirror.target.flush();
        let outcome = match until {
            Some(until) => race(flushing, ctx.executor().sleep_until(until)).await,
            None => Some(flushing.await),
        };
        // Also when it is still under way: the next hold knows that it takes so long at least.
        self.hold.flushed(ctx.now() - began);
        if let Some(Err(error)) = outcome {
            self.held = None;
            self.mirror.failed(IoOperation::Write, error);
            return false;
        }
        outcome.is_some()
    }

    /// Waits until a range or a slot becomes free or a granule dirty, or the user wants something, or the
    /// guest must be let go.
    async fn wait_for_change(&self) {
        let (mirror, ctx) = (&self.mirror, &self.mirror.ctx);
        let before = mirror.changes.get();
        let changed = || mirror.changes.get() != before || ctx.should_pause();
        match &self.held {
            Some(held) => ctx.wait_before(held.until, changed).await,
            None => ctx.wait_until(changed).await,
        }
    }

    /// Waits until `time`, before which nothing may be done, unless that changes.
    async fn wait_for_time(&self, time: u64, guest_waits: bool) {
        let (mirror, ctx) = (&self.mirror, &self.mirror.ctx);
        let idle = mirror.ops.get() == 0;
        let waiting = ctx.wait_before(time, || {
            let other = mirror.not_before(guest_waits) != Some(time);
            other || (mirror.ops.get() == 0) != idle || ctx.should_pause() || mirror.has_failed()
        });
        if idle { ctx.rest(waiting).await } else { waiting.await }
    }

    /// Both sides are equal: waits for a change, then a little longer for more of them.
    async fn wait_while_clean(&self) {
        let (mirror, ctx) = (&self.mirror, &self.mirror.ctx);
        mirror.synced.set(mirror.writes_through());
        mirror.free_buffers();
        let wanted = || ctx.should_pause() || ctx.should_finish() || mirror.has_failed();
        ctx.wait_until(|| wanted() || mirror.dirty_bytes() > 0).await;
        ctx.wait_before(ctx.now().saturating_add(SLICE_NS), wanted).await;
    }
}

fn check_sizes(mirror: &Mirror) -> Result<()> {
    if mirror.source.len() == mirror.target.len() {
        return Ok(());
    }
    let text = "Source and target image have different sizes";
    Err(Error::new(ErrorKind::InvalidArgument, text))
}

#[cfg(test)]
mod tests;
