//! The `raw` driver: the bytes of a file as they are, or a window of them.

use std::cell::Cell;
use std::ops::Range;

use serde::Deserialize;

use crate::buf::IoBuf;
use crate::driver::{BlockDriver, Extent, Limits, WriteFlags};
use crate::edge::{ChildRole, Edge, EdgePerms};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::BlockGraph;
use crate::node::BlockNode;
use crate::open::{BlockdevRef, Opening};

/// The members that `raw` has in `blockdev-add`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct RawOptions {
    /// The node below.
    pub file: BlockdevRef,
    /// First byte of the window (default 0).
    pub offset: Option<u64>,
    /// Bytes of the window (default: all that follow, however many they become).
    pub size: Option<u64>,
}

impl RawOptions {
    pub(crate) async fn open(&self, opening: &Opening<'_>) -> Result<BlockNode> {
        let file = opening.child(&self.file, ChildRole::File).await?;
        let offset = self.offset.unwrap_or(0);
        opening.add(RawDriver::new(opening.graph(), &file, offset, self.size)?).await
    }
}

/// A window of a file; without a size it follows the file's length.
pub struct RawDriver {
    file: Edge,
    offset: u64,
    size: Cell<Option<u64>>,
}

impl RawDriver {
    /// The bytes of `file` from `offset`, `size` of them or all.
    pub fn new(
        graph: &BlockGraph,
        file: &BlockNode,
        offset: u64,
        size: Option<u64>,
    ) -> Result<RawDriver> {
        let end = offset.checked_add(size.unwrap_or(0));
        if end.is_none_or(|end| end > file.len()) {
            let context = format!(
                "The sum of offset ({offset}) and size ({}) has to be smaller or equal to the \
                 actual size of the containing file ({})",
                size.unwrap_or(0),
                file.len()
            );
            return Err(Error::new(ErrorKind::InvalidArgument, context));
        }
        let alignment = u64::from(file.limits().request_alignment);
        if !offset.is_multiple_of(alignment) {
            let context = format!("the offset ({offset}) must be a multiple of {alignment}");
            return Err(Error::new(ErrorKind::InvalidArgument, context));
        }
        let file = graph.filter_edge(file, ChildRole::File)?;
        Ok(RawDriver { file, offset, size: Cell::new(size) })
    }

    /// The file's range behind a range of ours. The file may have become shorter since the node
    /// checked the range; its own check catches that.
    fn below(&self, range: Range<u64>) -> Result<Range<u64>> {
        let shift = |at: u64| {
            at.checked_add(self.offset).ok_or_else(|| {
                Error::new(ErrorKind::OutOfRange, "a raw window leaves the address space")
            })
        };
        Ok(shift(range.start)?..shift(range.end)?)
    }
}

impl BlockDriver for RawDriver {
    const FORMAT: &'static str = "raw";

    fn limits(&self) -> Limits {
        // The child aligns by itself; doing it here too would only cost a second look.
        Limits {
            discard_granularity: self.file.node().limits().discard_granularity,
            ..Limits::NONE
        }
    }

    fn len(&self) -> u64 {
        self.size.get().unwrap_or_else(|| self.file.len().saturating_sub(self.offset))
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
        let at = self.below(at..at)?.start;
        self.file.read(at, into).await
    }

    async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        let at = self.below(at..at)?.start;
        self.file.write(at, from, flags).await
    }

    async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        self.file.write_zeroes(self.below(range)?, flags).await
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.file.discard(self.below(range)?).await
    }

    async fn flush(&self) -> Result<()> {
        self.file.flush().await
    }

    async fn map(&self, range: Range<u64>) -> Result<Extent> {
        self.file.map(self.below(range)?).await
    }

    async fn resize(&self, len: u64) -> Result<()> {
        if self.size.get().is_some() {
            let context = "Cannot resize fixed-size raw disks";
            return Err(Error::new(ErrorKind::Unsupported, context));
        }
        let end = self.below(0..len)?.end;
        self.file.resize(end).await
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

#[cfg(test)]
#[path = "raw_tests.rs"]
mod tests;
