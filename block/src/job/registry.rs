//! All jobs of a graph, by id, and the verbs users give them.
//!
//! Every verb checks first and changes nothing when it refuses; the texts are QEMU's, for clients that
//! compare them.

use std::cell::RefCell;
use std::rc::Rc;

use super::event::{BlockEvent, EventSink};
use super::query::{JobInfo, JobKind};
use super::record::{Cancel, JobOptions, JobRecord};
use super::status::{JobStatus, JobVerb};
use super::{Job, JobCtx, live};
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;
use crate::graph::BlockGraph;

/// The jobs of one graph. Clones are the same registry.
#[derive(Clone)]
pub struct JobRegistry(Rc<Inner>);

struct Inner {
    executor: Executor,
    sink: Rc<RefCell<EventSink>>,
    jobs: RefCell<Vec<Rc<JobRecord>>>,
}

impl JobRegistry {
    /// No jobs, and nobody who hears their events yet.
    pub fn new(executor: Executor) -> JobRegistry {
        let deaf: EventSink = Rc::new(|_| ());
        JobRegistry(Rc::new(Inner {
            executor,
            sink: Rc::new(RefCell::new(deaf)),
            jobs: RefCell::new(Vec::new()),
        }))
    }

    /// The jobs of `graph`.
    pub fn of(graph: &BlockGraph) -> JobRegistry {
        let executor = graph.executor().clone();
        JobRegistry::clone(&graph.extension(|| JobRegistry::new(executor)))
    }

    /// Where the events of this graph go from now on.
    pub fn set_event_sink(&self, sink: EventSink) {
        *self.0.sink.borrow_mut() = sink;
    }

    /// Tells the sink of something that is not a job's.
    pub fn emit(&self, event: BlockEvent) {
        let sink = Rc::clone(&self.0.sink.borrow());
        sink(event);
    }

    /// All jobs, oldest first: `query-jobs` and `query-block-jobs`.
    pub fn query_jobs(&self) -> Vec<JobInfo> {
        self.0.jobs.borrow().iter().map(|record| record.info()).collect()
    }

    /// The job for a `job-*` verb.
    ///
    /// # Errors
    /// `NotFound`, "Job not found" (QMP class GenericError).
    pub fn find(&self, id: &str) -> Result<JobRef> {
        self.lookup(id).ok_or_else(|| Error::new(ErrorKind::NotFound, "Job not found"))
    }

    /// The job for a `block-job-*` verb.
    ///
    /// # Errors
    /// `NotFound`, "Block job 'x' not found" (QMP class DeviceNotActive).
    pub fn find_block_job(&self, id: &str) -> Result<JobRef> {
        let missing = || Error::new(ErrorKind::NotFound, format!("Block job '{id}' not found"));
        self.lookup(id).ok_or_else(missing)
    }

    /// Cancels every job by force, waits until all are concluded and forgets them: what `quit` does first.
    pub async fn cancel_all(&self) {
        let records = self.0.jobs.borrow().clone();
        for record in &records {
            self.job(record).cancel_running(Cancel::Force);
        }
        for record in &records {
            self.job(record).concluded().await;
            if record.status() == JobStatus::Concluded {
                record.enter(JobStatus::Null);
                self.forget_if_null(record);
            }
        }
    }

    /// Makes a job that does not run yet, and announces it.
    ///
    /// # Errors
    /// The id is not well formed, or another job has it.
    pub fn create(&self, kind: JobKind, options: JobOptions) -> Result<JobCtx> {
        let id = &options.id;
        if !is_well_formed(id) {
            return Err(invalid(format!("Invalid job ID '{id}'")));
        }
        if self.lookup(id).is_some() {
            let text = format!("Job ID '{id}' already in use");
            return Err(Error::new(ErrorKind::AlreadyExists, text));
        }
        let (clock, sink) = (self.0.executor.clock().clone(), Rc::clone(&self.0.sink));
        let record = Rc::new(JobRecord::new(options, kind, clock, sink));
        self.0.jobs.borrow_mut().push(Rc::clone(&record));
        record.announce_status();
        Ok(JobCtx::new(record, self.0.executor.clone()))
    }

    /// Starts what [`create`](Self::create) made: announces `running` and lets it run.
    pub fn start<J: Job>(&self, ctx: JobCtx, job: J) {
        let registry = self.clone();
        ctx.record.enter(JobStatus::Running);
        // Detached: it ends by itself, and its record says when.
        drop(self.0.executor.spawn(async move {
            let record = Rc::clone(&ctx.record);
            live(job, ctx).await;
            registry.forget_if_null(&record);
        }));
    }

    /// Forgets what [`create`](Self::create) made, because it could not be started.
    pub fn discard(&self, ctx: &JobCtx) {
        ctx.record.enter(JobStatus::Null);
        self.forget_if_null(&ctx.record);
    }

    fn forget_if_null(&self, record: &Rc<JobRecord>) {
        if record.status() == JobStatus::Null {
            self.0.jobs.borrow_mut().retain(|other| !Rc::ptr_eq(other, record));
        }
    }

    fn lookup(&self, id: &str) -> Option<JobRef> {
        let jobs = self.0.jobs.borrow();
        jobs.iter().find(|record| record.id() == id).map(|record| self.job(record))
    }

    fn job(&self, record: &Rc<JobRecord>) -> JobRef {
        JobRef { registry: self.clone(), record: Rc::clone(record) }
    }
}

/// One job, to be told and asked something.
#[derive(Clone)]
pub struct JobRef {
    registry: JobRegistry,
    record: Rc<JobRecord>,
}

impl JobRef {
    /// What the queries show of it.
    pub fn info(&self) -> JobInfo {
        self.record.info()
    }

    /// Pause it. If nothing of it is in flight it is paused on return, else soon.
    ///
    /// # Errors
    /// It is paused already, or not working any more.
    pub async fn pause(&self) -> Result<()> {
        let record = &self.record;
        record.check_verb(JobVerb::Pause)?;
        if record.pause_wanted() {
            return Err(invalid("Job is already paused"));
        }
        let resting = record.resting.get();
        record.want_pause();
        if resting {
            let parked = || record.status().paused().is_none() || !record.pause_wanted();
            record.changed.wait_until(parked).await;
        }
        Ok(())
    }

    /// Let it work again, after a user's pause or an error's.
    ///
    /// # Errors
    /// It was not paused.
    pub fn resume(&self) -> Result<()> {
        if !self.record.pause_wanted() {
            return Err(invalid("Can't resume a job that was not paused"));
        }
        self.record.check_verb(JobVerb::Resume)?;
        self.record.end_pause();
        Ok(())
    }

    /// `job-cancel`: give up at once, whatever it has done.
    ///
    /// # Errors
    /// It is over already.
    pub async fn cancel(&self) -> Result<()> {
        self.record.check_verb(JobVerb::Cancel)?;
        self.cancel_now(Cancel::Force).await;
        Ok(())
    }

    /// `block-job-cancel`: without `force`, a ready job finishes and takes no effect.
    ///
    /// # Errors
    /// It is over already, or paused (without `force`).
    pub async fn cancel_block_job(&self, force: bool) -> Result<()> {
        let record = &self.record;
        if record.pause_wanted() && !force {
            let text = format!("The block job for device '{}' is currently paused", record.id());
            return Err(invalid(text));
        }
        record.check_verb(JobVerb::Cancel)?;
        let soft = !force && record.status().is_ready();
        self.cancel_now(if soft { Cancel::Soft } else { Cancel::Force }).await;
        Ok(())
    }

    async fn cancel_now(&self, how: Cancel) {
        let was_pending = self.record.status() == JobStatus::Pending;
        self.cancel_running(how);
        if was_pending {
            // It waits for nothing but the user, who wants to see it gone on return.
            self.concluded().await;
        }
    }

    fn cancel_running(&self, how: Cancel) {
        // While its result takes effect there is no way back: the job completes all the same.
        if !self.record.settling.get() {
            self.record.want_cancel(how);
        }
    }

    /// Finish and take effect. If it is paused, it does so when resumed.
    ///
    /// # Errors
    /// It is not ready, was cancelled, or could not take effect as it was told to.
    pub fn complete(&self) -> Result<()> {
        let record = &self.record;
        record.check_verb(JobVerb::Complete)?;
        if record.cancel() != Cancel::No {
            let text = format!("The active block job '{}' cannot be completed", record.id());
            return Err(invalid(text));
        }
        let hooks = record.hooks.borrow().clone();
        if let Some(hooks) = hooks {
            hooks.before_complete()?;
        }
        record.want_complete();
        Ok(())
    }

    /// Let the finished work take effect. It has, or has failed to, on return.
    ///
    /// # Errors
    /// It is not pending.
    pub async fn finalize(&self) -> Result<()> {
        self.record.check_verb(JobVerb::Finalize)?;
        self.record.want_finalize();
        self.concluded().await;
        Ok(())
    }

    /// Forget the concluded job.
    ///
    /// # Errors
    /// It is not concluded.
    pub fn dismiss(&self) -> Result<()> {
        self.record.check_verb(JobVerb::Dismiss)?;
        self.record.enter(JobStatus::Null);
        self.registry.forget_if_null(&self.record);
        Ok(())
    }

    /// Limit it to `speed` bytes a second from now on, 0 for no limit.
    ///
    /// # Errors
    /// The speed is negative, or the job not working any more.
    pub fn set_speed(&self, speed: i64) -> Result<()> {
        let record = &self.record;
        record.check_verb(JobVerb::SetSpeed)?;
        let speed = checked_speed(speed)?;
        record.rate.borrow_mut().set_speed(speed, record.clock.now());
        record.changed.notify_all();
        Ok(())
    }

    /// Waits until it is over.
    pub async fn concluded(&self) {
        let record = &self.record;
        let over = || matches!(record.status(), JobStatus::Concluded | JobStatus::Null);
        record.changed.wait_until(over).await;
    }
}

/// A speed as users give it.
///
/// # Errors
/// It is negative.
pub(crate) fn checked_speed(speed: i64) -> Result<u64> {
    let negative = |_| invalid("Parameter 'speed' expects a non-negative value");
    u64::try_from(speed).map_err(negative)
}

/// An error that says exactly `text`.
pub(crate) fn invalid(text: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidArgument, text)
}

/// A letter, then letters, digits, `-`, `.` and `_`: QEMU's rule for ids.
fn is_well_formed(id: &str) -> bool {
    let mut bytes = id.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
