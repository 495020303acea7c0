//! A single-threaded executor: tasks, time, readiness of file descriptors, and disk I/O.
//!
//! One turn: take what other threads injected, fire due timers, poll the pollers, run ready tasks,
//! then hand all queued disk requests to the kernel in one system call and collect what is done.
//! With nothing to do it polls busily for a while, for as long as that has paid off recently, then
//! sleeps in epoll.
//!
//! With a simulated clock nothing here depends on real time: [`Executor::block_on`] moves the
//! clock to the next timer whenever every task waits.

mod carried;
mod poll;
mod race;
mod reactor;
mod remote;
mod timers;
mod watch;

use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::os::fd::RawFd;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::clock::{Clock, duration_ns};
use crate::error::Result;
use crate::io::{Engine, RingChoice};

pub(crate) use carried::Carried;
pub(crate) use poll::DEFAULT_POLL_MAX_NS;
pub use poll::{Poller, PollerGuard};
pub(crate) use race::race;
pub use race::within;
pub use remote::Remote;
pub(crate) use watch::Watch;

use poll::Pollers;
use reactor::{Condition, Reactor};
use remote::{Entered, Item, ReadyQueue, RootWaker, Shared};
use timers::Timers;

/// So many tasks run before disk and network get their turn, however many are ready,
const TURN_BUDGET: usize = 512;
/// and for so long (ns), looked at after every few: a task may copy a lot.
const TURN_BUDGET_NS: u64 = 500_000;
const LOOK_AFTER: usize = 16;
/// While busy, file descriptors are looked at this often (ns).
const REACTOR_INTERVAL_NS: u64 = 50_000;

/// A handle of the executor of this thread; clones are the same executor.
#[derive(Clone)]
pub struct Executor(Rc<Inner>);

struct Inner {
    clock: Clock,
    /// The time at the start of this turn: a clock that costs nothing to read.
    turn_time: Cell<u64>,
    ready: Rc<ReadyQueue>,
    remote: Remote,
    timers: Rc<RefCell<Timers>>,
    reactor: OnceCell<Reactor>,
    reactor_seen: Cell<u64>,
    pollers: Rc<Pollers>,
    engine: OnceCell<Engine>,
    ring_choice: Cell<RingChoice>,
    stopped: Cell<bool>,
    pauses: Cell<u64>,
    streams: Rc<Cell<usize>>,
    expected: Rc<Cell<usize>>,
}

/// Keeps something counted while it lives.
pub(crate) struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn new(count: &Rc<Cell<usize>>) -> Counted {
        count.set(count.get() + 1);
        Counted(Rc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Join handle of a task. Await it for the result; dropping it lets the task run on.
pub struct Task<T>(Option<async_task::Task<T>>);

impl<T> Task<T> {
    /// Drops the task's future at its next turn; gives the result if it had finished already.
    pub async fn cancel(mut self) -> Option<T> {
        match self.0.take() {
            Some(task) => task.cancel().await,
            None => None,
        }
    }

    /// Whether the result is there.
    pub fn is_finished(&self) -> bool {
        self.0.as_ref().is_none_or(async_task::Task::is_finished)
    }
}

impl<T> Future for Task<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match &mut self.0 {
            Some(task) => Pin::new(task).poll(cx),
            None => Poll::Pending,
        }
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.detach();
        }
    }
}

impl Executor {
    /// An executor on this thread. With a real clock it makes an eventfd, which may fail.
    pub fn new(clock: Clock) -> Result<Executor> {
        let shared = Shared::new(!clock.is_simulated())?;
        Ok(Executor(Rc::new(Inner {
            turn_time: Cell::new(clock.now()),
            clock,
            ready: Rc::default(),
            remote: Remote::new(shared),
            timers: Rc::default(),
            reactor: OnceCell::new(),
            reactor_seen: Cell::new(0),
            pollers: Rc::default(),
            engine: OnceCell::new(),
            ring_choice: Cell::new(RingChoice::Auto),
            stopped: Cell::new(false),
            pauses: Cell::new(0),
            streams: Rc::default(),
            expected: Rc::default(),
        })))
    }

    /// Starts a task. It first runs in the next turn, after everything that is ready now.
    pub fn spawn<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Task<T> {
        let shared = self.0.remote.shared().clone();
        let schedule = move |runnable| shared.schedule(Item::Run(runnable));
        let (runnable, task) = async_task::spawn_local(future, schedule);
        self.0.ready.push(Item::Run(runnable));
        Task(Some(task))
    }

    /// A door to this executor for other threads.
    pub fn remote(&self) -> Remote {
        self.0.remote.clone()
    }

    /// The clock it was made with.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// The time (ns) at the start of this turn: what counters use, as it costs nothing.
    pub fn turn_time(&self) -> u64 {
        self.0.turn_time.get()
    }

    /// Waits until the clock shows `deadline` ns. Equal deadlines wake in the order of first poll.
    pub async fn sleep_until(&self, deadline: u64) {
        timers::Sleep::new(&self.0.timers, self.0.clock.clone(), deadline).await;
    }

    /// Waits for a while.
    pub async fn sleep(&self, duration: Duration) {
        let deadline = self.0.clock.now().saturating_add(duration_ns(duration));
        self.sleep_until(deadline).await;
    }

    /// Lets everything that is ready run first.
    pub async fn yield_now(&self) {
        let mut yielded = false;
        std::future::poll_fn(|cx| {
            if std::mem::replace(&mut yielded, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Waits until `fd` can be read, has an error or was hung up. Regular files always can.
    /// The descriptor must stay open while this is waited for; dropping the future is fine.
    pub async fn readable(&self, fd: RawFd) -> Result<()> {
        self.reactor()?.ready(fd, Condition::Readable).await
    }

    /// Waits until `fd` can be written, has an error or was hung up.
    pub async fn writable(&self, fd: RawFd) -> Result<()> {
        self.reactor()?.ready(fd, Condition::Writable).await
    }

    /// Waits until both directions of `fd` are over, because its other end is gone or it has an error. What
    /// came before may still be there to be read. Regular files never hang up.
    pub async fn hung_up(&self, fd: RawFd) -> Result<()> {
        self.reactor()?.ready(fd, Condition::HungUp).await
    }

    /// Adds something to be polled every turn, and armed before this thread sleeps.
    pub fn add_poller(&self, poller: Rc<dyn Poller>) -> PollerGuard {
        self.0.pollers.add(poller)
    }

    /// Longest busy polling before sleeping, ns.
    pub fn poll_max_ns(&self) -> u64 {
        self.0.pollers.max_ns()
    }

    /// Longest busy polling before sleeping, ns; 0 turns it off.
    pub fn set_poll_max_ns(&self, limit: u64) {
        self.0.pollers.set_max_ns(limit);
    }

    /// Chooses between io_uring and threads; only before the first file is opened.
    pub fn set_ring_choice(&self, choice: RingChoice) {
        self.0.ring_choice.set(choice);
    }

    /// What was chosen.
    pub(crate) fn ring_choice(&self) -> RingChoice {
        self.0.ring_choice.get()
    }

    /// Counts one more stream that keeps this thread busy with copying.
    pub(crate) fn streaming(&self) -> Counted {
        Counted::new(&self.0.streams)
    }

    /// Whether there are such streams.
    pub(crate) fn has_streams(&self) -> bool {
        self.0.streams.get() != 0
    }

    /// Counts one more message that a watched socket is about to bring: the next request of a client that
    /// asks for one thing at a time, or the reply to the only request. Waiting polls the sockets too, as
    /// long as that pays off.
    pub(crate) fn expecting(&self) -> Counted {
        Counted::new(&self.0.expected)
    }

    /// How often everything has waited: a caller who finds the same number twice has had no pause.
    pub(crate) fn pauses(&self) -> u64 {
        self.0.pauses.get()
    }

    /// The disk I/O of this thread, made at first use.
    pub(crate) fn engine(&self) -> &Engine {
        self.0.engine.get_or_init(|| {
            let engine = Engine::new(self.0.ring_choice.get(), self.remote());
            if let (Some(fd), Some(reactor)) = (engine.ring_fd(), self.0.reactor.get()) {
                reactor.watch_ring(fd);
            }
            engine
        })
    }

    /// Makes [`run`](Executor::run) return after this turn.
    pub fn stop(&self) {
        self.0.stopped.set(true);
        self.0.remote.shared().wake();
    }

    /// Runs until [`stop`](Executor::stop).
    pub fn run(&self) {
        let entered = self.enter();
        while !self.0.stopped.get() {
            if !self.turn() && !self.idle() {
                break;
            }
        }
        self.0.stopped.set(false);
        drop(entered);
    }

    /// Runs this future to its end on this thread, and tasks meanwhile.
    ///
    /// # Panics
    ///
    /// With a simulated clock, when everything waits for something that can never come.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        let entered = self.enter();
        let mut future = pin!(future);
        let root = RootWaker::new(self.0.remote.shared().clone());
        let waker = Waker::from(root.clone());
        let result = loop {
            if root.take()
                && let Poll::Ready(result) = future.as_mut().poll(&mut Context::from_waker(&waker))
            {
                break result;
            }
            let worked = self.turn() || root.is_set();
            assert!(
                worked || self.idle() || root.is_set(),
                "every task waits and no timer is set: this future can never finish"
            );
        };
        drop(entered);
        result
    }

    /// Runs tasks until all of them wait, without moving the clock and without sleeping.
    pub fn run_until_stalled(&self) {
        let entered = self.enter();
        while self.turn() {}
        drop(entered);
    }

    /// Moves a simulated clock on by `by`, stopping at every timer on the way to run what it wakes.
    pub fn advance(&self, by: Duration) {
        let end = self.0.clock.now().saturating_add(duration_ns(by));
        self.run_until_stalled();
        loop {
            let next = self.0.timers.borrow().next_deadline();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.0.clock.advance_to(next);
            self.run_until_stalled();
        }
        self.0.clock.advance_to(end);
        self.run_until_stalled();
    }

    /// Drops every task that is ready or sleeping, so that what they hold is given back. What the
    /// owner of a thread calls last.
    pub(crate) fn shut_down(&self) {
        let entered = self.enter();
        self.0.remote.shared().close();
        // A task whose last waker goes is scheduled once more, to be dropped here.
        let timers = self.0.timers.take();
        drop(timers);
        while let Some(item) = self.0.ready.pop() {
            drop(item);
        }
        drop(entered);
    }

    fn enter(&self) -> Entered {
        Entered::new(self.0.remote.shared(), &self.0.ready)
    }

    fn reactor(&self) -> Result<&Reactor> {
        if let Some(reactor) = self.0.reactor.get() {
            return Ok(reactor);
        }
        let reactor = Reactor::new(self.0.remote.shared().wake_fd())?;
        if let Some(fd) = self.0.engine.get().and_then(Engine::ring_fd) {
            reactor.watch_ring(fd);
        }
        Ok(self.0.reactor.get_or_init(|| reactor))
    }

    /// One turn; whether anything was done.
    fn turn(&self) -> bool {
        let inner = &*self.0;
        let now = inner.clock.now();
        inner.turn_time.set(now);
        let mut worked = inner.remote.shared().drain_into(&inner.ready);
        worked |= Timers::fire(&inner.timers, now);
        worked |= inner.pollers.poll();
        for count in 1..=TURN_BUDGET {
            match inner.ready.pop() {
                Some(Item::Run(runnable)) => {
                    runnable.run();
                }
                Some(Item::Call(call)) => call(self),
                None => break,
            }
            worked = true;
            let look = count.is_multiple_of(LOOK_AFTER);
            if look && inner.clock.now().saturating_sub(now) > TURN_BUDGET_NS {
                break;
            }
        }
        if let Some(engine) = inner.engine.get() {
            worked |= engine.turn();
        }
        if let Some(reactor) = inner.reactor.get()
            && now.saturating_sub(inner.reactor_seen.get()) > REACTOR_INTERVAL_NS
        {
            inner.reactor_seen.set(now);
            worked |= reactor.wait(Some(Duration::ZERO));
        }
        worked
    }

    /// Waits until there may be something to do. `false` if nothing can ever come.
    fn idle(&self) -> bool {
        self.0.pauses.set(self.0.pauses.get() + 1);
        if self.0.clock.is_simulated() { self.idle_simulated() } else { self.idle_real() }
    }

    fn idle_simulated(&self) -> bool {
        let inner = &*self.0;
        if inner.engine.get().is_some_and(Engine::is_busy) {
            // Real files under a simulated clock: their time does not count.
            std::thread::yield_now();
            return true;
        }
        let next = inner.timers.borrow().next_deadline();
        match next {
            Some(deadline) => inner.clock.advance_to(deadline),
            None => return inner.remote.shared().has_pending(),
        }
        true
    }

    fn idle_real(&self) -> bool {
        let inner = &*self.0;
        let shared = inner.remote.shared();
        let started = inner.clock.now();
        let deadline = inner.timers.borrow().next_deadline();
        let polls = inner.expected.get() != 0 && inner.pollers.spin_ns() != 0;
        let sockets = inner.reactor.get().filter(|_| polls);
        let found = inner.pollers.spin(&inner.clock, started, sockets.is_some(), || {
            shared.has_pending()
                || inner.engine.get().is_some_and(Engine::has_completions)
                || deadline.is_some_and(|at| inner.clock.now() >= at)
                || sockets.is_some_and(|reactor| reactor.wait(Some(Duration::ZERO)))
        });
        if !found {
            self.sleep_in_kernel(deadline);
        }
        inner.pollers.adapt(inner.clock.now().saturating_sub(started));
        true
    }

    fn sleep_in_kernel(&self, deadline: Option<u64>) {
        let inner = &*self.0;
        let shared = inner.remote.shared();
        let reactor = match self.reactor() {
            Ok(reactor) => reactor,
            Err(error) => {
                // Without epoll this thread can only look again and again.
                tracing::error!("{error}");
                std::thread::yield_now();
                return;
            }
        };
        shared.announce_sleep();
        // What arrived between the last look and the announcement must keep us awake.
        let engine = inner.engine.get();
        let found = inner.pollers.arm_all() | engine.is_some_and(Engine::arm);
        if !found && !shared.has_pending() {
            let timeout =
                deadline.map(|at| Duration::from_nanos(at.saturating_sub(inner.clock.now())));
            reactor.wait(timeout);
            inner.reactor_seen.set(inner.clock.now());
        }
        inner.pollers.disarm_all();
        if let Some(engine) = engine {
            engine.disarm();
        }
        shared.announce_awake();
    }
}

#[cfg(test)]
#[path = "executor_tests.rs"]
mod tests;
