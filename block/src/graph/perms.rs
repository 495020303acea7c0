//! Permissions: what the parents of a node do together, and whether they get along.
//!
//! Every edge needs and shares a set of permissions. Filters pass on what their own parents do, so
//! one change at a root may travel down to a file, whose driver turns it into locks that other
//! processes see. A change is checked everywhere first, then applied everywhere, or not at all.

use std::rc::Rc;

use crate::edge::{Edge, EdgePerms, Parent, PermRule, Perms};
use crate::error::{Error, ErrorKind, Result};
use crate::node::BlockNode;

/// A change being worked out.
#[derive(Default)]
struct Plan {
    edges: Vec<(Edge, EdgePerms)>,
    /// The nodes whose parents change, parents before children.
    nodes: Vec<BlockNode>,
}

impl Plan {
    fn of_edge(&self, edge: &Edge) -> EdgePerms {
        let planned = self.edges.iter().find(|(other, _)| Rc::ptr_eq(&other.0, &edge.0));
        planned.map_or_else(|| edge.perms(), |(_, perms)| *perms)
    }

    fn set(&mut self, edge: &Edge, perms: EdgePerms) {
        match self.edges.iter_mut().find(|(other, _)| Rc::ptr_eq(&other.0, &edge.0)) {
            Some(planned) => planned.1 = perms,
            None => self.edges.push((edge.clone(), perms)),
        }
    }

    /// What all parents of `node` do and share together.
    fn total(&self, node: &BlockNode) -> EdgePerms {
        let parents = node.0.live_parents();
        parents.iter().map(|edge| self.of_edge(edge)).fold(EdgePerms::IDLE, EdgePerms::combined)
    }

    /// Works out what a change above `node` means for everything below.
    fn visit(&mut self, node: &BlockNode) {
        self.nodes.retain(|other| !other.is_same(node));
        self.nodes.push(node.clone());
        let total = self.total(node);
        for edge in node.children() {
            let perms = match edge.0.rule.get() {
                PermRule::Fixed(_) => continue,
                PermRule::PassOn(_) if node.0.live_parents().is_empty() => total,
                PermRule::PassOn(own) => total.combined(own),
                PermRule::Backing => total.of_backing(),
            };
            self.set(&edge, perms);
            self.visit(&edge.node());
        }
    }

    fn check(&self) -> Result<()> {
        for node in &self.nodes {
            if node.is_read_only() && self.total(node).needs.contains(Perms::WRITE) {
                let context = format!("Block node '{}' is read-only", node.name());
                return Err(Error::new(ErrorKind::ReadOnly, context));
            }
            let parents = node.0.live_parents();
            // Newest first: a message should speak of what was just asked for.
            for wants in parents.iter().rev() {
                for minds in parents.iter().filter(|minds| !Rc::ptr_eq(&minds.0, &wants.0)) {
                    let clash = self.of_edge(wants).needs & !self.of_edge(minds).shares;
                    if !clash.is_empty() {
                        return Err(conflict(node, clash, wants, minds));
                    }
                }
            }
        }
        Ok(())
    }

    /// Tells the drivers, then the edges.
    fn apply(&self) -> Result<()> {
        for (done, node) in self.nodes.iter().enumerate() {
            let held = node.0.held.get();
            if let Err(error) = node.0.driver.set_permissions(held.combined(self.total(node))) {
                for node in &self.nodes[..done] {
                    settle(node, node.0.held.get());
                }
                return Err(error);
            }
        }
        for node in &self.nodes {
            let total = self.total(node);
            node.0.held.set(total);
            settle(node, total);
        }
        for (edge, perms) in &self.edges {
            edge.0.granted.set(*perms);
        }
        Ok(())
    }
}

/// Gives the driver what it holds already or less, which cannot fail.
fn settle(node: &BlockNode, perms: EdgePerms) {
    if let Err(error) = node.0.driver.set_permissions(perms) {
        tracing::error!("node '{}' keeps permissions that it should drop: {error}", node.name());
    }
}

fn conflict(node: &BlockNode, clash: Perms, wants: &Edge, minds: &Edge) -> Error {
    let name = node.name();
    let context = format!(
        "Permission conflict on node '{name}': permissions '{clash}' are both required by {} and \
         unshared by {}",
        describe(wants, name),
        describe(minds, name)
    );
    Error::new(ErrorKind::PermissionConflict, context)
}

fn describe(edge: &Edge, node: &str) -> String {
    let parent = match &*edge.0.parent.borrow() {
        Parent::Node(parent) => parent.upgrade().map(|parent| format!("node '{}'", parent.name)),
        Parent::Backend(parent) => parent.upgrade().map(|parent| parent.describe()),
        Parent::None => None,
    };
    let parent = parent.unwrap_or_else(|| "a node that is being opened".to_owned());
    format!("{parent} (uses node '{node}' as '{}' child)", edge.role().name())
}

/// Gives edges new permissions, all or none.
pub(super) fn grant(changes: Vec<(Edge, EdgePerms)>) -> Result<()> {
    let mut plan = Plan::default();
    for (edge, perms) in &changes {
        plan.set(edge, *perms);
    }
    for (edge, _) in &changes {
        plan.visit(&edge.node());
    }
    plan.check()?;
    plan.apply()
}

/// Works everything out again after edges were moved, from `nodes` down.
pub(super) fn recompute(nodes: &[BlockNode], changes: Vec<(Edge, EdgePerms)>) -> Result<()> {
    let mut plan = Plan::default();
    for (edge, perms) in &changes {
        plan.set(edge, *perms);
    }
    for node in nodes {
        plan.visit(node);
    }
    for (edge, _) in &changes {
        plan.visit(&edge.node());
    }
    plan.check()?;
    plan.apply()
}

/// A parent of `node` is gone. Doing less never conflicts.
pub(super) fn shrink(node: &BlockNode) {
    let mut plan = Plan::default();
    plan.visit(node);
    if let Err(error) = plan.apply() {
        tracing::error!("node '{}' keeps permissions that it should drop: {error}", node.name());
    }
}

#[cfg(test)]
#[path = "perms_tests.rs"]
mod tests;
