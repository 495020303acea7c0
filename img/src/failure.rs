//! How a command ends when it does not end well.

/// What is said on standard error, and the exit status.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    text: String,
    status: u8,
}

/// Result of everything here.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

impl Failure {
    /// An ordinary failure: exit status 1.
    pub(crate) fn new(text: impl Into<String>) -> Failure {
        Failure { text: text.into(), status: 1 }
    }

    /// The same failure with another exit status.
    #[must_use]
    pub(crate) fn with_status(mut self, status: u8) -> Failure {
        self.status = status;
        self
    }

    /// The same failure with `context: ` before its text.
    #[must_use]
    pub(crate) fn context(mut self, context: impl std::fmt::Display) -> Failure {
        self.text = format!("{context}: {}", self.text);
        self
    }

    /// The exit status.
    pub fn status(&self) -> u8 {
        self.status
    }
}

impl From<ferry_block::Error> for Failure {
    fn from(error: ferry_block::Error) -> Failure {
        Failure::new(error.to_string())
    }
}
