//! The connection with a front end: messages with descriptors.
#![expect(unsafe_code, reason = "descriptors arrive as bare numbers")]

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use ferry_block::{Error, Executor, Result};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::wire::{self, HEADER_LEN, Header, MAX_FDS, bad};

/// A message as it came in.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) payload: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// A connection.
pub(crate) struct Socket {
    executor: Executor,
    stream: Rc<UnixStream>,
}

impl Socket {
    /// `stream` does not block.
    pub(crate) fn new(executor: Executor, stream: Rc<UnixStream>) -> Socket {
        Socket { executor, stream }
    }

    /// The number of its descriptor.
    pub(crate) fn number(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// The next message; none if the front end has hung up.
    ///
    /// # Errors
    /// It is not a message, or the connection broke.
    pub(crate) async fn receive(&self) -> Result<Option<Message>> {
        let mut fds = Vec::new();
        let mut header = [0; HEADER_LEN];
        if !self.fill(&mut header, &mut fds).await? {
            return Ok(None);
        }
        let header = Header::read(header)?;
        let mut payload = vec![0; header.len];
        if header.len > 0 && !self.fill(&mut payload, &mut fds).await? {
            return Err(bad("a message is cut off"));
        }
        Ok(Some(Message { header, payload, fds }))
    }

    /// Answers a request.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn reply(&self, request: u32, payload: &[u8]) -> Result<()> {
        let message = wire::message(request, true, payload);
        let mut rest = message.as_slice();
        while !rest.is_empty() {
            match (&*self.stream).write(rest) {
                Ok(sent) => rest = rest.get(sent..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.executor.writable(self.stream.as_raw_fd()).await?;
                }
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(())
    }

    /// Ends both directions.
    pub(crate) fn hang_up(&self) {
        if let Err(error) = self.stream.shutdown(Shutdown::Both) {
            tracing::debug!("a front end had hung up already: {error}");
        }
    }

    /// Fills `bytes`; `false` if nothing comes any more.
    async fn fill(&self, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<bool> {
        let mut filled = 0;
        while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match receive_some(&self.stream, rest, fds) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(bad("a message is cut off")),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.executor.readable(self.stream.as_raw_fd()).await?;
                }
                Err(error) => return Err(lost(error)),
            }
            if fds.len() > MAX_FDS {
                return Err(bad("a message has too many descriptors"));
            }
        }
        Ok(true)
    }
}

fn lost(error: io::Error) -> Error {
    Error::from_io(error, "the connection is lost")
}

/// One receive: how many bytes came. Descriptors are added to `fds`.
fn receive_some(
    stream: &UnixStream,
    bytes: &mut [u8],
    fds: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut numbers: [RawFd; MAX_FDS] = [-1; MAX_FDS];
    let mut parts = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }];
    // SAFETY: the one part is `bytes`, which is borrowed for the call and may hold any bytes.
    let received = unsafe { stream.recv_with_fds(&mut parts, &mut numbers) };
    let (len, count) = received.map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    for number in numbers.iter().take(count) {
        // SAFETY: the kernel has just made this descriptor for us; nobody else knows of it.
        fds.push(unsafe { OwnedFd::from_raw_fd(*number) });
    }
    Ok(len)
}
