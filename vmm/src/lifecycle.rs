//! The run state of a machine: which states there are and which step may follow which. Pure; no KVM.
//!
//! The names and the arrows are QEMU's, because QMP clients see them (`query-status`). A step that is
//! not in the table is a mistake of ours, so it is refused and named instead of silently taken.

use std::fmt;

/// Where a machine is in its life; `query-status` shows [`RunState::name`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RunState {
    /// Built, its vCPUs have not run since power-on or reset.
    Prelaunch,
    /// vCPUs run.
    Running,
    /// Stopped by request.
    Paused,
    /// Waits for, or receives, an incoming migration.
    InMigrate,
    /// Stopped by an outgoing migration for its last step.
    FinishMigrate,
    /// The guest runs elsewhere now.
    PostMigrate,
    /// The guest powered itself off.
    Shutdown,
    /// The guest reported a panic.
    GuestPanicked,
    /// KVM could not go on with a vCPU.
    InternalError,
    /// A disk failed under the policy that stops the guest.
    IoError,
}

impl RunState {
    /// Every state.
    pub const ALL: [RunState; 10] = [
        RunState::Prelaunch,
        RunState::Running,
        RunState::Paused,
        RunState::InMigrate,
        RunState::FinishMigrate,
        RunState::PostMigrate,
        RunState::Shutdown,
        RunState::GuestPanicked,
        RunState::InternalError,
        RunState::IoError,
    ];

    /// The name that QMP uses.
    pub fn name(self) -> &'static str {
        match self {
            RunState::Prelaunch => "prelaunch",
            RunState::Running => "running",
            RunState::Paused => "paused",
            RunState::InMigrate => "inmigrate",
            RunState::FinishMigrate => "finish-migrate",
            RunState::PostMigrate => "postmigrate",
            RunState::Shutdown => "shutdown",
            RunState::GuestPanicked => "guest-panicked",
            RunState::InternalError => "internal-error",
            RunState::IoError => "io-error",
        }
    }

    /// Whether `cont` is useless from here until a reset has happened.
    pub fn needs_reset(self) -> bool {
        matches!(self, RunState::Shutdown | RunState::InternalError)
    }

    /// The states that may follow this one.
    fn successors(self) -> &'static [RunState] {
        use RunState::*;
        match self {
            Prelaunch => &[Running, FinishMigrate, InMigrate, Paused, PostMigrate],
            Running => &[Paused, FinishMigrate, Shutdown, GuestPanicked, InternalError, IoError],
            Paused => &[Running, FinishMigrate, PostMigrate, Prelaunch],
            InMigrate => &[
                Running,
                Paused,
                Prelaunch,
                Shutdown,
                GuestPanicked,
                InternalError,
                IoError,
                FinishMigrate,
                PostMigrate,
            ],
            // A failed migration goes back to whatever the guest was in before it.
            FinishMigrate => &[
                Running,
                Paused,
                PostMigrate,
                Prelaunch,
                Shutdown,
                GuestPanicked,
                InternalError,
                IoError,
            ],
            PostMigrate => &[Running, FinishMigrate, Prelaunch],
            Shutdown | InternalError => &[Paused, FinishMigrate, Prelaunch],
            GuestPanicked => &[Running, Paused, FinishMigrate, Prelaunch],
            IoError => &[Running, Paused, FinishMigrate, Prelaunch],
        }
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A step that the table does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a machine in state '{from}' cannot become '{to}'")]
pub struct BadTransition {
    /// The state that the machine is in.
    pub from: RunState,
    /// The state that was asked for.
    pub to: RunState,
}

/// The run-state machine.
#[derive(Debug)]
pub struct Lifecycle {
    state: RunState,
}

impl Lifecycle {
    /// A machine that was just built; `incoming` when it waits for a migration.
    pub fn new(incoming: bool) -> Lifecycle {
        Lifecycle { state: if incoming { RunState::InMigrate } else { RunState::Prelaunch } }
    }

    /// The current state.
    pub fn state(&self) -> RunState {
        self.state
    }

    /// Whether vCPUs run.
    pub fn is_running(&self) -> bool {
        self.state == RunState::Running
    }

    /// Take a step; staying where one is always succeeds. Returns the state that was left.
    pub fn transition(&mut self, to: RunState) -> Result<RunState, BadTransition> {
        let from = self.state;
        if from != to && !from.successors().contains(&to) {
            return Err(BadTransition { from, to });
        }
        self.state = to;
        Ok(from)
    }

    /// What a reset does to the state: a stopped machine is as new, a running one goes on running.
    pub fn after_reset(&mut self) {
        if !matches!(self.state, RunState::Running | RunState::InMigrate | RunState::FinishMigrate)
        {
            self.state = RunState::Prelaunch;
        }
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
