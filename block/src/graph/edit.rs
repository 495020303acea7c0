//! Graph edits: several changes that happen together or not at all.

use std::rc::{Rc, Weak};

use super::drain::reaches;
use super::{BlockGraph, Drained, perms};
use crate::backend::{BackendId, BlockBackend};
use crate::driver::BlockDriver;
use crate::edge::{Edge, EdgeInner, EdgePerms, Parent, PermRule};
use crate::error::{Error, ErrorKind, Result};
use crate::filter::mirror_top::MirrorTop;
use crate::node::BlockNode;

/// Changes to make together; see [`BlockGraph::apply`].
#[derive(Default)]
pub struct Edit {
    replaced: Vec<Replace>,
    perms: Vec<(Edge, EdgePerms)>,
}

struct Replace {
    from: BlockNode,
    to: BlockNode,
    who: Movers,
}

/// Which users of a node a replacement moves.
enum Movers {
    /// All but these roots.
    AllBut(Vec<BackendId>),
    /// These alone.
    Only(Vec<Weak<EdgeInner>>),
}

impl Edit {
    /// No changes yet.
    pub fn new() -> Edit {
        Edit::default()
    }

    /// Everybody who uses `from` shall use `to`, but for the roots in `stay` and for `to` and what
    /// hangs below it. So with a filter over `from` this inserts the filter, and with a filter's
    /// child as `to` it takes the filter out.
    #[must_use]
    pub fn replace(self, from: &BlockNode, to: &BlockNode, stay: &[BackendId]) -> Edit {
        self.push(from, to, Movers::AllBut(stay.to_vec()))
    }

    /// Those of `users` that use `from` shall use `to`.
    #[must_use]
    pub(super) fn replace_for(
        self,
        from: &BlockNode,
        to: &BlockNode,
        users: Vec<Weak<EdgeInner>>,
    ) -> Edit {
        self.push(from, to, Movers::Only(users))
    }

    fn push(mut self, from: &BlockNode, to: &BlockNode, who: Movers) -> Edit {
        self.replaced.push(Replace { from: from.clone(), to: to.clone(), who });
        self
    }

    /// `backend` shall have these permissions: [`EdgePerms::IDLE`] for a job that is done.
    #[must_use]
    pub fn set_perms(mut self, backend: &BlockBackend, perms: EdgePerms) -> Edit {
        self.perms.push((backend.edge().clone(), perms));
        self
    }
}

impl BlockGraph {
    /// Makes the changes of `edit`, or none of them: on an error everything is as before.
    ///
    /// `drained` must cover the nodes that are replaced, which is why it is asked for. Requests
    /// that wait at a gate go to the new node when the drain ends.
    pub fn apply(&self, edit: &Edit, drained: &Drained) -> Result<()> {
        let mut moved: Vec<(Edge, BlockNode)> = Vec::new();
        let result = self.try_apply(edit, drained, &mut moved);
        if result.is_err() {
            for (edge, back) in moved.iter().rev() {
                point(edge, back);
            }
        } else {
            edit.replaced.iter().for_each(|replaced| replaced.to.tell_length());
        }
        result
    }

    /// [`apply`](BlockGraph::apply) under a drain of its own.
    pub async fn edit(&self, edit: &Edit, except: &[BackendId]) -> Result<()> {
        let nodes = edit.replaced.iter().flat_map(|it| [it.from.clone(), it.to.clone()]).collect();
        let drained = self.drain_nodes(nodes, except).await;
        self.apply(edit, &drained)
    }

    fn try_apply(
        &self,
        edit: &Edit,
        drained: &Drained,
        moved: &mut Vec<(Edge, BlockNode)>,
    ) -> Result<()> {
        let mut touched = Vec::new();
        for Replace { from, to, who } in &edit.replaced {
            for edge in from.0.live_parents() {
                if moves(&edge, from, to, who) {
                    self.check_quiet(&edge, drained)?;
                    moved.push((edge.clone(), from.clone()));
                    point(&edge, to);
                }
            }
            touched.extend([to.clone(), from.clone()]);
        }
        perms::recompute(&touched, edit.perms.clone())?;
        for (edge, perms) in &edit.perms {
            edge.0.rule.set(PermRule::Fixed(*perms));
        }
        Ok(())
    }

    /// A root that is moved must have nothing under way, or the old node would still be used.
    fn check_quiet(&self, edge: &Edge, drained: &Drained) -> Result<()> {
        let Parent::Backend(parent) = &*edge.0.parent.borrow() else { return Ok(()) };
        let Some(backend) = parent.upgrade().map(BlockBackend) else { return Ok(()) };
        if drained.covers(&backend) && backend.is_quiet() {
            return Ok(());
        }
        let context = format!("{} must be drained before it is moved", backend.0.describe());
        Err(Error::new(ErrorKind::Busy, context))
    }
}

/// Whether a replacement by `to` moves this edge.
fn moves(edge: &Edge, from: &BlockNode, to: &BlockNode, who: &Movers) -> bool {
    let stay = match who {
        Movers::AllBut(stay) => stay,
        Movers::Only(users) => {
            return users.iter().any(|user| Weak::as_ptr(user) == Rc::as_ptr(&edge.0));
        }
    };
    match &*edge.0.parent.borrow() {
        // An image that is being opened came in at a job's filter; the filter's own is not moved onto itself.
        Parent::None => from.format() == MirrorTop::FORMAT,
        Parent::Backend(parent) => parent.upgrade().is_some_and(|root| !stay.contains(&root.id)),
        // Moving an edge of something below `to` would make a circle.
        Parent::Node(parent) => {
            parent.upgrade().is_some_and(|parent| !reaches(to, &BlockNode(parent)))
        }
    }
}

fn point(edge: &Edge, to: &BlockNode) {
    let old = edge.0.node.replace(to.clone());
    old.forget_parent(Rc::as_ptr(&edge.0));
    to.0.parents.borrow_mut().push(Rc::downgrade(&edge.0));
}
