//! `blockdev-reopen`: nodes get other options while they are in use.
//!
//! A driver's options are fixed for its life, so a node is not changed but succeeded: the new node is
//! opened beside the old one, without ownership, and takes its name, its parents, its bitmaps and its
//! ownership, as a migration's destination takes a disk over. Any driver can do that, and until the
//! last step everything can be taken back.

mod plan;

use std::rc::Rc;

use super::ownership::children_first;
use super::{BlockGraph, Drained, Edit, perms};
use crate::edge::{Edge, EdgePerms, PermRule};
use crate::error::{Error, ErrorKind, Result};
use crate::node::BlockNode;
use crate::open::BlockdevOptions;

use plan::Wanted;

/// An old node that has let go of everything, and how to give it back.
struct Retired {
    node: BlockNode,
    was_active: bool,
    edges: Vec<Held>,
}

/// An edge with the permissions it had.
type Held = (Edge, PermRule, EdgePerms);

impl BlockGraph {
    /// Opens each node again with the options given, all of them or none, and with them those nodes
    /// below that were opened together with it and are to change. Requests wait meanwhile.
    ///
    /// # Errors
    /// A node is not there, or the first of them cannot be opened like that. Then everything is as
    /// before, unless an old node cannot be taken back: that is logged, and the node stays inactive.
    pub async fn reopen(&self, options: &[BlockdevOptions]) -> Result<()> {
        let wanted = plan::plan(self, options)?;
        let nodes: Vec<BlockNode> = wanted.iter().map(|wanted| wanted.node.clone()).collect();
        let owned: Vec<bool> = nodes.iter().map(|node| self.is_owned(node)).collect();
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
        let mut result = self.open_successors(&wanted, &mut successors).await;
        result = result.and_then(|()| refuse_cycles(&successors, &nodes));
        let forth = successors
            .iter()
            .zip(&nodes)
            .fold(Edit::new(), |edit, (new, old)| edit.replace(old, new, &[]));
        if result.is_ok() {
            result = self.apply(&forth, &drained);
            if result.is_ok() {
                result = self.activate_new(&successors, &retired, &known).await;
                if result.is_err() {
                    self.put_back(&successors, &nodes, &drained);
                }
            }
        }
        // It keeps the new nodes, and they what they ask for.
        drop(forth);
        if let Err(error) = result {
            for node in successors {
                self.disown(&node);
            }
            give_back(retired).await;
            return Err(error);
        }
        succeed(&successors, wanted);
        for ((new, old), owned) in successors.iter().zip(&nodes).zip(owned) {
            hand_over_bitmaps(old, new);
            self.disown(old);
            if !owned {
                self.disown(new);
            }
        }
        self.close_left(nodes).await;
        Ok(())
    }

    /// Closes what was below the old nodes and nobody uses any more.
    async fn close_left(&self, old: Vec<BlockNode>) {
        for node in old {
            let name = node.name().to_owned();
            if let Err(error) = self.close(node).await {
                tracing::error!("what was below node '{name}' is not closed in order: {error}");
            }
        }
    }

    /// Puts the old nodes where the new ones are.
    fn put_back(&self, successors: &[BlockNode], nodes: &[BlockNode], drained: &Drained) {
        // The new ones may want what the old ones below them do not allow.
        let idle: Result<Vec<_>> = successors.iter().map(let_go).collect();
        let back = successors
            .iter()
            .zip(nodes)
            .fold(Edit::new(), |edit, (new, old)| edit.replace(new, old, &[]));
        if let Err(error) = idle.and_then(|_| self.apply(&back, drained)) {
            tracing::error!("nodes cannot be taken back: {error}");
        }
    }

    /// Opens the new nodes, inactive; those that were opened when one fails are in `opened`.
    async fn open_successors(&self, wanted: &[Wanted], opened: &mut Vec<BlockNode>) -> Result<()> {
        for wanted in wanted {
            let mut options = wanted.options.clone();
            options.active = Some(false);
            opened.push(self.open_successor(&options).await?);
        }
        Ok(())
    }

    /// Gives the new nodes whose old ones had it the ownership, and those that were opened with them and are not
    /// `known`.
    async fn activate_new(
        &self,
        successors: &[BlockNode],
        retired: &[Retired],
        known: &[BlockNode],
    ) -> Result<()> {
        let is_in = |nodes: &[BlockNode], node: &BlockNode| nodes.iter().any(|it| it.is_same(node));
        let owned = |node: &BlockNode| {
            retired.iter().any(|old| old.was_active && old.node.name() == node.name())
        };
        let (taking, resting): (Vec<_>, Vec<_>) = successors.iter().cloned().partition(owned);
        let mut done: Vec<BlockNode> = Vec::new();
        for node in children_first(&taking) {
            if is_in(known, &node) || is_in(&resting, &node) {
                continue;
            }
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

/// Refuses new nodes that would be below themselves once each has the place of its old one.
fn refuse_cycles(successors: &[BlockNode], nodes: &[BlockNode]) -> Result<()> {
    let afterwards = |node: BlockNode| {
        let place = nodes.iter().position(|old| old.is_same(&node));
        place.and_then(|place| successors.get(place).cloned()).unwrap_or(node)
    };
    for top in successors {
        for edge in top.children() {
            let mut found = vec![afterwards(edge.node())];
            let mut next = 0;
            while let Some(node) = found.get(next).cloned() {
                if node.is_same(top) {
                    let (role, top) = (edge.role().name(), top.name());
                    let text = format!(
                        "Making '{}' a {role} child of '{top}' would create a cycle",
                        edge.node().name()
                    );
                    return Err(Error::new(ErrorKind::InvalidArgument, text));
                }
                let below = node.children().into_iter().map(|edge| afterwards(edge.node()));
                for node in below {
                    if !found.iter().any(|other| other.is_same(&node)) {
                        found.push(node);
                    }
                }
                next += 1;
            }
        }
    }
    Ok(())
}

/// The new nodes, and what is below them, belong to whom the old ones belonged to, or to their successors.
fn succeed(successors: &[BlockNode], wanted: Vec<Wanted>) {
    for (new, Wanted { node: old, given, options }) in successors.iter().zip(wanted) {
        new.succeed(&old, given, options);
        for edge in new.children().into_iter().filter(|edge| edge.node().came_with(&old)) {
            edge.node().move_to_parent(new);
        }
    }
}

/// Makes everything durable, then gives ownership, locks and permissions up.
async fn retire(node: &BlockNode) -> Result<Retired> {
    let was_active = node.is_active();
    if was_active {
        node.flush().await?;
        node.inactivate().await?;
    }
    Ok(Retired { node: node.clone(), was_active, edges: let_go(node)? })
}

/// Asks for nothing of the nodes below any more; what it asked for.
fn let_go(node: &BlockNode) -> Result<Vec<Held>> {
    let edges = node.children();
    let edges: Vec<_> =
        edges.into_iter().map(|edge| (edge.clone(), edge.0.rule.get(), edge.perms())).collect();
    for (edge, _, _) in &edges {
        edge.0.rule.set(PermRule::Fixed(EdgePerms::IDLE));
    }
    perms::grant(edges.iter().map(|(edge, ..)| (edge.clone(), EdgePerms::IDLE)).collect())?;
    Ok(edges)
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
mod tests;
