//! What can go wrong while a machine is built or run: a kind to act on, one sentence to read, and the cause.

use std::error::Error as StdError;

use crate::lifecycle::BadTransition;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What sort of trouble an [`Error`] is; decides the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The command line is wrong: nothing was started.
    Usage,
    /// A file that the command line names cannot be used: nothing was started.
    Config,
    /// The host refuses something that a machine needs (KVM, memory, threads).
    Host,
    /// State that came from another process does not fit this machine.
    State,
    /// The request does not fit the machine's run state.
    RunState,
}

/// An error with its context. `Display` is one line without the cause; [`Error::line`] adds the causes.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    kind: ErrorKind,
    context: String,
    #[source]
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error that says everything itself.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Error {
        Error { kind, context: context.into(), source: None }
    }

    /// An error with the cause that it was made from.
    pub fn because(
        kind: ErrorKind,
        context: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Error {
        Error { kind, context: context.into(), source: Some(source.into()) }
    }

    /// A wrong command line.
    pub fn usage(context: impl Into<String>) -> Error {
        Error::new(ErrorKind::Usage, context)
    }

    /// A file that cannot be used.
    pub fn config(context: impl Into<String>) -> Error {
        Error::new(ErrorKind::Config, context)
    }

    /// A system call or KVM request that failed; `doing` completes "cannot ...".
    pub fn host(doing: &str, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::because(ErrorKind::Host, format!("cannot {doing}"), source)
    }

    /// State from elsewhere that cannot be used here.
    pub fn state(context: impl Into<String>) -> Error {
        Error::new(ErrorKind::State, context)
    }

    /// What sort of trouble this is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The whole story on one line: the context, then each cause.
    pub fn line(&self) -> String {
        let mut line = self.context.clone();
        let mut cause = self.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // Some libraries repeat their source in their own text: say it once.
            if !line.ends_with(&text) {
                line.push_str(": ");
                line.push_str(&text);
            }
            cause = error.source();
        }
        line.replace('\n', " ")
    }
}

impl From<ferry_migration::Error> for Error {
    fn from(error: ferry_migration::Error) -> Error {
        Error::state(error.report())
    }
}

impl From<ferry_block::Error> for Error {
    fn from(error: ferry_block::Error) -> Error {
        // Its text already says what the host said.
        Error::new(ErrorKind::Host, error.to_string())
    }
}

impl From<ferry_storage::Error> for Error {
    fn from(error: ferry_storage::Error) -> Error {
        let kind = match error.kind() {
            ferry_storage::ErrorKind::Usage => ErrorKind::Usage,
            ferry_storage::ErrorKind::Config => ErrorKind::Config,
            ferry_storage::ErrorKind::Host => ErrorKind::Host,
        };
        Error::new(kind, error.to_string())
    }
}

impl From<BadTransition> for Error {
    fn from(refused: BadTransition) -> Error {
        Error::new(ErrorKind::RunState, refused.to_string())
    }
}
