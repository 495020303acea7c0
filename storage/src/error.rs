//! What can keep a daemon from starting: a kind to act on and one sentence.

use std::fmt;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What sort of trouble an [`Error`] is; decides the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The command line is wrong.
    Usage,
    /// A file or address that the command line names cannot be used.
    Config,
    /// The host refuses something.
    Host,
}

/// An error with its context on one line.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    kind: ErrorKind,
    context: String,
}

impl Error {
    /// An error that says everything itself.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Error {
        Error { kind, context: context.into() }
    }

    /// A system call that failed; `doing` completes "cannot ...".
    pub fn host(doing: &str, source: &dyn fmt::Display) -> Error {
        Error::new(ErrorKind::Host, format!("cannot {doing}: {source}"))
    }

    /// What sort of trouble this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The exit status that says so.
    pub fn status(&self) -> u8 {
        match self.kind {
            // clap ends with the same status for what it refuses itself.
            ErrorKind::Usage => 2,
            ErrorKind::Config | ErrorKind::Host => 1,
        }
    }
}
