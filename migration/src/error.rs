//! What can go wrong while a guest moves: a kind to match on, a context to read, a cause.

use std::error::Error as StdError;
use std::io;

/// Result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can act on. The text beside it is for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The operating system refused: socket, file or memory.
    Io,
    /// The peer is gone: it closed the connection or its process died.
    Disconnected,
    /// The peer did not answer, or took nothing more, for too long.
    TimedOut,
    /// The user cancelled this migration.
    Cancelled,
    /// Bytes that break the protocol: bad magic, checksum, length, order or address.
    Corrupt,
    /// Both sides follow the protocol, but this guest cannot run over there.
    Incompatible,
    /// A state section is missing, left over, too new, or holds values that no device can have.
    State,
    /// The caller asked for something that does not exist, such as an unknown transport.
    InvalidArgument,
    /// The other side reported a failure; the context is its text.
    Remote,
    /// The machine of this side failed to do what a step of the migration needs.
    Machine,
    /// Nobody knows any more which side may write to the disks: an operator must decide.
    OwnershipUnknown,
}

/// An error of this crate.
///
/// `Display` gives the context alone and `source` the cause, so that a chain printer does not say
/// things twice; [`Error::report`] gives the whole on one line.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    kind: ErrorKind,
    context: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error without a deeper cause.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Error {
        Error { kind, context: context.into(), source: None }
    }

    /// A section that cannot be saved or loaded; say what is wrong with which value.
    pub fn state(context: impl Into<String>) -> Error {
        Error::new(ErrorKind::State, context)
    }

    /// Bytes that break the protocol.
    pub fn corrupt(context: impl Into<String>) -> Error {
        Error::new(ErrorKind::Corrupt, context)
    }

    /// A failed system call, with the kind taken from its number.
    pub fn io(context: impl Into<String>, source: io::Error) -> Error {
        let kind = match source.kind() {
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::UnexpectedEof
            | io::ErrorKind::NotConnected => ErrorKind::Disconnected,
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ErrorKind::TimedOut,
            _ => ErrorKind::Io,
        };
        Error::new(kind, context).because(Os(source))
    }

    /// Adds the cause.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        self.source = Some(source.into());
        self
    }

    /// Wraps this error in the larger thing that was being done; the kind stays.
    #[must_use]
    pub fn within(self, context: impl Into<String>) -> Error {
        Error { kind: self.kind, context: context.into(), source: Some(Box::new(self)) }
    }

    /// The kind to match on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Context and all causes on one line, outermost first.
    pub fn report(&self) -> String {
        let mut line = self.context.clone();
        let mut cause = StdError::source(self);
        while let Some(inner) = cause {
            line.push_str(": ");
            line.push_str(&inner.to_string());
            cause = inner.source();
        }
        line
    }
}

/// An error of the operating system with its plain text: the number that the standard library adds tells
/// a reader nothing.
#[derive(Debug, thiserror::Error)]
#[error("{}", plain(.0))]
struct Os(io::Error);

fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_owned()
}
