//! Jobs by QMP: `blockdev-mirror`, the verbs and the queries.

use ferry_api::QmpError;
use ferry_api::command::{
    self, BlockJobInfo, BlockdevMirror, JobInfo as QmpJobInfo, MirrorCopyMode, MirrorSyncMode,
};
use ferry_block::BlockGraph;
use ferry_block::job::mirror::{self, CopyMode, MirrorOptions, SyncMode};
use ferry_block::job::registry::JobRef;
use ferry_block::job::{JobInfo, JobRegistry, OnError};

use super::{Result, Storage, qmp_error};
use crate::events::{io_status, job_kind, job_status, signed};

/// What a client wants of a job.
#[derive(Debug, Clone, Copy)]
pub(super) enum Verb {
    Pause,
    Resume,
    /// By force, whatever it has done.
    Cancel,
    /// Without force a job that is ready ends well.
    CancelBlockJob {
        force: bool,
    },
    Complete,
    Finalize,
    Dismiss,
    SetSpeed(i64),
}

/// Which family of commands a verb came from: they differ in how they say that a job is not there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// `job-*`
    Job,
    /// `block-job-*`
    BlockJob,
}

impl Storage {
    /// Starts a mirror; it is running on return.
    pub(super) async fn mirror(&self, arguments: BlockdevMirror) -> Result<()> {
        let options = mirror_options(arguments);
        let start =
            |graph: BlockGraph| async move { mirror::start(&graph, options).await.map(drop) };
        self.in_turn(start).await
    }

    /// Gives a job a verb.
    pub(super) async fn job_verb(&self, family: Family, id: String, verb: Verb) -> Result<()> {
        let name = id.clone();
        let call = move |graph: BlockGraph| async move {
            let registry = JobRegistry::of(&graph);
            let Ok(job) = registry.find(&id) else { return Ok(false) };
            if family == Family::BlockJob && !job.info().kind.is_block_job() {
                return Ok(false);
            }
            apply(&job, verb).await.map(|()| true)
        };
        let found = self.on_graph(call).await?;
        match (found, family) {
            (true, _) => Ok(()),
            (false, Family::Job) => Err(QmpError::job_not_found()),
            (false, Family::BlockJob) => Err(QmpError::block_job_not_found(&name)),
        }
    }

    /// All jobs of the graph, oldest first.
    async fn list_jobs(&self) -> Result<Vec<JobInfo>> {
        let list = |graph: BlockGraph| async move { JobRegistry::of(&graph).query_jobs() };
        self.blocks.call(list).await.map_err(qmp_error)
    }

    /// `query-jobs`
    pub(super) async fn query_jobs(&self) -> Result<Vec<QmpJobInfo>> {
        let jobs = self.list_jobs().await?.into_iter().map(|job| QmpJobInfo {
            id: job.id,
            kind: job_kind(job.kind),
            status: job_status(job.status),
            current_progress: signed(job.offset),
            total_progress: signed(job.len),
            error: job.error,
        });
        Ok(jobs.collect())
    }

    /// `query-block-jobs`
    pub(super) async fn query_block_jobs(&self) -> Result<Vec<BlockJobInfo>> {
        let jobs = self.list_jobs().await?.into_iter().filter(|job| job.kind.is_block_job());
        let jobs = jobs.map(|job| BlockJobInfo {
            kind: job_kind(job.kind),
            device: job.id,
            len: signed(job.len),
            offset: signed(job.offset),
            busy: job.busy,
            paused: job.paused,
            speed: signed(job.speed),
            io_status: io_status(job.io_status),
            ready: job.ready,
            actively_synced: job.actively_synced,
            status: job_status(job.status),
            auto_finalize: job.auto_finalize,
            auto_dismiss: job.auto_dismiss,
            error: job.error,
        });
        Ok(jobs.collect())
    }

    /// Cancels every job and waits for their ends: what `quit` does first.
    pub async fn cancel_jobs(&self) {
        let cancel = |graph: BlockGraph| async move { JobRegistry::of(&graph).cancel_all().await };
        if let Err(error) = self.blocks.call(cancel).await {
            tracing::error!("{error}");
        }
    }
}

async fn apply(job: &JobRef, verb: Verb) -> ferry_block::Result<()> {
    match verb {
        Verb::Pause => job.pause().await,
        Verb::Resume => job.resume(),
        Verb::Cancel => job.cancel().await,
        Verb::CancelBlockJob { force } => job.cancel_block_job(force).await,
        Verb::Complete => job.complete(),
        Verb::Finalize => job.finalize().await,
        Verb::Dismiss => job.dismiss(),
        Verb::SetSpeed(speed) => job.set_speed(speed),
    }
}

fn mirror_options(from: BlockdevMirror) -> MirrorOptions {
    let sync = match from.sync {
        MirrorSyncMode::Top => SyncMode::Top,
        MirrorSyncMode::Full => SyncMode::Full,
        MirrorSyncMode::None => SyncMode::None,
    };
    let copy_mode = match from.copy_mode {
        Some(MirrorCopyMode::WriteBlocking) => CopyMode::WriteBlocking,
        Some(MirrorCopyMode::Background) | None => CopyMode::Background,
    };
    MirrorOptions {
        job_id: from.job_id,
        replaces: from.replaces,
        speed: from.speed.unwrap_or(0),
        granularity: from.granularity.unwrap_or(0).into(),
        buf_size: from.buf_size.unwrap_or(0),
        on_source_error: on_error(from.on_source_error),
        on_target_error: on_error(from.on_target_error),
        filter_node_name: from.filter_node_name,
        copy_mode,
        auto_finalize: from.auto_finalize.unwrap_or(true),
        auto_dismiss: from.auto_dismiss.unwrap_or(true),
        ..MirrorOptions::new(from.device, from.target, sync)
    }
}

fn on_error(from: Option<command::OnError>) -> OnError {
    match from {
        None | Some(command::OnError::Report) => OnError::Report,
        Some(command::OnError::Ignore) => OnError::Ignore,
        Some(command::OnError::Enospc) => OnError::Enospc,
        Some(command::OnError::Stop) => OnError::Stop,
        Some(command::OnError::Auto) => OnError::Auto,
    }
}
