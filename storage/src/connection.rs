//! The connection to one QMP client: a socket, or standard input and output.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;

/// Two directions of bytes, neither of which ever blocks.
pub(crate) enum Connection {
    /// A socket, whoever connected.
    Socket(UnixStream),
    /// Whoever started us.
    Stdio {
        /// What it says.
        input: File,
        /// What it hears.
        output: File,
    },
}

impl Connection {
    /// The connection over a socket.
    ///
    /// # Errors
    /// The system refuses that it does not block.
    pub(crate) fn socket(stream: UnixStream) -> io::Result<Connection> {
        stream.set_nonblocking(true)?;
        Ok(Connection::Socket(stream))
    }

    /// Standard input and output.
    ///
    /// # Errors
    /// One of them is closed or cannot be opened again.
    pub(crate) fn stdio() -> io::Result<Connection> {
        let input = never_blocking(io::stdin().as_fd(), OpenOptions::new().read(true))?;
        let output = never_blocking(io::stdout().as_fd(), OpenOptions::new().write(true))?;
        Ok(Connection::Stdio { input, output })
    }

    /// Reads what is there; none at the end.
    ///
    /// # Errors
    /// Those of the system, `WouldBlock` among them.
    pub(crate) fn read(&self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Connection::Socket(stream) => Read::read(&mut &*stream, bytes),
            Connection::Stdio { input, .. } => Read::read(&mut &*input, bytes),
        }
    }

    /// Writes what there is room for.
    ///
    /// # Errors
    /// Those of the system, `WouldBlock` among them.
    pub(crate) fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Connection::Socket(stream) => Write::write(&mut &*stream, bytes),
            Connection::Stdio { output, .. } => Write::write(&mut &*output, bytes),
        }
    }

    /// To wait on until there is something to read.
    pub(crate) fn input(&self) -> RawFd {
        match self {
            Connection::Socket(stream) => stream.as_raw_fd(),
            Connection::Stdio { input, .. } => input.as_raw_fd(),
        }
    }

    /// To wait on until there is room to write.
    pub(crate) fn output(&self) -> RawFd {
        match self {
            Connection::Socket(stream) => stream.as_raw_fd(),
            Connection::Stdio { output, .. } => output.as_raw_fd(),
        }
    }

    /// Ends both directions of a socket, so that whoever waits for the client waits no longer.
    pub(crate) fn hang_up(&self) {
        let Connection::Socket(stream) = self else { return };
        if let Err(error) = stream.shutdown(Shutdown::Both) {
            tracing::debug!(%error, "a QMP client had hung up already");
        }
    }
}

/// A descriptor of our own that does not block, for what `shared` stands for. Others use `shared` as well, a
/// shell its terminal, and would be surprised if it did not block any more; only a socket, which cannot be
/// opened again, is shared all the same.
fn never_blocking(shared: BorrowedFd<'_>, options: &mut OpenOptions) -> io::Result<File> {
    let same = File::from(shared.try_clone_to_owned()?);
    let kind = same.metadata()?.file_type();
    if kind.is_file() {
        return Ok(same);
    }
    if kind.is_socket() {
        let socket = UnixStream::from(OwnedFd::from(same));
        socket.set_nonblocking(true)?;
        return Ok(File::from(OwnedFd::from(socket)));
    }
    let again = format!("/proc/self/fd/{}", shared.as_raw_fd());
    options.custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(again)
}

#[cfg(test)]
#[path = "connection_tests.rs"]
mod tests;
