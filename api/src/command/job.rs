//! Jobs and the mirror.

use super::blockdev::IoStatus;
use crate::schema::{enumeration, object};

enumeration! {
    /// What a job does.
    pub enum JobType {
        /// Merge an overlay into its base.
        Commit = "commit",
        /// Copy from a base into its overlay.
        Stream = "stream",
        /// Copy and keep equal.
        Mirror = "mirror",
        /// Copy a point in time.
        Backup = "backup",
        /// Create an image.
        Create = "create",
        /// Change an image's options.
        Amend = "amend",
        /// Load a snapshot.
        SnapshotLoad = "snapshot-load",
        /// Save a snapshot.
        SnapshotSave = "snapshot-save",
        /// Delete a snapshot.
        SnapshotDelete = "snapshot-delete",
    }
}

enumeration! {
    /// Where a job is in its life.
    pub enum JobStatus {
        /// Not even created.
        Undefined = "undefined",
        /// Created, not started.
        Created = "created",
        /// Working.
        Running = "running",
        /// Paused before READY.
        Paused = "paused",
        /// Source and target are equal and are kept so.
        Ready = "ready",
        /// Paused after READY.
        Standby = "standby",
        /// Done, waiting for the other jobs of its transaction.
        Waiting = "waiting",
        /// Done, waiting to be finalized.
        Pending = "pending",
        /// Failed or cancelled, cleaning up.
        Aborting = "aborting",
        /// Over, waiting to be dismissed.
        Concluded = "concluded",
        /// Gone.
        Null = "null",
    }
}

enumeration! {
    /// Which data a mirror copies at first.
    pub enum MirrorSyncMode {
        /// The topmost image only.
        Top = "top",
        /// All data.
        Full = "full",
        /// Nothing: only what is written from now on.
        None = "none",
    }
}

enumeration! {
    /// How guest writes reach the target of a mirror.
    pub enum MirrorCopyMode {
        /// They mark the data dirty and are copied later.
        Background = "background",
        /// They go to both and are acknowledged when both are done.
        WriteBlocking = "write-blocking",
    }
}

enumeration! {
    /// What a job does about an I/O error.
    pub enum OnError {
        /// Fail.
        Report = "report",
        /// Go on and try again later.
        Ignore = "ignore",
        /// Pause when there is no space, else fail.
        Enospc = "enospc",
        /// Pause.
        Stop = "stop",
        /// As the device does.
        Auto = "auto",
    }
}

object! {
    /// Arguments of `blockdev-mirror`.
    pub struct BlockdevMirror {
        /// Name of the job (default: the device's).
        job_id: Option<String> = "job-id",
        /// Device or root node to copy.
        device: String = "device",
        /// Node to copy to.
        target: String = "target",
        /// Node that the target takes the place of (default: the root).
        replaces: Option<String> = "replaces",
        /// Which data to copy at first.
        sync: MirrorSyncMode = "sync",
        /// Bytes per second, 0 for no limit (default 0).
        speed: Option<i64> = "speed",
        /// Bytes per bit of the dirty bitmap: a power of two, 512 B to 64 MiB (default 64 KiB). Where not all
        /// layers are copied, a cluster of the target at least, which QEMU's NBD servers do not tell.
        granularity: Option<u32> = "granularity",
        /// Bytes in flight (default 16 MiB).
        buf_size: Option<i64> = "buf-size",
        /// What to do when reading fails (default report).
        on_source_error: Option<OnError> = "on-source-error",
        /// What to do when writing fails (default report).
        on_target_error: Option<OnError> = "on-target-error",
        /// Name for the filter node that is put over the source.
        filter_node_name: Option<String> = "filter-node-name",
        /// How guest writes reach the target (default background).
        copy_mode: Option<MirrorCopyMode> = "copy-mode",
        /// Whether to finish without being asked (default true).
        auto_finalize: Option<bool> = "auto-finalize",
        /// Whether to go away without being asked (default true).
        auto_dismiss: Option<bool> = "auto-dismiss",
    }
}

object! {
    /// Arguments of `block-job-complete`, `block-job-pause` and `block-job-resume`.
    pub struct BlockJobDevice {
        /// The job: named `device` for the days when a job had its device's name.
        device: String = "device",
    }
}

object! {
    /// Arguments of `block-job-cancel`.
    pub struct BlockJobCancel {
        /// The job.
        device: String = "device",
        /// Stop at once, also after READY (default false: a mirror that is READY ends with a
        /// consistent copy).
        force: Option<bool> = "force",
    }
}

object! {
    /// Arguments of `block-job-set-speed`.
    pub struct BlockJobSetSpeed {
        /// The job.
        device: String = "device",
        /// Bytes per second, 0 for no limit.
        speed: i64 = "speed",
    }
}

object! {
    /// Arguments of `job-*`, `block-job-finalize` and `block-job-dismiss`.
    pub struct JobId {
        /// The job.
        id: String = "id",
    }
}

object! {
    /// A block job: one entry of `query-block-jobs`.
    pub struct BlockJobInfo {
        /// What it does.
        kind: JobType = "type",
        /// Its name.
        device: String = "device",
        /// Bytes to do in all, as known now.
        len: i64 = "len",
        /// Bytes done.
        offset: i64 = "offset",
        /// Whether it has requests in flight.
        busy: bool = "busy",
        /// Whether it is paused, or will be as soon as it can.
        paused: bool = "paused",
        /// Its limit in bytes/s, 0 for none.
        speed: i64 = "speed",
        /// Its last errors.
        io_status: IoStatus = "io-status",
        /// Whether it can be completed.
        ready: bool = "ready",
        /// Where it is in its life.
        status: JobStatus = "status",
        /// Whether it finishes without being asked.
        auto_finalize: bool = "auto-finalize",
        /// Whether it goes away without being asked.
        auto_dismiss: bool = "auto-dismiss",
        /// Why it failed.
        error: Option<String> = "error",
        /// A mirror: whether source and target are equal at this moment and stay so.
        actively_synced: Option<bool> = "actively-synced",
    }
}

object! {
    /// A job: one entry of `query-jobs`.
    pub struct JobInfo {
        /// Its name.
        id: String = "id",
        /// What it does.
        kind: JobType = "type",
        /// Where it is in its life.
        status: JobStatus = "status",
        /// How much is done, in no particular unit.
        current_progress: i64 = "current-progress",
        /// How much there is to do, in the same unit.
        total_progress: i64 = "total-progress",
        /// Why it failed.
        error: Option<String> = "error",
    }
}
