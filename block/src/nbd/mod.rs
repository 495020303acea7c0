//! NBD: the protocol of the Network Block Device project (`doc/proto.md` there), and a server.
//!
//! The client is the driver in [`crate::protocol::nbd`].
//!
//! A client learns the size of an export when it connects. `NBD_CMD_RESIZE` is an experiment on a
//! branch of the protocol's text (`extension-resize`) that no released server or client has, so it
//! is not here either: a node that was resized has its new size for every connection made later. Our
//! client asks for it over one connection more when its node is to be resized
//! ([`crate::BlockNode::look_again`]).

pub(crate) mod proto;
mod server;

pub use server::{Export, ExportOptions, Server, ServerOptions};
