//! [`Overlay`]: the simplest image with an image below it, for tests of whatever works on chains.

use std::cell::RefCell;
use std::ops::Range;

use crate::bitmap::DirtyBitmap;
use crate::buf::IoBuf;
use crate::driver::{BlockDriver, Extent, ExtentKind, Limits, WriteFlags};
use crate::edge::{ChildRole, Edge, EdgePerms};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::BlockGraph;
use crate::node::BlockNode;
use crate::ranges::RangeLocks;

/// Bytes of a cluster.
const CLUSTER: u64 = 4096;

/// An image whose clusters are in `file` once they were written, and in `backing` before. Which are
/// is only in memory.
pub struct Overlay {
    file: Edge,
    backing: Edge,
    present: RefCell<DirtyBitmap>,
    writes: RangeLocks,
}

impl Overlay {
    /// An image as long as `file` where nothing was written yet.
    pub fn new(graph: &BlockGraph, file: &BlockNode, backing: &BlockNode) -> Result<Overlay> {
        let present = DirtyBitmap::new(file.len(), CLUSTER)?;
        Ok(Overlay {
            file: graph.edge(file, ChildRole::File, EdgePerms::READ_WRITE)?,
            backing: graph.backing_edge(backing)?,
            present: RefCell::new(present),
            writes: RangeLocks::new(),
        })
    }

    /// The first part of `range` that is in one place, and whether that is the file.
    fn place(&self, range: Range<u64>) -> (bool, Range<u64>) {
        match self.present.borrow().next_dirty(range.start, u64::MAX) {
            Some(run) if run.start <= range.start => (true, range.start..run.end.min(range.end)),
            Some(run) => (false, range.start..run.start.min(range.end)),
            None => (false, range),
        }
    }

    async fn read_backing(&self, at: u64, into: IoBuf) -> Result<()> {
        let there = self.backing.len().saturating_sub(at).min(into.len() as u64);
        let there = usize::try_from(there).unwrap_or(0);
        into.slice(there..into.len()).fill_zero();
        self.backing.read(at, into.slice(0..there)).await
    }

    /// Brings the whole clusters that `range` touches into the file.
    async fn bring(&self, range: Range<u64>) -> Result<()> {
        let mut at = range.start & !(CLUSTER - 1);
        while at < range.end {
            let cluster = at..(at + CLUSTER).min(self.file.len());
            if !self.present.borrow().is_dirty(at) {
                let buf = IoBuf::alloc(usize::try_from(cluster.end - at).unwrap_or(0));
                self.read_backing(at, buf.clone()).await?;
                self.file.write(at, buf, WriteFlags::NONE).await?;
                self.present.borrow_mut().mark(cluster.clone());
            }
            at = cluster.end;
        }
        Ok(())
    }
}

impl BlockDriver for Overlay {
    const FORMAT: &'static str = "overlay";

    fn limits(&self) -> Limits {
        Limits { discard_granularity: 4096, ..Limits::NONE }
    }

    fn len(&self) -> u64 {
        self.file.len()
    }

    fn filename(&self) -> Option<String> {
        None
    }

    fn children(&self) -> Vec<Edge> {
        vec![self.file.clone(), self.backing.clone()]
    }

    fn set_permissions(&self, _held: EdgePerms) -> Result<()> {
        Ok(())
    }

    async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        let mut rest = at..at + into.len() as u64;
        while rest.start < rest.end {
            let (here, piece) = self.place(rest.clone());
            let offset = |byte: u64| usize::try_from(byte - at).unwrap_or(0);
            let part = into.slice(offset(piece.start)..offset(piece.end));
            match here {
                true => self.file.read(piece.start, part).await?,
                false => self.read_backing(piece.start, part).await?,
            }
            rest.start = piece.end;
        }
        Ok(())
    }

    async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        let range = at..at + from.len() as u64;
        let guard = self.writes.lock(range.start & !(CLUSTER - 1)..range.end + CLUSTER, true).await;
        self.bring(range).await?;
        self.file.write(at, from, flags).await?;
        drop(guard);
        Ok(())
    }

    async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        let guard = self.writes.lock(range.start & !(CLUSTER - 1)..range.end + CLUSTER, true).await;
        self.bring(range.clone()).await?;
        self.file.write_zeroes(range, flags).await?;
        drop(guard);
        Ok(())
    }

    async fn discard(&self, _range: Range<u64>) -> Result<()> {
        // Giving a cluster back would show what lies below.
        Err(Error::new(ErrorKind::Unsupported, "an overlay keeps what it has"))
    }

    async fn flush(&self) -> Result<()> {
        self.file.flush().await
    }

    async fn map(&self, range: Range<u64>) -> Result<Extent> {
        let (here, piece) = self.place(range);
        let kind = if here { ExtentKind::Data } else { ExtentKind::Absent };
        Ok(Extent { kind, len: piece.end - piece.start })
    }

    async fn resize(&self, _len: u64) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "an overlay keeps its length"))
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
        self.flush().await
    }

    async fn generation(&self) -> Result<Option<u64>> {
        Ok(None)
    }
}
