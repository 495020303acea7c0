//! Connecting without blocking the thread.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket as Raw, Type};

use super::socket::Socket;
use super::{SocketAddress, Stream};
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;

/// How soon a listener is tried again whose queue is full.
const FULL_QUEUE_DELAY: Duration = Duration::from_millis(5);

/// Connects. Host names are looked up on another thread; their addresses are tried in order.
pub(crate) async fn connect(executor: &Executor, address: &SocketAddress) -> Result<Stream> {
    let failed = |error| Error::from_io(error, format!("Failed to connect to '{address}'"));
    let (candidates, keep_alive) = match address {
        SocketAddress::Unix { path } => (vec![SockAddr::unix(path).map_err(failed)?], false),
        SocketAddress::Inet { keep_alive, .. } => {
            let found = resolve(executor, address).await?;
            (found.into_iter().map(SockAddr::from).collect(), keep_alive.unwrap_or(true))
        }
    };
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for candidate in candidates {
        match connect_one(executor, &candidate).await {
            Ok(raw) => {
                let stream = Socket::new(raw, keep_alive);
                let stream = stream.and_then(|socket| Stream::new(executor, socket));
                return stream.map_err(failed);
            }
            Err(error) => last = error,
        }
    }
    let refused = last.kind() == io::ErrorKind::ConnectionRefused;
    let error = failed(last);
    Err(if refused { error.with_kind(ErrorKind::Disconnected) } else { error })
}

async fn connect_one(executor: &Executor, address: &SockAddr) -> io::Result<Raw> {
    let domain = Domain::from(i32::from(address.family()));
    let raw = Raw::new(domain, Type::STREAM.nonblocking().cloexec(), None)?;
    loop {
        match raw.connect(address) {
            Ok(()) => return Ok(raw),
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => break,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                executor.sleep(FULL_QUEUE_DELAY).await;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    executor.writable(raw.as_raw_fd()).await.map_err(io::Error::other)?;
    match raw.take_error()? {
        Some(error) => Err(error),
        None => Ok(raw),
    }
}

/// The addresses of a host, of the wanted versions of IP. An empty host stands for this one.
pub(super) async fn resolve(
    executor: &Executor,
    address: &SocketAddress,
) -> Result<Vec<SocketAddr>> {
    let SocketAddress::Inet { host, port, ipv4, ipv6, .. } = address else {
        return Ok(Vec::new());
    };
    let number: u16 = port.parse().map_err(|_invalid| {
        Error::new(ErrorKind::InvalidArgument, format!("'{port}' is not a port number"))
    })?;
    let name = host.clone();
    let look_up = move || Ok((name.as_str(), number).to_socket_addrs()?.collect::<Vec<_>>());
    let found = executor.engine().blocking(look_up).await;
    let mut found: Vec<SocketAddr> = found.map_err(|error| {
        Error::from_io(error, format!("address resolution failed for {host}:{port}"))
    })?;
    // Asking for one version of IP alone excludes the other.
    let (no_v4, no_v6) = match (ipv4, ipv6) {
        (Some(true), None) => (false, true),
        (None, Some(true)) => (true, false),
        _ => (*ipv4 == Some(false), *ipv6 == Some(false)),
    };
    found.retain(|address| if address.is_ipv4() { !no_v4 } else { !no_v6 });
    Ok(found)
}
