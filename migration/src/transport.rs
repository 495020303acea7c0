//! Connections: TCP and Unix sockets that can be given up at any moment.
//!
//! Every wait (connect, accept, read, write) also listens to the migration's [`Canceller`] and has a
//! time limit, so neither a full pipe nor a peer that hangs can keep a cancel from working.

mod socket_file;

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cancel::Canceller;
use crate::clock::now;
use crate::error::{Error, ErrorKind, Result};
use crate::sys::{self, Address, Piece, PieceMut, Want, Woken};

pub use socket_file::SocketFile;

/// Longest wait for a connection to come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time without a byte moving before the peer counts as hung.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause before the next try where a Unix listener's queue is full.
const BUSY_PAUSE: Duration = Duration::from_millis(20);
/// Socket buffer asked for on Unix sockets; the kernel gives what it allows. TCP sizes its own.
const UNIX_BUFFER: i32 = 4 << 20;

/// Where to, or where from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Uri {
    /// `tcp:host:port`; an empty host means every interface (listening) or this machine.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// Port; 0 lets the kernel choose when listening.
        port: u16,
    },
    /// `unix:/path`.
    Unix(PathBuf),
}

impl Uri {
    /// Parses a migration URI, with QEMU's texts for what is wrong.
    pub fn parse(text: &str) -> Result<Uri> {
        let invalid = |text: String| Error::new(ErrorKind::InvalidArgument, text);
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() || Address::unix(Path::new(path)).is_none() {
                return Err(invalid(format!("UNIX socket path '{path}' is too long or empty")));
            }
            return Ok(Uri::Unix(PathBuf::from(path)));
        }
        let Some(address) = text.strip_prefix("tcp:") else {
            return Err(invalid("Parameter 'uri' expects a valid migration protocol".to_owned()));
        };
        let wrong = || invalid(format!("error parsing address '{address}'"));
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let host = match host.strip_prefix('[') {
            Some(inner) => inner.strip_suffix(']').ok_or_else(wrong)?,
            None if host.contains(':') => return Err(wrong()),
            None => host,
        };
        let port = port.parse().map_err(|e| wrong().because(e))?;
        Ok(Uri::Tcp { host: host.to_owned(), port })
    }

    fn addresses(&self) -> Result<Vec<Address>> {
        match self {
            Uri::Tcp { host, port } => {
                let host = if host.is_empty() { "localhost" } else { host };
                Ok(resolve(host, *port)?.into_iter().map(Address::internet).collect())
            }
            Uri::Unix(path) => Ok(Address::unix(path).into_iter().collect()),
        }
    }
}

impl fmt::Display for Uri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Uri::Tcp { host, port } if host.contains(':') => write!(f, "tcp:[{host}]:{port}"),
            Uri::Tcp { host, port } => write!(f, "tcp:{host}:{port}"),
            Uri::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

fn resolve(host: &str, port: u16) -> Result<Vec<SocketAddr>> {
    let found = (host, port)
        .to_socket_addrs()
        .map_err(|e| Error::io(format!("address resolution failed for {host}:{port}"), e))?;
    Ok(found.collect())
}

/// Connects to `uri`; waits at most [`CONNECT_TIMEOUT`] for each address that the name has.
pub fn connect(uri: &Uri, cancel: &Canceller) -> Result<Stream> {
    let mut last = None;
    for address in uri.addresses()? {
        match connect_one(&address, cancel) {
            Ok(fd) => return Stream::new(fd, cancel.clone(), matches!(uri, Uri::Tcp { .. })),
            Err(error) if error.kind() == ErrorKind::Cancelled => return Err(error),
            Err(error) => last = Some(error),
        }
    }
    let name = uri.to_string();
    let (_scheme, name) = name.split_once(':').unwrap_or(("", &name));
    let context = format!("Failed to connect to '{name}'");
    Err(last.unwrap_or_else(|| Error::new(ErrorKind::Io, "it has no address")).within(context))
}

fn connect_one(address: &Address, cancel: &Canceller) -> Result<OwnedFd> {
    let failed = |e| Error::io("connect", e);
    let deadline = now() + CONNECT_TIMEOUT;
    let (fd, connected) = loop {
        match sys::start_connect(address) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && now() < deadline => {
                cancel.sleep(BUSY_PAUSE)?;
            }
            other => break other.map_err(failed)?,
        }
    };
    if !connected {
        let left = deadline.saturating_duration_since(now());
        wait(fd.as_fd(), Want::Write, cancel, left)?;
        let socket = TcpStream::from(fd);
        if let Some(error) = socket.take_error().map_err(failed)? {
            return Err(failed(error));
        }
        return Ok(OwnedFd::from(socket));
    }
    Ok(fd)
}

/// Waits for the peer to come in.
#[derive(Debug)]
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// Unix; the socket file is removed when the listener goes.
    Unix(SocketFile),
}

impl Listener {
    /// Starts to listen.
    pub fn bind(uri: &Uri) -> Result<Listener> {
        let failed = |e| Error::io(format!("cannot listen on '{uri}'"), e);
        let listener = match uri {
            Uri::Tcp { host, port } => {
                let host = if host.is_empty() { "::" } else { host };
                let addresses = match resolve(host, *port) {
                    Err(_no_ipv6) if host == "::" => resolve("0.0.0.0", *port)?,
                    other => other?,
                };
                Listener::Tcp(TcpListener::bind(addresses.as_slice()).map_err(failed)?)
            }
            Uri::Unix(path) => Listener::Unix(SocketFile::listen(path).map_err(failed)?),
        };
        match &listener {
            Listener::Tcp(l) => l.set_nonblocking(true),
            Listener::Unix(l) => l.socket().set_nonblocking(true),
        }
        .map_err(failed)?;
        Ok(listener)
    }

    /// Where it listens, with the real port: `query-migrate`'s `socket-address`.
    pub fn uri(&self) -> Result<Uri> {
        match self {
            Listener::Tcp(l) => {
                let address =
                    l.local_addr().map_err(|e| Error::io("asking for the own address", e))?;
                Ok(Uri::Tcp { host: address.ip().to_string(), port: address.port() })
            }
            Listener::Unix(l) => Ok(Uri::Unix(l.path().to_owned())),
        }
    }

    /// Waits for a peer, however long that takes.
    pub fn accept(&self, cancel: &Canceller) -> Result<Stream> {
        loop {
            let accepted = match self {
                Listener::Tcp(l) => l.accept().map(|(s, _peer)| OwnedFd::from(s)),
                Listener::Unix(l) => l.socket().accept().map(|(s, _peer)| OwnedFd::from(s)),
            };
            match accepted {
                Ok(fd) => {
                    return Stream::new(fd, cancel.clone(), matches!(self, Listener::Tcp(_)));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    wait(self.as_fd(), Want::Read, cancel, Duration::MAX)?;
                }
                // The peer left while it waited in the queue, or a signal came: wait for the next.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted
                    ) => {}
                Err(error) => return Err(Error::io("accepting the migration", error)),
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Tcp(l) => l.as_fd(),
            Listener::Unix(l) => l.socket().as_fd(),
        }
    }
}

/// A connection of which every wait can be cancelled.
#[derive(Debug)]
pub struct Stream {
    fd: OwnedFd,
    cancel: Canceller,
    /// How long a write may stand still.
    patience: Duration,
}

impl Stream {
    fn new(fd: OwnedFd, cancel: Canceller, tcp: bool) -> Result<Stream> {
        let stream = Stream { fd, cancel, patience: STALL_TIMEOUT };
        if tcp {
            stream.tune_tcp()
        } else {
            stream.tune_unix()
        }
        Ok(stream)
    }

    /// A stream over a connected socket that somebody else made; for tests and passed descriptors.
    pub fn from_unix(socket: std::os::unix::net::UnixStream, cancel: Canceller) -> Result<Stream> {
        Stream::new(OwnedFd::from(socket), cancel, false)
    }

    /// Answers must not wait for more to come, and a peer whose machine vanished must be noticed also
    /// by a side that only waits. What the kernel refuses here costs speed, not correctness.
    fn tune_tcp(&self) {
        let tcp = libc::IPPROTO_TCP;
        let options = [
            (tcp, libc::TCP_NODELAY, 1),
            (libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1),
            (tcp, libc::TCP_KEEPIDLE, 10),
            (tcp, libc::TCP_KEEPINTVL, 5),
            (tcp, libc::TCP_KEEPCNT, 4),
        ];
        for (level, name, value) in options {
            if let Err(error) = sys::set_option(self.fd.as_fd(), level, name, value) {
                tracing::debug!("socket option {level}/{name}: {error}");
            }
        }
    }

    fn tune_unix(&self) {
        let fd = self.fd.as_fd();
        let set = sys::set_option(fd, libc::SOL_SOCKET, libc::SO_SNDBUF, UNIX_BUFFER);
        if let Err(error) = set {
            tracing::debug!("send buffer: {error}");
        }
    }

    /// Changes how long a write may stand still before the peer counts as hung.
    pub(crate) fn set_patience(&mut self, patience: Duration) {
        self.patience = patience;
    }

    /// Writes all of `pieces`; an error means that the kernel did not take all of them.
    pub(crate) fn write_all(&mut self, mut pieces: &mut [Piece<'_>]) -> Result<()> {
        pieces = sys::advance(pieces, 0);
        while !pieces.is_empty() {
            match sys::send(self.fd.as_fd(), pieces) {
                Ok(sent) => pieces = sys::advance(pieces, sent),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(Want::Write, self.patience)
                        .map_err(|e| e.within("Unable to write to socket"))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("Unable to write to socket", error)),
            }
        }
        Ok(())
    }

    /// Fills all of `pieces`, waiting at most `timeout` whenever nothing comes.
    pub(crate) fn read_all(
        &mut self,
        mut pieces: &mut [PieceMut<'_>],
        timeout: Duration,
    ) -> Result<()> {
        let context = "Unable to read from socket";
        pieces = sys::advance(pieces, 0);
        while !pieces.is_empty() {
            match sys::receive(self.fd.as_fd(), pieces) {
                Ok(0) => {
                    return Err(Error::new(
                        ErrorKind::Disconnected,
                        format!("{context}: the peer closed the connection"),
                    ));
                }
                Ok(got) => pieces = sys::advance(pieces, got),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait(Want::Read, timeout).map_err(|e| e.within(context))?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(context, error)),
            }
        }
        Ok(())
    }

    /// Has the peer said something, or left?
    pub(crate) fn has_input(&self) -> bool {
        sys::has_input(self.fd.as_fd())
    }

    /// Says that nothing more will be written; the peer still gets what was.
    pub(crate) fn finish_writing(&self) {
        sys::shutdown(self.fd.as_fd(), sys::Side::Write);
    }

    /// Cuts the connection both ways, whoever else holds it.
    pub(crate) fn close(&self) {
        sys::shutdown(self.fd.as_fd(), sys::Side::Both);
    }

    fn wait(&self, want: Want, timeout: Duration) -> Result<()> {
        wait(self.fd.as_fd(), want, &self.cancel, timeout)
    }
}

/// Waits for `fd`, the canceller or the time limit.
fn wait(fd: BorrowedFd<'_>, want: Want, cancel: &Canceller, timeout: Duration) -> Result<()> {
    cancel.check()?;
    let limit = (timeout != Duration::MAX).then_some(timeout);
    match sys::wait(fd, want, Some(cancel.alarm()), limit) {
        Ok(Woken::Ready) => Ok(()),
        Ok(Woken::Interrupted) => cancel.check(),
        Ok(Woken::TimedOut) => Err(Error::new(
            ErrorKind::TimedOut,
            format!("nothing moved for {} s", timeout.as_secs()),
        )),
        Err(error) => Err(Error::io("poll", error)),
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
