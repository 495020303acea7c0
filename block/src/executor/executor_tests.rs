use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use super::*;
use crate::thread;

type Log<T> = Rc<RefCell<Vec<T>>>;

fn simulated() -> Executor {
    Executor::new(Clock::simulated()).unwrap()
}

fn real() -> Executor {
    Executor::new(Clock::real()).unwrap()
}

#[test]
fn tasks_run_in_the_order_they_became_ready() {
    let executor = simulated();
    let log: Log<u32> = Rc::default();
    for number in 0..5 {
        let (log, other) = (log.clone(), executor.clone());
        executor.spawn(async move {
            log.borrow_mut().push(number);
            other.yield_now().await;
            log.borrow_mut().push(number + 10);
        });
    }
    executor.run_until_stalled();
    assert_eq!(*log.borrow(), [0, 1, 2, 3, 4, 10, 11, 12, 13, 14]);
}

#[test]
fn sleepers_wake_by_deadline_then_by_arrival() {
    let executor = simulated();
    let log: Log<(u32, u64)> = Rc::default();
    for (number, deadline) in [(0, 50), (1, 20), (2, 50), (3, 10), (4, 20)] {
        let (log, other) = (log.clone(), executor.clone());
        executor.spawn(async move {
            other.sleep_until(deadline).await;
            log.borrow_mut().push((number, other.clock().now()));
        });
    }
    executor.block_on(executor.sleep(Duration::from_nanos(100)));
    assert_eq!(*log.borrow(), [(3, 10), (1, 20), (4, 20), (0, 50), (2, 50)]);
    assert_eq!(executor.clock().now(), 100);
}

#[test]
fn advancing_stops_at_every_timer_on_the_way() {
    let executor = simulated();
    let log: Log<u64> = Rc::default();
    let (inner, other) = (log.clone(), executor.clone());
    executor.spawn(async move {
        loop {
            other.sleep(Duration::from_nanos(30)).await;
            inner.borrow_mut().push(other.clock().now());
        }
    });
    executor.advance(Duration::from_nanos(100));
    assert_eq!(*log.borrow(), [30, 60, 90]);
    assert_eq!(executor.clock().now(), 100);
}

#[test]
fn a_sleep_that_is_dropped_wakes_nobody() {
    let executor = simulated();
    let sleeper = {
        let other = executor.clone();
        executor.spawn(async move { other.sleep_until(10).await })
    };
    executor.run_until_stalled();
    assert!(executor.block_on(sleeper.cancel()).is_none());
    assert_eq!(executor.0.timers.borrow().next_deadline(), None);
}

#[test]
fn a_task_gives_its_result_and_survives_its_handle() {
    let executor = simulated();
    let task = executor.spawn(async { 7 });
    assert_eq!(executor.block_on(task), 7);
    let done = Rc::new(Cell::new(false));
    let flag = done.clone();
    drop(executor.spawn(async move { flag.set(true) }));
    executor.run_until_stalled();
    assert!(done.get());
}

#[test]
#[should_panic(expected = "can never finish")]
fn waiting_for_nothing_is_noticed_in_simulation() {
    simulated().block_on(std::future::pending::<()>());
}

/// What another thread posted before it woke a task is handled before that task goes on, even when
/// the task was still running at that moment. Posts keep their order in any case.
#[test]
fn what_was_posted_before_a_wakeup_is_handled_before_it() {
    let executor = real();
    for _ in 0..200 {
        let log: Log<&str> = Rc::default();
        let (sender, receiver) = mpsc::channel();
        let waiting = {
            let log = log.clone();
            executor.spawn(async move {
                let mut sent = false;
                std::future::poll_fn(|cx| {
                    if std::mem::replace(&mut sent, true) {
                        return Poll::Ready(());
                    }
                    sender.send(cx.waker().clone()).unwrap();
                    Poll::Pending
                })
                .await;
                log.borrow_mut().push("woken");
            })
        };
        thread_local! { static LOG: RefCell<Log<&'static str>> = RefCell::default(); }
        LOG.set(log.clone());
        let remote = executor.remote();
        let other = thread::spawn("poster", move || {
            let waker = receiver.recv().unwrap();
            remote.post(|_| LOG.with_borrow(|log| log.borrow_mut().push("before")));
            waker.wake();
            remote.post(|_| LOG.with_borrow(|log| log.borrow_mut().push("after")));
        })
        .unwrap();
        executor.block_on(waiting);
        other.join().unwrap();
        executor.run_until_stalled();
        let log = log.borrow();
        assert_eq!((log.len(), log[0]), (3, "before"), "{log:?}");
    }
}

#[test]
fn a_post_ends_a_sleep_in_the_kernel() {
    let executor = real();
    let remote = executor.remote();
    let other = thread::spawn("waker", move || {
        std::thread::sleep(Duration::from_millis(20));
        remote.post(|executor| executor.stop());
    })
    .unwrap();
    executor.run();
    other.join().unwrap();
}

#[test]
fn both_directions_of_one_descriptor_can_be_waited_for() {
    let executor = real();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let fd = ours.as_raw_fd();
    let other = executor.clone();
    let reader = executor.spawn(async move { other.readable(fd).await });
    executor.run_until_stalled();
    executor.block_on(executor.writable(fd)).unwrap();
    assert!(!reader.is_finished());
    theirs.write_all(b"x").unwrap();
    executor.block_on(reader).unwrap();
}

#[test]
fn a_wait_for_a_descriptor_can_be_given_up_and_repeated() {
    let executor = real();
    for _ in 0..3 {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let fd = ours.as_raw_fd();
        executor.block_on(async {
            let mut waiting = pin!(executor.readable(fd));
            let pending =
                std::future::poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending()));
            assert!(pending.await);
        });
        theirs.write_all(b"x").unwrap();
        executor.block_on(executor.readable(fd)).unwrap();
        // The other end is closed with the next pair under the same numbers.
        drop(theirs);
        executor.block_on(executor.readable(fd)).unwrap();
    }
}

#[test]
fn a_hang_up_is_both_directions() {
    let executor = real();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let (fd, other) = (ours.as_raw_fd(), executor.clone());
    let gone = executor.spawn(async move { other.hung_up(fd).await });
    theirs.write_all(b"x").unwrap();
    executor.block_on(executor.readable(fd)).unwrap();
    theirs.shutdown(std::net::Shutdown::Write).unwrap();
    executor.block_on(executor.sleep(Duration::from_millis(10)));
    assert!(!gone.is_finished());
    drop(theirs);
    executor.block_on(gone).unwrap();
}

#[test]
fn regular_files_are_always_ready() {
    let executor = real();
    let file = tempfile::tempfile().unwrap();
    executor.block_on(executor.readable(file.as_raw_fd())).unwrap();
    assert!(executor.block_on(executor.readable(-1)).is_err());
    let mut never = pin!(executor.hung_up(file.as_raw_fd()));
    let pending = std::future::poll_fn(|cx| Poll::Ready(never.as_mut().poll(cx).is_pending()));
    assert!(executor.block_on(pending));
}

/// Finds work only in the look after it was armed, and then wakes who waits for it.
#[derive(Default)]
struct AfterArming {
    polls: Cell<u32>,
    armed: Cell<u32>,
    disarmed: Cell<u32>,
    found: Cell<bool>,
    work: crate::notify::Notify,
}

impl Poller for AfterArming {
    fn poll(&self) -> bool {
        self.polls.set(self.polls.get() + 1);
        let finds = self.armed.get() > self.disarmed.get() && !self.found.replace(true);
        if finds {
            self.work.notify_all();
        }
        finds
    }

    fn arm(&self) {
        self.armed.set(self.armed.get() + 1);
    }

    fn disarm(&self) {
        self.disarmed.set(self.disarmed.get() + 1);
    }
}

#[test]
fn pollers_are_armed_around_every_sleep_and_looked_at_once_more() {
    let executor = real();
    let poller = Rc::new(AfterArming::default());
    let guard = executor.add_poller(poller.clone());
    let started = executor.clock().now();
    let other = executor.clone();
    executor.spawn(async move { other.sleep(Duration::from_secs(10)).await });
    // Without the last look after arming this would sleep for the whole ten seconds.
    executor.block_on(poller.work.wait_until(|| poller.found.get()));
    assert!(executor.clock().now() - started < 5_000_000_000);
    assert_eq!((poller.armed.get(), poller.disarmed.get()), (1, 1));
    drop(guard);
    let polls = poller.polls.get();
    executor.block_on(executor.sleep(Duration::from_millis(2)));
    assert_eq!((poller.polls.get(), poller.armed.get()), (polls, 1));
}

/// What connecting to another host does: the socket is waited for once, and then again and again.
#[test]
fn a_descriptor_that_was_waited_for_can_be_watched() {
    let executor = real();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    executor.block_on(executor.writable(ours.as_raw_fd())).unwrap();
    let watch = Watch::new(&executor, ours.as_raw_fd()).unwrap();
    theirs.write_all(b"x").unwrap();
    executor.block_on(watch.readable());
}

#[test]
fn a_message_that_is_expected_is_seen_without_a_sleep() {
    let executor = real();
    // However long this thread does not get the processor, polling is not given up.
    executor.set_poll_max_ns(60_000_000_000);
    let poller = Rc::new(AfterArming { found: Cell::new(true), ..AfterArming::default() });
    let _guard = executor.add_poller(poller.clone());
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let watch = Watch::new(&executor, ours.as_raw_fd()).unwrap();
    let mut sleeps = |expected: bool| {
        // Busy turns look at sockets now and then: not in this test.
        executor.0.reactor_seen.set(u64::MAX);
        let _expecting = expected.then(|| executor.expecting());
        theirs.write_all(b"x").unwrap();
        let before = poller.armed.get();
        executor.block_on(watch.readable());
        poller.armed.get() - before
    };
    assert_eq!((sleeps(false), sleeps(true), sleeps(false)), (1, 0, 1));
}

#[test]
fn spinning_adapts_to_how_long_waits_are() {
    let pollers = Rc::new(Pollers::default());
    pollers.set_max_ns(32_000);
    let spin = |pollers: &Pollers| pollers.spin_ns();
    pollers.adapt(10_000);
    assert_eq!(spin(&pollers), 4_096, "short waits make it start");
    pollers.adapt(10_000);
    pollers.adapt(10_000);
    assert_eq!(spin(&pollers), 16_384, "and grow");
    pollers.adapt(10_000);
    assert_eq!(spin(&pollers), 16_384, "until it catches them");
    pollers.adapt(1_000_000);
    assert_eq!(spin(&pollers), 0, "a wait beyond all spinning ends it");
    let trials = (0..64).filter(|_| {
        pollers.adapt(1_000_000);
        spin(&pollers) == 32_000
    });
    assert_eq!(trials.count(), 2, "but it is tried again now and then");
    pollers.set_max_ns(0);
    pollers.adapt(10_000);
    assert_eq!(spin(&pollers), 0, "zero turns it off");
}

#[test]
fn what_a_closed_executor_holds_is_dropped() {
    let executor = real();
    let held = Rc::new(());
    let (inner, other) = (held.clone(), executor.clone());
    executor.spawn(async move {
        other.sleep(Duration::from_secs(1000)).await;
        drop(inner);
    });
    executor.run_until_stalled();
    executor.shut_down();
    assert_eq!(Rc::strong_count(&held), 1);
}

#[test]
fn a_sleep_shorter_than_a_millisecond_does_not_take_one() {
    let executor = real();
    executor.set_poll_max_ns(0);
    let shortest = (0..200).map(|_| {
        let started = executor.clock().now();
        executor.block_on(executor.sleep(Duration::from_micros(50)));
        executor.clock().now() - started
    });
    let shortest = shortest.min().unwrap();
    assert!((50_000..1_000_000).contains(&shortest), "{shortest} ns");
}

#[test]
fn a_crowd_of_busy_tasks_does_not_keep_timers_waiting() {
    let executor = real();
    let ran = Rc::new(Cell::new(0));
    for _ in 0..400 {
        let (ran, clock) = (ran.clone(), executor.clock().clone());
        executor.spawn(async move {
            let end = clock.now() + 100_000;
            while clock.now() < end {
                std::hint::spin_loop();
            }
            ran.set(ran.get() + 1);
        });
    }
    executor.block_on(executor.sleep(Duration::from_millis(1)));
    assert!(ran.get() < 300, "{} tasks ran before a timer of a millisecond", ran.get());
}

#[test]
fn a_watched_descriptor_tells_of_each_change_once() {
    let executor = real();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let watch = Watch::new(&executor, ours.as_raw_fd()).unwrap();
    let readable = |limit: u64| {
        executor.block_on(async {
            let mut waiting = pin!(watch.readable());
            let mut limit = pin!(executor.sleep(Duration::from_millis(limit)));
            std::future::poll_fn(|cx| {
                if waiting.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(true);
                }
                limit.as_mut().poll(cx).map(|()| false)
            })
            .await
        })
    };
    assert!(!readable(5));
    for _ in 0..3 {
        theirs.write_all(b"x").unwrap();
        assert!(readable(5000));
        assert!(!readable(5), "nothing more has come");
    }
    // There is room at first; then the other side makes some.
    executor.block_on(watch.writable()).unwrap();
    while (&ours).write(&[0; 4096]).is_ok() {}
    let reader = std::thread::scope(|scope| {
        let reader = scope.spawn(|| theirs.read(&mut vec![0; 1 << 20]).unwrap());
        executor.block_on(async {
            while (&ours).write(&[0; 4096]).is_err() {
                watch.writable().await.unwrap();
            }
        });
        reader.join().unwrap()
    });
    assert_ne!(reader, 0);
    drop(theirs);
    assert!(readable(5000), "the end is a change too");
}

#[test]
fn an_end_that_comes_with_the_last_bytes_is_not_missed() {
    let executor = real();
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let watch = Watch::new(&executor, ours.as_raw_fd()).unwrap();
    theirs.write_all(b"x").unwrap();
    drop(theirs);
    let heard = executor.block_on(async {
        watch.readable().await;
        let first = (&ours).read(&mut [0; 8]).unwrap();
        let mut waiting = pin!(watch.readable());
        let mut limit = pin!(executor.sleep(Duration::from_secs(5)));
        let told = std::future::poll_fn(|cx| {
            if waiting.as_mut().poll(cx).is_ready() {
                return Poll::Ready(true);
            }
            limit.as_mut().poll(cx).map(|()| false)
        });
        (first, told.await)
    });
    assert_eq!(heard, (1, true), "one byte, then the end");
}

#[test]
fn a_watch_that_is_given_up_leaves_its_number_to_others() {
    let executor = real();
    for _ in 0..3 {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let watch = Watch::new(&executor, ours.as_raw_fd()).unwrap();
        theirs.write_all(b"x").unwrap();
        executor.block_on(watch.readable());
        drop(watch);
        executor.block_on(executor.readable(ours.as_raw_fd())).unwrap();
    }
}
