//! External snapshots: an overlay takes a node's place, and the node is below it from then on.
//!
//! What is refused is refused in QEMU's words. Requests wait while the overlay moves in, no longer.
//!
//! The overlay may be what a job fills: a mirror of the topmost layer gets the layers below it this way, just
//! before it takes the source's place.

use std::rc::{Rc, Weak};

use super::drain::reaches;
use super::{BlockGraph, Drained, Edit};
use crate::edge::{ChildRole, Edge, EdgeInner, Parent, Perms};
use crate::error::{Error, ErrorKind, Result};
use crate::format::qcow2::Qcow2Driver;
use crate::job::JobRegistry;
use crate::node::{BlockNode, check_owned_together};

/// A snapshot that was taken. [`commit`](ExternalSnapshot::commit) makes it stay,
/// [`undo`](ExternalSnapshot::undo) takes it back.
#[must_use = "a snapshot is committed or undone"]
pub struct ExternalSnapshot {
    graph: BlockGraph,
    node: BlockNode,
    overlay: BlockNode,
    /// Those who used the node and use the overlay now.
    moved: Vec<Weak<EdgeInner>>,
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
        let mut chain = node.passes_to();
        let Some(id) = chain.find_map(|node| node.job()) else { return Ok(()) };
        let jobs = JobRegistry::of(self).query_jobs();
        let kind = jobs.iter().find(|job| job.id == id).map_or("job", |job| job.kind.as_str());
        let name = node.name();
        let text = format!("Node '{name}' is busy: block device is in use by block job: {kind}");
        Err(Error::new(ErrorKind::Busy, text))
    }

    /// Puts `overlay` in the place of `node`, which lies below it from then on and is durable. The
    /// disk reads the same if nothing was written to the overlay, which is the caller's to see to.
    /// Both must be drained.
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
        check_overlay(node, overlay)?;
        node.flush().await?;
        // Jobs may have come meanwhile.
        self.check_snapshot(node)?;
        let driver = check_overlay(node, overlay)?;
        let moved = node.0.live_parents().iter().map(|edge| Rc::downgrade(&edge.0)).collect();
        // It asks for nothing until all who use the node have gone over: they write to it as yet.
        let edge = self.backing_edge(node)?;
        edge.0.parent.replace(Parent::Node(Rc::downgrade(&overlay.0)));
        driver.set_backing(Some(edge));
        if let Err(error) = self.apply(&Edit::new().replace(node, overlay, &[]), drained) {
            driver.set_backing(None);
            return Err(error);
        }
        let (graph, node, overlay) = (self.clone(), node.clone(), overlay.clone());
        Ok(ExternalSnapshot { graph, node, overlay, moved })
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
        let back = Edit::new().replace_for(&self.overlay, &self.node, self.moved);
        match self.graph.apply(&back, drained) {
            Ok(()) => driver.set_backing(None),
            Err(error) => {
                tracing::error!("node '{}' keeps its overlay: {error}", self.node.name());
            }
        }
    }
}

/// Refuses a node that another image lies over.
///
/// # Errors
/// `Busy`, in QEMU's words.
pub fn check_top(node: &BlockNode) -> Result<()> {
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
    // Who reads it would see it change all of a sudden. A job that fills it only writes.
    if overlay.perms().needs.contains(Perms::CONSISTENT_READ) {
        return refuse(ErrorKind::Busy, "The overlay is already in use");
    }
    if overlay.backing().is_some() {
        return refuse(ErrorKind::InvalidArgument, "The overlay already has a backing image");
    }
    if overlay.is_active() {
        check_owned_together(node, ChildRole::Backing, overlay)?;
    } else if node.is_active() {
        let (below, above) = (node.name(), overlay.name());
        let text = format!("Inactive '{above}' can't take the place of active '{below}'");
        return refuse(ErrorKind::InvalidArgument, &text);
    }
    let Some(driver) = overlay.driver::<Qcow2Driver>() else {
        let text = "The overlay does not support backing images";
        return refuse(ErrorKind::InvalidArgument, text);
    };
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
