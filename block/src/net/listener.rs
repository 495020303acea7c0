//! A listening socket.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket as Raw, Type};

use super::connect::resolve;
use super::socket::Socket;
use super::socket_name::SocketName;
use super::{SocketAddress, Stream};
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
/// How long to wait when the process has no descriptors left.
const EXHAUSTED_DELAY: Duration = Duration::from_millis(100);

/// A listening socket. One in the file system is removed with it.
pub struct Listener {
    executor: Executor,
    raw: Raw,
    address: SocketAddress,
    _name: Option<SocketName>,
}

impl Listener {
    /// Listens. A socket in the file system that a process left behind is replaced, one in use is not.
    pub async fn bind(executor: &Executor, address: &SocketAddress) -> Result<Listener> {
        let failed =
            |error: io::Error| Error::from_io(error, format!("Failed to bind socket to {address}"));
        let candidates = match address {
            SocketAddress::Unix { path } => {
                let (socket, name) = SocketName::listen(Path::new(path)).map_err(failed)?;
                let (executor, address) = (executor.clone(), address.clone());
                let raw = Raw::from(OwnedFd::from(socket));
                return Ok(Listener { executor, raw, address, _name: Some(name) });
            }
            SocketAddress::Inet { host, port, .. } if host.is_empty() => everywhere(port)?,
            SocketAddress::Inet { .. } => {
                let found = resolve(executor, address).await?;
                found.into_iter().map(SockAddr::from).collect()
            }
        };
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for candidate in candidates {
            match bind_one(&candidate) {
                Ok(raw) => {
                    let address = bound(&raw, address).map_err(failed)?;
                    return Ok(Listener { executor: executor.clone(), raw, address, _name: None });
                }
                Err(error) => last = error,
            }
        }
        Err(failed(last))
    }

    /// Where it listens, with the port that the host chose.
    pub fn address(&self) -> &SocketAddress {
        &self.address
    }

    /// The next connection. Errors of the host are waited out: they pass.
    pub(crate) async fn accept(&self) -> Result<Stream> {
        let stream =
            |raw| Socket::new(raw, true).and_then(|socket| Stream::new(&self.executor, socket));
        self.accept_as(stream).await
    }

    /// The same for protocols that pass descriptors. The socket does not block.
    pub async fn accept_unix(&self) -> Result<UnixStream> {
        let stream = |raw: Raw| {
            raw.set_nonblocking(true)?;
            Ok(UnixStream::from(OwnedFd::from(raw)))
        };
        self.accept_as(stream).await
    }

    async fn accept_as<S>(&self, make: impl Fn(Raw) -> io::Result<S>) -> Result<S> {
        loop {
            match self.raw.accept().and_then(|(raw, _)| make(raw)) {
                Ok(stream) => return Ok(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.executor.readable(self.raw.as_raw_fd()).await?;
                }
                Err(error) => {
                    tracing::warn!("cannot accept a connection on {}: {error}", self.address);
                    self.executor.sleep(EXHAUSTED_DELAY).await;
                }
            }
        }
    }
}

fn bind_one(address: &SockAddr) -> io::Result<Raw> {
    let domain = Domain::from(i32::from(address.family()));
    let raw = Raw::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
    raw.set_reuse_address(true)?;
    raw.bind(address)?;
    raw.listen(BACKLOG)?;
    Ok(raw)
}

/// All addresses of this host: with IPv6 sockets that take IPv4 too, else with IPv4 alone.
fn everywhere(port: &str) -> Result<Vec<SockAddr>> {
    let port: u16 = port.parse().map_err(|_invalid| {
        Error::new(ErrorKind::InvalidArgument, format!("'{port}' is not a port number"))
    })?;
    let (six, four) = (Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into());
    Ok([six, four].map(|host| SockAddr::from(SocketAddr::new(host, port))).to_vec())
}

fn bound(raw: &Raw, asked: &SocketAddress) -> io::Result<SocketAddress> {
    let local = raw.local_addr()?.as_socket();
    Ok(match (asked, local) {
        (SocketAddress::Inet { host, keep_alive, ipv4, ipv6, .. }, Some(local)) => {
            SocketAddress::Inet {
                host: host.clone(),
                port: local.port().to_string(),
                keep_alive: *keep_alive,
                ipv4: *ipv4,
                ipv6: *ipv6,
            }
        }
        _ => asked.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn a_socket_is_not_taken_from_who_listens_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let address = SocketAddress::unix(path.to_str().unwrap());
        let executor = Executor::new(Clock::real()).unwrap();
        executor.block_on(async {
            let first = Listener::bind(&executor, &address).await.unwrap();
            let refused = Listener::bind(&executor, &address).await.err().unwrap();
            assert!(refused.to_string().contains("another process listens there"), "{refused}");
            // Somebody else has made room for another.
            std::fs::remove_file(&path).unwrap();
            let second = Listener::bind(&executor, &address).await.unwrap();
            drop(first);
            assert!(path.exists());
            drop(second);
            assert!(!path.exists());
        });
    }
}
