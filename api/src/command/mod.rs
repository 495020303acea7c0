//! Every command: its name, what it takes and returns, and the typed form that a [`Controller`] gets.
//!
//! `table` is the only place that lists commands, in groups: one enum for each part of a process that
//! carries commands out. An [`Interface`](crate::Interface) puts groups together.

mod block_info;
mod blockdev;
mod chardev;
mod create;
mod dirty_bitmap;
mod export;
mod image_info;
mod io_throttle;
mod job;
mod migration;
mod object;
mod run_state;
mod session;
mod snapshot;
mod socket;
mod table;
mod transaction;
mod yank;

use std::{future::Future, pin::Pin, rc::Rc};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

pub use self::{
    block_info::*, blockdev::*, chardev::*, create::*, dirty_bitmap::*, export::*, image_info::*,
    io_throttle::*, job::*, migration::*, object::*, run_state::*, session::*, snapshot::*,
    socket::*, table::*, transaction::*, yank::*,
};
use crate::{
    error::QmpError,
    schema::{Described, TypeFn, validate},
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

/// Declares a group of commands, as an enum and as a table: `Variant(Arguments) -> Result = "name"`, and
/// `oob` behind those that may run out of band. `wrap` makes a [`Command`] of a member of the group.
macro_rules! commands {
    (
        $(#[$attr:meta])*
        $vis:vis enum $enum:ident, $table:ident, $parse:ident($wrap:expr) {
            $( $(#[$command_attr:meta])*
               $variant:ident $(($args:ty))? -> $returns:ty = $name:literal $($oob:ident)?, )*
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
                    $( $crate::command::commands!(@pattern $enum $variant $($args)?) => $name, )*
                }
            }
        }

        pub(crate) static $table: &[$crate::command::CommandInfo] = &[$( $crate::command::CommandInfo {
            name: $name,
            arguments: <$crate::command::commands!(@args $($args)?) as $crate::schema::Described>::describe,
            returns: <$returns as $crate::schema::Described>::describe,
            out_of_band: $crate::command::commands!(@oob $($oob)?),
            parse: $crate::command::Parse::$parse(|_arguments| {
                $crate::command::commands!(@parse $enum $variant _arguments $($args)?).map($wrap)
            }),
        }, )*];
    };
    (@oob) => { false };
    (@oob oob) => { true };
    (@args) => { $crate::schema::Empty };
    (@args $args:ty) => { $args };
    (@pattern $enum:ident $variant:ident) => { $enum::$variant };
    (@pattern $enum:ident $variant:ident $args:ty) => { $enum::$variant(_) };
    (@parse $enum:ident $variant:ident $value:ident) => { Ok($enum::$variant) };
    (@parse $enum:ident $variant:ident $value:ident $args:ty) => {
        $crate::command::typed::<$args>($value).map($enum::$variant)
    };
}

pub(crate) use commands;

impl CommandInfo {
    /// Checks arguments, without making anything of them.
    ///
    /// # Errors
    /// What the client shall get: the first missing, wrong or surplus argument.
    pub fn check(&self, arguments: &Map<String, Value>) -> Result<(), QmpError> {
        validate((self.arguments)(), arguments)
    }
}

/// A command with its arguments, checked and typed, by who carries it out.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// The process as such.
    Process(ProcessCommand),
    /// The machine, where there is a guest.
    Machine(MachineCommand),
    /// The block layer.
    Block(BlockCommand),
}

impl Command {
    /// The command's name on the wire.
    pub const fn name(&self) -> &'static str {
        match self {
            Command::Process(command) => command.name(),
            Command::Machine(command) => command.name(),
            Command::Block(command) => command.name(),
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
