//! One answer from one thread to a future on another.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

#[derive(Debug)]
struct Slot<T> {
    answer: Option<T>,
    waker: Option<Waker>,
    closed: bool,
}

type Shared<T> = Arc<Mutex<Slot<T>>>;

/// The side that answers.
#[derive(Debug)]
pub(super) struct Sender<T>(Shared<T>);

/// The side that waits: a future of the answer, or of `None` when the sender went away without one.
#[derive(Debug)]
pub(super) struct Reply<T>(Shared<T>);

/// A sender and its waiting side.
pub(super) fn channel<T>() -> (Sender<T>, Reply<T>) {
    let shared = Arc::new(Mutex::new(Slot { answer: None, waker: None, closed: false }));
    (Sender(Arc::clone(&shared)), Reply(shared))
}

impl<T> Sender<T> {
    /// Answers.
    pub(super) fn send(self, answer: T) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).answer = Some(answer);
        // Dropping `self` wakes the waiting side.
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.closed = true;
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl<T> Future for Reply<T> {
    type Output = Option<T>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.closed {
            return Poll::Ready(slot.answer.take());
        }
        slot.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
