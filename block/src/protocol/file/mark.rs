//! The generation mark: a number beside the image that grows whenever a process begins to write.
//!
//! A lock proves that nobody writes now, not that nobody has written since. A source that lost its
//! connection after handing over goes on only with the lock **and** an unchanged mark: DESIGN
//! section 10.

use std::cell::Cell;
use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

use crate::sys;

const ATTRIBUTE: &CStr = c"user.ferry.generation";
/// Digits of the largest number.
const LONGEST: usize = 20;

/// The mark of one image.
#[derive(Default)]
pub(super) struct Mark {
    /// The file system has refused to store it.
    refused: Cell<bool>,
}

impl Mark {
    /// The number stored; zero if none ever was, `None` where none can be kept.
    pub(super) fn read(&self, fd: BorrowedFd<'_>) -> io::Result<Option<u64>> {
        if self.refused.get() {
            return Ok(None);
        }
        match sys::get_xattr::<LONGEST>(fd, ATTRIBUTE) {
            Ok(None) => Ok(Some(0)),
            Ok(Some(digits)) => {
                let number = str::from_utf8(&digits).ok().and_then(|digits| digits.parse().ok());
                number.map(Some).ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidData, "the generation mark is no number")
                })
            }
            Err(error) if cannot_keep(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Stores the next number.
    pub(super) fn advance(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let Some(number) = self.read(fd)? else { return Ok(()) };
        let next = number.wrapping_add(1).to_string();
        match sys::set_xattr(fd, ATTRIBUTE, next.as_bytes()) {
            Err(error) if cannot_keep(&error) => {
                self.refused.set(true);
                Ok(())
            }
            other => other,
        }
    }
}

/// Whether the file system has no room for marks at all, which is no error.
fn cannot_keep(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EOPNOTSUPP
                | libc::EPERM
                | libc::EACCES
                | libc::ENOSPC
                | libc::EDQUOT
                | libc::EROFS
                | libc::ENOSYS
        )
    )
}
