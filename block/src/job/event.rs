//! What the block layer tells the world: the data of QMP's block events, without its JSON.

use std::rc::Rc;

use super::query::JobKind;
use super::status::JobStatus;

/// Where events go. `vmm` sets one that posts to the control thread.
pub type EventSink = Rc<dyn Fn(BlockEvent)>;

/// Something happened that clients are told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockEvent {
    /// `JOB_STATUS_CHANGE`.
    JobStatusChange {
        /// The job.
        id: String,
        /// Its new state.
        status: JobStatus,
    },
    /// `BLOCK_JOB_READY`: the copy is complete and kept so; emitted once in a job's life.
    BlockJobReady(BlockJobReport),
    /// `BLOCK_JOB_COMPLETED`; with `error`, the job failed.
    BlockJobCompleted {
        /// How far it came.
        report: BlockJobReport,
        /// Why it failed, in the host's words where the host failed.
        error: Option<String>,
    },
    /// `BLOCK_JOB_CANCELLED`: given up on request, its result is worth nothing.
    BlockJobCancelled(BlockJobReport),
    /// `BLOCK_JOB_PENDING`: waits for `job-finalize`.
    BlockJobPending {
        /// What kind of job.
        kind: JobKind,
        /// The job.
        id: String,
    },
    /// `BLOCK_JOB_ERROR`: an operation failed and this is what the job does about it.
    BlockJobError {
        /// The job.
        device: String,
        /// Which side failed.
        operation: IoOperation,
        /// What happens now.
        action: ErrorAction,
    },
    /// `BLOCK_EXPORT_DELETED`: nobody can use the export any more.
    BlockExportDeleted {
        /// The export.
        id: String,
    },
    /// `BLOCK_IMAGE_CORRUPTED`: an image contradicts itself and is not written any more.
    BlockImageCorrupted {
        /// Its node, if it has a name of its own.
        node_name: Option<String>,
        /// What was found.
        message: String,
    },
    /// `BLOCK_IO_ERROR`: a guest's request failed.
    BlockIoError {
        /// The device, empty if it has no name.
        device: String,
        /// The node that failed.
        node_name: Option<String>,
        /// Which way the data went.
        operation: IoOperation,
        /// What happens now.
        action: ErrorAction,
        /// Whether the storage is full.
        nospace: bool,
        /// The host's words.
        reason: String,
    },
}

/// What all block job events say of their job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockJobReport {
    /// What kind of job.
    pub kind: JobKind,
    /// The job's id (QMP calls it `device`).
    pub device: String,
    /// Bytes the job has to deal with.
    pub len: u64,
    /// Bytes it has dealt with.
    pub offset: u64,
    /// Its rate limit in bytes a second, 0 for none.
    pub speed: u64,
}

/// Which way data went when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoOperation {
    /// From the source.
    Read,
    /// To the target.
    Write,
}

/// What is done about a failed operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorAction {
    /// Nothing: it is tried again later.
    Ignore,
    /// It is reported up: the job fails, the guest sees an error.
    Report,
    /// Everything stops until somebody resumes it.
    Stop,
}

impl IoOperation {
    /// The name QMP shows.
    pub fn as_str(self) -> &'static str {
        match self {
            IoOperation::Read => "read",
            IoOperation::Write => "write",
        }
    }
}

impl ErrorAction {
    /// The name QMP shows.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorAction::Ignore => "ignore",
            ErrorAction::Report => "report",
            ErrorAction::Stop => "stop",
        }
    }
}
