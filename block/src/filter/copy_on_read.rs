//! The `copy-on-read` filter: what is read from the images below is kept in the image on top.

use std::ops::Range;
use std::rc::Rc;

use serde::Deserialize;

use crate::buf::IoBuf;
use crate::driver::{BlockDriver, Extent, ExtentKind, Limits, WriteFlags};
use crate::edge::{ChildRole, Edge, EdgePerms, Perms};
use crate::error::{Error, ErrorKind, Result};
use crate::executor::{Carried, Executor};
use crate::graph::BlockGraph;
use crate::node::BlockNode;
use crate::open::{BlockdevRef, Opening};
use crate::ranges::{RangeGuard, RangeLocks};

/// Smallest piece that is copied, bytes.
const MIN_UNIT: u64 = 4096;
/// Longest piece that is copied at once, bytes.
const MAX_COPY: u64 = 1 << 20;

/// The members that `copy-on-read` has in `blockdev-add`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CopyOnReadOptions {
    /// The image on top, with its chain below it.
    pub file: BlockdevRef,
    /// The lowest image whose data is copied up (default: all below the top).
    pub bottom: Option<String>,
}

impl CopyOnReadOptions {
    pub(crate) async fn open(&self, opening: &Opening<'_>) -> Result<BlockNode> {
        let file = opening.child(&self.file, ChildRole::Filtered).await?;
        let mut chain = file.passes_to();
        let read_only = opening.node_options().read_only;
        if let Some(node) = chain.find(BlockNode::is_read_only).filter(|_| !read_only) {
            // Nothing would ever be copied, and the user did not say that nothing shall be.
            let context = format!("Block node '{}' is read-only", node.name());
            return Err(Error::new(ErrorKind::ReadOnly, context));
        }
        opening.add(CopyOnRead::new(opening.graph(), &file, self.bottom.as_deref())?).await
    }
}

/// A filter that copies what is read.
pub struct CopyOnRead {
    executor: Executor,
    file: Edge,
    /// Keeps the lowest image whose data is copied; does nothing with it.
    bottom: Option<Edge>,
    /// Copies hold their range alone, writes share theirs: a copy never overwrites newer data.
    ranges: RangeLocks,
}

impl CopyOnRead {
    /// A filter over `file` that copies from the images below it, down to `bottom`.
    pub fn new(graph: &BlockGraph, file: &BlockNode, bottom: Option<&str>) -> Result<CopyOnRead> {
        let refuse =
            |text: String| Err::<BlockNode, _>(Error::new(ErrorKind::InvalidArgument, text));
        let bottom = match bottom {
            None => None,
            Some(name) => Some(match graph.node(name) {
                None => refuse(format!("Bottom node '{name}' not found"))?,
                Some(node) if node.format() != "raw" && node.filtered().is_some() => {
                    refuse(format!("Bottom node '{name}' is a filter"))?
                }
                Some(node) if node.is_same(&file.skip_filters()) || !below(file, &node) => {
                    refuse(format!("Bottom node '{name}' is not below node '{}'", file.name()))?
                }
                Some(node) => node,
            }),
        };
        let bottom = bottom
            .map(|node| graph.edge(&node, ChildRole::Filtered, EdgePerms::IDLE))
            .transpose()?;
        // What it writes is what would have been read anyway.
        let own = EdgePerms { needs: Perms::WRITE_UNCHANGED, shares: Perms::ALL };
        let file = graph.filter_edge_with(file, ChildRole::Filtered, own)?;
        let executor = graph.executor().clone();
        Ok(CopyOnRead { executor, file, bottom, ranges: RangeLocks::new() })
    }

    /// What a piece is rounded out to.
    fn unit(&self) -> u64 {
        let granularity = u64::from(self.file.node().limits().discard_granularity);
        granularity.clamp(MIN_UNIT, MAX_COPY)
    }

    /// How many bytes at the start of `range` are alike, and whether they are to be copied: the top
    /// has nothing there, and an image below has, no lower than `bottom`.
    async fn wanted(&self, range: Range<u64>) -> Result<(bool, u64)> {
        let top = self.file.node();
        let extent = top.map(range.clone()).await?;
        let below = top.backing().filter(|_| extent.kind == ExtentKind::Absent);
        let Some(below) = below else { return Ok((false, extent.len)) };
        let Some(bottom) = self.bottom.as_ref().map(Edge::node) else {
            return Ok((true, extent.len));
        };
        if range.start >= below.len() {
            return Ok((true, extent.len));
        }
        let end = range.start.saturating_add(extent.len).min(below.len());
        let base = bottom.backing();
        let found = below.map_above(base.as_ref(), range.start..end).await?;
        Ok((found.kind != ExtentKind::Absent, found.len))
    }

    /// Copies `range` into the top, unless a write was faster. A copy that cannot be stored is not
    /// an error: the reader gets its bytes from below as before.
    async fn copy(&self, range: Range<u64>) -> Result<()> {
        let guard = Rc::new(self.ranges.lock(range.clone(), true).await);
        let mut at = range.start;
        while at < range.end {
            let (wanted, len) = self.wanted(at..range.end).await?;
            if wanted {
                let buf = IoBuf::alloc(usize::try_from(len).unwrap_or(usize::MAX));
                self.file.read(at, buf.clone()).await?;
                if let Err(error) = self.store(at, buf, &guard).await {
                    tracing::debug!("copy on read is not stored: {error}");
                    break;
                }
            }
            at += len;
        }
        drop(guard);
        Ok(())
    }

    /// Writes a copy. When the reader gives it up it goes on, and keeps its range until then: it would
    /// land on what others write there meanwhile.
    async fn store(&self, at: u64, copy: IoBuf, guard: &Rc<RangeGuard>) -> Result<()> {
        let (file, guard) = (self.file.clone(), Rc::clone(guard));
        Carried::new(&self.executor, async move {
            let stored = match copy.is_zero() {
                true => file.write_zeroes(at..at + copy.len() as u64, WriteFlags::NONE).await,
                false => file.write(at, copy, WriteFlags::NONE).await,
            };
            drop(guard);
            stored
        })
        .await
    }

    /// Copies everything of `range` that is to be copied.
    async fn copy_all(&self, range: &Range<u64>) -> Result<()> {
        let (unit, disk) = (self.unit(), self.len());
        let mut at = range.start;
        while at < range.end {
            let (wanted, len) = self.wanted(at..range.end).await?;
            let mut end = at.saturating_add(len);
            if wanted {
                let start = at & !(unit - 1);
                end = end.checked_next_multiple_of(unit).unwrap_or(disk).min(disk);
                end = end.min(start.saturating_add(MAX_COPY));
                self.copy(start..end).await?;
            }
            at = end;
        }
        Ok(())
    }
}

/// Whether `node` is an image somewhere below `top`.
fn below(top: &BlockNode, node: &BlockNode) -> bool {
    let mut chain = std::iter::successors(top.backing(), BlockNode::backing);
    chain.any(|layer| layer.is_same(node) || layer.skip_filters().is_same(node))
}

impl BlockDriver for CopyOnRead {
    const FORMAT: &'static str = "copy-on-read";

    fn limits(&self) -> Limits {
        Limits {
            discard_granularity: self.file.node().limits().discard_granularity,
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
        std::iter::once(&self.file).chain(&self.bottom).cloned().collect()
    }

    fn set_permissions(&self, _held: EdgePerms) -> Result<()> {
        Ok(())
    }

    async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        let top = self.file.node();
        if top.is_active() && !top.is_read_only() {
            let range = at..at.saturating_add(into.len() as u64);
            self.copy_all(&range).await?;
        }
        self.file.read(at, into).await
    }

    async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        let end = at.saturating_add(from.len() as u64);
        let guard = self.ranges.lock(at..end, false).await;
        let result = self.file.write(at, from, flags).await;
        drop(guard);
        result
    }

    async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        let guard = self.ranges.lock(range.clone(), false).await;
        let result = self.file.write_zeroes(range, flags).await;
        drop(guard);
        result
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        let guard = self.ranges.lock(range.clone(), false).await;
        let result = self.file.discard(range).await;
        drop(guard);
        result
    }

    async fn flush(&self) -> Result<()> {
        self.file.flush().await
    }

    async fn map(&self, range: Range<u64>) -> Result<Extent> {
        self.file.map(range).await
    }

    async fn resize(&self, len: u64) -> Result<()> {
        // A copy that began before must not land in a part that was cut off and grown again.
        let guard = self.ranges.lock(0..u64::MAX, true).await;
        let result = self.file.resize(len).await;
        drop(guard);
        result
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
#[path = "copy_on_read_tests.rs"]
mod tests;
