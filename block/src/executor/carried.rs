//! [`Carried`]: work that outlives whoever waits for it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::Executor;
use crate::driver::LocalBoxFuture;

/// Work that goes on as a task of its own when it is given up after it has begun: a request that the kernel has,
/// with what must be held until the kernel is done. Awaited to its end it costs no task.
pub(crate) struct Carried<T: 'static> {
    executor: Executor,
    work: Option<LocalBoxFuture<'static, T>>,
    begun: bool,
}

impl<T: 'static> Carried<T> {
    pub(crate) fn new(executor: &Executor, work: impl Future<Output = T> + 'static) -> Carried<T> {
        Carried { executor: executor.clone(), work: Some(Box::pin(work)), begun: false }
    }
}

impl<T: 'static> Future for Carried<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let this = &mut *self;
        this.begun = true;
        let Some(work) = &mut this.work else { return Poll::Pending };
        let result = work.as_mut().poll(cx);
        if result.is_ready() {
            this.work = None;
        }
        result
    }
}

impl<T: 'static> Drop for Carried<T> {
    fn drop(&mut self) {
        if let Some(work) = self.work.take().filter(|_| self.begun) {
            drop(self.executor.spawn(work));
        }
    }
}
