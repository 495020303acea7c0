//! Ownership of the images: taken and given up for the whole graph, see DESIGN section 10.

use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use super::drain::reaches;
use super::{BlockGraph, perms};
use crate::backend::{BackendKind, BlockBackend};
use crate::edge::{Edge, EdgePerms, Parent, PermRule, Perms};
use crate::error::{Error, ErrorKind, Result};
use crate::node::BlockNode;

/// The generation marks of a graph's writable images at one moment, by node name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generations(BTreeMap<String, Option<u64>>);

impl Generations {
    /// Node names and their marks.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<u64>)> {
        self.0.iter().map(|(name, mark)| (name.as_str(), *mark))
    }

    /// The names of the nodes whose storage keeps no mark.
    pub fn unmarked(&self) -> Vec<&str> {
        let unmarked = self.0.iter().filter(|(_, mark)| mark.is_none());
        unmarked.map(|(name, _)| name.as_str()).collect()
    }
}

impl BlockGraph {
    /// The marks of all images that this graph writes. Can be read by whoever does not own them.
    pub async fn generations(&self) -> Result<Generations> {
        let mut marks = BTreeMap::new();
        for node in self.nodes() {
            if is_written_image(&node) {
                marks.insert(node.name().to_owned(), node.generation().await?);
            }
        }
        Ok(Generations(marks))
    }

    /// Takes write ownership of every node, children first; all or none. With `only_if` refuses
    /// with [`ErrorKind::OwnershipUnknown`] unless every written image still bears its mark.
    pub async fn activate_all(&self, only_if: Option<&Generations>) -> Result<()> {
        let turn = self.turn().await;
        let taken = self.activate_nodes(children_first(&self.nodes()), only_if).await;
        drop(turn);
        taken
    }

    /// Takes write ownership of the node of that name and of all below it; all or none.
    pub async fn activate(&self, name: &str) -> Result<()> {
        let turn = self.turn().await;
        // Not before: while it is opened anew another has its name.
        let node = self.named(name)?;
        let taken = self.activate_nodes(children_first(&[node]), None).await;
        drop(turn);
        taken
    }

    /// Looks again at the images that another process owns, and tells the devices their lengths: it may
    /// have resized them since they were opened.
    pub async fn refresh(&self) -> Result<()> {
        for node in children_first(&self.nodes()).into_iter().filter(|node| !node.is_active()) {
            node.0.driver.refresh().await?;
        }
        self.backends().iter().for_each(|backend| backend.0.tell_length());
        Ok(())
    }

    async fn activate_nodes(
        &self,
        children_first: Vec<BlockNode>,
        only_if: Option<&Generations>,
    ) -> Result<()> {
        let drained = self.drain_nodes(children_first.clone(), &[]).await;
        let woken = self.wake_devices(&children_first)?;
        let mut done: Vec<BlockNode> = Vec::new();
        for node in children_first {
            // What was removed meanwhile was given up for good.
            if node.is_active() || !self.is_used(&node) {
                continue;
            }
            let result = match expected_mark(&node, only_if) {
                Ok(mark) => node.activate(mark).await,
                Err(error) => Err(error),
            };
            if let Err(error) = result {
                for node in done.iter().rev() {
                    if let Err(error) = node.inactivate().await {
                        tracing::error!("{error}");
                    }
                }
                put_to_sleep(woken);
                return Err(error);
            }
            done.push(node);
        }
        drop(drained);
        Ok(())
    }

    /// Whether it is below a backend or a node that users may remove, or is one itself.
    fn is_used(&self, node: &BlockNode) -> bool {
        let backends = self.backends();
        let owned = self.0.owned.borrow();
        let mut users = backends.iter().map(BlockBackend::node).chain(owned.iter().cloned());
        users.any(|user| reaches(&user, node))
    }

    /// Gives the devices that wait for ownership of `nodes` their permissions, all or none: an export
    /// that fills a disk must be gone before the guest writes to it.
    fn wake_devices(&self, nodes: &[BlockNode]) -> Result<Vec<(BlockBackend, EdgePerms)>> {
        let backends = self.backends().into_iter();
        let backends = backends.filter(|it| nodes.iter().any(|node| node.is_same(&it.node())));
        let waiting = backends.filter_map(|it| it.0.waits_for.get().map(|perms| (it, perms)));
        let waiting: Vec<_> = waiting.collect();
        let changes = waiting.iter().map(|(it, perms)| (it.edge().clone(), *perms));
        perms::grant(changes.collect())?;
        for (backend, perms) in &waiting {
            backend.edge().0.rule.set(PermRule::Fixed(*perms));
            backend.0.waits_for.set(None);
        }
        Ok(waiting)
    }

    /// Makes everything durable and gives write ownership of every node up, parents first; all or
    /// none. Refused while a job or export writes. Afterwards reads go on, writes are refused.
    ///
    /// Devices must have been stopped: their requests that wait would be refused too.
    pub async fn inactivate_all(&self) -> Result<()> {
        let turn = self.turn().await;
        let given_up = self.inactivate_nodes(parents_first(&self.nodes())).await;
        drop(turn);
        given_up
    }

    /// The same for a migration. Answers the marks that the images are left with, by which
    /// [`activate_all`](Self::activate_all) can tell whether somebody else has written to them.
    pub async fn hand_over(&self) -> Result<Generations> {
        let turn = self.turn().await;
        // Not before: a command under way may advance them.
        let marks = self.generations().await?;
        let given_up = self.inactivate_nodes(parents_first(&self.nodes())).await;
        drop(turn);
        given_up.map(|()| marks)
    }

    /// The end: makes everything durable and gives every node up. Images that have nothing to do with each other
    /// go side by side, so that storage that fails or does not answer keeps nothing from the others.
    ///
    /// # Errors
    /// Something could not be made durable. All that could be done was done.
    pub async fn close_all(&self) -> Result<()> {
        let close = |nodes| {
            let graph = self.clone();
            self.executor().spawn(async move { graph.close_together(nodes).await })
        };
        let closing: Vec<_> =
            separate(parents_first(&self.nodes())).into_iter().map(close).collect();
        let mut result = Ok(());
        for closed in closing {
            result = result.and(closed.await);
        }
        result
    }

    async fn close_together(&self, parents_first: Vec<BlockNode>) -> Result<()> {
        let drained = self.drain_nodes(parents_first.clone(), &[]).await;
        let mut result = Ok(());
        for node in &parents_first {
            let given_up = give_up(std::slice::from_ref(node)).await;
            result = result.and(given_up.map(drop));
        }
        drop(drained);
        result
    }

    /// [`inactivate_all`](Self::inactivate_all) for the node of that name and for those below it that no other
    /// active node uses.
    ///
    /// # Errors
    /// `Busy` if somebody writes to one of them, or an active node is over it.
    pub async fn inactivate(&self, name: &str) -> Result<()> {
        let turn = self.turn().await;
        let node = self.named(name)?;
        let mut going: Vec<BlockNode> = Vec::new();
        for below in parents_first(std::slice::from_ref(&node)) {
            let stays = |edge: &Edge| match &*edge.0.parent.borrow() {
                Parent::Node(parent) => parent.upgrade().is_some_and(|parent| {
                    parent.active.get() && !going.iter().any(|node| Rc::ptr_eq(&node.0, &parent))
                }),
                _ => false,
            };
            if !below.0.live_parents().iter().any(stays) {
                going.push(below);
            } else if below.is_same(&node) {
                return Err(Error::new(ErrorKind::Busy, "Node has active parent node"));
            }
        }
        let given_up = self.inactivate_nodes(going).await;
        drop(turn);
        given_up
    }

    async fn inactivate_nodes(&self, parents_first: Vec<BlockNode>) -> Result<()> {
        let backends = self.backends().into_iter();
        for backend in
            backends.filter(|it| parents_first.iter().any(|node| node.is_same(&it.node())))
        {
            let writes = backend.edge().perms().needs.contains(Perms::WRITE);
            if writes && backend.kind() != BackendKind::Device {
                let (who, node) = (backend.0.describe(), backend.node());
                let context = format!("{who} still writes to node '{}': end it first", node.name());
                return Err(Error::new(ErrorKind::Busy, context));
            }
        }
        let drained = self.drain_nodes(parents_first.clone(), &[]).await;
        let given_up = give_up(&parents_first).await;
        drop(drained);
        given_up.map(drop)
    }

    /// `node` and all below it that nobody else keeps, parents first.
    pub(super) fn goes_with(&self, node: &BlockNode) -> Vec<BlockNode> {
        let mut going = vec![node.clone()];
        for other in children_first(&self.nodes()).into_iter().rev() {
            let parents = other.0.live_parents();
            let goes = |edge: &Edge| match &*edge.0.parent.borrow() {
                Parent::Node(parent) => {
                    going.iter().any(|node| Weak::as_ptr(parent) == Rc::as_ptr(&node.0))
                }
                _ => false,
            };
            if !parents.is_empty() && parents.iter().all(goes) && !self.is_owned(&other) {
                going.push(other);
            }
        }
        going
    }
}

/// `nodes`, in their order, in parts that do not reach each other.
fn separate(nodes: Vec<BlockNode>) -> Vec<Vec<BlockNode>> {
    let mut parts: Vec<Vec<BlockNode>> = Vec::new();
    for node in nodes {
        let meets = |part: &Vec<BlockNode>| {
            part.iter().any(|other| reaches(other, &node) || reaches(&node, other))
        };
        let (met, apart): (Vec<_>, Vec<_>) = parts.into_iter().partition(meets);
        parts = apart;
        let mut part = met.concat();
        part.push(node);
        parts.push(part);
    }
    parts
}

/// `nodes` and all below them, each after everything below it.
pub(super) fn children_first(nodes: &[BlockNode]) -> Vec<BlockNode> {
    fn visit(node: &BlockNode, order: &mut Vec<BlockNode>) {
        if order.iter().any(|other| other.is_same(node)) {
            return;
        }
        for edge in node.children() {
            visit(&edge.node(), order);
        }
        order.push(node.clone());
    }
    let mut order = Vec::new();
    for node in nodes {
        visit(node, &mut order);
    }
    order
}

/// The same, each before everything below it.
fn parents_first(nodes: &[BlockNode]) -> Vec<BlockNode> {
    let mut order = children_first(nodes);
    order.reverse();
    order
}

/// Makes everything durable and gives ownership of those nodes up that have it; all or none.
/// Answers which these are.
pub(super) async fn give_up(parents_first: &[BlockNode]) -> Result<Vec<BlockNode>> {
    let mut done: Vec<BlockNode> = Vec::new();
    for node in parents_first.iter().filter(|node| node.is_active()) {
        let mut result = node.flush().await;
        if result.is_ok() {
            result = node.inactivate().await;
        }
        if let Err(error) = result {
            if let Err(error) = take_back(&done).await {
                tracing::error!("{error}");
            }
            return Err(error);
        }
        done.push(node.clone());
    }
    Ok(done)
}

/// Undoes [`give_up`], as far as that is possible.
pub(super) async fn take_back(parents_first: &[BlockNode]) -> Result<()> {
    let mut result = Ok(());
    for node in parents_first.iter().rev() {
        result = result.and(node.activate(None).await);
    }
    result
}

/// Takes back what [`BlockGraph::wake_devices`] gave.
fn put_to_sleep(woken: Vec<(BlockBackend, EdgePerms)>) {
    for (backend, perms) in woken {
        let edge = backend.edge().clone();
        edge.0.rule.set(PermRule::Fixed(EdgePerms::IDLE));
        backend.0.waits_for.set(Some(perms));
        if let Err(error) = perms::grant(vec![(edge, EdgePerms::IDLE)]) {
            tracing::error!("{error}");
        }
    }
}

/// Whether somebody writes to `node` and it has the content itself.
fn is_written_image(node: &BlockNode) -> bool {
    node.children().is_empty() && node.perms().needs.contains(Perms::WRITE)
}

fn expected_mark(node: &BlockNode, only_if: Option<&Generations>) -> Result<Option<u64>> {
    let Some(marks) = only_if.filter(|_| is_written_image(node)) else { return Ok(None) };
    match marks.0.get(node.name()) {
        Some(Some(mark)) => Ok(Some(*mark)),
        _ => {
            let name = node.name();
            let context = format!(
                "the storage of node '{name}' keeps no generation mark, so nobody can tell whether \
                 another process has written to it: make sure that none runs, then force it"
            );
            Err(Error::new(ErrorKind::OwnershipUnknown, context))
        }
    }
}

#[cfg(test)]
#[path = "ownership_tests.rs"]
mod tests;
