//! The `raw` driver: the bytes of a file as they are, or a window of them.

use std::cell::Cell;
use std::ops::Range;

use serde::Deserialize;

use crate::buf::IoBuf;
use crate::driver::{BlockDriver, Extent, ExtentKind, Limits, WriteFlags};
use crate::edge::{ChildRole, Edge, EdgePerms, Perms};
use crate::error::{Error, ErrorKind, Result};
use crate::format::{PROBED_BYTES, recognise};
use crate::graph::BlockGraph;
use crate::node::BlockNode;
use crate::open::{BlockdevRef, Opening};
use crate::ranges::{RangeGuard, RangeLocks};

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
    /// Nobody said that the image is raw, it only looks so: it must not come to look like something else.
    #[serde(skip)]
    pub guessed: bool,
}

impl RawOptions {
    pub(crate) async fn open(&self, opening: &Opening<'_>) -> Result<BlockNode> {
        let file = opening.child(&self.file, ChildRole::File).await?;
        let offset = self.offset.unwrap_or(0);
        let driver = RawDriver::new(opening.graph(), &file, offset, self.size)?;
        opening.add(RawDriver { guessed: self.guessed.then(RangeLocks::new), ..driver }).await
    }
}

/// A window of a file; without a size it follows the file's length.
pub struct RawDriver {
    file: Edge,
    offset: u64,
    size: Cell<Option<u64>>,
    /// Set if the content has decided that the image is raw. Then it must not be made to look like
    /// another format, which the next one to guess would believe.
    guessed: Option<RangeLocks>,
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
        // Another's change of the file's length could leave the window, or a part of it, behind the end.
        let is_window = offset != 0 || size.is_some();
        let shares = if is_window { !Perms::RESIZE } else { Perms::ALL };
        let own = EdgePerms { needs: Perms::NONE, shares };
        let file = graph.filter_edge_with(file, ChildRole::File, own)?;
        Ok(RawDriver { file, offset, size: Cell::new(size), guessed: None })
    }

    /// The first byte of a window, and how many there are if that is fixed; `None` for all of the file.
    pub(crate) fn window(&self) -> Option<(u64, Option<u64>)> {
        let window = (self.offset, self.size.get());
        (window != (0, None)).then_some(window)
    }

    /// The node below, and which byte of it the byte `at` is.
    pub(crate) fn place(&self, at: u64) -> Result<(BlockNode, u64)> {
        Ok((self.file.node(), self.below(at..at)?.start))
    }

    /// Refuses a write that would make an image that was taken for raw look like something else.
    /// What may be written is a copy, for the owner of the buffer could change it after the look.
    /// Until the guard is dropped no other write to the block that is looked at begins.
    async fn check_guess(
        &self,
        locks: &RangeLocks,
        at: u64,
        from: &IoBuf,
    ) -> Result<(RangeGuard, IoBuf)> {
        let from = IoBuf::from_vec(&from.to_vec());
        let guard = locks.lock(0..1, true).await;
        let len = usize::try_from(self.len()).unwrap_or(usize::MAX).min(PROBED_BYTES);
        let head = IoBuf::alloc(len);
        self.file.read(self.below(0..0)?.start, head.clone()).await?;
        let mut head = head.to_vec();
        let start = usize::try_from(at).unwrap_or(usize::MAX).min(len);
        let end = start.saturating_add(from.len()).min(len);
        from.slice(0..end - start).copy_to(&mut head[start..end]);
        let Some(format) = recognise(&head) else { return Ok((guard, from)) };
        let text = format!(
            "the format of the image was not given and taken to be raw, so a write to its first \
             block that makes it look like '{format}' is refused: give the format 'raw' to allow it"
        );
        Err(Error::new(ErrorKind::PermissionDenied, text))
    }

    /// Refuses a window of a fixed length.
    fn check_follows(&self) -> Result<()> {
        match self.size.get() {
            None => Ok(()),
            Some(_) => {
                let context = "Cannot resize fixed-size raw disks";
                Err(Error::new(ErrorKind::Unsupported, context))
            }
        }
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
        let place = self.below(at..at)?.start;
        match &self.guessed {
            Some(locks) if at < PROBED_BYTES as u64 => {
                let (guard, from) = self.check_guess(locks, at, &from).await?;
                let written = self.file.write(place, from, flags).await;
                drop(guard);
                written
            }
            _ => self.file.write(place, from, flags).await,
        }
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
        self.check_follows()?;
        let end = self.below(0..len)?.end;
        self.file.resize(end).await
    }

    async fn grow(&self, len: u64) -> Result<ExtentKind> {
        self.check_follows()?;
        let end = self.below(0..len)?.end;
        self.file.grow(end).await
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

#[cfg(test)]
#[path = "raw_tests.rs"]
mod tests;
