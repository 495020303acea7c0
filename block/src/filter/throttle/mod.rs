//! The `throttle` filter: requests wait so that they stay within the limits of a group.
//!
//! `limits` has what a user may ask for, `bucket` the arithmetic of one quantity, `group`
//! the members that share limits and who is served next.

mod bucket;
mod group;
mod limits;

use std::ops::Range;
use std::rc::Rc;

use serde::Deserialize;

use crate::buf::IoBuf;
use crate::driver::{BlockDriver, Extent, ExtentKind, Limits, WriteFlags};
use crate::edge::{ChildRole, Edge, EdgePerms};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::BlockGraph;
use crate::node::BlockNode;
use crate::open::{BlockdevRef, Opening};

pub use group::{Direction, ThrottleGroup, ThrottleMember};
pub use limits::ThrottleLimits;

/// Options of the `throttle` driver.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ThrottleOptions {
    /// The group whose limits hold; it must exist.
    pub throttle_group: String,
    /// The node below.
    pub file: BlockdevRef,
}

impl ThrottleOptions {
    pub(crate) async fn open(&self, opening: &Opening<'_>) -> Result<BlockNode> {
        let file = opening.child(&self.file, ChildRole::Filtered).await?;
        opening.add(ThrottleDriver::new(opening.graph(), &file, &self.throttle_group)?).await
    }
}

/// A filter whose requests wait for their group.
pub struct ThrottleDriver {
    file: Edge,
    member: ThrottleMember,
}

impl ThrottleDriver {
    /// A filter over `file` in a group.
    pub fn new(graph: &BlockGraph, file: &BlockNode, group: &str) -> Result<ThrottleDriver> {
        let Some(group) = ThrottleGroup::find(graph, group) else {
            let context = format!("Throttle group '{group}' does not exist");
            return Err(Error::new(ErrorKind::NotFound, context));
        };
        let file = graph.filter_edge(file, ChildRole::Filtered)?;
        let edge = Rc::downgrade(&file.0);
        // While a drain waits for what is inside, nothing is held up here.
        let member = group.join(move || edge.upgrade().is_some_and(|it| Edge(it).is_draining()));
        Ok(ThrottleDriver { file, member })
    }
}

impl BlockDriver for ThrottleDriver {
    const FORMAT: &'static str = "throttle";

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
        vec![self.file.clone()]
    }

    fn set_permissions(&self, _held: EdgePerms) -> Result<()> {
        Ok(())
    }

    async fn read(&self, at: u64, into: IoBuf) -> Result<()> {
        self.member.admit(Direction::Read, into.len() as u64).await;
        self.file.read(at, into).await
    }

    async fn write(&self, at: u64, from: IoBuf, flags: WriteFlags) -> Result<()> {
        self.member.admit(Direction::Write, from.len() as u64).await;
        self.file.write(at, from, flags).await
    }

    async fn write_zeroes(&self, range: Range<u64>, flags: WriteFlags) -> Result<()> {
        self.member.admit(Direction::Write, range.end - range.start).await;
        self.file.write_zeroes(range, flags).await
    }

    async fn discard(&self, range: Range<u64>) -> Result<()> {
        self.member.admit(Direction::Write, range.end - range.start).await;
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
#[path = "throttle_tests.rs"]
mod tests;
