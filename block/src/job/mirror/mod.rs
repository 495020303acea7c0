//! The mirror job: copies a node to a target while a guest uses it, keeps the copy equal, and in the end
//! puts the target in the source's place.
//!
//! The loop is [`MirrorJob::run`]. Its rules (DESIGN section 8):
//!
//! 1. A guest's write marks its granules dirty when it completes, before the guest hears of it, also when
//!    it failed: `guest`, through the filter [`crate::filter::mirror_top`].
//! 2. Bits are clear before anyone asks what the source holds or reads it: `state::Mirror::claim`.
//! 3. Two operations on one granule never overlap: both `claim` and write-through hold its range lock.
//! 4. A failed copy sets its bits again before anything else happens: `copy::start`.
//! 5. READY only after a flush of the target. To finish: shut the gates, look again, flush, pivot, and only
//!    then open the gates: the end of `run`, then `end`.
//! 6. What is written through is copied first, because the guest may change it between the two writes:
//!    `guest`.

pub(crate) mod guest;

mod copy;
mod end;
mod options;
mod scan;
mod start;
mod state;

use std::rc::Rc;

pub use options::{CopyMode, MirrorOptions, SyncMode};
pub use start::start;

pub(crate) use state::Mirror;

use crate::error::{Error, ErrorKind, Result};
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
    /// The source's gates are shut and both sides are equal.
    drained: Option<Drained>,
}

impl Job for MirrorJob {
    const KIND: JobKind = JobKind::Mirror;

    async fn run(&mut self, ctx: &JobCtx) -> Result<()> {
        let mirror = Rc::clone(&self.mirror);
        check_sizes(&mirror)?;
        scan::find_dirty(&mirror).await;
        let mut rest = Rest::new(&mirror);
        loop {
            if ctx.should_pause() || mirror.has_failed() {
                self.drained = None;
                ctx.wait_until(|| mirror.ops.get() == 0).await;
                mirror.failure()?;
                ctx.pause_point().await;
                continue;
            }
            let guest_waits = self.drained.is_some();
            if let Some(time) = mirror.not_before(guest_waits) {
                self.wait_for_time(time, guest_waits).await;
                continue;
            }
            if mirror.dirty_bytes() > 0 {
                if !self.copy_next().await {
                    self.wait_for_change().await;
                }
                let finish_now = ctx.should_finish() && rest.is_small_enough(&mirror);
                if guest_waits || !finish_now {
                    continue;
                }
            } else if mirror.ops.get() > 0 {
                self.wait_for_change().await;
                continue;
            } else if !ctx.is_ready() {
                if self.flush_target().await {
                    mirror.synced.set(mirror.writes_through());
                    ctx.ready();
                }
                continue;
            } else if !ctx.should_finish() {
                ctx.rest(self.wait_while_clean()).await;
                continue;
            }

            // The user wants us to finish, and little or nothing is left to copy.
            if self.drained.is_none() {
                self.drained = Some(self.drain_source().await);
            } else if self.flush_target().await {
                return Ok(());
            } else {
                self.drained = None;
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

    /// Whether the target is durable now; if not, the user's policy was applied.
    async fn flush_target(&self) -> bool {
        match self.mirror.target.flush().await {
            Ok(()) => true,
            Err(error) => {
                self.mirror.failed(IoOperation::Write, error);
                false
            }
        }
    }

    /// Waits until a range or a slot becomes free or a granule dirty, or the user wants something.
    async fn wait_for_change(&self) {
        let (mirror, ctx) = (&self.mirror, &self.mirror.ctx);
        let before = mirror.changes.get();
        ctx.wait_until(|| mirror.changes.get() != before || ctx.should_pause()).await;
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
        let wanted = || ctx.should_pause() || ctx.should_finish() || mirror.has_failed();
        ctx.wait_until(|| wanted() || mirror.dirty_bytes() > 0).await;
        ctx.wait_before(ctx.now().saturating_add(SLICE_NS), wanted).await;
    }
}

/// How much may be left to copy when the guest is held up to finish. It doubles with every pass over the
/// disk that did not get there: a guest that writes faster than we copy must not keep us from ever
/// finishing.
struct Rest {
    allowed: u64,
    passes: u64,
}

impl Rest {
    fn new(mirror: &Mirror) -> Rest {
        Rest { allowed: 0, passes: mirror.passes.get() }
    }

    /// Asked after every step once the job is to finish.
    fn is_small_enough(&mut self, mirror: &Mirror) -> bool {
        if self.passes != mirror.passes.get() {
            self.passes = mirror.passes.get();
            self.allowed = (self.allowed * 2).max(mirror.settings.granularity);
        }
        mirror.dirty_bytes() <= self.allowed
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
