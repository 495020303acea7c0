//! NBD: the protocol of the Network Block Device project (`doc/proto.md` there), and a server.
//!
//! The client is the driver in [`crate::protocol::nbd`].

pub(crate) mod proto;
mod server;

pub use server::{ExportInfo, ExportOptions, RemoveMode, Server, ServerOptions};
