//! Chains of layers: what an image and the images below it hold together.

use std::ops::Range;

use crate::driver::ExtentKind;
use crate::edge::{ChildRole, PermRule};
use crate::error::Result;
use crate::node::BlockNode;
use crate::protocol::file::FileDriver;

/// What the bytes at the start of a range are, and which layer says so.
#[derive(Clone, Debug)]
pub struct ChainExtent {
    /// [`ExtentKind::Absent`] when no layer that was looked at has them.
    pub kind: ExtentKind,
    /// For how many bytes this holds.
    pub len: u64,
    /// How many images lie above the one that says so; filters do not count.
    pub depth: usize,
    /// The node that says so; with `Absent` the last one that was looked at.
    pub node: BlockNode,
}

impl BlockNode {
    /// The node that this one passes everything to, for a filter and for `raw`.
    pub fn filtered(&self) -> Option<BlockNode> {
        let passes = |rule| matches!(rule, PermRule::PassOn(_));
        self.children().into_iter().find(|edge| passes(edge.0.rule.get())).map(|edge| edge.node())
    }

    /// This node, and below it those that it passes everything to.
    pub(crate) fn passes_to(&self) -> impl Iterator<Item = BlockNode> {
        std::iter::successors(Some(self.clone()), BlockNode::filtered)
    }

    /// The image below this one: what is read where this one has nothing. Filters are looked
    /// through.
    pub fn backing(&self) -> Option<BlockNode> {
        let children = self.children();
        let own = children.iter().find(|edge| edge.role() == ChildRole::Backing);
        match own {
            Some(edge) => Some(edge.node()),
            None => self.filtered()?.backing(),
        }
    }

    /// Bytes that it takes up on the host, without the images below it; `None` where nobody knows.
    pub async fn allocated(&self) -> Option<u64> {
        let mut bytes: u64 = 0;
        let mut todo = vec![self.clone()];
        while let Some(node) = todo.pop() {
            if let Some(file) = node.driver::<FileDriver>() {
                bytes = bytes.saturating_add(file.allocated().await?);
                continue;
            }
            let is_own = |role| !matches!(role, ChildRole::Backing | ChildRole::Target);
            let own = node.children().into_iter().filter(|edge| is_own(edge.role()));
            let before = todo.len();
            todo.extend(own.map(|edge| edge.node()));
            if todo.len() == before {
                return None;
            }
        }
        Some(bytes)
    }

    /// This node, or what its filters stand over.
    pub fn skip_filters(&self) -> BlockNode {
        let mut node = self.clone();
        while node.format() != "raw" {
            let Some(below) = node.filtered() else { break };
            node = below;
        }
        node
    }

    /// What the bytes at the start of `range` are, in this image and those below it. With `base`
    /// only the images above that one count. What lies past the end of a shorter image below is
    /// zero by that image's word.
    pub async fn map_above(
        &self,
        base: Option<&BlockNode>,
        range: Range<u64>,
    ) -> Result<ChainExtent> {
        let base = base.map(BlockNode::skip_filters);
        let mut node = self.clone();
        let (mut len, mut depth) = (range.end.saturating_sub(range.start), 0);
        loop {
            if range.start >= node.len() && depth > 0 {
                return Ok(ChainExtent { kind: ExtentKind::Zero, len, depth, node });
            }
            let end = range.start.saturating_add(len).min(node.len().max(range.start));
            let end = if depth == 0 { range.start.saturating_add(len) } else { end };
            let extent = node.map(range.start..end).await?;
            len = extent.len;
            let below = node.backing();
            let at_base = |below: &BlockNode| {
                base.as_ref().is_some_and(|base| base.is_same(&below.skip_filters()))
            };
            match below {
                Some(below) if extent.kind == ExtentKind::Absent && !at_base(&below) => {
                    node = below;
                    depth += 1;
                }
                _ => return Ok(ChainExtent { kind: extent.kind, len, depth, node }),
            }
        }
    }
}
