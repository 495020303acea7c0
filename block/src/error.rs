//! The one error of the block layer: a kind to match on, a context to read, and its source.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::bitmap::BitmapError;

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, for callers that must decide. Each maps to one errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The thing named does not exist.
    NotFound,
    /// The name or thing is there already.
    AlreadyExists,
    /// The host refuses access.
    PermissionDenied,
    /// Another process holds the lock on the image.
    Locked,
    /// The storage is full.
    NoSpace,
    /// The storage failed.
    Io,
    /// The request leaves the bounds of the node.
    OutOfRange,
    /// The driver, file system or kernel cannot do this.
    Unsupported,
    /// The caller's parameters make no sense.
    InvalidArgument,
    /// The image contradicts itself.
    Corrupt,
    /// In use by somebody else in this process.
    Busy,
    /// A write to something opened read-only.
    ReadOnly,
    /// A write to a node whose ownership is with another process.
    Inactive,
    /// Given up on request.
    Cancelled,
    /// Took longer than allowed.
    TimedOut,
    /// The other side is gone.
    Disconnected,
    /// Two parents want what they do not share.
    PermissionConflict,
    /// Nobody can prove who may write: see DESIGN section 10.
    OwnershipUnknown,
}

impl ErrorKind {
    /// The errno that says the same, positive.
    pub fn errno(self) -> i32 {
        match self {
            ErrorKind::NotFound => libc::ENOENT,
            ErrorKind::AlreadyExists => libc::EEXIST,
            ErrorKind::PermissionDenied => libc::EACCES,
            ErrorKind::PermissionConflict => libc::EPERM,
            ErrorKind::Locked => libc::EAGAIN,
            ErrorKind::NoSpace => libc::ENOSPC,
            ErrorKind::Io | ErrorKind::Corrupt => libc::EIO,
            ErrorKind::OutOfRange | ErrorKind::InvalidArgument => libc::EINVAL,
            ErrorKind::Unsupported => libc::EOPNOTSUPP,
            ErrorKind::Busy => libc::EBUSY,
            ErrorKind::ReadOnly => libc::EROFS,
            ErrorKind::Inactive => libc::EPERM,
            ErrorKind::Cancelled => libc::ECANCELED,
            ErrorKind::TimedOut => libc::ETIMEDOUT,
            ErrorKind::Disconnected => libc::ENOTCONN,
            ErrorKind::OwnershipUnknown => libc::EOWNERDEAD,
        }
    }

    /// The kind for a positive errno; everything unknown is [`ErrorKind::Io`].
    pub fn from_errno(errno: i32) -> ErrorKind {
        match errno {
            libc::ENOENT => ErrorKind::NotFound,
            libc::EEXIST => ErrorKind::AlreadyExists,
            libc::EACCES | libc::EPERM => ErrorKind::PermissionDenied,
            libc::EAGAIN => ErrorKind::Locked,
            libc::ENOSPC | libc::EDQUOT | libc::EFBIG => ErrorKind::NoSpace,
            libc::EINVAL => ErrorKind::InvalidArgument,
            libc::EOPNOTSUPP | libc::ENOTTY | libc::ENOSYS => ErrorKind::Unsupported,
            libc::EBUSY | libc::ETXTBSY => ErrorKind::Busy,
            libc::EROFS => ErrorKind::ReadOnly,
            libc::ECANCELED => ErrorKind::Cancelled,
            libc::ETIMEDOUT => ErrorKind::TimedOut,
            libc::ENOTCONN | libc::EPIPE | libc::ECONNRESET => ErrorKind::Disconnected,
            libc::EOWNERDEAD => ErrorKind::OwnershipUnknown,
            _ => ErrorKind::Io,
        }
    }
}

/// An error: [`ErrorKind`], a sentence that names the thing and what to do, and where it came from.
///
/// Display shows the sentence and the host's own words, never the chain twice.
#[derive(Clone, Debug)]
pub struct Error(Box<Inner>);

#[derive(Clone, Debug)]
struct Inner {
    kind: ErrorKind,
    context: String,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A new error; `context` is a sentence without a full stop.
    pub fn new(kind: ErrorKind, context: impl Into<String>) -> Error {
        Error(Box::new(Inner { kind, context: context.into(), source: None }))
    }

    /// An error of the host, with what was being done. The kind follows from its errno.
    pub fn from_io(error: io::Error, context: impl Into<String>) -> Error {
        let kind = error.raw_os_error().map_or(ErrorKind::Io, ErrorKind::from_errno);
        Error(Box::new(Inner { kind, context: context.into(), source: Some(Arc::new(error)) }))
    }

    /// An error of the host from a positive errno.
    pub fn from_errno(errno: i32, context: impl Into<String>) -> Error {
        Error::from_io(io::Error::from_raw_os_error(errno), context)
    }

    /// The same error with another kind, for where the errno says too little.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Error {
        self.0.kind = kind;
        self
    }

    /// The same error with `context: ` put before its sentence.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Error {
        self.0.context = format!("{context}: {}", self.0.context);
        self
    }

    /// What kind of error it is.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The errno closest to it, positive: the host's own if there was one.
    pub fn errno(&self) -> i32 {
        self.host_errno().unwrap_or_else(|| self.0.kind.errno())
    }

    /// The host's own text when the host refused, else the whole sentence: what QEMU-compatible
    /// job errors show ("No space left on device").
    pub fn short(&self) -> String {
        match self.host_errno() {
            Some(errno) => strerror(errno),
            None => self.0.context.clone(),
        }
    }

    fn host_errno(&self) -> Option<i32> {
        let source = self.0.source.as_ref()?;
        source.downcast_ref::<io::Error>()?.raw_os_error()
    }
}

/// The host's words for an errno, without Rust's "(os error n)".
fn strerror(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.context)?;
        match (self.host_errno(), &self.0.source) {
            (Some(errno), _) => write!(f, ": {}", strerror(errno)),
            (None, Some(source)) => write!(f, ": {source}"),
            (None, None) => Ok(()),
        }
    }
}

impl From<BitmapError> for Error {
    fn from(error: BitmapError) -> Error {
        Error::new(ErrorKind::InvalidArgument, error.to_string())
    }
}

impl std::error::Error for Error {
    // Display already shows the source, so a reporter that walks the chain must not see it again.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_text_is_shown_once_and_short_is_only_that() {
        let error = Error::from_errno(libc::ENOSPC, "cannot write to 'a.img'").context("node 'd0'");
        assert_eq!(
            error.to_string(),
            "node 'd0': cannot write to 'a.img': No space left on device"
        );
        assert_eq!(error.short(), "No space left on device");
        assert_eq!((error.kind(), error.errno()), (ErrorKind::NoSpace, libc::ENOSPC));
    }

    #[test]
    fn kinds_survive_the_way_through_errno() {
        for kind in [
            ErrorKind::NotFound,
            ErrorKind::AlreadyExists,
            ErrorKind::NoSpace,
            ErrorKind::Io,
            ErrorKind::Unsupported,
            ErrorKind::Busy,
            ErrorKind::ReadOnly,
            ErrorKind::Cancelled,
            ErrorKind::TimedOut,
            ErrorKind::Disconnected,
        ] {
            assert_eq!(ErrorKind::from_errno(kind.errno()), kind);
        }
    }
}
