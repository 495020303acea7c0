//! The `snapshot-access` driver: a node that holds what a `copy-before-write` filter saves.

use std::ops::Range;

use serde::Deserialize;

use super::CopyBeforeWrite;
use crate::buf::IoBuf;
use crate::driver::{BlockDriver, Extent, ExtentKind, Limits, WriteFlags};
use crate::edge::{ChildRole, Edge, EdgePerms};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::BlockGraph;
use crate::node::BlockNode;
use crate::open::{BlockdevRef, Opening};

/// The members that `snapshot-access` has in `blockdev-add`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct SnapshotAccessOptions {
    /// The `copy-before-write` node.
    pub file: BlockdevRef,
}

impl SnapshotAccessOptions {
    pub(crate) async fn open(&self, opening: &Opening<'_>) -> Result<BlockNode> {
        let file = opening.child(&self.file, ChildRole::File).await?;
        opening.add(SnapshotAccess::new(opening.graph(), &file)?).await
    }
}

/// A disk as it was. Only reads and discards make sense; those say what is no longer needed.
pub struct SnapshotAccess {
    file: Edge,
}

impl SnapshotAccess {
    /// The snapshot of the filter node `file`.
    pub fn new(graph: &BlockGraph, file: &BlockNode) -> Result<SnapshotAccess> {
        if file.driver::<CopyBeforeWrite>().is_none() {
            return Err(not_a_snapshot(file));
        }
        // What is read does not change, whatever others do to the filter.
        Ok(SnapshotAccess { file: graph.edge(file, ChildRole::File, EdgePerms::IDLE)? })
    }
}

/// The filter behind a node.
fn filter(node: &BlockNode) -> Result<&CopyBeforeWrite> {
    node.driver().ok_or_else(|| not_a_snapshot(node))
}

fn not_a_snapshot(node: &BlockNode) -> Error {
    let context = format!("node '{}' is no copy-before-write filter", node.name());
    Error::new(ErrorKind::Unsupported, context)
}

fn refuse_write<T>() -> Result<T> {
    Err(Error::new(ErrorKind::ReadOnly, "a snapshot of a disk cannot be written"))
}

impl BlockDriver for SnapshotAccess {
    const FORMAT: &'static str = "snapshot-access";

    fn limits(&self) -> Limits {
        Limits::NONE
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
        let node = self.file.node();
        let CopyBeforeWrite { file, target, state } = filter(&node)?;
        state.read(file, target, at, into).await
    }

    async fn write(&self, _at: u64, _from: IoBuf, _flags: WriteFlags) -> Result<()> {
        refuse_write()
    }

    async fn write_zeroes(&self, _range: Range<u64>, _flags: WriteFlags) -> Result<()> {
        refuse_write()
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        let node = self.file.node();
        let CopyBeforeWrite { target, state, .. } = filter(&node)?;
        state.forget(target, range).await
    }

    async fn flush(&self) -> Result<()> {
        // It holds nothing that was written through it.
        Ok(())
    }

    async fn map(&self, range: Range<u64>) -> Result<Extent> {
        let node = self.file.node();
        let CopyBeforeWrite { file, target, state } = filter(&node)?;
        state.map(file, target, range).await
    }

    async fn resize(&self, _len: u64) -> Result<()> {
        refuse_write()
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
