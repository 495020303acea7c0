//! Sockets of the graph's thread: addresses, listening, connecting, and streams with or without TLS.

mod address;
mod connect;
mod listener;
mod outbox;
mod socket;
mod socket_name;
mod stream;
mod tls;

use std::io;

use crate::error::{Error, ErrorKind};

pub use address::SocketAddress;
pub use listener::Listener;
pub use socket_name::SocketName;
pub use tls::{TlsCreds, TlsCredsOptions, TlsEndpoint, no_psk};

pub(crate) use connect::connect;
pub(crate) use outbox::Outbox;
pub(crate) use stream::Stream;

/// A connection that broke.
pub(crate) fn lost(error: io::Error) -> Error {
    if tls::is_refusal(&error) {
        return tls::handshake_error(&error);
    }
    Error::from_io(error, "the connection is lost").with_kind(ErrorKind::Disconnected)
}
