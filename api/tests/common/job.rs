//! A job that only pretends, and how it shows itself.

use ferry_api::{command::*, event::*};

use super::machine::DISK_BYTES;

pub(crate) struct FakeJob {
    pub(crate) id: String,
    pub(crate) target: String,
    pub(crate) status: JobStatus,
    pub(crate) offset: i64,
    pub(crate) speed: i64,
    pub(crate) fail: bool,
    /// How it was told to end; it does so in the next tick, after the command's reply.
    pub(crate) ending: Option<Ending>,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Ending {
    Pivot,
    Keep,
    Cancel,
}

impl FakeJob {
    pub(crate) fn data(&self) -> BlockJobData {
        BlockJobData {
            kind: JobType::Mirror,
            device: self.id.clone(),
            len: DISK_BYTES,
            offset: self.offset,
            speed: self.speed,
        }
    }

    pub(crate) fn completed(&self, error: Option<String>) -> BlockJobCompletedData {
        BlockJobCompletedData {
            kind: JobType::Mirror,
            device: self.id.clone(),
            len: DISK_BYTES,
            offset: self.offset,
            speed: self.speed,
            error,
        }
    }

    pub(crate) fn info(&self) -> BlockJobInfo {
        BlockJobInfo {
            kind: JobType::Mirror,
            device: self.id.clone(),
            len: DISK_BYTES,
            offset: self.offset,
            busy: self.status == JobStatus::Running,
            paused: false,
            speed: self.speed,
            io_status: IoStatus::Ok,
            ready: self.status == JobStatus::Ready,
            status: self.status,
            auto_finalize: true,
            auto_dismiss: true,
            error: None,
            actively_synced: Some(false),
        }
    }

    pub(crate) fn job_info(&self) -> JobInfo {
        JobInfo {
            id: self.id.clone(),
            kind: JobType::Mirror,
            status: self.status,
            current_progress: self.offset,
            total_progress: DISK_BYTES,
            error: None,
        }
    }
}
