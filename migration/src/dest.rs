//! The destination's side of the hand-over, as a pure state machine; [`run()`] drives it.
//!
//! ```text
//! Setup -> Loading -> Restoring -> SayingPrepared -> AwaitingCommit -> Activating -> SayingRunning
//!   |         |           |              |                 |               |               |
//!   +---------+-----------+--------------+-----------------+               v               v
//!                     v                                                Releasing        Starting
//!               SayingFailed --> Over <------- SayingRefused <-----------+ |               |
//!                                 ^----------------------------------------+               |
//!                                 +--------------------------------------------------------+
//! ```
//!
//! The rule behind the arrows: **nothing of the guest belongs to this side before Commit has arrived;
//! from the moment the disks are taken the guest belongs here, whether or not the source hears of it.**

use crate::error::{Error, ErrorKind};
use crate::stats::Status;

mod load;
mod run;

pub use run::run;

/// Where the destination is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Agreeing.
    Setup,
    /// RAM and state arrive.
    Loading,
    /// Device state is loaded and validated.
    Restoring,
    /// Telling the source that all is there.
    SayingPrepared,
    /// The source gives the disks up.
    AwaitingCommit,
    /// The disks are being taken.
    Activating,
    /// The disks could not be taken: those that were are given back.
    Releasing,
    /// Telling the source that it must go on.
    SayingRefused,
    /// Telling the source that the guest is here.
    SayingRunning,
    /// The guest starts.
    Starting,
    /// Telling the source why this side gave up.
    SayingFailed,
    /// It is over.
    Over(End),
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum End {
    /// The guest is here.
    Arrived,
    /// The guest is not here and the machine is untouched: another source may try.
    Untouched,
    /// The guest is not here; this machine has parts of it and must be thrown away.
    Failed,
    /// The guest is not here, but disks that were taken could not be given back: the process must end,
    /// which frees them.
    Unreleased,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Agree with the source. Ends with `Agreed`.
    Handshake,
    /// Receive RAM and state. Ends with `Loaded`.
    Load,
    /// Load device state into the machine. Ends with `Restored`.
    Restore,
    /// Send Prepared. Ends with `Said`.
    SayPrepared,
    /// Wait for Commit and pass the commit point. Ends with `Committed`.
    AwaitCommit,
    /// Take the disks. Ends with `Activated`.
    Activate,
    /// Give back what was taken. Ends with `Released`.
    Release,
    /// Send Refused. Ends with `Said`.
    SayRefused,
    /// Send Running. Ends with `Said`.
    SayRunning,
    /// Start the guest. Ends with `Started`.
    Start,
    /// Send Failed. Ends with `Said`.
    SayFailed,
    /// Nothing: it is over.
    Finish,
}

/// How an action ended.
#[derive(Debug)]
pub enum Event {
    /// The source's machine is this one.
    Agreed,
    /// All RAM and state has arrived.
    Loaded,
    /// The machine is as the source's was.
    Restored,
    /// The answer was sent.
    Said,
    /// The source has given the disks up.
    Committed,
    /// The disks are ours.
    Activated,
    /// No disk is ours.
    Released,
    /// The guest runs, or is paused as it was over there.
    Started,
    /// The action failed; a cancel is the kind [`ErrorKind::Cancelled`].
    Failed(Error),
}

/// The state machine.
#[derive(Debug)]
pub struct Handover {
    state: State,
    cause: Option<Error>,
    touched: bool,
}

impl Handover {
    /// A new migration and its first action.
    pub fn start() -> (Handover, Action) {
        (Handover { state: State::Setup, cause: None, touched: false }, Action::Handshake)
    }

    /// Where it is.
    pub fn state(&self) -> State {
        self.state
    }

    /// What QEMU calls it.
    pub fn status(&self) -> Status {
        match self.state {
            State::Setup => Status::Setup,
            State::SayingFailed if !self.touched => Status::Setup,
            State::Over(End::Arrived) => Status::Completed,
            State::Over(_) if self.is_cancelled() => Status::Cancelled,
            State::Over(_) => Status::Failed,
            _ => Status::Active,
        }
    }

    /// Why it did not work; after [`End::Arrived`] a warning.
    pub fn cause(&self) -> Option<&Error> {
        self.cause.as_ref()
    }

    /// Why it did not work, to keep.
    pub fn into_cause(self) -> Option<Error> {
        self.cause
    }

    /// Takes the outcome of the last action and says what comes next. An event that the state does not
    /// know counts as a failure of its action.
    pub fn on(&mut self, event: Event) -> Action {
        match (self.state, event) {
            (State::Setup, Event::Agreed) => {
                self.touched = true;
                self.go(State::Loading, Action::Load)
            }
            (State::Loading, Event::Loaded) => self.go(State::Restoring, Action::Restore),
            (State::Restoring, Event::Restored) => {
                self.go(State::SayingPrepared, Action::SayPrepared)
            }
            (State::SayingPrepared, Event::Said) => {
                self.go(State::AwaitingCommit, Action::AwaitCommit)
            }
            (State::AwaitingCommit, Event::Committed) => {
                self.go(State::Activating, Action::Activate)
            }
            (State::Activating, Event::Activated) => {
                self.go(State::SayingRunning, Action::SayRunning)
            }
            (State::Releasing, Event::Released) => {
                self.go(State::SayingRefused, Action::SayRefused)
            }
            (State::SayingRunning, event) => self.on_told_running(event),
            (State::Starting, event) => {
                if let Event::Failed(error) = event {
                    self.cause = Some(error.within("the guest arrived, but stays paused"));
                }
                self.go(State::Over(End::Arrived), Action::Finish)
            }
            (State::SayingRefused | State::SayingFailed, _said_or_not) => self.end_failed(),
            (State::Over(_), _late) => Action::Finish,
            (_, Event::Failed(error)) => self.on_failed(error),
            (state, event) => self.on_failed(Error::new(
                ErrorKind::Machine,
                format!("{event:?} makes no sense in state {state:?}"),
            )),
        }
    }

    fn on_failed(&mut self, error: Error) -> Action {
        match self.state {
            State::Activating => {
                self.cause = Some(error);
                self.go(State::Releasing, Action::Release)
            }
            State::Releasing => {
                // Refused would promise that no disk is ours. Without an answer the source asks the
                // disks themselves.
                let text = format!("{}; and they could not be released", error.report());
                let first = self.cause.take();
                let both = Error::new(error.kind(), text);
                self.cause = Some(match first {
                    Some(first) => both.because(first),
                    None => both,
                });
                self.go(State::Over(End::Unreleased), Action::Finish)
            }
            _ => {
                self.cause = Some(error);
                self.go(State::SayingFailed, Action::SayFailed)
            }
        }
    }

    /// The guest is here, also when the source could not be told: it will find the disks locked.
    fn on_told_running(&mut self, event: Event) -> Action {
        if let Event::Failed(error) = event {
            self.cause = Some(error.within("the source could not be told that the guest is here"));
        }
        self.go(State::Starting, Action::Start)
    }

    fn end_failed(&mut self) -> Action {
        let end = if self.touched { End::Failed } else { End::Untouched };
        self.go(State::Over(end), Action::Finish)
    }

    fn go(&mut self, state: State, action: Action) -> Action {
        self.state = state;
        action
    }

    fn is_cancelled(&self) -> bool {
        self.cause.as_ref().is_some_and(|e| e.kind() == ErrorKind::Cancelled)
    }
}

#[cfg(test)]
#[path = "dest_tests.rs"]
mod tests;
