//! A list of tasks that wait for "something changed, look again".

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Wakes everybody who waits, in the order they came. Single-threaded.
#[derive(Default)]
pub struct Notify {
    wakers: RefCell<VecDeque<Waker>>,
}

impl Notify {
    /// A list with nobody on it.
    pub fn new() -> Notify {
        Notify::default()
    }

    /// Wakes all who wait now.
    pub fn notify_all(&self) {
        let wakers = std::mem::take(&mut *self.wakers.borrow_mut());
        for waker in wakers {
            waker.wake();
        }
    }

    /// Waits until `ready` says so; it is asked at once and after every notification.
    pub async fn wait_until(&self, ready: impl Fn() -> bool) {
        poll_fn(|cx| {
            if ready() {
                return Poll::Ready(());
            }
            let mut wakers = self.wakers.borrow_mut();
            // Polled again without a notification (a select around us): stay on the list once.
            if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                wakers.push_back(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}
