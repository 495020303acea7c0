//! The one place where this crate reads the clock. Decisions take durations as arguments.

use std::time::Instant;

/// Now, monotonic.
#[expect(clippy::disallowed_methods, reason = "this is the clock that the rest uses")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
