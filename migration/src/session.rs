//! What the migration thread shares with the rest of the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::cancel::Canceller;
use crate::error::Result;
use crate::stats::{Stats, Status, millis};

/// QEMU's default downtime limit.
pub const DEFAULT_DOWNTIME_LIMIT: Duration = Duration::from_millis(300);

/// Default of `max-bandwidth`, in bytes per second: no limit. QEMU's 128 MiB/s dates from gigabit
/// networks; on a faster one it turns every migration into a long one, and a long one dirties more.
/// Who shares the network with something more important sets a limit.
pub const DEFAULT_MAX_BANDWIDTH: u64 = 0;

/// Parameters that `migrate-set-parameters` may change at any time, also during a migration.
#[derive(Debug, Clone)]
pub struct Tuning(Arc<Values>);

#[derive(Debug)]
struct Values {
    max_bandwidth: AtomicU64,
    downtime_limit_ms: AtomicU64,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning(Arc::new(Values {
            max_bandwidth: AtomicU64::new(DEFAULT_MAX_BANDWIDTH),
            downtime_limit_ms: AtomicU64::new(millis(DEFAULT_DOWNTIME_LIMIT)),
        }))
    }
}

impl Tuning {
    /// Bytes per second while the guest runs; 0 means no limit. Once it is stopped there is none.
    pub fn max_bandwidth(&self) -> u64 {
        self.0.max_bandwidth.load(Ordering::Relaxed)
    }

    /// Sets [`Tuning::max_bandwidth`].
    pub fn set_max_bandwidth(&self, bytes_per_second: u64) {
        self.0.max_bandwidth.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Longest predicted downtime at which the guest may be stopped.
    pub fn downtime_limit(&self) -> Duration {
        Duration::from_millis(self.0.downtime_limit_ms.load(Ordering::Relaxed))
    }

    /// Sets [`Tuning::downtime_limit`]; whole milliseconds.
    pub fn set_downtime_limit(&self, limit: Duration) {
        self.0.downtime_limit_ms.store(millis(limit), Ordering::Relaxed);
    }
}

/// One migration, on either side: cancel it, watch it, tune it. All clones are the same migration.
#[derive(Debug, Clone)]
pub struct Session {
    /// Gives it up.
    pub canceller: Canceller,
    /// What `query-migrate` shows.
    pub stats: Stats,
    /// What `migrate-set-parameters` sets; shared by all migrations of a process.
    pub tuning: Tuning,
}

impl Session {
    /// A new migration, in status `setup`.
    pub fn new(tuning: Tuning) -> Result<Session> {
        let stats = Stats::default();
        stats.update(|s| s.status = Status::Setup);
        Ok(Session { canceller: Canceller::new()?, stats, tuning })
    }

    /// Cancels. `Ok(true)` means that this call did it: the status is `cancelling` now and the caller
    /// emits that event; the end of the run brings `cancelled`. `Ok(false)` means that there was
    /// nothing left to cancel. An error means that it is too late.
    pub fn cancel(&self) -> Result<bool> {
        let ours = self.canceller.cancel()?;
        if ours {
            self.stats.update(|s| {
                if s.status.is_busy() {
                    s.status = Status::Cancelling;
                }
            });
        }
        Ok(ours)
    }

    /// Publishes a status and returns whether the machine should be told. After a cancel only the end
    /// is news: `cancelling` was announced by whoever cancelled.
    pub(crate) fn publish(&self, status: Status) -> bool {
        self.stats.update(|s| {
            if s.status == status || (s.status == Status::Cancelling && status.is_busy()) {
                return false;
            }
            s.status = status;
            true
        })
    }
}
