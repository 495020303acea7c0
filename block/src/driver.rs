//! What a format, protocol or filter implements, and the adapter that makes it an object.

use std::any::Any;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;

use crate::buf::IoBuf;
use crate::edge::{Edge, EdgePerms};
use crate::error::Result;

/// What a driver can take in one request. Fixed for the driver's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Offsets and lengths of reads and writes must be multiples of it; a power of two, in bytes.
    pub request_alignment: u32,
    /// Addresses and lengths of buffer pieces must be multiples of it; a power of two, in bytes.
    pub memory_alignment: u32,
    /// Longest read or write in bytes; a multiple of the request alignment.
    pub max_transfer: u64,
    /// Longest write of zeroes or discard in bytes; a multiple of the request alignment.
    pub max_zeroes: u64,
    /// Discards and zeroes are cheap and give space back in units of this many bytes.
    pub discard_granularity: u32,
}

/// Bytes of a sector, the unit of a disk's length.
const SECTOR: u64 = 512;

/// The length of the disk in a file or export of `len` bytes. What its last sector lacks reads as
/// zeroes; to leave that sector out would lose what it holds.
pub(crate) fn whole_sectors(len: u64) -> u64 {
    len.checked_next_multiple_of(SECTOR).unwrap_or(len)
}

impl Limits {
    /// No limits at all: any byte range of any length.
    pub const NONE: Limits = Limits {
        request_alignment: 1,
        memory_alignment: 1,
        max_transfer: u64::MAX,
        max_zeroes: u64::MAX,
        discard_granularity: 1,
    };
}

/// How a write is to be done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteFlags {
    /// Durable on return (virtio's and NBD's FUA).
    pub fua: bool,
    /// Zeroes may be made by giving the space back.
    pub may_unmap: bool,
    /// Zeroes only if that is cheaper than writing them, else `Unsupported`.
    pub no_fallback: bool,
    /// Stored compressed where the format can and the write covers whole clusters. A wish: what
    /// cannot be compressed is written as it is.
    pub compressed: bool,
    /// Stays what it is when an image is put below later: zeroes that would leave nothing in this layer are
    /// written as bytes.
    pub opaque: bool,
}

impl WriteFlags {
    /// An ordinary write.
    pub const NONE: WriteFlags = WriteFlags {
        fua: false,
        may_unmap: false,
        no_fallback: false,
        compressed: false,
        opaque: false,
    };
    /// Durable on return.
    pub const FUA: WriteFlags = WriteFlags { fua: true, ..WriteFlags::NONE };
    /// Zeroes that may give the space back.
    pub const UNMAP: WriteFlags = WriteFlags { may_unmap: true, ..WriteFlags::NONE };
    /// Stored compressed where the format can.
    pub const COMPRESSED: WriteFlags = WriteFlags { compressed: true, ..WriteFlags::NONE };
}

/// What a stretch of a node consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Bytes that must be read to be known.
    Data,
    /// Zeroes that are known to be so; they may or may not occupy space.
    Zero,
    /// Not in this layer at all: reads give what lies below, or zeroes at the bottom.
    Absent,
}

/// The kind of the bytes at the start of a range that was asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// What they are.
    pub kind: ExtentKind,
    /// For how many bytes this holds: at least one, at most what was asked about.
    pub len: u64,
}

/// Implemented by every format, protocol and filter. No method has a default: a driver that cannot
/// do a thing answers `Unsupported` where everybody can see it.
///
/// Ranges are in bytes and never empty, in range (unless the length just changed: then the driver
/// answers `OutOfRange`) and aligned and short enough for [`Limits`]: [`crate::BlockNode`] sees to
/// that. Several calls may be under way at once, on one thread.
///
/// Life: opened *inactive* (reads only), then [`activate`](BlockDriver::activate), any number of
/// requests, [`inactivate`](BlockDriver::inactivate) with nothing in flight, and so on.
#[expect(clippy::len_without_is_empty, reason = "a disk of no bytes is not a special case")]
#[expect(async_fn_in_trait, reason = "everything of a graph runs on one thread; nothing is Send")]
pub trait BlockDriver: 'static {
    /// Name of the driver as in QMP's `driver` member.
    const FORMAT: &'static str;

    /// What it can take in one request.
    fn limits(&self) -> Limits;

    /// Length in bytes, as last known.
    fn len(&self) -> u64;

    /// File name for people and for QMP's `file` member; `None` if it has none.
    fn filename(&self) -> Option<String>;

    /// The edges to the nodes below. The graph re-points them; the driver must not remember what
    /// they pointed to.
    fn children(&self) -> Vec<Edge>;

    /// The permissions its parents hold together have changed. Called twice in a change: with the
    /// union of old and new (which may be refused, then nothing has changed) and with what stays
    /// (which only gives up and must succeed). A driver with locks takes and drops them here, if it
    /// is active; all others return `Ok`.
    fn set_permissions(&self, held: EdgePerms) -> Result<()>;

    /// Fills the buffer with the bytes from `at`.
    async fn read(&self, at: u64, into: IoBuf) -> Result<()>;

    /// Writes the buffer at `at`. The buffer may change while it is being written.
    async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()>;

    /// Makes the range read as zeroes.
    async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()>;

    /// The content is no longer needed; afterwards it reads as old data or zeroes.
    async fn discard(&self, range: Range<u64>) -> Result<()>;

    /// Everything written before is durable on return: the only durability verb.
    async fn flush(&self) -> Result<()>;

    /// What the bytes at the start of `range` are.
    async fn map(&self, range: Range<u64>) -> Result<Extent>;

    /// Changes the length.
    async fn resize(&self, len: u64) -> Result<()>;

    /// Makes it longer, at least `len` bytes, for who keeps an image in it: a device may be longer than
    /// that. Answers what is known of the bytes that it grew by: `Zero`, or `Data` if they may be anything.
    async fn grow(&self, len: u64) -> Result<ExtentKind>;

    /// Finds out what another process has changed: an inactive driver takes it over, with its length; one
    /// that is active keeps its length until [`resize`](BlockDriver::resize) says the one that was found.
    /// Children go first.
    async fn refresh(&self) -> Result<()>;

    /// Takes write ownership: locks as its permissions ask for, forgets every mutable thing it has
    /// cached, reads the length again. With `only_if` refuses unless the generation mark still is
    /// that (`OwnershipUnknown` if it is not, or none can be kept). With write permission it then
    /// advances the mark. Children are active before their parents.
    async fn activate(&self, only_if: Option<u64>) -> Result<()>;

    /// Writes everything out durably, then gives ownership and locks up. Parents go first.
    async fn inactivate(&self) -> Result<()>;

    /// The generation mark stored with the image; `None` where none can be kept.
    async fn generation(&self) -> Result<Option<u64>>;
}

/// A boxed future of this thread.
pub type LocalBoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + 'a>>;

/// [`BlockDriver`] as an object; implemented for every driver, never by hand.
#[expect(missing_docs, reason = "each method is the one of the same name in BlockDriver")]
#[expect(clippy::len_without_is_empty, reason = "a disk of no bytes is not a special case")]
pub trait DynDriver {
    /// The driver itself, for whoever knows what it is: see [`crate::BlockNode::driver`].
    fn as_any(&self) -> &dyn Any;
    fn format(&self) -> &'static str;
    fn limits(&self) -> Limits;
    fn len(&self) -> u64;
    fn filename(&self) -> Option<String>;
    fn children(&self) -> Vec<Edge>;
    fn set_permissions(&self, held: EdgePerms) -> Result<()>;
    fn read(&self, at: u64, into: IoBuf) -> LocalBoxFuture<'_, Result<()>>;
    fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> LocalBoxFuture<'_, Result<()>>;
    fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> LocalBoxFuture<'_, Result<()>>;
    fn discard(&self, range: Range<u64>) -> LocalBoxFuture<'_, Result<()>>;
    fn flush(&self) -> LocalBoxFuture<'_, Result<()>>;
    fn map(&self, range: Range<u64>) -> LocalBoxFuture<'_, Result<Extent>>;
    fn resize(&self, len: u64) -> LocalBoxFuture<'_, Result<()>>;
    fn grow(&self, len: u64) -> LocalBoxFuture<'_, Result<ExtentKind>>;
    fn refresh(&self) -> LocalBoxFuture<'_, Result<()>>;
    fn activate(&self, only_if: Option<u64>) -> LocalBoxFuture<'_, Result<()>>;
    fn inactivate(&self) -> LocalBoxFuture<'_, Result<()>>;
    fn generation(&self) -> LocalBoxFuture<'_, Result<Option<u64>>>;
}

impl<D: BlockDriver> DynDriver for D {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn format(&self) -> &'static str {
        D::FORMAT
    }
    fn limits(&self) -> Limits {
        BlockDriver::limits(self)
    }
    fn len(&self) -> u64 {
        BlockDriver::len(self)
    }
    fn filename(&self) -> Option<String> {
        BlockDriver::filename(self)
    }
    fn children(&self) -> Vec<Edge> {
        BlockDriver::children(self)
    }
    fn set_permissions(&self, held: EdgePerms) -> Result<()> {
        BlockDriver::set_permissions(self, held)
    }
    fn read(&self, at: u64, into: IoBuf) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(BlockDriver::read(self, at, into))
    }
    fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(BlockDriver::write(self, at, from, flags))
    }
    fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(BlockDriver::write_zeroes(self, range, flags))
    }
    fn discard(&self, range: Range<u64>) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(BlockDriver::discard(self, range))
    }
    fn flush(&self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(BlockDriver::flush(self))
    }
    fn map(&self, range: Range<u64>) -> LocalBoxFuture<'_, Result<Extent>> {
        Box::pin(BlockDriver::map(self, range))
    }
    fn resize(&self, len: u64) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(BlockDriver::resize(self, len))
    }
    fn grow(&self, len: u64) -> LocalBoxFuture<'_, Result<ExtentKind>> {
        Box::pin(BlockDriver::grow(self, len))
    }
    fn refresh(&self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(BlockDriver::refresh(self))
    }
    fn activate(&self, only_if: Option<u64>) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(BlockDriver::activate(self, only_if))
    }
    fn inactivate(&self) -> LocalBoxFuture<'_, Result<()>> {
        Box::pin(BlockDriver::inactivate(self))
    }
    fn generation(&self) -> LocalBoxFuture<'_, Result<Option<u64>>> {
        Box::pin(BlockDriver::generation(self))
    }
}
