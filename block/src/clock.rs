//! Time, passed in: the host's monotonic clock, or a simulated one that only tests move.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// A source of monotonic nanoseconds. Clones read the same clock.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    Real,
    Simulated(Rc<Cell<u64>>),
}

/// Process-wide zero, so that times read on different threads compare.
static ZERO: LazyLock<Instant> = LazyLock::new(host_now);

#[expect(clippy::disallowed_methods, reason = "this is the one module that reads host time")]
fn host_now() -> Instant {
    Instant::now()
}

impl Clock {
    /// The host's monotonic clock; zero is some moment of this process.
    pub fn real() -> Clock {
        Clock(Source::Real)
    }

    /// A clock that stands at zero until [`Clock::advance`] or an executor moves it.
    pub fn simulated() -> Clock {
        Clock(Source::Simulated(Rc::new(Cell::new(0))))
    }

    /// Nanoseconds since this clock's zero; never goes back.
    pub fn now(&self) -> u64 {
        match &self.0 {
            Source::Real => duration_ns(host_now().saturating_duration_since(*ZERO)),
            Source::Simulated(now) => now.get(),
        }
    }

    /// Whether time stands still unless moved.
    pub fn is_simulated(&self) -> bool {
        matches!(self.0, Source::Simulated(_))
    }

    /// Moves a simulated clock forward; a real clock cannot be moved and stays as it is.
    pub fn advance(&self, by: Duration) {
        self.advance_to(self.now().saturating_add(duration_ns(by)));
    }

    /// Moves a simulated clock to `at` nanoseconds unless it is there already.
    pub(crate) fn advance_to(&self, at: u64) {
        if let Source::Simulated(now) = &self.0 {
            now.set(now.get().max(at));
        }
    }
}

/// Nanoseconds of a duration; saturates after 584 years.
pub(crate) fn duration_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
