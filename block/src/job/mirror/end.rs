//! How a mirror ends: the target takes the source's place, or everything is as it was before.

use std::rc::{Rc, Weak};

use super::state::Mirror;
use super::{MirrorJob, check_sizes};
use crate::edge::{ChildRole, EdgePerms};
use crate::error::{Error, ErrorKind, Result};
use crate::graph::{BlockGraph, Drained, Edit, GraphInner};
use crate::job::registry::invalid;
use crate::job::{JobHooks, Settle};
use crate::node::BlockNode;

/// A cancelled job waits so long (ns) for its operations to come back. Those that do not (a dead server) keep
/// their target in use until they do.
const PATIENCE_NS: u64 = 1_000_000_000;

impl MirrorJob {
    /// The end of the job. When `run` has returned, both sides are equal, the target is durable and nobody
    /// can change the source until the gates open again.
    pub(super) async fn end(mut self, how: Settle) -> Result<()> {
        // Who gives up lets the guest go on first: what is under way may take its time.
        let drained = match self.held.take().filter(|_| how != Settle::Abandon) {
            Some(held) => held.drained,
            None => {
                self.give_up().await;
                self.drain_source().await
            }
        };
        let (graph, lowest) = (self.graph.clone(), lowest_replaced(&self.graph, &self.mirror));
        let left = [lowest, self.mirror.source.node(), self.mirror.target.node()];
        self.mirror.over.set(true);
        self.mirror.source.node().detach_bitmap(&self.mirror.bitmap);
        let mut outcome = Ok(());
        if how == Settle::Complete {
            outcome = self.pivot(&drained);
        }
        if how != Settle::Complete || outcome.is_err() {
            outcome = self.take_filter_out(&drained).and(outcome);
        }
        // The filter and the job's roots go first. Then the gates open: to the new node, or the old one.
        drop(self);
        drop(drained);
        for node in left {
            graph.release(node).await;
        }
        outcome
    }

    /// Stops all work, and waits for what is under way as long as that makes sense.
    async fn give_up(&self) {
        let (mirror, ctx) = (&self.mirror, &self.mirror.ctx);
        mirror.over.set(true);
        let patience = ctx.now().saturating_add(PATIENCE_NS);
        ctx.wait_before(patience, || mirror.ops.get() == 0).await;
    }

    /// Puts the target in the place of the source (or of what the user named) and takes the filter out, in
    /// one step.
    fn pivot(&self, drained: &Drained) -> Result<()> {
        let mirror = &self.mirror;
        check_sizes(mirror)?;
        let (source, target) = (mirror.source.node(), mirror.target.node());
        let replaced = match &mirror.options.replaces {
            Some(name) => node_to_replace(&self.graph, &source, &target, name)?,
            None => source.clone(),
        };
        // The job's roots ask for nothing any more.
        let idle = EdgePerms::IDLE;
        let edit = Edit::new().set_perms(&mirror.target, idle).set_perms(&mirror.source, idle);
        let edit = if replaced.is_same(&source) {
            edit.replace(&self.filter, &target, &[])
        } else {
            edit.replace(&replaced, &target, &[]).replace(&self.filter, &source, &[])
        };
        self.graph.apply(&edit, drained)
    }

    /// Puts the source back where the filter is. The target stays the job's until the last operation has
    /// come back: what it writes then must not hit somebody else.
    fn take_filter_out(&self, drained: &Drained) -> Result<()> {
        let source = &self.mirror.source;
        let edit = Edit::new().set_perms(source, EdgePerms::IDLE);
        self.graph.apply(&edit.replace(&self.filter, &source.node(), &[]), drained)
    }
}

/// The lowest node whose users the end of the job moves: draining it drains them all.
pub(super) fn lowest_replaced(graph: &BlockGraph, mirror: &Mirror) -> BlockNode {
    let named = mirror.options.replaces.as_deref().and_then(|name| graph.node(name));
    named.unwrap_or_else(|| mirror.source.node())
}

/// The node called `name`, if `target` can take its place: it must show what `source` shows, so that
/// nobody above sees anything change.
pub(super) fn node_to_replace(
    graph: &BlockGraph,
    source: &BlockNode,
    target: &BlockNode,
    name: &str,
) -> Result<BlockNode> {
    let node = graph.node(name).ok_or_else(|| {
        let text = format!("Failed to find node with node-name='{name}'");
        Error::new(ErrorKind::NotFound, text)
    })?;
    if !shows(source, &node) {
        return Err(invalid(format!(
            "Cannot replace '{name}' by a node mirrored from '{}', because it cannot be guaranteed \
             that doing so would not lead to an abrupt change of visible data",
            source.name()
        )));
    }
    if node.len() != target.len() {
        return Err(invalid("cannot replace image with a mirror image of different size"));
    }
    Ok(node)
}

/// Whether `top` shows what `node` holds: it is `node`, or filters lead from it to `node`.
fn shows(top: &BlockNode, node: &BlockNode) -> bool {
    top.is_same(node)
        || top
            .children()
            .iter()
            .any(|edge| edge.role() == ChildRole::Filtered && shows(&edge.node(), node))
}

/// What the registry asks the job. It holds nothing alive: the registry hangs on the graph itself.
pub(super) struct Hooks {
    graph: Weak<GraphInner>,
    mirror: Weak<Mirror>,
    replaces: Option<String>,
}

impl Hooks {
    pub(super) fn new(graph: &BlockGraph, mirror: &Rc<Mirror>) -> Hooks {
        let replaces = mirror.options.replaces.clone();
        Hooks { graph: Rc::downgrade(&graph.0), mirror: Rc::downgrade(mirror), replaces }
    }
}

impl JobHooks for Hooks {
    fn before_complete(&self) -> Result<()> {
        let Some(name) = &self.replaces else { return Ok(()) };
        if self.graph.upgrade().is_some_and(|graph| BlockGraph(graph).node(name).is_some()) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NotFound, format!("Node name '{name}' not found")))
    }

    fn actively_synced(&self) -> Option<bool> {
        self.mirror.upgrade().map(|mirror| mirror.synced.get())
    }
}
