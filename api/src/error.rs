//! What a QMP command answers when it fails: a class that programs match and a text for people.
//!
//! Almost everything is [`ErrorClass::GenericError`]; clients rely on the few other classes, so each
//! constructor below fixes class and text together. The texts are those existing clients know.

use serde::{Deserialize, Serialize};

/// The complete set of QMP error classes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ErrorClass {
    /// Anything without a class of its own.
    GenericError,
    /// The command does not exist, or not in this phase of the session.
    CommandNotFound,
    /// A block job of that name does not run.
    DeviceNotActive,
    /// A device of that name does not exist.
    DeviceNotFound,
    /// The host's KVM lacks something.
    KVMMissingCap,
}

/// An error reply: `{"class": …, "desc": …}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{desc}")]
pub struct QmpError {
    /// What programs match on.
    pub class: ErrorClass,
    /// What people read. Never parse it.
    pub desc: String,
}

impl QmpError {
    /// An error of any class.
    pub fn new(class: ErrorClass, desc: impl Into<String>) -> Self {
        QmpError { class, desc: desc.into() }
    }

    /// The usual class; `desc` names the thing concerned and what to do.
    pub fn generic(desc: impl Into<String>) -> Self {
        QmpError::new(ErrorClass::GenericError, desc)
    }

    // --- The message itself ---------------------------------------------------------------------

    /// The bytes are no JSON value; `what` says where reading stopped.
    pub fn json_syntax(what: impl std::fmt::Display) -> Self {
        QmpError::generic(format!("JSON parse error, {what}"))
    }

    /// A JSON value, but no object.
    pub fn not_an_object() -> Self {
        QmpError::generic("QMP input must be a JSON object")
    }

    /// A request member that QMP does not define.
    pub fn unexpected_member(name: &str) -> Self {
        QmpError::generic(format!("QMP input member '{name}' is unexpected"))
    }

    /// A request member of the wrong type; `expected` reads like "a string".
    pub fn member_type(name: &str, expected: &str) -> Self {
        QmpError::generic(format!("QMP input member '{name}' must be {expected}"))
    }

    /// Both `execute` and `exec-oob` were given.
    pub fn clashing_members(name: &str, other: &str) -> Self {
        QmpError::generic(format!("QMP input member '{name}' clashes with '{other}'"))
    }

    /// Neither `execute` nor `exec-oob` was given.
    pub fn no_command() -> Self {
        QmpError::generic("QMP input lacks member 'execute'")
    }

    // --- The command ----------------------------------------------------------------------------

    /// No command of that name.
    pub fn command_not_found(name: &str) -> Self {
        QmpError::new(ErrorClass::CommandNotFound, format!("The command {name} has not been found"))
    }

    /// A command before `qmp_capabilities`.
    pub fn not_negotiated() -> Self {
        QmpError::new(
            ErrorClass::CommandNotFound,
            "Expecting capabilities negotiation with 'qmp_capabilities'",
        )
    }

    /// A second `qmp_capabilities`.
    pub fn already_negotiated() -> Self {
        QmpError::new(
            ErrorClass::CommandNotFound,
            "Capabilities negotiation is already complete, command ignored",
        )
    }

    /// `exec-oob` of a command that only runs in turn.
    pub fn not_out_of_band(name: &str) -> Self {
        QmpError::generic(format!("The command {name} does not support OOB"))
    }

    // --- Its arguments --------------------------------------------------------------------------

    /// A mandatory argument is absent.
    pub fn missing_argument(path: &str) -> Self {
        QmpError::generic(format!("Parameter '{path}' is missing"))
    }

    /// An argument that the command does not have.
    pub fn unexpected_argument(path: &str) -> Self {
        QmpError::generic(format!("Parameter '{path}' is unexpected"))
    }

    /// An argument of the wrong JSON type.
    pub fn argument_type(path: &str, expected: &str) -> Self {
        QmpError::generic(format!("Invalid parameter type for '{path}', expected: {expected}"))
    }

    /// An argument outside its range; `expected` says the range.
    pub fn argument_value(name: &str, expected: &str) -> Self {
        QmpError::generic(format!("Parameter '{name}' expects {expected}"))
    }

    /// An enumeration without that value.
    pub fn unknown_value(name: &str, value: &str) -> Self {
        QmpError::generic(format!("Parameter '{name}' does not accept value '{value}'"))
    }

    /// An argument that is refused without a range to name.
    pub fn invalid_argument(name: &str) -> Self {
        QmpError::generic(format!("Invalid parameter '{name}'"))
    }

    /// A negative number for an argument whose type is signed but whose meaning is a size.
    pub fn negative_size(name: &str) -> Self {
        QmpError::argument_value(name, "a non-negative number below 2^64")
    }

    /// A negative rate, as for `block-job-set-speed`.
    pub fn negative_speed() -> Self {
        QmpError::argument_value("speed", "a non-negative value")
    }

    // --- What commands meet ---------------------------------------------------------------------

    /// `block-job-*` on a job that is not there.
    pub fn block_job_not_found(id: &str) -> Self {
        QmpError::new(ErrorClass::DeviceNotActive, format!("Block job '{id}' not found"))
    }

    /// `job-*` on a job that is not there.
    pub fn job_not_found() -> Self {
        QmpError::generic("Job not found")
    }

    /// A verb in a state that does not allow it, e.g. `complete` before READY.
    pub fn job_verb(id: &str, state: &str, verb: &str) -> Self {
        QmpError::generic(format!(
            "Job '{id}' in state '{state}' cannot accept command verb '{verb}'"
        ))
    }

    /// No node and no device of that name.
    pub fn node_or_device_not_found(name: &str) -> Self {
        QmpError::generic(format!("Cannot find device='{name}' nor node-name='{name}'"))
    }

    /// No node of that name, where only a node will do.
    pub fn node_not_found(name: &str) -> Self {
        QmpError::generic(format!("Failed to find node with node-name='{name}'"))
    }

    /// No device of that id.
    pub fn device_not_found(id: &str) -> Self {
        QmpError::new(ErrorClass::DeviceNotFound, format!("Device '{id}' not found"))
    }

    /// `blockdev-add` of a root without a name.
    pub fn root_without_name() -> Self {
        QmpError::generic("'node-name' must be specified for the root node")
    }

    /// A second `migrate` while one runs.
    pub fn migration_in_progress() -> Self {
        QmpError::generic("There's a migration process in progress")
    }

    /// A migration address whose scheme is unknown.
    pub fn migration_protocol() -> Self {
        QmpError::argument_value("uri", "a valid migration protocol")
    }

    /// `downtime-limit` out of range: at most [`crate::command::MAX_DOWNTIME_LIMIT_MS`].
    pub fn downtime_limit() -> Self {
        let range = "an integer in the range of 0 to (2000 * 1000) ms";
        QmpError::argument_value("downtime_limit", range)
    }

    /// `migrate-incoming` on a process that was not started to receive.
    pub fn not_incoming() -> Self {
        QmpError::generic("'-incoming' was not specified on the command line")
    }
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
