//! Image locks as QEMU takes them, so that its programs and ferry keep off each other's images.
//!
//! For each permission that is used one byte of the file is read-locked at 100 plus its number, for
//! each that is not shared one at 200 plus its number. After taking its bytes a process looks
//! whether somebody else holds the opposite ones. Locks belong to the open file description, so
//! they also work within one process, and the kernel drops them when a process dies.

use std::cell::Cell;
use std::os::fd::BorrowedFd;

use crate::edge::{EdgePerms, Perms};
use crate::error::{Error, ErrorKind, Result};
use crate::sys;

const USED_BASE: u64 = 100;
const UNSHARED_BASE: u64 = 200;

/// The locks held on one open file.
#[derive(Default)]
pub(super) struct ImageLocks {
    used: Cell<Perms>,
    unshared: Cell<Perms>,
}

impl ImageLocks {
    /// Takes and drops bytes until they say `perms`. On an error nothing has changed.
    pub(super) fn set(&self, fd: BorrowedFd<'_>, perms: EdgePerms, path: &str) -> Result<()> {
        let (used, unshared) = (perms.needs.whole(), (!perms.shares).whole());
        let (old_used, old_unshared) = (self.used.get(), self.unshared.get());
        let taken = self
            .take(fd, used & !old_used, unshared & !old_unshared, path)
            .and_then(|()| self.check(fd, used & !old_used, unshared & !old_unshared, path));
        match taken {
            Ok(()) => self.keep(fd, used, unshared),
            Err(_) => self.keep(fd, old_used, old_unshared),
        }
        taken
    }

    fn take(&self, fd: BorrowedFd<'_>, used: Perms, unshared: Perms, path: &str) -> Result<()> {
        for (base, perms, held) in
            [(USED_BASE, used, &self.used), (UNSHARED_BASE, unshared, &self.unshared)]
        {
            for (number, name) in perms.each() {
                sys::lock(fd, libc::F_RDLCK, base + u64::from(number), 1).map_err(|error| {
                    let busy = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES));
                    let context = format!("cannot lock byte \"{name}\" of '{path}'");
                    let error = Error::from_io(error, context);
                    if busy { error.with_kind(ErrorKind::Locked) } else { error }
                })?;
            }
            held.set(held.get() | perms);
        }
        Ok(())
    }

    /// Looks whether somebody else minds.
    fn check(&self, fd: BorrowedFd<'_>, used: Perms, unshared: Perms, path: &str) -> Result<()> {
        let look = |base: u64, number: u8| {
            sys::is_locked(fd, base + u64::from(number), 1)
                .map_err(|error| Error::from_io(error, format!("cannot test locks of '{path}'")))
        };
        for (number, name) in used.each() {
            if look(UNSHARED_BASE, number)? {
                return Err(refused(&format!("\"{name}\""), path));
            }
        }
        for (number, name) in unshared.each() {
            if look(USED_BASE, number)? {
                return Err(refused(&format!("shared \"{name}\""), path));
            }
        }
        Ok(())
    }

    /// Drops everything but these. Only a broken file system refuses that.
    fn keep(&self, fd: BorrowedFd<'_>, used: Perms, unshared: Perms) {
        for (base, keep, held) in
            [(USED_BASE, used, &self.used), (UNSHARED_BASE, unshared, &self.unshared)]
        {
            for (number, _) in (!keep).each() {
                // Also what `take` failed half way through: unlocking twice is harmless.
                if let Err(error) = sys::lock(fd, libc::F_UNLCK, base + u64::from(number), 1) {
                    tracing::error!("cannot drop an image lock: {error}");
                }
            }
            held.set(keep);
        }
    }
}

fn refused(which: &str, path: &str) -> Error {
    let context =
        format!("Failed to get {which} lock: Is another process using the image [{path}]?");
    Error::new(ErrorKind::Locked, context)
}
