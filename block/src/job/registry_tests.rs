//! The life of jobs that do nothing but what a test tells them.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use super::*;
use crate::clock::Clock;
use crate::job::{BlockEvent, JobHooks, Settle};

/// A job that waits until it is told to finish, or fails.
struct Idle {
    ready: bool,
    fails: bool,
    settles: Rc<Cell<Option<Settle>>>,
    settle_fails: bool,
}

impl Job for Idle {
    const KIND: JobKind = JobKind::Stream;

    async fn run(&mut self, ctx: &JobCtx) -> Result<()> {
        ctx.throttle(100).await;
        if self.ready {
            ctx.ready();
        }
        loop {
            ctx.pause_point().await;
            if self.fails {
                return Err(Error::from_errno(libc::ENOSPC, "cannot do it"));
            }
            if !self.ready || ctx.should_finish() {
                return Ok(());
            }
            ctx.rest(ctx.wait_until(|| ctx.should_pause() || ctx.should_finish())).await;
        }
    }

    async fn settle(self, ctx: &JobCtx, how: Settle) -> Result<()> {
        ctx.executor().sleep(Duration::from_millis(5)).await;
        assert!(self.settles.replace(Some(how)).is_none(), "settled twice");
        if self.settle_fails { Err(invalid("cannot take effect")) } else { Ok(()) }
    }
}

struct Bench {
    executor: Executor,
    registry: JobRegistry,
    log: Rc<RefCell<Vec<String>>>,
    settles: Rc<Cell<Option<Settle>>>,
}

fn options(id: &str) -> JobOptions {
    JobOptions { id: id.into(), speed: 0, auto_finalize: true, auto_dismiss: true }
}

impl Bench {
    fn run(test: impl AsyncFnOnce(Bench)) {
        let executor = Executor::new(Clock::simulated()).unwrap();
        let registry = JobRegistry::new(executor.clone());
        let log: Rc<RefCell<Vec<String>>> = Rc::default();
        let seen = Rc::clone(&log);
        registry.set_event_sink(Rc::new(move |event| {
            seen.borrow_mut().push(match event {
                BlockEvent::JobStatusChange { id, status } => format!("{id} {status}"),
                BlockEvent::BlockJobCompleted { error, .. } => format!("COMPLETED {error:?}"),
                BlockEvent::BlockJobCancelled(_) => "CANCELLED".into(),
                BlockEvent::BlockJobReady(_) => "READY".into(),
                BlockEvent::BlockJobPending { .. } => "PENDING".into(),
                other => format!("{other:?}"),
            });
        }));
        let bench = Bench { executor: executor.clone(), registry, log, settles: Rc::default() };
        executor.block_on(test(bench));
    }

    fn idle(&self, ready: bool) -> Idle {
        Idle { ready, fails: false, settles: Rc::clone(&self.settles), settle_fails: false }
    }

    fn start(&self, options: JobOptions, job: Idle) -> JobRef {
        let id = options.id.clone();
        let ctx = self.registry.create(JobKind::Stream, options).unwrap();
        self.registry.start(ctx, job);
        self.registry.find(&id).unwrap()
    }
}

#[test]
fn a_job_without_ready_ends_by_itself() {
    Bench::run(async |bench| {
        let job = bench.start(options("a"), bench.idle(false));
        assert_eq!(*bench.log.borrow(), ["a created", "a running"], "before anything else");
        job.concluded().await;
        let rest = bench.log.borrow()[2..].join(", ");
        assert_eq!(rest, "a waiting, a pending, COMPLETED None, a concluded, a null");
        assert_eq!(bench.settles.get(), Some(Settle::Complete));
        assert!(bench.registry.query_jobs().is_empty());
    });
}

#[test]
fn a_failed_job_is_abandoned_and_keeps_its_reason() {
    Bench::run(async |bench| {
        let keep = JobOptions { auto_dismiss: false, ..options("a") };
        let job = bench.start(keep, Idle { fails: true, ..bench.idle(true) });
        job.concluded().await;
        assert_eq!(bench.settles.get(), Some(Settle::Abandon));
        let text = "No space left on device";
        assert_eq!(job.info().error.as_deref(), Some(text));
        let last = format!("COMPLETED Some({text:?}), a concluded");
        assert!(bench.log.borrow().join(", ").ends_with(&last));
        job.dismiss().unwrap();
        assert!(job.dismiss().is_err());
    });
}

#[test]
fn a_result_that_cannot_take_effect_fails_the_job() {
    Bench::run(async |bench| {
        let job = bench.start(options("a"), Idle { settle_fails: true, ..bench.idle(false) });
        job.concluded().await;
        let rest = bench.log.borrow()[2..].join(", ");
        let failed = "COMPLETED Some(\"cannot take effect\")";
        assert_eq!(
            rest,
            format!("a waiting, a pending, a aborting, {failed}, a concluded, a null")
        );
    });
}

#[test]
fn too_late_to_cancel_once_it_takes_effect() {
    Bench::run(async |bench| {
        let job = bench.start(options("a"), bench.idle(true));
        bench.executor.sleep(Duration::from_millis(1)).await;
        job.complete().unwrap();
        bench.executor.sleep(Duration::from_millis(1)).await;
        assert_eq!(job.info().status, JobStatus::Pending);
        job.cancel().await.unwrap();
        assert!(bench.log.borrow().contains(&"COMPLETED None".to_owned()));
        assert_eq!(bench.settles.get(), Some(Settle::Complete));
    });
}

#[test]
fn soft_cancel_and_complete_do_not_mix() {
    Bench::run(async |bench| {
        let job = bench.start(options("a"), bench.idle(true));
        bench.executor.sleep(Duration::from_millis(1)).await;
        job.cancel_block_job(false).await.unwrap();
        assert_eq!(
            job.complete().unwrap_err().to_string(),
            "The active block job 'a' cannot be completed"
        );
        job.concluded().await;
        assert_eq!(bench.settles.get(), Some(Settle::Leave));
    });
}

#[test]
fn hooks_may_refuse_to_complete() {
    struct Never;
    impl JobHooks for Never {
        fn before_complete(&self) -> Result<()> {
            Err(invalid("not like this"))
        }
        fn actively_synced(&self) -> Option<bool> {
            Some(false)
        }
    }
    Bench::run(async |bench| {
        let ctx = bench.registry.create(JobKind::Stream, options("a")).unwrap();
        ctx.set_hooks(Rc::new(Never));
        bench.registry.start(ctx, bench.idle(true));
        let job = bench.registry.find("a").unwrap();
        bench.executor.sleep(Duration::from_millis(1)).await;
        assert_eq!(job.complete().unwrap_err().to_string(), "not like this");
        assert_eq!(job.info().actively_synced, Some(false));
        job.cancel().await.unwrap();
        job.concluded().await;
        assert_eq!(job.info().actively_synced, None, "a job that is over holds nothing");
    });
}

#[test]
fn ids_and_missing_jobs() {
    Bench::run(async |bench| {
        let registry = &bench.registry;
        for bad in ["", "1a", "a b", "a/b", "-a", "ä"] {
            let error = registry.create(JobKind::Stream, options(bad)).err().unwrap();
            assert_eq!(error.to_string(), format!("Invalid job ID '{bad}'"));
        }
        let ctx = registry.create(JobKind::Stream, options("a.b-c_1")).unwrap();
        let error = registry.create(JobKind::Stream, options("a.b-c_1")).err().unwrap();
        assert_eq!(error.to_string(), "Job ID 'a.b-c_1' already in use");
        registry.discard(&ctx);
        assert!(registry.query_jobs().is_empty());
        let missing = |result: Result<JobRef>| result.err().unwrap().to_string();
        assert_eq!(missing(registry.find("x")), "Job not found");
        assert_eq!(missing(registry.find_block_job("x")), "Block job 'x' not found");
    });
}

#[test]
fn a_throttled_job_hears_of_a_new_speed() {
    Bench::run(async |bench| {
        let slow = JobOptions { speed: 1, ..options("a") };
        let job = bench.start(slow, bench.idle(false));
        bench.executor.sleep(Duration::from_secs(10)).await;
        assert_eq!(job.info().status, JobStatus::Running);
        assert!(!job.info().busy);
        let negative = job.set_speed(-1).unwrap_err().to_string();
        assert_eq!(negative, "Parameter 'speed' expects a non-negative value");
        job.set_speed(0).unwrap();
        let before = bench.executor.clock().now();
        job.concluded().await;
        assert!(bench.executor.clock().now() - before < 1_000_000_000);
    });
}
