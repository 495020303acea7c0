//! Migration.

use super::socket::SocketAddress;
use crate::schema::{enumeration, object};

object! {
    /// Arguments of `migrate`.
    pub struct Migrate {
        /// Where to: `tcp:host:port` or `unix:path`.
        uri: String = "uri",
        /// Ignored: the command never waits for the migration. Clients send it.
        detach: Option<bool> = "detach",
    }
}

object! {
    /// Arguments of `migrate-incoming`.
    pub struct MigrateIncoming {
        /// Where to listen: `tcp:host:port` or `unix:path`.
        uri: String = "uri",
    }
}

enumeration! {
    /// Optional behaviour of a migration. All names are known so that clients can switch them off;
    /// switching on what is not there is refused.
    pub enum MigrationCapability {
        /// Compress pages that were sent before.
        Xbzrle = "xbzrle",
        /// Pin all memory for RDMA.
        RdmaPinAll = "rdma-pin-all",
        /// Slow the guest down until it converges.
        AutoConverge = "auto-converge",
        /// Reserved.
        ZeroBlocks = "zero-blocks",
        /// Compress pages.
        Compress = "compress",
        /// Emit `MIGRATION` events.
        Events = "events",
        /// Let the guest run on the destination before its memory is there.
        PostcopyRam = "postcopy-ram",
        /// Keep a lock-step replica.
        XColo = "x-colo",
        /// Free memory on the source as it is sent.
        ReleaseRam = "release-ram",
        /// Send disks, too.
        Block = "block",
        /// Let the destination answer.
        ReturnPath = "return-path",
        /// Wait for `migrate-continue` before the switch.
        PauseBeforeSwitchover = "pause-before-switchover",
        /// Use several connections.
        Multifd = "multifd",
        /// Send dirty bitmaps.
        DirtyBitmaps = "dirty-bitmaps",
        /// Measure how long vCPUs wait in postcopy.
        PostcopyBlocktime = "postcopy-blocktime",
        /// Take over disks only when the guest starts.
        LateBlockActivate = "late-block-activate",
        /// Do not send memory that both ends share.
        XIgnoreShared = "x-ignore-shared",
        /// Check that both ends have the same UUID.
        ValidateUuid = "validate-uuid",
        /// Save a snapshot while the guest runs.
        BackgroundSnapshot = "background-snapshot",
        /// Send without copying.
        ZeroCopySend = "zero-copy-send",
        /// Send urgent pages on a connection of their own.
        PostcopyPreempt = "postcopy-preempt",
    }
}

object! {
    /// A capability and whether it is on.
    pub struct MigrationCapabilityStatus {
        /// Which one.
        capability: MigrationCapability = "capability",
        /// On or off.
        state: bool = "state",
    }
}

object! {
    /// Arguments of `migrate-set-capabilities`.
    pub struct MigrateSetCapabilities {
        /// What to change; others stay as they are.
        capabilities: Vec<MigrationCapabilityStatus> = "capabilities",
    }
}

object! {
    /// Arguments of `migrate-set-parameters`; result of `query-migrate-parameters`.
    #[derive(Default)]
    pub struct MigrationParameters {
        /// Bytes per second, 0 for no limit (default 128 MiB/s).
        max_bandwidth: Option<u64> = "max-bandwidth",
        /// Longest time the guest may stand still, in milliseconds (default 300).
        downtime_limit: Option<u64> = "downtime-limit",
    }
}

/// The most that `downtime-limit` can be, in milliseconds.
pub const MAX_DOWNTIME_LIMIT_MS: u64 = 2_000_000;

enumeration! {
    /// Where a migration is.
    pub enum MigrationStatus {
        /// There was none.
        None = "none",
        /// Connecting.
        Setup = "setup",
        /// Being cancelled.
        Cancelling = "cancelling",
        /// Cancelled; the guest runs on the source.
        Cancelled = "cancelled",
        /// Sending while the guest runs.
        Active = "active",
        /// The guest runs on the destination, memory still comes.
        PostcopyActive = "postcopy-active",
        /// The connection was lost in postcopy.
        PostcopyPaused = "postcopy-paused",
        /// Connecting again in postcopy.
        PostcopyRecover = "postcopy-recover",
        /// The guest runs on the destination.
        Completed = "completed",
        /// It failed; the guest runs on the source.
        Failed = "failed",
        /// Keeping a replica.
        Colo = "colo",
        /// Waiting for `migrate-continue`.
        PreSwitchover = "pre-switchover",
        /// Sending device state.
        Device = "device",
        /// Waiting for a device to be unplugged.
        WaitUnplug = "wait-unplug",
    }
}

object! {
    /// How much has been sent. Sizes in bytes.
    #[derive(Default)]
    pub struct MigrationStats {
        /// Sent.
        transferred: i64 = "transferred",
        /// Still to send.
        remaining: i64 = "remaining",
        /// Size of the guest's memory.
        total: i64 = "total",
        /// Zero pages, not sent.
        duplicate: i64 = "duplicate",
        /// Pages skipped.
        skipped: i64 = "skipped",
        /// Pages sent.
        normal: i64 = "normal",
        /// Bytes of pages sent.
        normal_bytes: i64 = "normal-bytes",
        /// Pages that the guest dirties per second.
        dirty_pages_rate: i64 = "dirty-pages-rate",
        /// Rate in megabit/s.
        mbps: f64 = "mbps",
        /// Rounds.
        dirty_sync_count: i64 = "dirty-sync-count",
        /// Pages asked for in postcopy.
        postcopy_requests: i64 = "postcopy-requests",
        /// Bytes per page.
        page_size: i64 = "page-size",
        /// Bytes sent over further connections.
        multifd_bytes: u64 = "multifd-bytes",
        /// Pages sent per second.
        pages_per_second: u64 = "pages-per-second",
        /// Bytes sent while the guest ran.
        precopy_bytes: u64 = "precopy-bytes",
        /// Bytes sent while the guest stood still.
        downtime_bytes: u64 = "downtime-bytes",
        /// Bytes sent while the guest ran on the destination.
        postcopy_bytes: u64 = "postcopy-bytes",
        /// Rounds in which zero-copy was not possible.
        dirty_sync_missed_zero_copy: u64 = "dirty-sync-missed-zero-copy",
    }
}

object! {
    /// Result of `query-migrate`: empty before the first migration. Times in milliseconds.
    #[derive(Default)]
    pub struct MigrationInfo {
        /// Where it is.
        status: Option<MigrationStatus> = "status",
        /// Memory.
        ram: Option<MigrationStats> = "ram",
        /// Disks.
        disk: Option<MigrationStats> = "disk",
        /// Time since the start, or of the whole.
        total_time: Option<i64> = "total-time",
        /// Predicted standstill, while it runs.
        expected_downtime: Option<i64> = "expected-downtime",
        /// Standstill, when completed.
        downtime: Option<i64> = "downtime",
        /// Time that connecting took.
        setup_time: Option<i64> = "setup-time",
        /// Why it failed.
        error_desc: Option<String> = "error-desc",
        /// What stands in the way of a migration.
        blocked_reasons: Option<Vec<String>> = "blocked-reasons",
        /// Where an incoming migration listens, with the port that was really taken.
        socket_address: Option<Vec<SocketAddress>> = "socket-address",
    }
}
