//! The source's side of the hand-over, as a pure state machine; [`run()`] drives it.
//!
//! ```text
//! Setup -> Copying -> Stopping -> SendingRest -> AwaitingPrepared -> Inactivating
//!   |         |          |             |               |                 |
//!   |         |          +-------------+-> Resuming <--+                 |
//!   |         |                               ^                          v
//!   +---------+--> Over <---------------------+----- TakingBack <--- Committing
//!                   ^                                   ^                |
//!                   +--------- Forgetting <-------------+---- AwaitingVerdict
//! ```
//!
//! Every state has exactly one outstanding [`Action`]; the [`Event`] that it ends with gives the next.
//! There is no I/O in here and no clock, so every arrow is tested with every fault on it.
//!
//! The rule behind the arrows: **before Commit was handed to the kernel whole, the destination cannot
//! own the guest; after it was, only its own word or the state of the disks tells.**

use crate::error::{Error, ErrorKind};
use crate::machine::{Ownership, TakeBack, TookBack};
use crate::stats::Status;

mod link;
mod rounds;
mod run;

pub use run::{Peer, run};

/// Where the source is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Connecting, agreeing, starting to track dirty pages.
    Setup,
    /// Rounds of RAM; the guest runs.
    Copying,
    /// The guest is being stopped.
    Stopping,
    /// Last RAM and device state are on their way.
    SendingRest,
    /// The destination loads and validates.
    AwaitingPrepared,
    /// The disks are being given up.
    Inactivating,
    /// Commit is being sent.
    Committing,
    /// Commit was sent: the destination's word decides.
    AwaitingVerdict,
    /// The disks are being taken back.
    TakingBack,
    /// The guest is being resumed.
    Resuming,
    /// The destination has the guest.
    Forgetting,
    /// It is over.
    Over(End),
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// The guest is at the destination.
    Moved,
    /// The guest is here, as it was before.
    Stayed,
    /// The guest is here, as it was before, because the user cancelled.
    Cancelled,
    /// The guest is here and nobody else has it, but it is paused because the disks could not be taken
    /// back or the vCPUs not be started; the error says why.
    StayedPaused,
    /// The guest is paused here and may run over there: an operator must decide.
    OwnershipUnknown,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Connect, agree, start the dirty log. Ends with `Ready`.
    Prepare,
    /// Copy RAM until the model says to stop. Ends with `Converged`.
    CopyRounds,
    /// Stop the guest. Ends with `Stopped`.
    StopGuest,
    /// Send last RAM and device state. Ends with `RestSent`.
    SendRest,
    /// Wait for Prepared. Ends with `Prepared`.
    AwaitPrepared,
    /// Give the disks up. Ends with `Inactivated`.
    Inactivate,
    /// Pass the commit point and send Commit. Ends with `Committed`, or with `Failed` where the kernel
    /// did not take all of it, for then the destination cannot have it.
    Commit,
    /// Wait for the answer. Ends with `Running`, `Refused` or `NoAnswer`.
    AwaitVerdict,
    /// Close the connection, then take the disks back. Ends with `TookBack`.
    TakeBack(TakeBack),
    /// Let the guest go on. Ends with `Resumed`.
    Resume,
    /// Mark the guest as gone. Ends with `Forgotten`.
    Forget,
    /// Nothing: it is over.
    Finish,
}

/// How an action ended.
#[derive(Debug)]
pub enum Event {
    /// Agreed, and the dirty log runs.
    Ready,
    /// What is left fits.
    Converged,
    /// Nothing of the guest changes any more.
    Stopped,
    /// All RAM and state was sent.
    RestSent,
    /// The destination has loaded everything.
    Prepared,
    /// The disks are given up.
    Inactivated(Ownership),
    /// Commit was sent.
    Committed,
    /// The destination owns the guest.
    Running,
    /// The destination does not and will never own the guest.
    Refused(Error),
    /// The connection is lost, or the answer makes no sense.
    NoAnswer(Error),
    /// What became of taking the disks back.
    TookBack(TookBack),
    /// The guest goes on, or is paused.
    Resumed(Result<(), Error>),
    /// The guest is marked as gone.
    Forgotten,
    /// The action failed; a cancel is the kind [`ErrorKind::Cancelled`].
    Failed(Error),
}

/// The state machine.
#[derive(Debug)]
pub struct Handover {
    state: State,
    cause: Option<Error>,
    ownership: Ownership,
    /// Commit went out and no answer came.
    in_doubt: bool,
}

impl Handover {
    /// A new migration and its first action.
    pub fn start() -> (Handover, Action) {
        let handover = Handover {
            state: State::Setup,
            cause: None,
            ownership: Ownership::default(),
            in_doubt: false,
        };
        (handover, Action::Prepare)
    }

    /// Where it is.
    pub fn state(&self) -> State {
        self.state
    }

    /// What QEMU calls it.
    pub fn status(&self) -> Status {
        match self.state {
            State::Setup => Status::Setup,
            State::Copying | State::Stopping => Status::Active,
            State::TakingBack | State::Resuming if self.is_cancelled() => Status::Cancelling,
            State::SendingRest
            | State::AwaitingPrepared
            | State::Inactivating
            | State::Committing
            | State::AwaitingVerdict
            | State::TakingBack
            | State::Resuming
            | State::Forgetting => Status::Device,
            State::Over(End::Moved) => Status::Completed,
            State::Over(End::Cancelled) => Status::Cancelled,
            State::Over(End::Stayed | End::StayedPaused | End::OwnershipUnknown) => Status::Failed,
        }
    }

    /// Why it did not work; after [`End::Moved`] a warning.
    pub fn cause(&self) -> Option<&Error> {
        self.cause.as_ref()
    }

    /// Why it did not work, to keep.
    pub fn into_cause(self) -> Option<Error> {
        self.cause
    }

    /// The marks of the disks as they were given up; for [`Action::TakeBack`].
    pub fn ownership(&self) -> &Ownership {
        &self.ownership
    }

    /// Takes the outcome of the last action and says what comes next. An event that the state does not
    /// know counts as a failure of its action.
    pub fn on(&mut self, event: Event) -> Action {
        match (self.state, event) {
            (State::Setup, Event::Ready) => self.go(State::Copying, Action::CopyRounds),
            (State::Copying, Event::Converged) => self.go(State::Stopping, Action::StopGuest),
            (State::Stopping, Event::Stopped) => self.go(State::SendingRest, Action::SendRest),
            (State::SendingRest, Event::RestSent) => {
                self.go(State::AwaitingPrepared, Action::AwaitPrepared)
            }
            (State::AwaitingPrepared, Event::Prepared) => {
                self.go(State::Inactivating, Action::Inactivate)
            }
            (State::Inactivating, Event::Inactivated(ownership)) => {
                self.ownership = ownership;
                self.go(State::Committing, Action::Commit)
            }
            (State::Committing, Event::Committed) => {
                self.go(State::AwaitingVerdict, Action::AwaitVerdict)
            }
            (State::AwaitingVerdict, event) => self.on_verdict(event),
            (State::TakingBack, event) => self.on_took_back(event),
            (State::Resuming, event) => self.on_resumed(event),
            (State::Forgetting, _forgotten) => self.go(State::Over(End::Moved), Action::Finish),
            (State::Over(_), _late) => Action::Finish,
            (_, Event::Failed(error)) => self.on_failed(error),
            (_, event) => {
                let error = unexpected(self.state, &event);
                self.on_failed(error)
            }
        }
    }

    /// A failure before the destination can own anything: back by the way we came.
    fn on_failed(&mut self, error: Error) -> Action {
        self.cause = Some(error);
        match self.state {
            State::Setup | State::Copying => self.end_stayed(),
            State::Stopping | State::SendingRest | State::AwaitingPrepared => {
                self.go(State::Resuming, Action::Resume)
            }
            _ => self.go(State::TakingBack, Action::TakeBack(TakeBack::Freely)),
        }
    }

    /// After Commit.
    fn on_verdict(&mut self, event: Event) -> Action {
        match event {
            Event::Running => self.go(State::Forgetting, Action::Forget),
            Event::Refused(error) => {
                self.cause = Some(error);
                self.go(State::TakingBack, Action::TakeBack(TakeBack::Freely))
            }
            Event::NoAnswer(error) | Event::Failed(error) => self.doubt(error),
            other => self.doubt(unexpected(State::AwaitingVerdict, &other)),
        }
    }

    /// The destination may or may not own the guest: only the disks can tell.
    fn doubt(&mut self, error: Error) -> Action {
        self.cause = Some(error);
        self.in_doubt = true;
        self.go(State::TakingBack, Action::TakeBack(TakeBack::OnlyIfUnchanged))
    }

    fn on_took_back(&mut self, event: Event) -> Action {
        let doubt = self.in_doubt;
        match event {
            Event::TookBack(TookBack::Ours) => self.go(State::Resuming, Action::Resume),
            Event::TookBack(TookBack::HeldElsewhere(what)) if doubt => {
                self.add_cause(Error::new(
                    ErrorKind::Disconnected,
                    format!("the destination did not confirm, but it holds the disks: {what}"),
                ));
                self.go(State::Forgetting, Action::Forget)
            }
            Event::TookBack(TookBack::NoProof(what)) if doubt => {
                self.add_cause(Error::new(
                    ErrorKind::OwnershipUnknown,
                    format!(
                        "ownership unknown: the guest may be running at the destination ({what}); \
                         it stays paused here until an operator decides"
                    ),
                ));
                self.go(State::Over(End::OwnershipUnknown), Action::Finish)
            }
            Event::TookBack(TookBack::HeldElsewhere(what) | TookBack::NoProof(what)) => {
                self.stay_paused(Error::new(ErrorKind::Machine, what))
            }
            Event::TookBack(TookBack::Failed(error)) | Event::Failed(error) => {
                if doubt {
                    self.add_cause(error.within(
                        "ownership unknown: the disks could not be looked at; the guest stays \
                         paused here until an operator decides",
                    ));
                    return self.go(State::Over(End::OwnershipUnknown), Action::Finish);
                }
                self.stay_paused(error)
            }
            other => self.on_took_back(Event::Failed(unexpected(State::TakingBack, &other))),
        }
    }

    fn stay_paused(&mut self, error: Error) -> Action {
        self.add_cause(error.within("the guest stays paused: its disks could not be taken back"));
        self.go(State::Over(End::StayedPaused), Action::Finish)
    }

    fn on_resumed(&mut self, event: Event) -> Action {
        match event {
            Event::Resumed(Ok(())) => self.end_stayed(),
            Event::Resumed(Err(error)) | Event::Failed(error) => {
                self.add_cause(error.within("the guest stays paused: it could not be resumed"));
                self.go(State::Over(End::StayedPaused), Action::Finish)
            }
            other => {
                self.add_cause(unexpected(State::Resuming, &other));
                self.go(State::Over(End::StayedPaused), Action::Finish)
            }
        }
    }

    fn end_stayed(&mut self) -> Action {
        let end = if self.is_cancelled() { End::Cancelled } else { End::Stayed };
        self.go(State::Over(end), Action::Finish)
    }

    fn go(&mut self, state: State, action: Action) -> Action {
        self.state = state;
        action
    }

    /// A second thing went wrong: both are told.
    fn add_cause(&mut self, error: Error) {
        self.cause = Some(match self.cause.take() {
            Some(first) => {
                let (kind, text) = (error.kind(), error.report());
                Error::new(kind, text).because(first)
            }
            None => error,
        });
    }

    fn is_cancelled(&self) -> bool {
        self.cause.as_ref().is_some_and(|e| e.kind() == ErrorKind::Cancelled)
    }
}

fn unexpected(state: State, event: &Event) -> Error {
    Error::new(ErrorKind::Machine, format!("{event:?} makes no sense in state {state:?}"))
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
