//! `yank`: the way out when a peer hangs.

use crate::schema::{object, union};

union! {
    /// Something whose connections can be given up.
    pub struct YankInstance {
        ..
        /// The kind with its own members.
        kind: YankInstanceKind = "type",
    }
    /// The kinds of such things.
    pub enum YankInstanceKind {
        /// A node whose data is somewhere else.
        BlockNode(YankInstanceBlockNode) = "block-node",
    }
}

object! {
    /// A node whose data is somewhere else.
    pub struct YankInstanceBlockNode {
        /// The node.
        node_name: String = "node-name",
    }
}

object! {
    /// Arguments of `yank`.
    pub struct Yank {
        /// What to give up.
        instances: Vec<YankInstance> = "instances",
    }
}
