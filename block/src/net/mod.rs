//! Sockets of the graph's thread: addresses, listening, connecting, and streams with or without TLS.

mod address;
mod tls;

pub use address::SocketAddress;
pub use tls::{TlsCreds, TlsCredsOptions, TlsEndpoint};
