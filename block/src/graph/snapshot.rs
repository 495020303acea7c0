//! External snapshots: an overlay takes a node's place, and the node is below it from then on.
//!
//! What is refused is refused in QEMU's words. Requests wait while the overlay moves in, no longer.

use super::drain::reaches;
use super::{BlockGraph, Drained, Edit};
use crate::edge::{ChildRole, Edge, EdgePerms, Parent};
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::Qcow2Driver;
use crate::job::JobRegistry;
use crate::node::BlockNode;

/// A snapshot that was taken. [`commit`](ExternalSnapshot::commit) makes it stay,
/// [`undo`](ExternalSnapshot::undo) takes it back.
#[must_use = "a snapshot is committed or undone"]
pub struct ExternalSnapshot {
    graph: BlockGraph,
    node: BlockNode,
    overlay: BlockNode,
}

impl BlockGraph {
    /// Refuses a snapshot of `node` that others are in the way of.
    ///
    /// # Errors
    /// `Busy`: a job works on it, or another image lies over it.
    pub fn check_snapshot(&self, node: &BlockNode) -> Result<()> {
        check_top(node)?;
        self.check_no_job(node)
    }

    /// Refuses what cannot be done to `node` while a job works on it.
    ///
    /// # Errors
    /// `Busy`: a job does.
    pub fn check_no_job(&self, node: &BlockNode) -> Result<()> {
        // A job's own filter passes on what is below it.
        let mut chain = std::iter::successors(Some(node.clone()), BlockNode::filtered);
        let Some(id) = chain.find_map(|node| node.job()) else { return Ok(()) };
        let jobs = JobRegistry::of(self).query_jobs();
        let kind = jobs.iter().find(|job| job.id == id).map_or("job", |job| job.kind.as_str());
        let name = node.name();
        let text = format!("Node '{name}' is busy: block device is in use by block job: {kind}");
        Err(Error::new(ErrorKind::Busy, text))
    }

    /// Puts `overlay` in the place of `node`, which lies below it from then on and is durable. The
    /// disk reads the same if nothing was written to the overlay, which is the caller's to see to.
    ///
    /// # Errors
    /// `Busy` or `InvalidArgument` for what does not go together, and what the storage says when the
    /// node is written out. Then everything is as before.
    pub async fn snapshot(
        &self,
        node: &BlockNode,
        overlay: &BlockNode,
        drained: &Drained,
    ) -> Result<ExternalSnapshot> {
        self.check_snapshot(node)?;
        let driver = check_overlay(node, overlay)?;
        node.flush().await?;
        // Idle until all who use the node have gone over: they write to it as yet.
        let edge = self.edge(node, ChildRole::Backing, EdgePerms::IDLE)?;
        edge.0.parent.replace(Parent::Node(std::rc::Rc::downgrade(&overlay.0)));
        driver.set_backing(Some(edge.clone()));
        let moved = Edit::new().replace(node, overlay, &[]).set_edge_perms(&edge, EdgePerms::READ);
        if let Err(error) = self.apply(&moved, drained) {
            driver.set_backing(None);
            return Err(error);
        }
        Ok(ExternalSnapshot { graph: self.clone(), node: node.clone(), overlay: overlay.clone() })
    }
}

impl ExternalSnapshot {
    /// The node that took the place.
    pub fn overlay(&self) -> &BlockNode {
        &self.overlay
    }

    /// Makes it stay: the node below is left at rest and read-only, so that others may read its image
    /// too. Nothing needs to be drained any more.
    pub async fn commit(self) {
        if let Err(error) = self.graph.set_read_only(&self.node, true).await {
            // The snapshot is there all the same, and nobody can write below it.
            tracing::warn!("node '{}' stays writable: {error}", self.node.name());
        }
    }

    /// Takes it back, with the same drain still held.
    pub fn undo(self, drained: &Drained) {
        let Some(driver) = self.overlay.driver::<Qcow2Driver>() else { return };
        let Some(edge) = driver.backing() else { return };
        let back = Edit::new()
            .replace(&self.overlay, &self.node, &[])
            .set_edge_perms(&edge, EdgePerms::IDLE);
        match self.graph.apply(&back, drained) {
            Ok(()) => driver.set_backing(None),
            Err(error) => {
                tracing::error!("node '{}' keeps its overlay: {error}", self.node.name());
            }
        }
    }
}

/// Refuses a node that another image lies over.
pub(super) fn check_top(node: &BlockNode) -> Result<()> {
    let over = |edge: &Edge| match &*edge.0.parent.borrow() {
        Parent::Node(parent) => parent.upgrade().map(|parent| parent.name.clone()),
        Parent::Backend(_) | Parent::None => None,
    };
    let parents = node.0.live_parents();
    let above = parents.iter().filter(|edge| edge.role() == ChildRole::Backing).find_map(over);
    let Some(above) = above else { return Ok(()) };
    let name = node.name();
    let text = format!("Node '{name}' is busy: node is used as backing hd of '{above}'");
    Err(Error::new(ErrorKind::Busy, text))
}

/// The driver of a node that can be put over `node`.
fn check_overlay<'a>(node: &BlockNode, overlay: &'a BlockNode) -> Result<&'a Qcow2Driver> {
    let refuse = |kind, text: &str| Err(Error::new(kind, text));
    let parents = overlay.0.live_parents();
    let in_use = "The overlay is already in use";
    if parents.iter().any(|edge| matches!(*edge.0.parent.borrow(), Parent::Backend(_))) {
        return refuse(ErrorKind::Busy, in_use);
    }
    if overlay.backing().is_some() {
        return refuse(ErrorKind::InvalidArgument, "The overlay already has a backing image");
    }
    let Some(driver) = overlay.driver::<Qcow2Driver>() else {
        let text = "The overlay does not support backing images";
        return refuse(ErrorKind::InvalidArgument, text);
    };
    if !parents.is_empty() {
        // They would be taken along when a snapshot is undone.
        return refuse(ErrorKind::Busy, in_use);
    }
    if reaches(node, overlay) || reaches(overlay, node) {
        let (below, above) = (node.name(), overlay.name());
        let text = format!("Making '{below}' a backing child of '{above}' would create a cycle");
        return refuse(ErrorKind::InvalidArgument, &text);
    }
    Ok(driver)
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
