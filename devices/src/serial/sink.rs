//! A sink for whatever a file descriptor leads to.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::SerialSink;

/// What fits into a socket or pipe that says that it has room.
const SAFE_PIECE: usize = 256;

/// Writes to a terminal, pipe, socket or file without blocking.
///
/// The descriptor is never set to non-blocking: it may be shared with other processes, such as the
/// shell that owns the terminal, and would change under them.
pub struct FdSink {
    file: File,
    /// Where writes could block: says whether there is room.
    room: Option<Epoll>,
}

impl FdSink {
    /// A sink for `fd`.
    ///
    /// # Errors
    /// When the descriptor cannot be watched for room.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        if file.metadata()?.is_file() {
            return Ok(Self { file, room: None });
        }
        // A terminal that has room may still block: a newline can need more of it than there is.
        // So terminals and pipes are opened once more, which gives a non-blocking descriptor of
        // our own.
        let again = format!("/proc/self/fd/{}", file.as_raw_fd());
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        match OpenOptions::new().write(true).custom_flags(flags).open(again) {
            Ok(file) => Ok(Self { file, room: None }),
            // Sockets cannot be opened again, and others may not be allowed to us: ask before
            // every write.
            Err(_refused) => Self::asking(file),
        }
    }

    /// A sink that asks for room before every write.
    pub(super) fn asking(file: File) -> io::Result<Self> {
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::OUT, 0);
        epoll.ctl(ControlOperation::Add, file.as_raw_fd(), event)?;
        Ok(Self { file, room: Some(epoll) })
    }

    fn has_room(&self) -> io::Result<bool> {
        match &self.room {
            None => Ok(true),
            Some(epoll) => Ok(epoll.wait(0, &mut [EpollEvent::default()])? > 0),
        }
    }
}

impl AsRawFd for FdSink {
    /// The descriptor to wait on until there is room.
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl SerialSink for FdSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.has_room()? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let piece = if self.room.is_some() { bytes.len().min(SAFE_PIECE) } else { bytes.len() };
        self.file.write(&bytes[..piece])
    }
}
