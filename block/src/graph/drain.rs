//! Draining: nobody does I/O on a node, and nobody begins to.

use std::cell::RefCell;
use std::rc::{Rc, Weak};

use super::BlockGraph;
use crate::backend::{BackendId, BackendInner, BlockBackend, Gate};
use crate::edge::{Edge, Parent};
use crate::node::{BlockNode, NodeInner};
use crate::notify::Notify;

/// While it lives, the roots that reach the drained nodes stay shut.
pub struct Drained(Rc<DrainInner>);

pub(crate) struct DrainInner {
    /// Weak: a drain must not keep a node that an edit takes out.
    nodes: Vec<Weak<NodeInner>>,
    except: Vec<BackendId>,
    /// Only the gates: a drain must not keep a root that its owner lets go.
    shut: RefCell<Vec<(BackendId, Rc<Gate>)>>,
}

impl Drop for DrainInner {
    fn drop(&mut self) {
        for (_, gate) in self.shut.take() {
            gate.open();
        }
    }
}

impl Drained {
    /// Whether this drain keeps `backend` shut.
    pub fn covers(&self, backend: &BlockBackend) -> bool {
        self.0.shut.borrow().iter().any(|(id, _)| *id == backend.id())
    }
}

impl BlockGraph {
    /// Shuts the gates of all roots that reach `node` and waits until nothing is inside them. Roots
    /// in `except` go on: a job that drains its source excludes its own, whose work it awaits
    /// itself. If this future is dropped the gates open again.
    pub async fn drain(&self, node: &BlockNode, except: &[BackendId]) -> Drained {
        self.drain_nodes(vec![node.clone()], except).await
    }

    /// Shuts all roots of the graph.
    pub async fn drain_all(&self, except: &[BackendId]) -> Drained {
        self.drain_nodes(self.nodes(), except).await
    }

    /// [`drain`](BlockGraph::drain) for several nodes at once.
    pub async fn drain_nodes(&self, nodes: Vec<BlockNode>, except: &[BackendId]) -> Drained {
        let inner = self.shut_roots(&nodes, except);
        drop(nodes);
        let shut = inner.shut.borrow().clone();
        for (_, gate) in shut {
            gate.quiet().await;
        }
        Drained(inner)
    }

    fn shut_roots(&self, nodes: &[BlockNode], except: &[BackendId]) -> Rc<DrainInner> {
        let roots = roots_above(nodes);
        let nodes = nodes.iter().map(|node| Rc::downgrade(&node.0)).collect();
        let inner =
            Rc::new(DrainInner { nodes, except: except.to_vec(), shut: RefCell::default() });
        // All gates are shut before anything is awaited: a request that holds passes of two roots
        // entered them together, so it is either inside both or outside both.
        for root in &roots {
            inner.shut(root);
        }
        let mut drains = self.0.drains.borrow_mut();
        drains.retain(|drain| drain.strong_count() != 0);
        drains.push(Rc::downgrade(&inner));
        drop(drains);
        self.0.drain_began.notify_all();
        inner
    }

    /// Notified whenever a drain has shut its gates: who holds requests up lets them go.
    pub(crate) fn drain_began(&self) -> Rc<Notify> {
        Rc::clone(&self.0.drain_began)
    }

    /// Shuts a new root if it reaches a node that is being drained.
    pub(super) fn join_drains(&self, backend: &BlockBackend) {
        for drain in self.0.drains.borrow().iter().filter_map(Weak::upgrade) {
            let mut nodes = drain.nodes.iter().filter_map(Weak::upgrade).map(BlockNode);
            if nodes.any(|node| reaches(&backend.node(), &node)) {
                drain.shut(&backend.0);
            }
        }
    }
}

impl Edge {
    /// Whether a drain waits for requests that may be inside the parent.
    pub(crate) fn is_draining(&self) -> bool {
        let Parent::Node(parent) = &*self.0.parent.borrow() else { return false };
        let parent = parent.upgrade().map(BlockNode);
        roots_above(parent.as_slice()).iter().any(|root| !root.gate.is_open())
    }
}

impl BlockNode {
    /// The length has changed: tells the roots above.
    pub(crate) fn tell_length(&self) {
        for root in roots_above(std::slice::from_ref(self)) {
            root.tell_length();
        }
    }
}

impl DrainInner {
    fn shut(&self, backend: &BackendInner) {
        if !self.except.contains(&backend.id) {
            backend.gate.close();
            self.shut.borrow_mut().push((backend.id, Rc::clone(&backend.gate)));
        }
    }
}

/// Whether `below` is `from` or hangs somewhere below it.
pub(super) fn reaches(from: &BlockNode, below: &BlockNode) -> bool {
    from.is_same(below) || from.children().iter().any(|edge| reaches(&edge.node(), below))
}

/// The roots from which any of `nodes` can be reached, each once.
fn roots_above(nodes: &[BlockNode]) -> Vec<Rc<BackendInner>> {
    let mut roots: Vec<Rc<BackendInner>> = Vec::new();
    let mut seen: Vec<BlockNode> = Vec::new();
    let mut todo = nodes.to_vec();
    while let Some(node) = todo.pop() {
        if seen.iter().any(|other| other.is_same(&node)) {
            continue;
        }
        for edge in node.0.live_parents() {
            match &*edge.0.parent.borrow() {
                Parent::Node(parent) => todo.extend(parent.upgrade().map(BlockNode)),
                Parent::Backend(parent) => {
                    let root = parent.upgrade();
                    roots.extend(root.filter(|root| roots.iter().all(|other| other.id != root.id)));
                }
                Parent::None => {}
            }
        }
        seen.push(node);
    }
    roots
}
