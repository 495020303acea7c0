//! The block layer's events in QMP's words.

use ferry_api::EventKind;
use ferry_api::command;
use ferry_api::event::{
    BlockExportDeletedData, BlockImageCorruptedData, BlockIoErrorData, BlockJobCompletedData,
    BlockJobData, BlockJobErrorData, BlockJobPendingData, JobStatusChangeData,
};
use ferry_block::job::{
    BlockEvent, BlockJobReport, ErrorAction, IoOperation, IoStatus, JobKind, JobStatus,
};

/// The QMP event that says what `event` says.
pub(crate) fn of_block(event: BlockEvent) -> EventKind {
    match event {
        BlockEvent::JobStatusChange { id, status } => {
            EventKind::JobStatusChange(JobStatusChangeData { id, status: job_status(status) })
        }
        BlockEvent::BlockJobReady(report) => EventKind::BlockJobReady(job_data(report)),
        BlockEvent::BlockJobCompleted { report, error } => {
            let BlockJobData { kind, device, len, offset, speed } = job_data(report);
            EventKind::BlockJobCompleted(BlockJobCompletedData {
                kind,
                device,
                len,
                offset,
                speed,
                error,
            })
        }
        BlockEvent::BlockJobCancelled(report) => EventKind::BlockJobCancelled(job_data(report)),
        BlockEvent::BlockJobPending { kind, id } => {
            EventKind::BlockJobPending(BlockJobPendingData { kind: job_kind(kind), id })
        }
        BlockEvent::BlockJobError { device, operation, action } => {
            let (operation, action) = (io_operation(operation), error_action(action));
            EventKind::BlockJobError(BlockJobErrorData { device, operation, action })
        }
        BlockEvent::BlockExportDeleted { id } => {
            EventKind::BlockExportDeleted(BlockExportDeletedData { id })
        }
        BlockEvent::BlockImageCorrupted { node_name, message } => {
            EventKind::BlockImageCorrupted(BlockImageCorruptedData {
                device: String::new(),
                node_name,
                msg: message,
                offset: None,
                size: None,
                fatal: true,
            })
        }
        BlockEvent::BlockIoError { device, node_name, operation, action, nospace, reason } => {
            EventKind::BlockIoError(BlockIoErrorData {
                device,
                node_name,
                operation: io_operation(operation),
                action: error_action(action),
                nospace: Some(nospace),
                reason,
            })
        }
    }
}

/// QMP's integers are signed; nothing of ours comes near the end of them.
pub fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn job_data(report: BlockJobReport) -> BlockJobData {
    BlockJobData {
        kind: job_kind(report.kind),
        device: report.device,
        len: signed(report.len),
        offset: signed(report.offset),
        speed: signed(report.speed),
    }
}

pub(crate) fn job_kind(kind: JobKind) -> command::JobType {
    match kind {
        JobKind::Mirror => command::JobType::Mirror,
        JobKind::Backup => command::JobType::Backup,
        JobKind::Commit => command::JobType::Commit,
        JobKind::Stream => command::JobType::Stream,
        JobKind::Create => command::JobType::Create,
    }
}

pub(crate) fn job_status(status: JobStatus) -> command::JobStatus {
    match status {
        JobStatus::Created => command::JobStatus::Created,
        JobStatus::Running => command::JobStatus::Running,
        JobStatus::Paused => command::JobStatus::Paused,
        JobStatus::Ready => command::JobStatus::Ready,
        JobStatus::Standby => command::JobStatus::Standby,
        JobStatus::Waiting => command::JobStatus::Waiting,
        JobStatus::Pending => command::JobStatus::Pending,
        JobStatus::Aborting => command::JobStatus::Aborting,
        JobStatus::Concluded => command::JobStatus::Concluded,
        JobStatus::Null => command::JobStatus::Null,
    }
}

pub(crate) fn io_status(status: IoStatus) -> command::IoStatus {
    match status {
        IoStatus::Ok => command::IoStatus::Ok,
        IoStatus::Failed => command::IoStatus::Failed,
        IoStatus::NoSpace => command::IoStatus::NoSpace,
    }
}

fn io_operation(operation: IoOperation) -> command::IoOperation {
    match operation {
        IoOperation::Read => command::IoOperation::Read,
        IoOperation::Write => command::IoOperation::Write,
    }
}

fn error_action(action: ErrorAction) -> command::ErrorAction {
    match action {
        ErrorAction::Ignore => command::ErrorAction::Ignore,
        ErrorAction::Report => command::ErrorAction::Report,
        ErrorAction::Stop => command::ErrorAction::Stop,
    }
}
