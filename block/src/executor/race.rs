//! Work that something else ends early.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use super::Executor;

/// The output of `work`, or `None` if `stop` is finished first. If both are finished, the work counts.
/// Whichever is not finished is dropped.
pub(crate) async fn race<T, S>(
    work: impl Future<Output = T>,
    stop: impl Future<Output = S>,
) -> Option<T> {
    let (mut work, mut stop) = (pin!(work), pin!(stop));
    poll_fn(|cx| {
        if let Poll::Ready(output) = work.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        stop.as_mut().poll(cx).map(|_| None)
    })
    .await
}

/// The output of `work`, or `None` if it takes longer than `limit`; then it is dropped.
pub async fn within<T>(
    executor: &Executor,
    limit: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    race(work, executor.sleep(limit)).await
}
