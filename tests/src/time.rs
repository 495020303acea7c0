//! The rig's only door to real time and to threads.
#![expect(clippy::disallowed_methods, reason = "the rig watches real processes, in real time")]

use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// The time now.
pub fn now() -> Instant {
    Instant::now()
}

/// Starts a thread with a name.
///
/// # Panics
///
/// When the system has no room for another thread.
pub fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    let builder = std::thread::Builder::new().name(name.to_owned());
    builder.spawn(body).unwrap_or_else(|error| panic!("no thread for {name}: {error}"))
}

/// Waits.
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}

/// Asks again and again until there is an answer: after a millisecond first, later every thirtieth of a second.
///
/// # Errors
///
/// When the question fails, or has no answer within the limit; the message names `what`.
pub fn poll<T>(
    what: &str,
    limit: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = now() + limit;
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if now() >= deadline {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(32));
    }
}
