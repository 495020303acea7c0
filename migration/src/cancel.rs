//! Giving a migration up, from any thread, at any moment before the commit point.

use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::sys::{self, Want, Woken};

/// It goes on.
const GOING: u8 = 0;
/// Somebody cancelled it.
const CANCELLED: u8 = 1;
/// It has passed the commit point.
const COMMITTED: u8 = 2;
/// It is over.
const OVER: u8 = 3;

/// Cancels one migration. All clones are the same.
#[derive(Debug, Clone)]
pub struct Canceller(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    state: AtomicU8,
    /// Readable for ever once cancelled: every wait polls it.
    alarm: PipeReader,
    ring: PipeWriter,
}

impl Canceller {
    /// For a new migration.
    pub fn new() -> Result<Canceller> {
        let (alarm, ring) =
            io::pipe().map_err(|e| Error::io("creating a pipe for cancelling", e))?;
        Ok(Canceller(Arc::new(Inner { state: AtomicU8::new(GOING), alarm, ring })))
    }

    /// Cancels; `true` means that this call did it, `false` that it was cancelled before or is over.
    /// Fails once the disks are being handed over: from then on only the destination's answer decides.
    pub fn cancel(&self) -> Result<bool> {
        match self.0.state.compare_exchange(GOING, CANCELLED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                // One byte in an empty pipe cannot fail for lack of room.
                if let Err(error) = (&self.0.ring).write_all(&[0]) {
                    tracing::warn!("waking the migration thread to cancel: {error}");
                }
                Ok(true)
            }
            Err(CANCELLED | OVER) => Ok(false),
            Err(_committed) => Err(Error::new(
                ErrorKind::InvalidArgument,
                "The migration can no longer be cancelled: the disks are being handed over to the \
                 destination",
            )),
        }
    }

    /// Was it cancelled?
    pub fn is_cancelled(&self) -> bool {
        self.0.state.load(Ordering::Acquire) == CANCELLED
    }

    /// An error if it was cancelled.
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(cancelled()) } else { Ok(()) }
    }

    /// Sleeps, unless cancelled.
    pub(crate) fn sleep(&self, time: Duration) -> Result<()> {
        self.check()?;
        match sys::wait(self.0.alarm.as_fd(), Want::Read, None, Some(time)) {
            Ok(Woken::TimedOut) => Ok(()),
            Ok(_) => self.check(),
            Err(error) => Err(Error::io("poll", error)),
        }
    }

    /// Passes the commit point, after which `cancel` fails; an error if a cancel came first.
    pub(crate) fn commit(&self) -> Result<()> {
        match self.0.state.compare_exchange(GOING, COMMITTED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(_cancelled) => Err(cancelled()),
        }
    }

    /// The migration is over: cancelling it does nothing any more.
    pub(crate) fn finish(&self) {
        self.0.state.store(OVER, Ordering::Release);
    }

    /// What every wait must also poll: readable for ever once cancelled.
    pub(crate) fn alarm(&self) -> BorrowedFd<'_> {
        self.0.alarm.as_fd()
    }
}

fn cancelled() -> Error {
    Error::new(ErrorKind::Cancelled, "the migration was cancelled")
}
