//! The list of all commands.

use super::*;
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
        /// List what serial ports and QMP clients are connected through.
        QueryChardev -> Vec<ChardevInfo> = "query-chardev",
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
        /// Give nodes other options while they are in use; all of them or none.
        BlockdevReopen(BlockdevReopen) -> Empty = "blockdev-reopen",
        /// Take write ownership of all nodes, or give it up.
        BlockdevSetActive(BlockdevSetActive) -> Empty = "blockdev-set-active",
        /// Make an image, as a job.
        BlockdevCreate(BlockdevCreate) -> Empty = "blockdev-create",
        /// Change the length of a node.
        BlockResize(BlockResize) -> Empty = "block_resize",
        /// Limit what a disk or an export may do in a second.
        BlockSetIoThrottle(Box<BlockIoThrottle>) -> Empty = "block_set_io_throttle",
        /// List the guest's disks.
        QueryBlock -> Vec<BlockInfo> = "query-block",
        /// List the block nodes.
        QueryNamedBlockNodes(QueryNamedBlockNodes) -> Vec<BlockDeviceInfo>
            = "query-named-block-nodes",
        /// Counters of disks or nodes.
        QueryBlockstats(QueryBlockstats) -> Vec<BlockStats> = "query-blockstats",

        /// Listen for NBD clients.
        NbdServerStart(NbdServerStart) -> Empty = "nbd-server-start",
        /// Take all NBD exports away and stop listening.
        NbdServerStop -> Empty = "nbd-server-stop",
        /// Export a node by NBD.
        NbdServerAdd(NbdServerAdd) -> Empty = "nbd-server-add",
        /// Take an NBD export away.
        NbdServerRemove(NbdServerRemove) -> Empty = "nbd-server-remove",
        /// Export a node.
        BlockExportAdd(BlockExportOptions) -> Empty = "block-export-add",
        /// Take an export away.
        BlockExportDel(BlockExportDel) -> Empty = "block-export-del",
        /// List the exports.
        QueryBlockExports -> Vec<BlockExportInfo> = "query-block-exports",

        /// Add a dirty bitmap to a node.
        BlockDirtyBitmapAdd(BlockDirtyBitmapAdd) -> Empty = "block-dirty-bitmap-add",
        /// Take a dirty bitmap away.
        BlockDirtyBitmapRemove(BlockDirtyBitmap) -> Empty = "block-dirty-bitmap-remove",
        /// Make everything clean in a dirty bitmap.
        BlockDirtyBitmapClear(BlockDirtyBitmap) -> Empty = "block-dirty-bitmap-clear",
        /// Let a dirty bitmap record.
        BlockDirtyBitmapEnable(BlockDirtyBitmap) -> Empty = "block-dirty-bitmap-enable",
        /// Let a dirty bitmap record no longer.
        BlockDirtyBitmapDisable(BlockDirtyBitmap) -> Empty = "block-dirty-bitmap-disable",
        /// Add what is dirty in some bitmaps to another one.
        BlockDirtyBitmapMerge(BlockDirtyBitmapMerge) -> Empty = "block-dirty-bitmap-merge",
        /// SHA-256 of the bits of a dirty bitmap, for tests.
        DebugBlockDirtyBitmapSha256(BlockDirtyBitmap) -> BlockDirtyBitmapSha256
            = "x-debug-block-dirty-bitmap-sha256",
        /// Put an overlay over a node.
        BlockdevSnapshot(BlockdevSnapshot) -> Empty = "blockdev-snapshot",
        /// Make or open an overlay and put it over a node.
        BlockdevSnapshotSync(BlockdevSnapshotSync) -> Empty = "blockdev-snapshot-sync",
        /// Change what an image says is below it.
        ChangeBackingFile(ChangeBackingFile) -> Empty = "change-backing-file",
        /// Take a snapshot inside an image.
        BlockdevSnapshotInternalSync(BlockdevSnapshotInternal) -> Empty
            = "blockdev-snapshot-internal-sync",
        /// Delete a snapshot inside an image.
        BlockdevSnapshotDeleteInternalSync(BlockdevSnapshotDeleteInternal) -> SnapshotInfo
            = "blockdev-snapshot-delete-internal-sync",
        /// Several changes that happen together or not at all.
        Transaction(Transaction) -> Empty = "transaction",

        /// Give the connections of nodes up at once: the way out when a peer hangs.
        Yank(Yank) -> Empty = "yank" oob,
        /// List what can be given up.
        QueryYank -> Vec<YankInstance> = "query-yank" oob,

        /// Add TLS credentials, a throttle group, a secret or an I/O thread.
        ObjectAdd(ObjectOptions) -> Empty = "object-add",
        /// Take an object away that nobody uses.
        ObjectDel(ObjectDel) -> Empty = "object-del",
        /// List the I/O threads.
        QueryIothreads -> Vec<IoThreadInfo> = "query-iothreads",
        /// List the objects.
        QomList(QomList) -> Vec<ObjectPropertyInfo> = "qom-list",
        /// Read a property of an object.
        QomGet(QomGet) -> AnyValue = "qom-get",
        /// Change a property of an object.
        QomSet(QomSet) -> Empty = "qom-set",

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
