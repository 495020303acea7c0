//! Every block command of QMP and the function that carries it out.

mod bitmap;
mod blockdev;
mod export;
mod export_registry;
mod image_info;
mod io_throttle;
mod job;
mod kept;
mod object;
mod query;
mod snapshot;
mod transaction;
mod yank;

use ferry_api::command::{
    BlockCommand, BlockJobCancel, BlockJobDevice, BlockJobSetSpeed, JobId, reply,
};
use ferry_api::schema::Empty;
use ferry_api::{EventKind, QmpError};
use ferry_block::job::JobRegistry;
use ferry_block::{BlockGraph, BlockHandle, Error};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::events;
use crate::export_kind::ExportKinds;
use bitmap::Change;
use image_info::Depth;
use job::{Family, Verb};
use snapshot::Overlay;

type Result<T> = std::result::Result<T, QmpError>;

/// The block layer as QMP clients see it. Everything happens on the graph's own thread.
#[derive(Clone)]
pub struct Storage {
    blocks: BlockHandle,
    kinds: ExportKinds,
}

impl Storage {
    /// Takes commands for the graph behind `blocks`. Besides NBD there are these kinds of exports.
    pub fn new(blocks: BlockHandle, kinds: ExportKinds) -> Storage {
        Storage { blocks, kinds }
    }

    /// Gives `sink` every event of the graph from now on, on the graph's thread.
    ///
    /// # Errors
    /// The thread has ended.
    pub async fn forward_events(
        &self,
        sink: impl Fn(EventKind) + Send + 'static,
    ) -> ferry_block::Result<()> {
        let forward = move |graph: BlockGraph| async move {
            let sink = move |event| sink(events::of_block(event));
            JobRegistry::of(&graph).set_event_sink(std::rc::Rc::new(sink));
        };
        self.blocks.call(forward).await
    }

    /// The end: cancels jobs, takes exports away, makes everything durable and gives all images up.
    /// No device may use them any more.
    ///
    /// # Errors
    /// Something could not be made durable. All that could be done was done.
    pub async fn close(&self) -> ferry_block::Result<()> {
        let close = |graph: BlockGraph| async move {
            // First of all: requests that one holds up are done then.
            JobRegistry::of(&graph).cancel_all().await;
            // They let nobody in any more before images are given up. But whoever waits for storage that does not
            // answer keeps nobody else from being closed.
            let exports = graph.executor().spawn(export::close_exports(&graph));
            let closed = graph.close_all().await;
            exports.await;
            closed
        };
        self.blocks.call(close).await.and_then(|closed| closed)
    }

    /// Carries `command` out and gives what it returns.
    ///
    /// # Errors
    /// What the client shall get.
    pub async fn execute(&self, command: BlockCommand) -> Result<Value> {
        match command {
            BlockCommand::QueryBlock => reply(&self.query_block().await?),
            BlockCommand::QueryNamedBlockNodes(arguments) => {
                let depth = Depth::from_flat(arguments.flat.unwrap_or(false));
                reply(&self.query_named_block_nodes(depth).await?)
            }
            BlockCommand::QueryBlockstats(arguments) => {
                let nodes = arguments.query_nodes.unwrap_or(false);
                reply(&self.query_blockstats(nodes).await?)
            }
            BlockCommand::QueryBlockExports => reply(&self.query_block_exports().await?),
            BlockCommand::QueryYank => reply(&self.query_yank().await?),
            BlockCommand::QueryIothreads => reply(&self.query_iothreads().await?),
            BlockCommand::QomList(arguments) => reply(&self.qom_list(arguments).await?),
            BlockCommand::QomGet(arguments) => reply(&self.qom_get(arguments).await?),
            BlockCommand::QueryJobs => reply(&self.query_jobs().await?),
            BlockCommand::QueryBlockJobs => reply(&self.query_block_jobs().await?),
            BlockCommand::DebugBlockDirtyBitmapSha256(bitmap) => {
                reply(&self.bitmap_sha256(bitmap).await?)
            }
            BlockCommand::BlockdevSnapshotDeleteInternalSync(arguments) => {
                reply(&self.delete_internal(arguments).await?)
            }
            command => {
                self.act(command).await?;
                reply(&Empty {})
            }
        }
    }

    /// The commands that return nothing.
    async fn act(&self, command: BlockCommand) -> Result<()> {
        match command {
            BlockCommand::BlockdevAdd(options) => self.blockdev_add(*options).await,
            BlockCommand::BlockdevDel(arguments) => self.blockdev_del(arguments).await,
            BlockCommand::BlockdevMirror(arguments) => self.mirror(arguments).await,
            BlockCommand::BlockdevReopen(arguments) => self.blockdev_reopen(arguments).await,
            BlockCommand::BlockdevSetActive(arguments) => self.blockdev_set_active(arguments).await,
            BlockCommand::BlockdevCreate(arguments) => self.blockdev_create(arguments).await,
            BlockCommand::BlockResize(arguments) => self.block_resize(arguments).await,
            BlockCommand::BlockSetIoThrottle(arguments) => {
                self.block_set_io_throttle(*arguments).await
            }
            BlockCommand::ObjectAdd(arguments) => self.object_add(arguments).await,
            BlockCommand::ObjectDel(arguments) => self.object_del(arguments).await,
            BlockCommand::QomSet(arguments) => self.qom_set(arguments).await,
            BlockCommand::Yank(arguments) => self.yank(arguments).await,
            BlockCommand::Transaction(arguments) => self.transaction(arguments).await,
            command => self.act_on_export(command).await,
        }
    }

    async fn act_on_snapshot(&self, command: BlockCommand) -> Result<()> {
        match command {
            BlockCommand::BlockdevSnapshot(node) => self.snapshot(Overlay::Node(node)).await,
            BlockCommand::BlockdevSnapshotSync(image) => self.snapshot(Overlay::Image(image)).await,
            BlockCommand::BlockdevSnapshotInternalSync(arguments) => {
                self.snapshot_internal(arguments).await
            }
            BlockCommand::ChangeBackingFile(arguments) => self.change_backing_file(arguments).await,
            command => self.act_on_bitmap(command).await,
        }
    }

    async fn act_on_export(&self, command: BlockCommand) -> Result<()> {
        match command {
            BlockCommand::NbdServerStart(arguments) => self.nbd_server_start(arguments).await,
            BlockCommand::NbdServerStop => self.nbd_server_stop().await,
            BlockCommand::NbdServerAdd(arguments) => self.nbd_server_add(arguments).await,
            BlockCommand::NbdServerRemove(arguments) => self.nbd_server_remove(arguments).await,
            BlockCommand::BlockExportAdd(arguments) => self.block_export_add(arguments).await,
            BlockCommand::BlockExportDel(arguments) => self.block_export_del(arguments).await,
            command => self.act_on_snapshot(command).await,
        }
    }

    async fn act_on_bitmap(&self, command: BlockCommand) -> Result<()> {
        let change = match command {
            BlockCommand::BlockDirtyBitmapAdd(bitmap) => Change::Add(bitmap),
            BlockCommand::BlockDirtyBitmapRemove(bitmap) => Change::Remove(bitmap),
            BlockCommand::BlockDirtyBitmapClear(bitmap) => Change::Clear(bitmap),
            BlockCommand::BlockDirtyBitmapEnable(bitmap) => Change::Enable(bitmap),
            BlockCommand::BlockDirtyBitmapDisable(bitmap) => Change::Disable(bitmap),
            BlockCommand::BlockDirtyBitmapMerge(bitmap) => Change::Merge(bitmap),
            command => return self.act_on_job(command).await,
        };
        self.change_bitmap(change).await
    }

    async fn act_on_job(&self, command: BlockCommand) -> Result<()> {
        let (family, id, verb) = match command {
            BlockCommand::BlockJobComplete(BlockJobDevice { device }) => {
                (Family::BlockJob, device, Verb::Complete)
            }
            BlockCommand::BlockJobPause(BlockJobDevice { device }) => {
                (Family::BlockJob, device, Verb::Pause)
            }
            BlockCommand::BlockJobResume(BlockJobDevice { device }) => {
                (Family::BlockJob, device, Verb::Resume)
            }
            BlockCommand::BlockJobCancel(BlockJobCancel { device, force }) => {
                let force = force.unwrap_or(false);
                (Family::BlockJob, device, Verb::CancelBlockJob { force })
            }
            BlockCommand::BlockJobSetSpeed(BlockJobSetSpeed { device, speed }) => {
                (Family::BlockJob, device, Verb::SetSpeed(speed))
            }
            BlockCommand::BlockJobFinalize(JobId { id }) => (Family::BlockJob, id, Verb::Finalize),
            BlockCommand::BlockJobDismiss(JobId { id }) => (Family::BlockJob, id, Verb::Dismiss),
            BlockCommand::JobPause(JobId { id }) => (Family::Job, id, Verb::Pause),
            BlockCommand::JobResume(JobId { id }) => (Family::Job, id, Verb::Resume),
            BlockCommand::JobCancel(JobId { id }) => (Family::Job, id, Verb::Cancel),
            BlockCommand::JobComplete(JobId { id }) => (Family::Job, id, Verb::Complete),
            BlockCommand::JobFinalize(JobId { id }) => (Family::Job, id, Verb::Finalize),
            BlockCommand::JobDismiss(JobId { id }) => (Family::Job, id, Verb::Dismiss),
            other => return Err(QmpError::command_not_found(other.name())),
        };
        self.job_verb(family, id, verb).await
    }

    /// [`on_graph`](Self::on_graph) for what changes the graph in several steps: that of several clients goes one
    /// after the other, so that what one takes back is as it was left.
    async fn in_turn<R, F, Fut>(&self, call: F) -> Result<R>
    where
        R: Send + 'static,
        F: FnOnce(BlockGraph) -> Fut + Send + 'static,
        Fut: Future<Output = ferry_block::Result<R>> + 'static,
    {
        let wait = |graph: BlockGraph| async move {
            let turn = graph.turn().await;
            let done = call(graph).await;
            drop(turn);
            done
        };
        self.on_graph(wait).await
    }

    /// Runs `call` on the graph's thread, with its error as a client reads it.
    async fn on_graph<R, F, Fut>(&self, call: F) -> Result<R>
    where
        R: Send + 'static,
        F: FnOnce(BlockGraph) -> Fut + Send + 'static,
        Fut: Future<Output = ferry_block::Result<R>> + 'static,
    {
        self.blocks.call(call).await.and_then(|done| done).map_err(qmp_error)
    }
}

/// What a client reads of an error of the block layer.
fn qmp_error(error: Error) -> QmpError {
    QmpError::generic(error.to_string())
}

/// The block layer's form of what QMP's types say. Both sides spell members as QMP does, so JSON
/// carries them over.
fn carry_over<T: DeserializeOwned>(from: &impl Serialize) -> Result<T> {
    let unusable = |error| QmpError::generic(format!("The arguments cannot be used: {error}"));
    let value = serde_json::to_value(from).map(without_prefix).map_err(unusable)?;
    T::deserialize(&value).map_err(|error| match negative_member(&value) {
        // QMP has signed numbers where nothing but a size makes sense.
        Some(name) => QmpError::generic(format!(
            "Parameter '{name}' expects a non-negative number below 2^64"
        )),
        None => unusable(error),
    })
}

/// The first member with a number below zero.
fn negative_member(value: &Value) -> Option<&str> {
    let (members, elements) = (value.as_object(), value.as_array());
    let own = members.into_iter().flatten().find_map(|(name, value)| {
        let is_negative = value.as_i64().is_some_and(|number| number < 0);
        if is_negative { Some(name.as_str()) } else { negative_member(value) }
    });
    own.or_else(|| elements.into_iter().flatten().find_map(negative_member))
}

/// Our own additions bear a prefix in QMP only.
fn without_prefix(value: Value) -> Value {
    match value {
        Value::Object(members) => {
            let plain = |name: String| match name.strip_prefix("__org.ferry_") {
                Some(plain) => plain.to_owned(),
                None => name,
            };
            let members = members.into_iter();
            members.map(|(name, value)| (plain(name), without_prefix(value))).collect()
        }
        Value::Array(list) => list.into_iter().map(without_prefix).collect(),
        other => other,
    }
}
