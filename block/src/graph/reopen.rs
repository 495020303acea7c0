//! `blockdev-reopen`: nodes get other options while they are in use.
//!
//! A driver's options are fixed for its life, so a node is not changed but succeeded: the new node is
//! opened beside the old one, without ownership, and takes its name, its parents, its bitmaps and its
//! ownership, as a migration's destination takes a disk over. Any driver can do that, and until the
//! last step everything can be taken back.

use std::rc::Rc;

use super::ownership::children_first;
use super::{BlockGraph, Edit, perms};
use crate::edge::{Edge, EdgePerms, PermRule};
use crate::error::{Error, ErrorKind, Result};
use crate::node::BlockNode;
use crate::open::BlockdevOptions;

/// An old node that has let go of everything, and how to give it back.
struct Retired {
    node: BlockNode,
    was_active: bool,
    /// Its edges with the permissions they had.
    edges: Vec<(Edge, PermRule, EdgePerms)>,
}

impl BlockGraph {
    /// Opens each node again with the options given, all of them or none. Requests wait meanwhile.
    ///
    /// # Errors
    /// A node is not there, or the first of them cannot be opened like that. Then everything is as
    /// before, unless an old node cannot be taken back: that is logged, and the node stays inactive.
    pub async fn reopen(&self, options: &[BlockdevOptions]) -> Result<()> {
        let nodes = self.to_reopen(options)?;
        let drained = self.drain_nodes(nodes.clone(), &[]).await;
        let known = self.nodes();
        let mut retired = Vec::new();
        for node in children_first(&self.nodes()).into_iter().rev() {
            if nodes.iter().any(|other| other.is_same(&node)) {
                match retire(&node).await {
                    Ok(done) => retired.push(done),
                    Err(error) => {
                        give_back(retired).await;
                        return Err(error);
                    }
                }
            }
        }
        let mut successors = Vec::new();
        let mut result = self.open_successors(options, &mut successors).await;
        let forth = successors
            .iter()
            .zip(&nodes)
            .fold(Edit::new(), |edit, (new, old)| edit.replace(old, new, &[]));
        if result.is_ok() {
            result = self.apply(&forth, &drained);
            if result.is_ok() {
                let is_new = |node: &BlockNode| !known.iter().any(|other| other.is_same(node));
                result = self.activate_new(&retired, is_new).await;
                if result.is_err() {
                    let back = successors
                        .iter()
                        .zip(&nodes)
                        .fold(Edit::new(), |edit, (new, old)| edit.replace(new, old, &[]));
                    if let Err(error) = self.apply(&back, &drained) {
                        tracing::error!("nodes cannot be taken back: {error}");
                    }
                }
            }
        }
        if let Err(error) = result {
            for node in successors {
                self.disown(&node);
            }
            give_back(retired).await;
            return Err(error);
        }
        for (new, old) in successors.iter().zip(&nodes) {
            hand_over_bitmaps(old, new);
            self.disown(old);
        }
        Ok(())
    }

    /// The nodes that are meant, each once.
    fn to_reopen(&self, options: &[BlockdevOptions]) -> Result<Vec<BlockNode>> {
        let refuse = |kind, text: String| Err(Error::new(kind, text));
        let mut nodes: Vec<BlockNode> = Vec::new();
        for options in options {
            let Some(name) = &options.node_name else {
                return refuse(ErrorKind::InvalidArgument, "node-name not specified".to_owned());
            };
            let Some(node) = self.node(name) else {
                let text = format!("Failed to find node with node-name='{name}'");
                return refuse(ErrorKind::NotFound, text);
            };
            if !self.is_owned(&node) {
                let text = format!("Node {name} is not owned by the monitor");
                return refuse(ErrorKind::InvalidArgument, text);
            }
            if node.format() != options.driver.name() {
                let text = "Cannot change the option 'driver'".to_owned();
                return refuse(ErrorKind::InvalidArgument, text);
            }
            if nodes.iter().any(|other| other.is_same(&node)) {
                let text = format!("Node {name} is to be reopened twice");
                return refuse(ErrorKind::InvalidArgument, text);
            }
            nodes.push(node);
        }
        Ok(nodes)
    }

    /// Opens the new nodes, inactive; those that were opened when one fails are in `opened`.
    async fn open_successors(
        &self,
        options: &[BlockdevOptions],
        opened: &mut Vec<BlockNode>,
    ) -> Result<()> {
        for options in options {
            let mut options = options.clone();
            options.active = Some(false);
            opened.push(self.open_successor(&options).await?);
        }
        Ok(())
    }

    /// Gives the new nodes, and those opened with them, the ownership that the old ones had.
    async fn activate_new(
        &self,
        retired: &[Retired],
        is_new: impl Fn(&BlockNode) -> bool,
    ) -> Result<()> {
        if !retired.iter().any(|old| old.was_active) {
            return Ok(());
        }
        let mut done: Vec<BlockNode> = Vec::new();
        for node in children_first(&self.nodes()).into_iter().filter(is_new) {
            if let Err(error) = node.activate(None).await {
                for node in done.into_iter().rev() {
                    if let Err(error) = node.inactivate().await {
                        tracing::error!("{error}");
                    }
                }
                return Err(error);
            }
            done.push(node);
        }
        Ok(())
    }
}

/// Makes everything durable, then gives ownership, locks and permissions up.
async fn retire(node: &BlockNode) -> Result<Retired> {
    let was_active = node.is_active();
    if was_active {
        node.flush().await?;
        node.inactivate().await?;
    }
    let edges = node.children();
    let edges: Vec<_> =
        edges.into_iter().map(|edge| (edge.clone(), edge.0.rule.get(), edge.perms())).collect();
    for (edge, _, _) in &edges {
        edge.0.rule.set(PermRule::Fixed(EdgePerms::IDLE));
    }
    perms::grant(edges.iter().map(|(edge, ..)| (edge.clone(), EdgePerms::IDLE)).collect())?;
    Ok(Retired { node: node.clone(), was_active, edges })
}

/// Undoes [`retire`], the last one first: children before their parents.
async fn give_back(retired: Vec<Retired>) {
    for Retired { node, was_active, edges } in retired.into_iter().rev() {
        for (edge, rule, _) in &edges {
            edge.0.rule.set(*rule);
        }
        let held = edges.into_iter().map(|(edge, _, perms)| (edge, perms)).collect();
        let mut result = perms::grant(held);
        if result.is_ok() && was_active {
            result = node.activate(None).await;
        }
        if let Err(error) = result {
            tracing::error!("node '{}' cannot be taken back: {error}", node.name());
        }
    }
}

/// Bitmaps that are not stored with the image live on; the image's own were stored by the old node
/// and loaded by the new one.
fn hand_over_bitmaps(old: &BlockNode, new: &BlockNode) {
    for bitmap in old.bitmaps() {
        let known = new.bitmaps().iter().any(|other| other.name == bitmap.name);
        old.detach_bitmap(&bitmap);
        if known {
            continue;
        }
        let fits = bitmap.bits.borrow_mut().resize(new.len());
        if let Err(error) = fits {
            tracing::warn!("a bitmap of node '{}' is lost: {error}", new.name());
            bitmap.bits.borrow_mut().mark_inconsistent();
        }
        new.attach_bitmap(Rc::clone(&bitmap));
    }
}

#[cfg(test)]
#[path = "reopen_tests.rs"]
mod tests;
