//! Sleeping tasks, by deadline.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::clock::Clock;

/// Who sleeps until when. The second half of a key keeps equal deadlines in order of arrival.
#[derive(Default)]
pub(super) struct Timers {
    sleepers: BTreeMap<(u64, u64), Waker>,
    arrivals: u64,
}

impl Timers {
    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.sleepers.first_key_value().map(|((deadline, _), _)| *deadline)
    }

    /// Wakes everybody whose time has come; whether there was anybody.
    pub(super) fn fire(timers: &RefCell<Timers>, now: u64) -> bool {
        let mut fired = false;
        loop {
            // The borrow must end before the waker runs: it may drop a task that sleeps.
            let waker = {
                let mut timers = timers.borrow_mut();
                match timers.sleepers.first_entry() {
                    Some(entry) if entry.key().0 <= now => entry.remove(),
                    _ => return fired,
                }
            };
            waker.wake();
            fired = true;
        }
    }
}

/// One sleep; leaves the list when dropped.
pub(super) struct Sleep {
    timers: Rc<RefCell<Timers>>,
    clock: Clock,
    deadline: u64,
    key: Option<(u64, u64)>,
}

impl Sleep {
    pub(super) fn new(timers: &Rc<RefCell<Timers>>, clock: Clock, deadline: u64) -> Sleep {
        Sleep { timers: Rc::clone(timers), clock, deadline, key: None }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.clock.now() >= self.deadline {
            return Poll::Ready(());
        }
        let mut timers = self.timers.borrow_mut();
        let key = self.key.unwrap_or_else(|| {
            timers.arrivals += 1;
            (self.deadline, timers.arrivals)
        });
        timers.sleepers.insert(key, cx.waker().clone());
        drop(timers);
        self.key = Some(key);
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            let waker = self.timers.borrow_mut().sleepers.remove(&key);
            drop(waker);
        }
    }
}
