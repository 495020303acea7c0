//! The one place where the client looks at the clock.

use std::time::{Duration, Instant};

/// A moment up to which something may take.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Option<Instant>);

/// Starts when it is made.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stopwatch(Instant);

#[expect(clippy::disallowed_methods, reason = "a program's front end lives in real time")]
fn now() -> Instant {
    Instant::now()
}

impl Deadline {
    /// A deadline some time from now; one too far away to express never comes.
    pub(crate) fn after(time: Duration) -> Self {
        Deadline(now().checked_add(time))
    }

    /// The time left, never zero; `None` when it is over.
    pub(crate) fn remaining(self) -> Option<Duration> {
        match self.0 {
            None => Some(Duration::from_secs(3600)),
            Some(at) => at.checked_duration_since(now()).filter(|left| !left.is_zero()),
        }
    }
}

impl Stopwatch {
    /// Starts one.
    pub(crate) fn start() -> Self {
        Stopwatch(now())
    }

    /// Time since it was started.
    pub(crate) fn elapsed(self) -> Duration {
        now().saturating_duration_since(self.0)
    }
}
