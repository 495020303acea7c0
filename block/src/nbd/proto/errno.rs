//! The few error numbers of the protocol, and ours for them.

use crate::error::{Error, ErrorKind};

pub(crate) const EPERM: u32 = 1;
pub(crate) const EIO: u32 = 5;
pub(crate) const ENOMEM: u32 = 12;
pub(crate) const EINVAL: u32 = 22;
pub(crate) const ENOSPC: u32 = 28;
pub(crate) const EOVERFLOW: u32 = 75;
pub(crate) const ENOTSUP: u32 = 95;
pub(crate) const ESHUTDOWN: u32 = 108;

/// The number that says it to a client.
pub(crate) fn of(error: &Error) -> u32 {
    match error.kind() {
        ErrorKind::PermissionDenied
        | ErrorKind::ReadOnly
        | ErrorKind::Inactive
        | ErrorKind::PermissionConflict => EPERM,
        ErrorKind::NoSpace => ENOSPC,
        ErrorKind::InvalidArgument | ErrorKind::OutOfRange => EINVAL,
        ErrorKind::Unsupported => ENOTSUP,
        ErrorKind::Cancelled => ESHUTDOWN,
        _ => EIO,
    }
}

/// What a number of a server means here.
pub(crate) fn to_kind(number: u32) -> ErrorKind {
    match number {
        EPERM => ErrorKind::PermissionDenied,
        ENOSPC => ErrorKind::NoSpace,
        EINVAL | EOVERFLOW => ErrorKind::InvalidArgument,
        ENOTSUP => ErrorKind::Unsupported,
        ESHUTDOWN => ErrorKind::Disconnected,
        // ENOMEM is the server's own trouble, and unknown numbers are to be taken as EINVAL by the
        // letter of the protocol: an I/O error tells more.
        _ => ErrorKind::Io,
    }
}

/// Its name in messages.
pub(crate) fn name(number: u32) -> &'static str {
    match number {
        EPERM => "operation not permitted",
        EIO => "I/O error",
        ENOMEM => "out of memory",
        EINVAL => "invalid argument",
        ENOSPC => "no space left on device",
        EOVERFLOW => "value too large",
        ENOTSUP => "operation not supported",
        ESHUTDOWN => "server is shutting down",
        _ => "unknown error",
    }
}
