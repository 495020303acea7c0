//! `yank`: connections are given up although their requests are under way.

use ferry_api::command::{Yank, YankInstance, YankInstanceBlockNode, YankInstanceKind};
use ferry_api::{ErrorClass, QmpError};
use ferry_block::BlockGraph;
use ferry_block::protocol::nbd;

use super::{Result, Storage};

impl Storage {
    /// Gives all the connections up, or none of them if there is a name that nobody knows.
    pub(super) async fn yank(&self, arguments: Yank) -> Result<()> {
        let names = arguments.instances.into_iter().map(|instance| {
            let YankInstanceKind::BlockNode(node) = instance.kind;
            node.node_name
        });
        let names: Vec<String> = names.collect();
        let give_up = move |graph: BlockGraph| async move {
            let known = nbd::abandonable(&graph);
            if names.iter().any(|name| !known.contains(name)) {
                return Ok(false);
            }
            Ok(names.iter().all(|name| nbd::abandon(&graph, name)))
        };
        if self.on_graph(give_up).await? {
            return Ok(());
        }
        Err(QmpError::new(ErrorClass::DeviceNotFound, "Instance not found"))
    }

    /// `query-yank`
    pub(super) async fn query_yank(&self) -> Result<Vec<YankInstance>> {
        let list = |graph: BlockGraph| async move { Ok(nbd::abandonable(&graph)) };
        let names = self.on_graph(list).await?.into_iter();
        let instance = |node_name| YankInstance {
            kind: YankInstanceKind::BlockNode(YankInstanceBlockNode { node_name }),
        };
        Ok(names.map(instance).collect())
    }
}
