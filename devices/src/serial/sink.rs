//! A sink for whatever a file descriptor leads to.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::SerialSink;

/// What fits when a pipe or a terminal says that it has room (a pipe guarantees `PIPE_BUF`, 4096; a
/// terminal says so from 256 free bytes on).
const SAFE_PIECE: usize = 256;

/// Writes to a terminal, pipe, socket or file without blocking.
///
/// The descriptor itself is left in blocking mode: it may be shared with other processes, such as
/// the shell that owns the terminal. Instead it is asked for room before every write.
pub struct FdSink {
    file: File,
    /// Reports room; `None` for files, which always have it.
    room: Option<Epoll>,
}

impl FdSink {
    /// A sink for `fd`.
    ///
    /// # Errors
    /// When the descriptor cannot be watched for room.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let file = File::from(fd);
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::OUT, 0);
        let room = match epoll.ctl(ControlOperation::Add, file.as_raw_fd(), event) {
            Ok(()) => Some(epoll),
            // Regular files cannot be watched, and need not be.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
            Err(error) => return Err(error),
        };
        Ok(Self { file, room })
    }

    /// The descriptor, to wait until it is writable.
    pub fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn has_room(&self) -> io::Result<bool> {
        match &self.room {
            None => Ok(true),
            Some(epoll) => Ok(epoll.wait(0, &mut [EpollEvent::default()])? > 0),
        }
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
