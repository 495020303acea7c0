//! The `copy-before-write` filter: before the guest overwrites anything, the old content goes to a
//! target. Together they hold the disk as it was when the filter came; [`SnapshotAccess`] shows
//! that as a node.

mod access;
mod state;

use std::ops::Range;
use std::time::Duration;

use serde::Deserialize;

use crate::buf::IoBuf;
use crate::driver::{BlockDriver, Extent, ExtentKind, Limits, WriteFlags};
use crate::edge::{ChildRole, Edge, EdgePerms, Perms};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::BlockGraph;
use crate::node::BlockNode;
use crate::open::{BlockdevRef, Opening};

pub use access::{SnapshotAccess, SnapshotAccessOptions};
use state::State;

/// A dirty bitmap of a node.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct BitmapRef {
    /// The node.
    pub node: String,
    /// The bitmap's name.
    pub name: String,
}

/// What happens when old content cannot be copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnCbwError {
    /// The guest's write fails.
    #[default]
    BreakGuestWrite,
    /// The guest's write goes on, and the snapshot can no longer be read.
    BreakSnapshot,
}

/// The members that `copy-before-write` has in `blockdev-add`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct CopyBeforeWriteOptions {
    /// The guest's disk.
    pub file: BlockdevRef,
    /// Where old content goes.
    pub target: BlockdevRef,
    /// Only what is dirty in it belongs to the snapshot (default: everything).
    pub bitmap: Option<BitmapRef>,
    /// What happens when copying fails.
    pub on_cbw_error: Option<OnCbwError>,
    /// Seconds after which a copy counts as failed; 0 (default) waits for ever.
    pub cbw_timeout: Option<u32>,
}

impl CopyBeforeWriteOptions {
    pub(crate) async fn open(&self, opening: &Opening<'_>) -> Result<BlockNode> {
        let file = opening.child(&self.file, ChildRole::Filtered).await?;
        let target = opening.child(&self.target, ChildRole::Target).await?;
        opening.add(CopyBeforeWrite::new(opening.graph(), &file, &target, self)?).await
    }
}

/// A filter that saves what is overwritten.
pub struct CopyBeforeWrite {
    file: Edge,
    target: Edge,
    state: State,
}

impl CopyBeforeWrite {
    /// A filter over `file` that saves to `target`; the snapshot is what `file` holds now.
    pub fn new(
        graph: &BlockGraph,
        file: &BlockNode,
        target: &BlockNode,
        options: &CopyBeforeWriteOptions,
    ) -> Result<CopyBeforeWrite> {
        if target.len() < file.len() {
            let context = format!(
                "Target '{}' of {} bytes is shorter than source '{}' of {} bytes",
                target.name(),
                target.len(),
                file.name(),
                file.len()
            );
            return Err(Error::new(ErrorKind::InvalidArgument, context));
        }
        let unit = target.limits().discard_granularity;
        let only = match &options.bitmap {
            None => None,
            Some(BitmapRef { node, name }) => Some(graph.find_bitmap(node, name)?.1),
        };
        let policy = options.on_cbw_error.unwrap_or_default();
        let timeout = options.cbw_timeout.filter(|seconds| *seconds != 0);
        let timeout = timeout.map(|seconds| Duration::from_secs(u64::from(seconds)));
        let state = State::new(graph.executor(), file.len(), unit, policy, timeout)?;
        if let Some(only) = only {
            state.restrict(&only.bits.borrow())?;
        }
        // Nobody else may change the source past the filter.
        let own =
            EdgePerms { needs: Perms::CONSISTENT_READ, shares: !(Perms::WRITE | Perms::RESIZE) };
        let file = graph.filter_edge_with(file, ChildRole::Filtered, own)?;
        // The source may lie below the target, so writes there are none of the target's business.
        let perms = EdgePerms { needs: Perms::WRITE, shares: !Perms::RESIZE };
        let target = graph.edge(target, ChildRole::Target, perms)?;
        Ok(CopyBeforeWrite { file, target, state })
    }
}

impl BlockDriver for CopyBeforeWrite {
    const FORMAT: &'static str = "copy-before-write";

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
        vec![self.file.clone(), self.target.clone()]
    }

    fn set_permissions(&self, _held: EdgePerms) -> Result<()> {
        Ok(())
    }

    async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        self.file.read(at, into).await
    }

    async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        let end = at.saturating_add(from.len() as u64);
        self.state.before_write(&self.file, &self.target, at..end).await?;
        self.file.write(at, from, flags).await
    }

    async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        self.state.before_write(&self.file, &self.target, range.clone()).await?;
        self.file.write_zeroes(range, flags).await
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.state.before_write(&self.file, &self.target, range.clone()).await?;
        self.file.discard(range).await
    }

    async fn flush(&self) -> Result<()> {
        self.file.flush().await
    }

    async fn map(&self, range: Range<u64>) -> Result<Extent> {
        self.file.map(range).await
    }

    async fn resize(&self, _len: u64) -> Result<()> {
        let text =
            "a disk keeps its length while its old content is saved: remove the filter first";
        Err(Error::new(ErrorKind::Busy, text))
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
        self.file.node().generation().await
    }
}

#[cfg(test)]
#[path = "copy_before_write_tests.rs"]
mod tests;
