//! What one QMP endpoint offers: a process that runs a guest, or one that has disks only.
//!
//! `query-commands`, `query-qmp-schema` and the commands that are found all come from the endpoint's
//! [`Interface`], so that none tells of what another refuses.

use serde_json::Value;

use crate::{
    command::{
        BLOCK_COMMANDS, Command, CommandInfo, MACHINE_COMMANDS, PROCESS_COMMANDS, Parse,
        SESSION_COMMANDS,
    },
    error::QmpError,
    event::{BLOCK_EVENTS, EventInfo, MACHINE_EVENTS},
};

/// The commands and events of an endpoint.
#[derive(Debug)]
pub struct Interface {
    commands: &'static [&'static [CommandInfo]],
    events: &'static [&'static [EventInfo]],
}

/// A process that runs a guest: everything.
pub static MACHINE: Interface = Interface {
    commands: &[SESSION_COMMANDS, PROCESS_COMMANDS, MACHINE_COMMANDS, BLOCK_COMMANDS],
    events: &[MACHINE_EVENTS, BLOCK_EVENTS],
};

/// A process that has disks and no guest.
pub static STORAGE: Interface = Interface {
    commands: &[SESSION_COMMANDS, PROCESS_COMMANDS, BLOCK_COMMANDS],
    events: &[BLOCK_EVENTS],
};

impl Interface {
    /// Every command.
    pub fn commands(&self) -> impl Iterator<Item = &'static CommandInfo> {
        self.commands.iter().copied().flatten()
    }

    /// Every event.
    pub fn events(&self) -> impl Iterator<Item = &'static EventInfo> {
        self.events.iter().copied().flatten()
    }

    /// The command of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn command(&self, name: &str) -> Result<&'static CommandInfo, QmpError> {
        let found = self.commands().find(|command| command.name == name);
        found.ok_or_else(|| QmpError::command_not_found(name))
    }

    /// Checks and types a command as a client would send it.
    ///
    /// # Errors
    /// What a client would get: no such command, or the first wrong argument.
    pub fn parse(&self, name: &str, arguments: Value) -> Result<Command, QmpError> {
        let info = self.command(name)?;
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
