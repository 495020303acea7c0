//! What `query-migrate` shows, kept by the migration thread and read by anybody.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// QEMU's `MigrationStatus`, as far as ferry has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// Nothing was ever started.
    #[default]
    None,
    /// Connecting and agreeing.
    Setup,
    /// RAM is being copied, the guest runs.
    Active,
    /// The guest is stopped: last RAM, device state, hand-over.
    Device,
    /// The guest runs at the destination.
    Completed,
    /// It did not work; `error-desc` says why.
    Failed,
    /// A cancel is being carried out.
    Cancelling,
    /// A cancel was carried out; the guest is where it was.
    Cancelled,
}

impl Status {
    /// QEMU's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::None => "none",
            Status::Setup => "setup",
            Status::Active => "active",
            Status::Device => "device",
            Status::Completed => "completed",
            Status::Failed => "failed",
            Status::Cancelling => "cancelling",
            Status::Cancelled => "cancelled",
        }
    }

    /// Is a migration going on?
    pub fn is_busy(self) -> bool {
        matches!(self, Status::Setup | Status::Active | Status::Device | Status::Cancelling)
    }
}

/// The `ram` member of `query-migrate`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RamStats {
    /// Bytes of RAM frames sent (source) or received (destination).
    pub transferred: u64,
    /// Bytes still to be sent in this round.
    pub remaining: u64,
    /// Bytes of guest RAM.
    pub total: u64,
    /// Pages found to hold zeros only.
    pub duplicate: u64,
    /// Pages sent whole.
    pub normal: u64,
    /// Bytes of pages sent whole.
    pub normal_bytes: u64,
    /// Pages that the guest dirtied per second in the last round.
    pub dirty_pages_rate: u64,
    /// Rate of the last round, in megabits per second.
    pub mbps: f64,
    /// Rounds begun.
    pub dirty_sync_count: u64,
    /// Pages fetched on demand; 0 in precopy.
    pub postcopy_requests: u64,
    /// Bytes per page.
    pub page_size: u64,
    /// Bytes on extra channels.
    pub multifd_bytes: u64,
    /// Pages sent per second in the last round.
    pub pages_per_second: u64,
    /// Bytes sent while the guest ran.
    pub precopy_bytes: u64,
    /// Bytes sent while the guest was stopped.
    pub downtime_bytes: u64,
    /// Bytes sent after the guest started over there.
    pub postcopy_bytes: u64,
}

/// Where the downtime went, in microseconds, in the order of the phases. The source learns the
/// destination's figures with its answers, and the destination the source's with Commit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Phases {
    /// Source: stopping vCPUs, draining devices, flushing disks.
    pub stop: u64,
    /// Source: last look at the dirty log.
    pub last_sync: u64,
    /// Source: last RAM handed to the kernel.
    pub last_ram: u64,
    /// Source: collecting device state.
    pub save: u64,
    /// Source: sending device state and waiting for Prepared; includes `restore`.
    pub prepare: u64,
    /// Destination: loading device state.
    pub restore: u64,
    /// Source: giving the disks up.
    pub inactivate: u64,
    /// Source: Commit sent until the answer came; includes `activate`.
    pub commit: u64,
    /// Destination: taking the disks.
    pub activate: u64,
}

/// One round of copying, for the explanation in `query-migrate`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct RoundStats {
    /// From 1.
    pub round: u64,
    /// Bytes sent in it.
    pub bytes: u64,
    /// Microseconds from its dirty-log sync until the destination had it all.
    pub micros: u64,
    /// Bytes found dirty after it.
    pub dirty_bytes: u64,
    /// Predicted downtime if the guest were stopped now, in microseconds.
    pub predicted_downtime: u64,
    /// What was decided, and why.
    pub decision: String,
}

/// Rounds kept for the explanation: a guest that never converges must not fill our memory.
const MAX_ROUNDS_KEPT: usize = 64;

/// Everything `query-migrate` shows. Serialises to QEMU's members, plus ferry's own below
/// `x-ferry-…`. Times in milliseconds where QEMU has them so.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Snapshot {
    /// Where it stands.
    pub status: Status,
    /// RAM; absent until RAM is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ram: Option<RamStats>,
    /// Milliseconds since the start, or from start to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_time: Option<u64>,
    /// Milliseconds until the first round began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub setup_time: Option<u64>,
    /// Predicted downtime in milliseconds, while active.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_downtime: Option<u64>,
    /// Downtime in milliseconds, when completed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub downtime: Option<u64>,
    /// Why it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_desc: Option<String>,
    /// Downtime in microseconds, when completed.
    #[serde(rename = "x-ferry-downtime-us", skip_serializing_if = "Option::is_none")]
    pub downtime_us: Option<u64>,
    /// Where the downtime went.
    #[serde(rename = "x-ferry-downtime-phases", skip_serializing_if = "Option::is_none")]
    pub phases: Option<Phases>,
    /// The last rounds.
    #[serde(rename = "x-ferry-rounds", skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<RoundStats>,
}

/// The shared statistics of one migration.
#[derive(Debug, Clone, Default)]
pub struct Stats(Arc<Mutex<Snapshot>>);

impl Stats {
    /// A copy of everything, as of now.
    pub fn snapshot(&self) -> Snapshot {
        self.lock().clone()
    }

    /// Changes something. Short: readers wait.
    pub(crate) fn update<R>(&self, change: impl FnOnce(&mut Snapshot) -> R) -> R {
        change(&mut self.lock())
    }

    /// Adds a round and forgets the oldest of too many.
    pub(crate) fn push_round(&self, round: RoundStats) {
        self.update(|s| {
            if s.rounds.len() == MAX_ROUNDS_KEPT {
                s.rounds.remove(0);
            }
            s.rounds.push(round);
        });
    }

    // A panic while the lock was held cannot leave it worse than half updated figures.
    fn lock(&self) -> MutexGuard<'_, Snapshot> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whole microseconds of a duration, saturating.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Whole milliseconds of a duration, saturating.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
