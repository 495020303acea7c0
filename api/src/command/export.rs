//! Exports: nodes that other programs may use.

use super::{BlockDirtyBitmapOrStr, SocketAddress, SocketAddressLegacy};
use crate::schema::{enumeration, object, union};

object! {
    /// Arguments of `nbd-server-start`.
    pub struct NbdServerStart {
        /// Where to listen.
        addr: SocketAddressLegacy = "addr",
        /// Id of TLS credentials, which clients then must use.
        tls_creds: Option<String> = "tls-creds",
        /// Most clients at one time, 0 for any number (default).
        max_connections: Option<u32> = "max-connections",
    }
}

object! {
    /// The same on a command line.
    pub struct NbdServerOptions {
        /// Where to listen.
        addr: SocketAddress = "addr",
        /// Id of TLS credentials, which clients then must use.
        tls_creds: Option<String> = "tls-creds",
        /// Most clients at one time, 0 for any number (default).
        max_connections: Option<u32> = "max-connections",
    }
}

object! {
    /// Arguments of `nbd-server-add`, the older form of `block-export-add`.
    pub struct NbdServerAdd {
        /// Name that clients ask for (default: the device's).
        name: Option<String> = "name",
        /// What it is, for people.
        description: Option<String> = "description",
        /// The device or node.
        device: String = "device",
        /// Whether clients may write (default false).
        writable: Option<bool> = "writable",
        /// A dirty bitmap that clients may read.
        bitmap: Option<String> = "bitmap",
    }
}

enumeration! {
    /// What becomes of the clients of an export that is taken away.
    pub enum BlockExportRemoveMode {
        /// The export stays while there are any.
        Safe = "safe",
        /// They are disconnected.
        Hard = "hard",
    }
}

object! {
    /// Arguments of `nbd-server-remove`.
    pub struct NbdServerRemove {
        /// Name of the export.
        name: String = "name",
        /// What becomes of its clients (default safe).
        mode: Option<BlockExportRemoveMode> = "mode",
    }
}

union! {
    /// Arguments of `block-export-add`.
    pub struct BlockExportOptions {
        /// Name of the export in commands and events.
        id: String = "id",
        /// The node.
        node_name: String = "node-name",
        /// Whether clients may write (default false).
        writable: Option<bool> = "writable",
        /// Whether every write is durable before it is answered (default false).
        writethrough: Option<bool> = "writethrough",
        ..
        /// The kind with its own options.
        kind: BlockExportKind = "type",
    }
    /// The kinds of exports.
    pub enum BlockExportKind {
        /// By the NBD server that `nbd-server-start` started.
        Nbd(BlockExportOptionsNbd) = "nbd",
        /// As a disk for a guest of another monitor.
        VhostUserBlk(BlockExportOptionsVhostUserBlk) = "vhost-user-blk",
    }
}

object! {
    /// Options of a vhost-user-blk export.
    pub struct BlockExportOptionsVhostUserBlk {
        /// Where to listen: a socket of type unix.
        addr: SocketAddress = "addr",
        /// Bytes of a logical block (default 512).
        logical_block_size: Option<u32> = "logical-block-size",
        /// How many queues the guest may use (default 1).
        num_queues: Option<u32> = "num-queues",
    }
}

object! {
    /// Options of an NBD export.
    #[derive(Default)]
    pub struct BlockExportOptionsNbd {
        /// Name that clients ask for (default: the node's).
        name: Option<String> = "name",
        /// What it is, for people.
        description: Option<String> = "description",
        /// Dirty bitmaps that clients may read.
        bitmaps: Option<Vec<BlockDirtyBitmapOrStr>> = "bitmaps",
        /// Whether clients may read the depth of allocation (default false).
        allocation_depth: Option<bool> = "allocation-depth",
    }
}

object! {
    /// Arguments of `block-export-del`.
    pub struct BlockExportDel {
        /// The export.
        id: String = "id",
        /// What becomes of its clients (default safe).
        mode: Option<BlockExportRemoveMode> = "mode",
    }
}

enumeration! {
    /// Kinds of exports.
    pub enum BlockExportType {
        /// NBD.
        Nbd = "nbd",
        /// A disk for a guest of another monitor.
        VhostUserBlk = "vhost-user-blk",
    }
}

object! {
    /// An export: one entry of `query-block-exports`.
    pub struct BlockExportInfo {
        /// Its name.
        id: String = "id",
        /// Its kind.
        kind: BlockExportType = "type",
        /// The node that it exports now.
        node_name: String = "node-name",
        /// Whether it is being taken away.
        shutting_down: bool = "shutting-down",
    }
}
