//! The `null-co` driver: a disk that forgets everything, for measuring what lies above it.

use std::ops::Range;
use std::time::Duration;

use serde::Deserialize;

use crate::buf::IoBuf;
use crate::driver::{BlockDriver, Extent, ExtentKind, Limits, WriteFlags, whole_sectors};
use crate::edge::{Edge, EdgePerms};
use crate::error::{Error, ErrorKind, Result};
use crate::executor::Executor;
use crate::node::BlockNode;
use crate::open::Opening;

/// Bytes of a disk when none are given, as in QEMU.
const DEFAULT_SIZE: u64 = 1 << 30;
/// The largest disk that QEMU knows, bytes: what a 63-bit number has room for, in whole GiB.
const MAX_SIZE: u64 = (1 << 63) - (1 << 30);

/// The members that `null-co` has in `blockdev-add`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct NullOptions {
    /// Bytes of the disk, made whole sectors (default 1 GiB).
    pub size: Option<u64>,
    /// How long each request takes (default 0).
    pub latency_ns: Option<u64>,
    /// Whether reads give zeroes (default: they leave the buffer as it is).
    pub read_zeroes: Option<bool>,
}

impl NullOptions {
    pub(crate) async fn open(&self, opening: &Opening<'_>) -> Result<BlockNode> {
        let latency = Duration::from_nanos(self.latency_ns.unwrap_or(0));
        let asked = self.size.unwrap_or(DEFAULT_SIZE);
        let size = whole_sectors(asked);
        if size > MAX_SIZE {
            let context = format!("a disk of {asked} bytes is too large");
            return Err(Error::new(ErrorKind::InvalidArgument, context));
        }
        let zeroes = self.read_zeroes == Some(true);
        let executor = opening.graph().executor().clone();
        opening.add(NullDriver::new(executor, size, zeroes, latency)).await
    }
}

/// A disk without storage.
pub struct NullDriver {
    executor: Executor,
    len: std::cell::Cell<u64>,
    read_zeroes: bool,
    latency: Duration,
}

impl NullDriver {
    /// A disk of `len` bytes whose requests take `latency`. Reads leave the buffer as it is unless
    /// `read_zeroes`.
    pub fn new(executor: Executor, len: u64, read_zeroes: bool, latency: Duration) -> NullDriver {
        NullDriver { executor, len: std::cell::Cell::new(len), read_zeroes, latency }
    }

    async fn delay(&self) -> Result<()> {
        if !self.latency.is_zero() {
            self.executor.sleep(self.latency).await;
        }
        Ok(())
    }
}

impl BlockDriver for NullDriver {
    const FORMAT: &'static str = "null-co";

    fn limits(&self) -> Limits {
        Limits::NONE
    }

    fn len(&self) -> u64 {
        self.len.get()
    }

    fn filename(&self) -> Option<String> {
        Some("null-co://".to_owned())
    }

    fn children(&self) -> Vec<Edge> {
        Vec::new()
    }

    fn set_permissions(&self, _held: EdgePerms) -> Result<()> {
        Ok(())
    }

    async fn read(&self, _at: u64, into: IoBuf) -> Result<()> {
        if self.read_zeroes {
            into.fill_zero();
        }
        self.delay().await
    }

    async fn write(&self, _at: u64, _from: IoBuf, _flags: WriteFlags) -> Result<()> {
        self.delay().await
    }

    async fn write_zeroes(&self, _range: Range<u64>, _flags: WriteFlags) -> Result<()> {
        self.delay().await
    }

    async fn discard(&self, _range: Range<u64>) -> Result<()> {
        self.delay().await
    }

    async fn flush(&self) -> Result<()> {
        self.delay().await
    }

    async fn map(&self, range: Range<u64>) -> Result<Extent> {
        let kind = if self.read_zeroes { ExtentKind::Zero } else { ExtentKind::Data };
        Ok(Extent { kind, len: range.end - range.start })
    }

    async fn resize(&self, len: u64) -> Result<()> {
        self.len.set(len);
        Ok(())
    }

    async fn grow(&self, len: u64) -> Result<ExtentKind> {
        self.resize(len).await.map(|()| ExtentKind::Zero)
    }

    async fn refresh(&self) -> Result<()> {
        Ok(())
    }

    async fn activate(&self, _only_if: Option<u64>) -> Result<()> {
        Ok(())
    }

    async fn inactivate(&self) -> Result<()> {
        Ok(())
    }

    async fn generation(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}
