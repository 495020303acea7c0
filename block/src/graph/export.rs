//! Roots of exports: how another program gets hold of a node.

use super::BlockGraph;
use crate::backend::{BackendKind, BlockBackend};
use crate::driver::LocalBoxFuture;
use crate::edge::{EdgePerms, Perms};
use crate::error::Result;
use crate::node::BlockNode;

impl BlockGraph {
    /// A root for an export called `id` of a device or node. Its clients do not mind others, as they may be on
    /// the other side of a network, but for what is not in `shares`. A writable one of an inactive node
    /// activates the node.
    ///
    /// # Errors
    /// There is no such node, it cannot be activated, or somebody does not share it.
    pub async fn add_export(
        &self,
        id: &str,
        node: &str,
        writable: bool,
        shares: Perms,
    ) -> Result<BlockBackend> {
        let node = self.device_or_node(node)?;
        let mut needs = Perms::CONSISTENT_READ;
        if writable {
            activate(&node.entrance()).await?;
            needs = needs | Perms::WRITE;
        }
        let perms = EdgePerms { needs, shares };
        self.add_backend(BackendKind::Export, id, &node, perms)
    }
}

/// Takes ownership of a node and of what lies below, lowest first. What was taken stays taken when
/// something above it refuses: owning an image nobody else wants harms nobody.
fn activate(node: &BlockNode) -> LocalBoxFuture<'_, Result<()>> {
    Box::pin(async move {
        if node.is_active() {
            return Ok(());
        }
        for child in node.children() {
            activate(&child.node()).await?;
        }
        node.activate(None).await
    })
}
