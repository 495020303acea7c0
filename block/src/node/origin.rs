//! How a node came that was opened together with its parent: what it takes over from that later.

use std::rc::{Rc, Weak};

use super::{BlockNode, NodeInner};
use crate::open::BlockdevOptions;

/// The parent that a node was opened with, and the options.
#[derive(Clone)]
pub(crate) struct Origin {
    /// `None` until the parent is there.
    parent: Option<Weak<NodeInner>>,
    /// As the parent's options had them.
    pub(crate) given: BlockdevOptions,
    /// With what the node took over from its parent.
    pub(crate) effective: BlockdevOptions,
}

impl Origin {
    /// For a node whose parent is still to come.
    pub(crate) fn new(given: BlockdevOptions, effective: BlockdevOptions) -> Origin {
        Origin { parent: None, given, effective }
    }
}

impl BlockNode {
    /// How it came, if that was with a parent.
    pub(crate) fn origin(&self) -> Option<Rc<Origin>> {
        self.0.origin.borrow().clone()
    }

    /// Whether it was opened with `parent`.
    pub(crate) fn came_with(&self, parent: &BlockNode) -> bool {
        let origin = self.0.origin.borrow();
        let known = origin.as_ref().and_then(|origin| origin.parent.as_ref());
        known.is_some_and(|known| Weak::as_ptr(known) == Rc::as_ptr(&parent.0))
    }

    pub(crate) fn set_origin(&self, origin: Origin) {
        self.0.origin.replace(Some(Rc::new(origin)));
    }

    /// `parent` is there now. If this node was opened for it, it came with it.
    pub(crate) fn meet_parent(&self, parent: &BlockNode) {
        if self.origin().is_some_and(|origin| origin.parent.is_none()) {
            self.move_to_parent(parent);
        }
    }

    /// Whoever it came with, it belongs to `parent` now.
    pub(crate) fn move_to_parent(&self, parent: &BlockNode) {
        if let Some(origin) = self.origin() {
            let parent = Some(Rc::downgrade(&parent.0));
            self.set_origin(Origin { parent, ..Origin::clone(&origin) });
        }
    }

    /// Takes the origin of `old`, whose place it has, with the options that it was opened with itself.
    pub(crate) fn succeed(
        &self,
        old: &BlockNode,
        given: BlockdevOptions,
        effective: BlockdevOptions,
    ) {
        if let Some(origin) = old.origin() {
            self.set_origin(Origin { parent: origin.parent.clone(), given, effective });
        }
    }
}
