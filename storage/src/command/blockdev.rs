//! `blockdev-add` and `blockdev-del`.

use ferry_api::QmpError;
use ferry_api::command::{BlockdevDel, BlockdevOptions};
use ferry_block::BlockGraph;

use super::{Result, Storage};

impl Storage {
    /// Creates nodes, the outermost with a name.
    pub(super) async fn blockdev_add(&self, options: BlockdevOptions) -> Result<()> {
        if options.node_name.is_none() {
            return Err(QmpError::root_without_name());
        }
        // Both sides spell the options as QMP does, so JSON carries them over.
        let options = serde_json::to_value(options).and_then(serde_json::from_value);
        let options: ferry_block::BlockdevOptions =
            options.map_err(|e| QmpError::generic(format!("blockdev-add: {e}")))?;
        let add = |graph: BlockGraph| async move { graph.open(&options).await.map(drop) };
        self.on_graph(add).await
    }

    /// Removes a node that nobody uses.
    pub(super) async fn blockdev_del(&self, arguments: BlockdevDel) -> Result<()> {
        self.on_graph(|graph| async move { graph.remove(&arguments.node_name).await }).await
    }
}
