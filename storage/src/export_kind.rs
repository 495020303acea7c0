//! Kinds of exports that need more than the block layer: whoever starts the process brings them.

use std::rc::Rc;

use ferry_block::net::SocketAddress;
use ferry_block::{BlockGraph, LocalBoxFuture, Result};

/// What `block-export-add` says of an export of type `vhost-user-blk`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUserBlkOptions {
    /// Identifies the export.
    pub id: String,
    /// The node.
    pub node_name: String,
    /// Where to listen.
    pub address: SocketAddress,
    /// Whether the guest may write.
    pub writable: bool,
    /// Whether every write is durable before it is answered.
    pub writethrough: bool,
    /// Bytes of a logical block.
    pub block_size: u32,
    /// How many queues the guest may use.
    pub queues: u16,
}

/// An export of the graph, on the graph's thread.
pub trait RunningExport {
    /// The node that it exports now.
    fn node_name(&self) -> String;

    /// Whether somebody uses it.
    fn has_client(&self) -> bool;

    /// Lets nobody in any more, from this moment on: what has not begun is given up.
    fn retire(&self);

    /// Sends away who uses it. When this is over, nothing is in flight and nobody can come.
    fn close(&self) -> LocalBoxFuture<'_, ()>;
}

/// Starts an export of one kind.
pub type StartExport<O> =
    fn(BlockGraph, O) -> LocalBoxFuture<'static, Result<Rc<dyn RunningExport>>>;

/// The kinds that a process has besides NBD.
#[derive(Clone, Copy, Debug)]
pub struct ExportKinds {
    /// `vhost-user-blk`
    pub vhost_user_blk: StartExport<VhostUserBlkOptions>,
}

#[cfg(test)]
impl ExportKinds {
    /// For tests in which nothing is exported.
    pub(crate) const NONE: ExportKinds = ExportKinds {
        vhost_user_blk: |_, _| {
            let error = ferry_block::Error::new(ferry_block::ErrorKind::Unsupported, "not here");
            Box::pin(std::future::ready(Err(error)))
        },
    };
}
