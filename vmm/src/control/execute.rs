//! Every QMP command and the function that carries it out.

use std::rc::Rc;

use ferry_api::command::{
    BlockJobCancel, BlockJobDevice, BlockJobSetSpeed, Command, JobId, KvmInfo, NameInfo,
    StatusInfo, UuidInfo, reply,
};
use ferry_api::schema::Empty;
use ferry_api::{Controller, LocalBoxFuture, QmpError};
use serde_json::Value;

use super::Control;
use super::jobs::{Family, Verb};
use super::run_state::qmp_run_state;

impl Controller for Control {
    fn execute(self: Rc<Self>, command: Command) -> LocalBoxFuture<Result<Value, QmpError>> {
        Box::pin(async move {
            match command {
                Command::QueryStatus => self.query_status(),
                Command::QueryName => reply(&NameInfo { name: self.config.name.clone() }),
                Command::QueryUuid => reply(&UuidInfo { uuid: NO_UUID.to_owned() }),
                Command::QueryKvm => reply(&KvmInfo { enabled: true, present: true }),
                Command::QueryBlock => reply(&self.query_block().await?),
                Command::QueryNamedBlockNodes(_) => reply(&self.query_named_block_nodes().await?),
                Command::QueryBlockstats(arguments) => {
                    let nodes = arguments.query_nodes.unwrap_or(false);
                    reply(&self.query_blockstats(nodes).await?)
                }
                Command::QueryJobs => reply(&self.query_jobs().await?),
                Command::QueryBlockJobs => reply(&self.query_block_jobs().await?),
                Command::QueryMigrate => reply(&self.query_migrate()),
                Command::QueryMigrateParameters => reply(&self.query_migrate_parameters()),
                Command::QueryMigrateCapabilities => reply(&self.query_migrate_capabilities()),
                command => {
                    self.act(command).await?;
                    reply(&Empty {})
                }
            }
        })
    }
}

/// What QEMU answers when it was given none.
const NO_UUID: &str = "00000000-0000-0000-0000-000000000000";

impl Control {
    /// The commands that return nothing.
    async fn act(self: &Rc<Self>, command: Command) -> Result<(), QmpError> {
        match command {
            Command::Stop => self.stop().await,
            Command::Cont(arguments) => self.cont(arguments.force.unwrap_or(false)).await,
            Command::Quit => self.quit().await,
            Command::SystemPowerdown => self.power_down(),
            Command::SystemReset => self.system_reset().await,
            Command::BlockdevAdd(options) => self.blockdev_add(options).await,
            Command::BlockdevDel(arguments) => self.blockdev_del(arguments).await,
            Command::BlockdevMirror(arguments) => self.mirror(arguments).await,
            Command::Migrate(arguments) => self.migrate(arguments),
            Command::MigrateIncoming(arguments) => self.migrate_incoming(&arguments.uri),
            Command::MigrateCancel => self.migrate_cancel(),
            Command::MigrateSetParameters(parameters) => self.migrate_set_parameters(&parameters),
            Command::MigrateSetCapabilities(arguments) => self.migrate_set_capabilities(arguments),
            command => self.act_on_job(command).await,
        }
    }

    async fn act_on_job(self: &Rc<Self>, command: Command) -> Result<(), QmpError> {
        let (family, id, verb) = match command {
            Command::BlockJobComplete(BlockJobDevice { device }) => {
                (Family::BlockJob, device, Verb::Complete)
            }
            Command::BlockJobPause(BlockJobDevice { device }) => {
                (Family::BlockJob, device, Verb::Pause)
            }
            Command::BlockJobResume(BlockJobDevice { device }) => {
                (Family::BlockJob, device, Verb::Resume)
            }
            Command::BlockJobCancel(BlockJobCancel { device, force }) => {
                let force = force.unwrap_or(false);
                (Family::BlockJob, device, Verb::CancelBlockJob { force })
            }
            Command::BlockJobSetSpeed(BlockJobSetSpeed { device, speed }) => {
                (Family::BlockJob, device, Verb::SetSpeed(speed))
            }
            Command::BlockJobFinalize(JobId { id }) => (Family::BlockJob, id, Verb::Finalize),
            Command::BlockJobDismiss(JobId { id }) => (Family::BlockJob, id, Verb::Dismiss),
            Command::JobPause(JobId { id }) => (Family::Job, id, Verb::Pause),
            Command::JobResume(JobId { id }) => (Family::Job, id, Verb::Resume),
            Command::JobCancel(JobId { id }) => (Family::Job, id, Verb::Cancel),
            Command::JobComplete(JobId { id }) => (Family::Job, id, Verb::Complete),
            Command::JobFinalize(JobId { id }) => (Family::Job, id, Verb::Finalize),
            Command::JobDismiss(JobId { id }) => (Family::Job, id, Verb::Dismiss),
            other => return Err(QmpError::command_not_found(other.name())),
        };
        self.job_verb(family, id, verb).await
    }

    fn query_status(&self) -> Result<Value, QmpError> {
        let state = self.machine.run_state();
        reply(&StatusInfo {
            running: state == crate::lifecycle::RunState::Running,
            singlestep: false,
            status: qmp_run_state(state),
        })
    }
}
