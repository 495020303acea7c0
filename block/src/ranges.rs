//! Serialising overlapping byte ranges: read-modify-write cycles, and a job's granules.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::rc::Rc;

use crate::notify::Notify;

/// Ranges under way. Exclusive holders wait for every overlapping one that came before, shared
/// holders only for exclusive ones. Waiting follows the order of arrival, so nobody starves and
/// two waiters never wait for each other.
#[derive(Clone, Default)]
pub struct RangeLocks(Rc<Inner>);

#[derive(Default)]
struct Inner {
    /// In order of arrival.
    held: RefCell<Vec<Held>>,
    arrivals: Cell<u64>,
    released: Notify,
}

struct Held {
    ticket: u64,
    range: Range<u64>,
    exclusive: bool,
}

/// A range that is held; dropping it lets others go on.
pub struct RangeGuard {
    locks: RangeLocks,
    ticket: u64,
}

impl RangeLocks {
    /// With nothing held.
    pub fn new() -> RangeLocks {
        RangeLocks::default()
    }

    /// Takes `range` after every earlier holder or waiter that it conflicts with.
    pub async fn lock(&self, range: Range<u64>, exclusive: bool) -> RangeGuard {
        let ticket = self.0.arrivals.get();
        self.0.arrivals.set(ticket + 1);
        self.0.held.borrow_mut().push(Held { ticket, range: range.clone(), exclusive });
        let guard = RangeGuard { locks: self.clone(), ticket };
        let clear = || !self.conflicts(&range, exclusive, ticket);
        self.0.released.wait_until(clear).await;
        guard
    }

    /// Takes `range` alone, if nobody holds or waits for any of it. Nothing is not taken.
    pub fn try_lock(&self, range: Range<u64>) -> Option<RangeGuard> {
        if range.is_empty() || self.overlaps(&range) {
            return None;
        }
        let ticket = self.0.arrivals.get();
        self.0.arrivals.set(ticket + 1);
        self.0.held.borrow_mut().push(Held { ticket, range, exclusive: true });
        Some(RangeGuard { locks: self.clone(), ticket })
    }

    /// The first part of `range` that nobody holds or waits for; empty if there is none.
    pub fn free_part(&self, range: Range<u64>) -> Range<u64> {
        let held = self.0.held.borrow();
        let Range { mut start, mut end } = range;
        // Each round steps over one holder at least, so this ends.
        while let Some(blocker) =
            held.iter().find(|held| held.range.contains(&start) && start < end)
        {
            start = blocker.range.end;
        }
        for other in held.iter().filter(|held| held.range.start >= start) {
            end = end.min(other.range.start);
        }
        start..end.max(start)
    }

    /// Whether a holder or waiter overlaps `range`.
    pub fn overlaps(&self, range: &Range<u64>) -> bool {
        self.conflicts(range, true, u64::MAX)
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.0.held.borrow().is_empty()
    }

    fn conflicts(&self, range: &Range<u64>, exclusive: bool, before: u64) -> bool {
        self.0.held.borrow().iter().take_while(|held| held.ticket < before).any(|held| {
            (exclusive || held.exclusive)
                && held.range.start < range.end
                && range.start < held.range.end
        })
    }
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        let inner = &self.locks.0;
        inner.held.borrow_mut().retain(|held| held.ticket != self.ticket);
        inner.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::clock::Clock;
    use crate::executor::Executor;

    #[test]
    fn overlapping_holders_go_one_after_the_other_in_order() {
        let executor = Executor::new(Clock::simulated()).unwrap();
        let (locks, log) = (RangeLocks::new(), Rc::new(RefCell::new(Vec::new())));
        let cases = [(0..8, true), (4..12, false), (6..7, false), (0..16, true), (12..13, false)];
        for (index, (range, exclusive)) in cases.into_iter().enumerate() {
            let (locks, log, executor2) = (locks.clone(), Rc::clone(&log), executor.clone());
            executor.spawn(async move {
                let guard = locks.lock(range, exclusive).await;
                log.borrow_mut().push((index, 'a'));
                executor2.sleep(std::time::Duration::from_millis(1)).await;
                log.borrow_mut().push((index, 'z'));
                drop(guard);
            });
        }
        executor.advance(std::time::Duration::from_secs(1));
        assert!(locks.is_empty());
        let expected = [
            (0, 'a'),
            (0, 'z'), // alone
            (1, 'a'),
            (2, 'a'),
            (1, 'z'),
            (2, 'z'), // shared, both at once
            (3, 'a'),
            (3, 'z'), // waited for all before it
            (4, 'a'),
            (4, 'z'), // came later, so it waits although nobody held its bytes then
        ];
        assert_eq!(*log.borrow(), expected);
    }

    #[test]
    fn a_waiter_that_gives_up_blocks_nobody() {
        let executor = Executor::new(Clock::simulated()).unwrap();
        let locks = RangeLocks::new();
        executor.block_on(async {
            let first = locks.lock(0..8, true).await;
            {
                let waiting = locks.lock(0..8, true);
                let mut waiting = std::pin::pin!(waiting);
                let pending = std::future::poll_fn(|cx| {
                    std::task::Poll::Ready(waiting.as_mut().poll(cx).is_pending())
                });
                assert!(pending.await);
            }
            drop(first);
            drop(locks.lock(0..8, true).await);
        });
        assert!(locks.is_empty());
    }
}
