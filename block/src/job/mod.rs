//! Jobs: long work on the graph that users start, watch, pause, cancel and complete.
//!
//! A job is its loop ([`Job::run`]) and what it does in the end ([`Job::settle`]). Everything else is here,
//! the same for all: the states and their order ([`status`]), the events ([`event`]), the verbs
//! ([`registry`]) and what a loop can ask and say ([`JobCtx`]).
//!
//! ```text
//! created -> running <-> paused
//!               |
//!            (ready <-> standby)        a mirror that keeps its copy up to date
//!               |
//!            waiting -> pending -> concluded -> null
//!  any failure or cancel: aborting -> concluded -> null
//! ```

pub mod create;
pub mod event;
pub mod mirror;
pub mod query;
pub mod registry;
pub mod status;

mod ctx;
mod on_error;
mod rate;
mod record;

use std::rc::Rc;

pub use ctx::JobCtx;
pub use event::{BlockEvent, BlockJobReport, ErrorAction, EventSink, IoOperation};
pub use on_error::OnError;
pub use query::{IoStatus, JobInfo, JobKind};
pub use record::{JobHooks, JobOptions};
pub use registry::JobRegistry;
pub use status::{JobStatus, JobVerb};

use crate::error::Result;
use crate::executor::race;
use record::{Cancel, JobRecord};

/// How a job ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settle {
    /// Its work is done and takes effect.
    Complete,
    /// Its work is done, and the user wants no effect of it.
    Leave,
    /// It failed or was cancelled: everything goes back to how it was.
    Abandon,
}

/// A kind of job.
#[expect(async_fn_in_trait, reason = "everything of a graph runs on one thread; nothing is Send")]
pub trait Job: 'static {
    /// What kind of job this is.
    const KIND: JobKind;

    /// The work. Returns when it is done and could take effect.
    ///
    /// It is dropped in the middle when the job is cancelled by force: whatever must be undone is undone
    /// in [`settle`](Self::settle).
    ///
    /// # Errors
    /// The reason why the job failed.
    async fn run(&mut self, ctx: &JobCtx) -> Result<()>;

    /// The end, called exactly once, after `run` has returned or was dropped. When `Complete` cannot be
    /// done it leaves everything as it was before the job, as `Abandon` does.
    ///
    /// # Errors
    /// The result could not take effect.
    async fn settle(self, ctx: &JobCtx, how: Settle) -> Result<()>;
}

/// A job's whole life after its start.
pub(crate) async fn live<J: Job>(mut job: J, ctx: JobCtx) {
    let record = Rc::clone(&ctx.record);
    let mut outcome = match race(job.run(&ctx), ctx.cancelled()).await {
        Some(outcome) => outcome,
        None => Err(JobCtx::cancelled_error()),
    };
    if outcome.is_ok() {
        // A pause that came after the last look at it has nothing to stop any more.
        record.end_pause();
        record.enter(JobStatus::Waiting);
        record.enter(JobStatus::Pending);
        outcome = wait_for_finalize(&record).await;
    }
    record.settling.set(true);
    record.hooks.take();
    let outcome = match outcome {
        Ok(()) => {
            let leave = ctx.finish_without_effect();
            let how = if leave { Settle::Leave } else { Settle::Complete };
            let settled = job.settle(&ctx, how).await;
            if let Err(error) = &settled {
                record.set_error(error.clone());
                record.enter(JobStatus::Aborting);
            }
            settled
        }
        Err(error) => {
            record.set_error(error.clone());
            record.enter(JobStatus::Aborting);
            if let Err(trouble) = job.settle(&ctx, Settle::Abandon).await {
                tracing::error!(job = record.id(), error = %trouble, "cannot undo the job");
            }
            Err(error)
        }
    };
    conclude(&record, outcome);
}

/// Waits in `pending` until the user finalizes the job, or cancels it.
async fn wait_for_finalize(record: &JobRecord) -> Result<()> {
    if !record.finalize_wanted() {
        let id = record.id().to_owned();
        record.emit(BlockEvent::BlockJobPending { kind: record.kind, id });
    }
    let before = record.cancel();
    let cancelled = || record.cancel() == Cancel::Force || record.cancel() != before;
    record.changed.wait_until(|| record.finalize_wanted() || cancelled()).await;
    if cancelled() { Err(JobCtx::cancelled_error()) } else { Ok(()) }
}

/// The last events of a job.
fn conclude(record: &JobRecord, outcome: Result<()>) {
    if record.kind.is_block_job() {
        let report = record.report();
        record.emit(match outcome {
            Err(_) if record.cancel() == Cancel::Force => BlockEvent::BlockJobCancelled(report),
            Err(error) => BlockEvent::BlockJobCompleted { report, error: Some(error.short()) },
            Ok(()) => BlockEvent::BlockJobCompleted { report, error: None },
        });
    }
    record.enter(JobStatus::Concluded);
    if record.options.auto_dismiss {
        record.enter(JobStatus::Null);
    }
}
