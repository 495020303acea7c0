//! The list of all commands.

use super::{
    Command, block_info::*, blockdev::*, commands, job::*, migration::*, run_state::*, session::*,
};
use crate::schema::{Empty, SchemaInfo};

commands! {
    /// Commands that a session answers without a controller.
    pub(crate) enum SessionCommand, SESSION_COMMANDS, Session(std::convert::identity) {
        /// Ends negotiation.
        QmpCapabilities(QmpCapabilities) -> Empty = "qmp_capabilities",
        /// Says who answers.
        QueryVersion -> VersionInfo = "query-version",
        /// Lists the commands.
        QueryCommands -> Vec<CommandName> = "query-commands",
        /// Describes commands and events.
        QueryQmpSchema -> Vec<SchemaInfo> = "query-qmp-schema",
    }
}

commands! {
    /// Commands to the process, whatever is in it.
    pub enum ProcessCommand, PROCESS_COMMANDS, Controller(Command::Process) {
        /// End the process.
        Quit -> Empty = "quit",
    }
}

commands! {
    /// Commands to the machine with its guest.
    pub enum MachineCommand, MACHINE_COMMANDS, Controller(Command::Machine) {
        /// What is the guest doing?
        QueryStatus -> StatusInfo = "query-status",
        /// What is the guest called?
        QueryName -> NameInfo = "query-name",
        /// What is the guest's UUID?
        QueryUuid -> UuidInfo = "query-uuid",
        /// Does KVM run the guest?
        QueryKvm -> KvmInfo = "query-kvm",
        /// Stop the guest's CPUs. Without effect when they are stopped.
        Stop -> Empty = "stop",
        /// Let the guest's CPUs go on. Without effect when they run.
        Cont(Cont) -> Empty = "cont",
        /// Press the guest's power button.
        SystemPowerdown -> Empty = "system_powerdown",
        /// Press the guest's reset button.
        SystemReset -> Empty = "system_reset",

        /// Move the guest to another process.
        Migrate(Migrate) -> Empty = "migrate",
        /// Listen for a guest.
        MigrateIncoming(MigrateIncoming) -> Empty = "migrate-incoming",
        /// Cancel a migration; the guest stays. Without effect when there is none.
        MigrateCancel -> Empty = "migrate_cancel",
        /// How far is the migration?
        QueryMigrate -> MigrationInfo = "query-migrate",
        /// Change parameters of migrations.
        MigrateSetParameters(MigrationParameters) -> Empty = "migrate-set-parameters",
        /// Which parameters are set?
        QueryMigrateParameters -> MigrationParameters = "query-migrate-parameters",
        /// Switch capabilities.
        MigrateSetCapabilities(MigrateSetCapabilities) -> Empty = "migrate-set-capabilities",
        /// Which capabilities are on?
        QueryMigrateCapabilities -> Vec<MigrationCapabilityStatus>
            = "query-migrate-capabilities",
    }
}

commands! {
    /// Commands to the block layer.
    pub enum BlockCommand, BLOCK_COMMANDS, Controller(Command::Block) {
        /// Create block nodes.
        BlockdevAdd(Box<BlockdevOptions>) -> Empty = "blockdev-add",
        /// Remove a block node that nobody uses.
        BlockdevDel(BlockdevDel) -> Empty = "blockdev-del",
        /// List the guest's disks.
        QueryBlock -> Vec<BlockInfo> = "query-block",
        /// List the block nodes.
        QueryNamedBlockNodes(QueryNamedBlockNodes) -> Vec<BlockDeviceInfo>
            = "query-named-block-nodes",
        /// Counters of disks or nodes.
        QueryBlockstats(QueryBlockstats) -> Vec<BlockStats> = "query-blockstats",

        /// Copy a disk to another node while it is used, and keep both equal.
        BlockdevMirror(BlockdevMirror) -> Empty = "blockdev-mirror",
        /// Finish a job that is READY: the guest goes on with the target.
        BlockJobComplete(BlockJobDevice) -> Empty = "block-job-complete",
        /// Pause a job.
        BlockJobPause(BlockJobDevice) -> Empty = "block-job-pause",
        /// Let a paused job go on.
        BlockJobResume(BlockJobDevice) -> Empty = "block-job-resume",
        /// Stop a job; a mirror that is READY leaves a consistent copy.
        BlockJobCancel(BlockJobCancel) -> Empty = "block-job-cancel",
        /// Limit a job's rate.
        BlockJobSetSpeed(BlockJobSetSpeed) -> Empty = "block-job-set-speed",
        /// Let a pending job finish.
        BlockJobFinalize(JobId) -> Empty = "block-job-finalize",
        /// Forget a job that is over.
        BlockJobDismiss(JobId) -> Empty = "block-job-dismiss",
        /// List block jobs.
        QueryBlockJobs -> Vec<BlockJobInfo> = "query-block-jobs",
        /// Pause a job.
        JobPause(JobId) -> Empty = "job-pause",
        /// Let a paused job go on.
        JobResume(JobId) -> Empty = "job-resume",
        /// Stop a job at once.
        JobCancel(JobId) -> Empty = "job-cancel",
        /// Finish a job that is READY.
        JobComplete(JobId) -> Empty = "job-complete",
        /// Let a pending job finish.
        JobFinalize(JobId) -> Empty = "job-finalize",
        /// Forget a job that is over.
        JobDismiss(JobId) -> Empty = "job-dismiss",
        /// List jobs.
        QueryJobs -> Vec<JobInfo> = "query-jobs",
    }
}
