//! What a job's loop has to do with the world: pauses, its rate, its progress, its errors, its end.

use std::future::Future;
use std::rc::Rc;

use super::event::{BlockEvent, ErrorAction, IoOperation};
use super::on_error::OnError;
use super::record::{Cancel, JobHooks, JobRecord};
use super::status::JobStatus;
use crate::error::{Error, ErrorKind, Result};
use crate::executor::{Executor, race};

/// A job's side of its record. Cheap to clone: the tasks a job starts hold one too.
#[derive(Clone)]
pub struct JobCtx {
    pub(crate) record: Rc<JobRecord>,
    executor: Executor,
}

impl JobCtx {
    pub(crate) fn new(record: Rc<JobRecord>, executor: Executor) -> JobCtx {
        JobCtx { record, executor }
    }

    /// The executor of the job's graph.
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// The job's id.
    pub fn id(&self) -> &str {
        self.record.id()
    }

    /// What the job checks before it takes a verb, and what only it can show. Let go of before it settles.
    pub fn set_hooks(&self, hooks: Rc<dyn JobHooks>) {
        *self.record.hooks.borrow_mut() = Some(hooks);
    }

    /// Sets the rate limit, in bytes a second; 0 for none.
    pub fn set_speed(&self, speed: u64) {
        let now = self.record.clock.now();
        self.record.rate.borrow_mut().set_speed(speed, now);
        self.kick();
    }

    /// Whether the job is to stop working for a while. It then finishes what it has in flight and goes
    /// to its [`pause_point`](Self::pause_point).
    pub fn should_pause(&self) -> bool {
        self.record.pause_wanted()
    }

    /// Waits here for as long as the job is to be paused. Nothing of the job may be in flight.
    pub async fn pause_point(&self) {
        while self.should_pause() && self.record.cancel() != Cancel::Force {
            if let Some(paused) = self.record.status().paused() {
                self.record.enter(paused);
            }
            let record = &self.record;
            record
                .changed
                .wait_until(|| !record.pause_wanted() || record.cancel() == Cancel::Force)
                .await;
        }
    }

    /// Charges `bytes` of work to the rate limit.
    pub fn charge(&self, bytes: u64) {
        let now = self.record.clock.now();
        self.record.rate.borrow_mut().charge(bytes, now);
    }

    /// Takes back what was charged for work that turned out to cost nothing.
    pub fn refund(&self, bytes: u64) {
        self.record.rate.borrow_mut().refund(bytes);
        self.kick();
    }

    /// When the rate limit next allows work, if not now; in ns of the executor's clock.
    pub fn throttled_until(&self) -> Option<u64> {
        let now = self.record.clock.now();
        self.record.rate.borrow().wait_until(now)
    }

    /// Charges `bytes`, then waits until the rate limit allows more work. For jobs with one operation
    /// at a time; a pause or cancel ends the wait.
    pub async fn throttle(&self, bytes: u64) {
        self.charge(bytes);
        while let Some(until) = self.throttled_until() {
            if self.should_pause() || self.record.cancel() == Cancel::Force {
                return;
            }
            let changed = || self.throttled_until() != Some(until) || self.should_pause();
            self.rest(self.wait_before(until, changed)).await;
        }
    }

    /// What the job has dealt with and what there is in all, in bytes. The first never goes back.
    pub fn progress(&self, done: u64, total: u64) {
        self.record.set_progress(done, total);
    }

    /// The copy is complete and kept so. Emits the events of it, once in a job's life.
    pub fn ready(&self) {
        self.record.enter(JobStatus::Ready);
        self.record.emit(BlockEvent::BlockJobReady(self.record.report()));
    }

    /// Whether [`ready`](Self::ready) was called.
    pub fn is_ready(&self) -> bool {
        self.record.status().is_ready()
    }

    /// Whether the job is to finish now, to take effect or not.
    pub fn should_finish(&self) -> bool {
        self.record.complete_wanted() || self.record.cancel() == Cancel::Soft
    }

    /// Whether a job that finishes is to take no effect: it was cancelled softly.
    pub fn finish_without_effect(&self) -> bool {
        self.record.cancel() == Cancel::Soft
    }

    /// Whether the job was told to give up at once.
    pub fn is_cancelled(&self) -> bool {
        self.record.cancel() == Cancel::Force
    }

    /// Waits until the job is told to give up at once.
    pub async fn cancelled(&self) {
        let record = &self.record;
        record.changed.wait_until(|| record.cancel() == Cancel::Force).await;
    }

    /// Something the job may be waiting for has changed: it looks again.
    pub fn kick(&self) {
        self.record.changed.notify_all();
    }

    /// Waits until `ready` holds, asked again after every [`kick`](Self::kick) and every verb.
    pub async fn wait_until(&self, ready: impl Fn() -> bool) {
        self.record.changed.wait_until(ready).await;
    }

    /// The same, but not longer than until `deadline` (ns).
    pub async fn wait_before(&self, deadline: u64, ready: impl Fn() -> bool) {
        race(self.wait_until(ready), self.executor.sleep_until(deadline)).await;
    }

    /// Awaits `idle` as a job that has nothing in flight: it is shown as not busy, and who pauses it
    /// sees it paused at once.
    pub async fn rest<T>(&self, idle: impl Future<Output = T>) -> T {
        let resting = Resting::begin(&self.record);
        let output = idle.await;
        drop(resting);
        output
    }

    /// The time now, in ns, as deadlines count it.
    pub fn now(&self) -> u64 {
        self.record.clock.now()
    }

    /// An operation failed. Says what is done about it under the user's `policy`, and pauses the job if
    /// that is what is to be done.
    ///
    /// # Errors
    /// The job is to fail: the error to return from its loop.
    pub fn on_error(&self, policy: OnError, operation: IoOperation, error: Error) -> Result<()> {
        let action = policy.action(error.kind());
        let device = self.id().to_owned();
        tracing::warn!(job = device, operation = operation.as_str(), %error, "job I/O failed");
        self.record.emit(BlockEvent::BlockJobError { device, operation, action });
        match action {
            ErrorAction::Report => return Err(error),
            ErrorAction::Stop => self.record.stop_at(error.kind()),
            ErrorAction::Ignore => {}
        }
        Ok(())
    }

    /// The error of a job that was told to give up.
    pub fn cancelled_error() -> Error {
        Error::from_errno(ErrorKind::Cancelled.errno(), "the job was cancelled")
    }
}

/// Marks the job as waiting for nothing of its own.
struct Resting<'a>(&'a JobRecord);

impl<'a> Resting<'a> {
    fn begin(record: &'a JobRecord) -> Resting<'a> {
        record.resting.set(true);
        Resting(record)
    }
}

impl Drop for Resting<'_> {
    fn drop(&mut self) {
        self.0.resting.set(false);
    }
}
