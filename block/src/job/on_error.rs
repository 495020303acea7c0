//! What a job does when an operation fails: the user's choice, and what follows from it.

use super::event::ErrorAction;
use super::query::IoStatus;
use crate::error::ErrorKind;

/// The user's choice, `on-source-error` and `on-target-error`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnError {
    /// Fail the job.
    #[default]
    Report,
    /// Go on and try again later.
    Ignore,
    /// Pause the job until somebody resumes it.
    Stop,
    /// Pause when the storage is full, else fail.
    Enospc,
    /// As [`OnError::Enospc`].
    Auto,
}

impl OnError {
    /// What this choice means for an error of `kind`.
    pub fn action(self, kind: ErrorKind) -> ErrorAction {
        match self {
            OnError::Report => ErrorAction::Report,
            OnError::Ignore => ErrorAction::Ignore,
            OnError::Stop => ErrorAction::Stop,
            OnError::Enospc | OnError::Auto if kind == ErrorKind::NoSpace => ErrorAction::Stop,
            OnError::Enospc | OnError::Auto => ErrorAction::Report,
        }
    }
}

impl IoStatus {
    /// What `io-status` shows after stopping at an error of `kind`.
    pub(crate) fn after(kind: ErrorKind) -> IoStatus {
        if kind == ErrorKind::NoSpace { IoStatus::NoSpace } else { IoStatus::Failed }
    }
}
