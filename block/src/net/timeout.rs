//! The first of two futures: time limits, and waits that can be called off.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use crate::executor::Executor;

/// Which of two futures was first.
pub(crate) enum Raced<A, B> {
    First(A),
    Second(B),
}

/// Waits for the first of two futures and drops the other. If both are ready, `first` counts.
pub(crate) async fn race<A, B>(
    first: impl Future<Output = A>,
    second: impl Future<Output = B>,
) -> Raced<A, B> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    poll_fn(|cx| {
        if let Poll::Ready(result) = first.as_mut().poll(cx) {
            return Poll::Ready(Raced::First(result));
        }
        second.as_mut().poll(cx).map(Raced::Second)
    })
    .await
}

/// The result of `future`, or `None` if it takes longer than `limit`; then it is dropped.
pub async fn within<T>(
    executor: &Executor,
    limit: Duration,
    future: impl Future<Output = T>,
) -> Option<T> {
    match race(future, executor.sleep(limit)).await {
        Raced::First(result) => Some(result),
        Raced::Second(()) => None,
    }
}
