//! One job as the registry, its loop and its queries see it: its state, its wishes, its progress.
//!
//! Everything that is told to the world about a job is told from here, so that the order of events is
//! in one file.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::event::{BlockEvent, BlockJobReport, EventSink};
use super::query::{IoStatus, JobInfo, JobKind};
use super::rate::RateLimit;
use super::status::{JobStatus, JobVerb};
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::notify::Notify;

/// How much of a cancel was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
pub(crate) enum Cancel {
    /// None.
    No,
    /// Finish, and do not take effect.
    Soft,
    /// Give up at once.
    Force,
}

/// How a job is to be run; the same for every kind.
#[derive(Clone, Debug)]
pub struct JobOptions {
    /// Its name: a letter, then letters, digits, `-`, `.` and `_`.
    pub id: String,
    /// Rate limit in bytes a second, 0 for none.
    pub speed: u64,
    /// Take effect without waiting for `finalize`.
    pub auto_finalize: bool,
    /// Disappear when over, without waiting for `dismiss`.
    pub auto_dismiss: bool,
}

/// What is shown of the job beyond what every job has, and what it checks before it takes a verb.
pub trait JobHooks {
    /// Called by `complete` before it is accepted. An error refuses the verb.
    ///
    /// # Errors
    /// Whatever keeps the job from ever taking effect as it was told to.
    fn before_complete(&self) -> Result<()>;

    /// `actively-synced`, for jobs that know it.
    fn actively_synced(&self) -> Option<bool>;
}

/// A job's state. Shared by its loop (through `JobCtx`) and the registry.
pub(crate) struct JobRecord {
    pub(crate) options: JobOptions,
    pub(crate) kind: JobKind,
    pub(crate) clock: Clock,
    sink: Rc<RefCell<EventSink>>,
    pub(crate) hooks: RefCell<Option<Rc<dyn JobHooks>>>,
    status: Cell<JobStatus>,
    pause_wanted: Cell<bool>,
    cancel: Cell<Cancel>,
    complete_wanted: Cell<bool>,
    finalize_wanted: Cell<bool>,
    /// Its result is taking effect: too late to cancel.
    pub(crate) settling: Cell<bool>,
    pub(crate) resting: Cell<bool>,
    pub(crate) rate: RefCell<RateLimit>,
    offset: Cell<u64>,
    len: Cell<u64>,
    io_status: Cell<IoStatus>,
    error: RefCell<Option<Error>>,
    /// Something above changed, or the job's own work did: whoever waits looks again.
    pub(crate) changed: Notify,
}

impl JobRecord {
    pub(crate) fn new(
        options: JobOptions,
        kind: JobKind,
        clock: Clock,
        sink: Rc<RefCell<EventSink>>,
    ) -> JobRecord {
        let mut rate = RateLimit::default();
        rate.set_speed(options.speed, clock.now());
        JobRecord {
            options,
            kind,
            clock,
            sink,
            hooks: RefCell::new(None),
            status: Cell::new(JobStatus::Created),
            pause_wanted: Cell::new(false),
            cancel: Cell::new(Cancel::No),
            complete_wanted: Cell::new(false),
            finalize_wanted: Cell::new(false),
            settling: Cell::new(false),
            resting: Cell::new(false),
            rate: RefCell::new(rate),
            offset: Cell::new(0),
            len: Cell::new(0),
            io_status: Cell::new(IoStatus::Ok),
            error: RefCell::new(None),
            changed: Notify::new(),
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.options.id
    }

    pub(crate) fn status(&self) -> JobStatus {
        self.status.get()
    }

    /// Goes to `next` and says so.
    pub(crate) fn enter(&self, next: JobStatus) {
        let status = self.status.get();
        assert!(status.may_become(next), "job '{}' cannot go from {status} to {next}", self.id());
        self.status.set(next);
        self.announce_status();
        self.changed.notify_all();
    }

    pub(crate) fn announce_status(&self) {
        let (id, status) = (self.id().to_owned(), self.status.get());
        self.emit(BlockEvent::JobStatusChange { id, status });
    }

    pub(crate) fn emit(&self, event: BlockEvent) {
        // The sink is taken out first: it may call back into the registry.
        let sink = Rc::clone(&self.sink.borrow());
        sink(event);
    }

    pub(crate) fn report(&self) -> BlockJobReport {
        BlockJobReport {
            kind: self.kind,
            device: self.id().to_owned(),
            len: self.len.get(),
            offset: self.offset.get(),
            speed: self.rate.borrow().speed(),
        }
    }

    /// `Ok` if the job takes `verb` now.
    pub(crate) fn check_verb(&self, verb: JobVerb) -> Result<()> {
        let (id, status) = (self.id(), self.status.get());
        if status.accepts(verb) {
            return Ok(());
        }
        let text = format!("Job '{id}' in state '{status}' cannot accept command verb '{verb}'");
        Err(Error::new(ErrorKind::InvalidArgument, text))
    }

    pub(crate) fn pause_wanted(&self) -> bool {
        self.pause_wanted.get()
    }

    pub(crate) fn want_pause(&self) {
        self.pause_wanted.set(true);
        self.changed.notify_all();
    }

    /// Nobody wants it paused any more: it works again, and forgets the error it stopped at.
    pub(crate) fn end_pause(&self) {
        self.pause_wanted.set(false);
        self.io_status.set(IoStatus::Ok);
        if let Some(back) = self.status.get().resumed() {
            self.enter(back);
        }
        self.changed.notify_all();
    }

    pub(crate) fn cancel(&self) -> Cancel {
        self.cancel.get()
    }

    pub(crate) fn want_cancel(&self, how: Cancel) {
        if self.pause_wanted.get() {
            self.end_pause();
        }
        if how > self.cancel.get() {
            self.cancel.set(how);
        }
        self.changed.notify_all();
    }

    pub(crate) fn complete_wanted(&self) -> bool {
        self.complete_wanted.get()
    }

    pub(crate) fn want_complete(&self) {
        self.complete_wanted.set(true);
        self.changed.notify_all();
    }

    pub(crate) fn finalize_wanted(&self) -> bool {
        self.options.auto_finalize || self.finalize_wanted.get()
    }

    pub(crate) fn want_finalize(&self) {
        self.finalize_wanted.set(true);
        self.changed.notify_all();
    }

    /// The numbers shown from now on. `offset` never goes back, `len` is never less.
    pub(crate) fn set_progress(&self, offset: u64, len: u64) {
        let offset = offset.max(self.offset.get());
        self.offset.set(offset);
        self.len.set(len.max(offset));
    }

    /// It stops at an error; the first one is shown.
    pub(crate) fn stop_at(&self, kind: ErrorKind) {
        if self.io_status.get() == IoStatus::Ok {
            self.io_status.set(IoStatus::after(kind));
        }
        self.want_pause();
    }

    /// It has failed; the first reason stays.
    pub(crate) fn set_error(&self, error: Error) {
        self.error.borrow_mut().get_or_insert(error);
    }

    pub(crate) fn info(&self) -> JobInfo {
        let status = self.status.get();
        let parked = matches!(
            status,
            JobStatus::Paused | JobStatus::Standby | JobStatus::Pending | JobStatus::Concluded
        );
        let hooks = self.hooks.borrow().clone();
        // Block jobs are known for the host's words alone; others tell what they were doing.
        let text = if self.kind.is_block_job() { Error::short } else { Error::to_string };
        JobInfo {
            id: self.id().to_owned(),
            kind: self.kind,
            status,
            offset: self.offset.get(),
            len: self.len.get(),
            busy: !parked && !self.resting.get(),
            paused: self.pause_wanted.get(),
            speed: self.rate.borrow().speed(),
            io_status: self.io_status.get(),
            ready: status.is_ready(),
            auto_finalize: self.options.auto_finalize,
            auto_dismiss: self.options.auto_dismiss,
            error: self.error.borrow().as_ref().map(text),
            actively_synced: hooks.and_then(|hooks| hooks.actively_synced()),
        }
    }
}
