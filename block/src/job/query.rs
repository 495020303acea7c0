//! What can be asked of jobs: the values behind `query-jobs` and `query-block-jobs`.

use super::status::JobStatus;

/// What kind of job, in QMP's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobKind {
    /// Copies a node to another and keeps it equal.
    Mirror,
    /// Copies a point in time.
    Backup,
    /// Copies an overlay into its base.
    Commit,
    /// Copies a base into its overlay.
    Stream,
    /// Makes an image.
    Create,
}

impl JobKind {
    /// The name QMP shows.
    pub fn as_str(self) -> &'static str {
        match self {
            JobKind::Mirror => "mirror",
            JobKind::Backup => "backup",
            JobKind::Commit => "commit",
            JobKind::Stream => "stream",
            JobKind::Create => "create",
        }
    }

    /// Whether it works on disks in use, so that `query-block-jobs` shows it and `BLOCK_JOB_*` events
    /// tell of it.
    pub fn is_block_job(self) -> bool {
        self != JobKind::Create
    }
}

/// Whether the job's last I/O worked, as `io-status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IoStatus {
    /// Nothing is wrong.
    #[default]
    Ok,
    /// The job stopped at an error.
    Failed,
    /// The job stopped because the storage is full.
    NoSpace,
}

impl IoStatus {
    /// The name QMP shows.
    pub fn as_str(self) -> &'static str {
        match self {
            IoStatus::Ok => "ok",
            IoStatus::Failed => "failed",
            IoStatus::NoSpace => "nospace",
        }
    }
}

/// A job at one moment: everything both queries show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobInfo {
    /// The id (`device` in `query-block-jobs`).
    pub id: String,
    /// What kind of job.
    pub kind: JobKind,
    /// Its state.
    pub status: JobStatus,
    /// `current-progress`, `offset`: bytes dealt with; never goes back.
    pub offset: u64,
    /// `total-progress`, `len`: bytes there are to deal with as known now.
    pub len: u64,
    /// Whether it is computing or waiting for I/O right now.
    pub busy: bool,
    /// Whether somebody wants it paused.
    pub paused: bool,
    /// Rate limit in bytes a second, 0 for none.
    pub speed: u64,
    /// Whether it stopped at an error.
    pub io_status: IoStatus,
    /// Whether `complete` is accepted.
    pub ready: bool,
    /// Whether it takes effect without `finalize`.
    pub auto_finalize: bool,
    /// Whether it disappears by itself when it is over.
    pub auto_dismiss: bool,
    /// Why it failed.
    pub error: Option<String>,
    /// Mirror only: whether both sides have been equal since it last began to write through.
    pub actively_synced: Option<bool>,
}
