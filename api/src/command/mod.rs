//! Every command: one table, from which everything else follows.
//!
//! The two invocations of `commands!` below are the only place that lists commands. They make the
//! [`Command`] enum that a [`Controller`] gets, and [`all`], which argument checks, `query-commands`
//! and `query-qmp-schema` read.

mod block;
mod block_info;
mod job;
mod migration;
mod run_state;
mod session;

use std::{future::Future, pin::Pin, rc::Rc};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

pub use self::{block::*, block_info::*, job::*, migration::*, run_state::*, session::*};
use crate::{
    error::QmpError,
    schema::{Described, Empty, SchemaInfo, TypeFn, validate},
};

/// What the table says of one command.
#[derive(Debug)]
pub struct CommandInfo {
    /// Its name on the wire.
    pub name: &'static str,
    /// What it takes: always an object.
    pub arguments: TypeFn,
    /// What it returns.
    pub returns: TypeFn,
    /// Whether it may run out of band, beside a command that is being executed.
    pub out_of_band: bool,
    /// Who executes it.
    pub(crate) parse: Parse,
}

/// Makes the typed command from arguments that were checked.
#[derive(Debug)]
pub(crate) enum Parse {
    /// The controller executes it.
    Controller(fn(Value) -> Result<Command, QmpError>),
    /// The session answers it by itself.
    Session(fn(Value) -> Result<SessionCommand, QmpError>),
}

/// Declares an enum of commands and their table: `Variant(Arguments) -> Result = "name"`.
macro_rules! commands {
    (
        $(#[$attr:meta])*
        $vis:vis enum $enum:ident, $table:ident, $parse:ident {
            $( $(#[$command_attr:meta])*
               $variant:ident $(($args:ty))? -> $returns:ty = $name:literal, )*
        }
    ) => {
        $(#[$attr])*
        #[derive(Debug, Clone, PartialEq)]
        $vis enum $enum {
            $( $(#[$command_attr])* $variant $(($args))?, )*
        }

        impl $enum {
            /// The command's name on the wire.
            $vis const fn name(&self) -> &'static str {
                match self {
                    $( commands!(@pattern $enum $variant $($args)?) => $name, )*
                }
            }
        }

        static $table: &[CommandInfo] = &[$( CommandInfo {
            name: $name,
            arguments: <commands!(@args $($args)?) as Described>::describe,
            returns: <$returns as Described>::describe,
            out_of_band: false,
            parse: Parse::$parse(|_arguments| {
                commands!(@parse $enum $variant _arguments $($args)?)
            }),
        }, )*];
    };
    (@args) => { Empty };
    (@args $args:ty) => { $args };
    (@pattern $enum:ident $variant:ident) => { $enum::$variant };
    (@pattern $enum:ident $variant:ident $args:ty) => { $enum::$variant(_) };
    (@parse $enum:ident $variant:ident $value:ident) => { Ok($enum::$variant) };
    (@parse $enum:ident $variant:ident $value:ident $args:ty) => {
        typed::<$args>($value).map($enum::$variant)
    };
}

commands! {
    /// Commands that a session answers without a controller.
    pub(crate) enum SessionCommand, SESSION_COMMANDS, Session {
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
    /// A command with its arguments, checked and typed.
    pub enum Command, COMMANDS, Controller {
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
        /// End the process.
        Quit -> Empty = "quit",
        /// Press the guest's power button.
        SystemPowerdown -> Empty = "system_powerdown",
        /// Press the guest's reset button.
        SystemReset -> Empty = "system_reset",

        /// Create block nodes.
        BlockdevAdd(BlockdevOptions) -> Empty = "blockdev-add",
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

/// Every command of the table.
pub fn all() -> impl Iterator<Item = &'static CommandInfo> {
    SESSION_COMMANDS.iter().chain(COMMANDS)
}

/// The command of that name.
pub fn find(name: &str) -> Option<&'static CommandInfo> {
    all().find(|command| command.name == name)
}

impl CommandInfo {
    /// Checks arguments, without making anything of them.
    ///
    /// # Errors
    /// What the client shall get: the first missing, wrong or surplus argument.
    pub fn check(&self, arguments: &Map<String, Value>) -> Result<(), QmpError> {
        validate((self.arguments)(), arguments)
    }
}

impl Command {
    /// Checks and types a command as a client would send it.
    ///
    /// # Errors
    /// What a client would get: no such command, or the first wrong argument.
    pub fn parse(name: &str, arguments: Value) -> Result<Command, QmpError> {
        let info = find(name).ok_or_else(|| QmpError::command_not_found(name))?;
        let Value::Object(arguments) = arguments else {
            return Err(QmpError::member_type("arguments", "an object"));
        };
        info.check(&arguments)?;
        match info.parse {
            Parse::Controller(parse) => parse(Value::Object(arguments)),
            Parse::Session(_) => Err(QmpError::command_not_found(name)),
        }
    }
}

/// Types arguments that were checked. A failure means that a description and its type differ.
fn typed<T: DeserializeOwned>(arguments: Value) -> Result<T, QmpError> {
    serde_json::from_value(arguments).map_err(|error| {
        QmpError::generic(format!("The arguments could not be understood: {error}"))
    })
}

/// A future that stays on its thread.
pub type LocalBoxFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// Whoever carries out commands: the machine, or a fake in tests.
///
/// One session has one in-band command at a time under way, so replies come in the order of the
/// requests; several sessions are independent. Events that a command causes before it is done must be
/// broadcast before its future resolves: clients rely on that order. A controller sees only commands
/// whose arguments have passed the table's checks; ranges and names of things are its own to check.
///
/// Unknown jobs: `block-job-*`, `finalize` and `dismiss` included, answer
/// [`QmpError::block_job_not_found`]; `job-*` answer [`QmpError::job_not_found`]. Unknown nodes:
/// `blockdev-del` answers [`QmpError::node_not_found`], everything that takes a device or a node
/// [`QmpError::node_or_device_not_found`].
pub trait Controller {
    /// Carries out `command` and gives what it returns: see [`reply`].
    fn execute(self: Rc<Self>, command: Command) -> LocalBoxFuture<Result<Value, QmpError>>;
}

/// Turns a typed result into what [`Controller::execute`] returns.
///
/// # Errors
/// `GenericError` when the value has no JSON form, such as a float that is not a number.
pub fn reply<T: Described + Serialize>(value: &T) -> Result<Value, QmpError> {
    serde_json::to_value(value)
        .map_err(|error| QmpError::generic(format!("The result has no JSON form: {error}")))
}

#[cfg(test)]
#[path = "command_tests.rs"]
mod tests;
