//! The `compress` filter: everything written through it is stored compressed, in whole clusters.

use std::ops::Range;

use serde::Deserialize;

use crate::buf::IoBuf;
use crate::driver::{BlockDriver, Extent, ExtentKind, Limits, WriteFlags};
use crate::edge::{ChildRole, Edge, EdgePerms};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::BlockGraph;
use crate::node::BlockNode;
use crate::open::{BlockdevRef, Opening};

/// The members that `compress` has in `blockdev-add`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CompressOptions {
    /// The image below.
    pub file: BlockdevRef,
}

impl CompressOptions {
    pub(crate) async fn open(&self, opening: &Opening<'_>) -> Result<BlockNode> {
        let file = opening.child(&self.file, ChildRole::Filtered).await?;
        opening.add(Compress::new(opening.graph(), &file)?).await
    }
}

/// A filter that asks for compression.
pub struct Compress {
    file: Edge,
    /// Bytes of the image's clusters.
    cluster: u32,
}

impl Compress {
    /// A filter over an image whose format compresses.
    pub fn new(graph: &BlockGraph, file: &BlockNode) -> Result<Compress> {
        let image = file.skip_filters();
        if image.format() != "qcow2" {
            let context = format!("Compression is not supported for format {}", image.format());
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let cluster = image.limits().discard_granularity;
        Ok(Compress { file: graph.filter_edge(file, ChildRole::Filtered)?, cluster })
    }

    /// How many of `len` bytes from `at` the disk has: its last cluster may reach past its end.
    fn there(&self, at: u64, len: usize) -> usize {
        let left = self.file.len().saturating_sub(at);
        usize::try_from(left).unwrap_or(usize::MAX).min(len)
    }
}

impl BlockDriver for Compress {
    const FORMAT: &'static str = "compress";

    fn limits(&self) -> Limits {
        // The node reads what is missing of a cluster, so that whole ones arrive here.
        Limits {
            request_alignment: self.cluster,
            max_transfer: !(u64::from(self.cluster) - 1),
            max_zeroes: !(u64::from(self.cluster) - 1),
            discard_granularity: self.cluster,
            ..Limits::NONE
        }
    }

    fn len(&self) -> u64 {
        self.file.len()
    }

    fn filename(&self) -> Option<String> {
        self.file.node().filename()
    }

    fn children(&self) -> Vec<Edge> {
        vec![self.file.clone()]
    }

    fn set_permissions(&self, _held: EdgePerms) -> Result<()> {
        Ok(())
    }

    async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        let there = self.there(at, into.len());
        into.slice(there..into.len()).fill_zero();
        self.file.read(at, into.slice(0..there)).await
    }

    async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        let from = from.slice(0..self.there(at, from.len()));
        self.file.write(at, from, WriteFlags { compressed: true, ..flags }).await
    }

    async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        self.file.write_zeroes(range, flags).await
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.file.discard(range).await
    }

    async fn flush(&self) -> Result<()> {
        self.file.flush().await
    }

    async fn map(&self, range: Range<u64>) -> Result<Extent> {
        self.file.map(range).await
    }

    async fn resize(&self, len: u64) -> Result<()> {
        self.file.resize(len).await
    }

    async fn grow(&self, len: u64) -> Result<ExtentKind> {
        self.file.grow(len).await
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
        self.file.node().generation().await
    }
}

#[cfg(test)]
#[path = "compress_tests.rs"]
mod tests;
