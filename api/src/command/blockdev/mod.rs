//! Block nodes: what `blockdev-add` and its relatives take.

mod filter;
mod nbd;
mod qcow2;

use serde::{Deserialize, Deserializer, Serialize};

pub use self::{filter::*, nbd::*, qcow2::*};
use crate::schema::{Alternate, Described, Type, enumeration, object, union};

enumeration! {
    /// What becomes of a discard request.
    pub enum Discard {
        /// It is ignored.
        Ignore = "ignore",
        /// It is passed on.
        Unmap = "unmap",
    }
}

enumeration! {
    /// Whether writes of zeroes are recognised.
    #[derive(Default)]
    pub enum DetectZeroes {
        /// They are written like any data.
        #[default]
        Off = "off",
        /// They become write-zeroes requests.
        On = "on",
        /// They become write-zeroes requests that may unmap.
        Unmap = "unmap",
    }
}

enumeration! {
    /// On, off, or whatever is best.
    pub enum OnOffAuto {
        /// Decide by what the host can do.
        Auto = "auto",
        /// Required.
        On = "on",
        /// Never.
        Off = "off",
    }
}

enumeration! {
    /// How requests reach the host's kernel.
    pub enum Aio {
        /// A pool of threads.
        Threads = "threads",
        /// Linux AIO; served by io_uring as well.
        Native = "native",
        /// io_uring.
        IoUring = "io_uring",
    }
}

object! {
    /// Caching of a node.
    #[derive(Default)]
    pub struct CacheOptions {
        /// Bypass the host's page cache (default false).
        direct: Option<bool> = "direct",
        /// Ignore flushes: faster, and the disk is lost with the host (default false).
        no_flush: Option<bool> = "no-flush",
    }
}

union! {
    /// Arguments of `blockdev-add`: a node, and by nesting the nodes below it.
    pub struct BlockdevOptions {
        /// The node's name; mandatory for the outermost node.
        node_name: Option<String> = "node-name",
        /// What becomes of discards (default ignore).
        discard: Option<Discard> = "discard",
        /// Caching.
        cache: Option<CacheOptions> = "cache",
        /// Refuse writes (default false).
        read_only: Option<bool> = "read-only",
        /// Refuse writes only if the storage does (default false).
        auto_read_only: Option<bool> = "auto-read-only",
        /// Open beside others who write (default false; only read-only).
        force_share: Option<bool> = "force-share",
        /// Whether writes of zeroes are recognised (default off).
        detect_zeroes: Option<DetectZeroes> = "detect-zeroes",
        /// Take write ownership at once (default true).
        active: Option<bool> = "active",
        ..
        /// The driver and its own options.
        driver: BlockdevDriver = "driver",
    }
    /// A block driver with its options.
    pub enum BlockdevDriver {
        /// Errors on purpose.
        Blkdebug(Box<BlkdebugOptions>) = "blkdebug",
        /// Compresses what is written.
        Compress(FilterOptions) = "compress",
        /// Copies what is about to be overwritten to a second node first.
        CopyBeforeWrite(CopyBeforeWriteOptions) = "copy-before-write",
        /// Keeps what is read from backing files.
        CopyOnRead(CopyOnReadOptions) = "copy-on-read",
        /// A regular file.
        File(FileOptions) = "file",
        /// The disk as it was when a `copy-before-write` was inserted.
        SnapshotAccess(FilterOptions) = "snapshot-access",
        /// A block device of the host.
        HostDevice(FileOptions) = "host_device",
        /// What an NBD server exports.
        Nbd(NbdOptions) = "nbd",
        /// Nothing: reads anything, forgets writes.
        NullCo(NullOptions) = "null-co",
        /// A qcow2 image.
        Qcow2(Box<Qcow2Options>) = "qcow2",
        /// A disk image without a format.
        Raw(RawOptions) = "raw",
        /// Limits on requests.
        Throttle(ThrottleOptions) = "throttle",
    }
}

object! {
    /// Options of `file` and `host_device`.
    pub struct FileOptions {
        /// Path on the host.
        filename: String = "filename",
        /// Whether to lock the file against other processes (default auto).
        locking: Option<OnOffAuto> = "locking",
        /// How requests reach the kernel (default: the best that works).
        aio: Option<Aio> = "aio",
        /// Most requests in one batch of Linux AIO (default 0: no limit of its own).
        aio_max_batch: Option<i64> = "aio-max-batch",
    }
}

object! {
    /// Options of `null-co`.
    #[derive(Default)]
    pub struct NullOptions {
        /// Length in bytes (default 1 GiB).
        size: Option<i64> = "size",
        /// How long each request takes, in nanoseconds (default 0).
        latency_ns: Option<u64> = "latency-ns",
        /// Whether reads return zeroes (default false: whatever is in the buffer).
        read_zeroes: Option<bool> = "read-zeroes",
    }
}

object! {
    /// Options of `raw`.
    pub struct RawOptions {
        /// The node with the data.
        file: BlockdevRef = "file",
        /// First byte of the image within `file` (default 0).
        offset: Option<i64> = "offset",
        /// Length of the image (default: up to the end of `file`).
        size: Option<i64> = "size",
    }
}

/// A node below another one: by name, or described in place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BlockdevRef {
    /// The name of a node that exists.
    Reference(String),
    /// A node to create.
    Definition(Box<BlockdevOptions>),
}

impl Described for BlockdevRef {
    fn describe() -> Type {
        static ALTERNATE: Alternate = Alternate {
            name: "BlockdevRef",
            members: &[BlockdevOptions::describe, String::describe],
        };
        Type::Alternate(&ALTERNATE)
    }
}

/// A node below another one, or none although the image names one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BlockdevRefOrNull {
    /// No node (`null`).
    Null,
    /// The name of a node that exists.
    Reference(String),
    /// A node to create.
    Definition(Box<BlockdevOptions>),
}

impl Described for BlockdevRefOrNull {
    fn describe() -> Type {
        static ALTERNATE: Alternate = Alternate {
            name: "BlockdevRefOrNull",
            members: &[BlockdevOptions::describe, String::describe, || Type::Null],
        };
        Type::Alternate(&ALTERNATE)
    }
}

/// A member that is there although it is null.
fn present<'de, D, T>(from: D) -> Result<Option<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    T::deserialize(from).map(Some)
}

object! {
    /// Arguments of `blockdev-reopen`.
    pub struct BlockdevReopen {
        /// The nodes with all their options: what is not said gets its default.
        options: Vec<BlockdevOptions> = "options",
    }
}

object! {
    /// Arguments of `block_resize`.
    pub struct BlockResize {
        /// The device.
        device: Option<String> = "device",
        /// Or the node.
        node_name: Option<String> = "node-name",
        /// The new length in bytes.
        size: i64 = "size",
    }
}

object! {
    /// Arguments of `blockdev-set-active`.
    pub struct BlockdevSetActive {
        /// The node (default: all of them).
        node_name: Option<String> = "node-name",
        /// Whether to take write ownership or to give it up.
        active: bool = "active",
    }
}

object! {
    /// Arguments of `blockdev-del`.
    pub struct BlockdevDel {
        /// The node to remove.
        node_name: String = "node-name",
    }
}

object! {
    /// Arguments of `query-named-block-nodes`.
    #[derive(Default)]
    pub struct QueryNamedBlockNodes {
        /// Leave out the images below (default false).
        flat: Option<bool> = "flat",
    }
}

object! {
    /// Arguments of `query-blockstats`.
    #[derive(Default)]
    pub struct QueryBlockstats {
        /// Tell about all named nodes instead of devices (default false).
        query_nodes: Option<bool> = "query-nodes",
    }
}

enumeration! {
    /// What a device or job knows of its last errors.
    pub enum IoStatus {
        /// No error.
        Ok = "ok",
        /// An I/O error.
        Failed = "failed",
        /// No space left.
        NoSpace = "nospace",
    }
}

enumeration! {
    /// Direction of a request.
    pub enum IoOperation {
        /// Reading.
        Read = "read",
        /// Writing.
        Write = "write",
    }
}

enumeration! {
    /// What was done about an I/O error.
    pub enum ErrorAction {
        /// Nothing: the request is tried again or was not needed.
        Ignore = "ignore",
        /// Whoever asked was told.
        Report = "report",
        /// The guest or the job was stopped.
        Stop = "stop",
    }
}
