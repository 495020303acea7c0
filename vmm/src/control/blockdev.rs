//! `blockdev-add` and `blockdev-del`.

use ferry_api::QmpError;
use ferry_api::command::{BlockdevDel, BlockdevOptions};
use ferry_block::{BlockGraph, Error};

use super::Control;

impl Control {
    /// Creates nodes, the outermost with a name.
    pub(super) async fn blockdev_add(&self, options: BlockdevOptions) -> Result<(), QmpError> {
        if options.node_name.is_none() {
            return Err(QmpError::root_without_name());
        }
        // Both sides spell the options as QMP does, so JSON carries them over.
        let options = serde_json::to_value(options).and_then(serde_json::from_value);
        let options: ferry_block::BlockdevOptions =
            options.map_err(|e| QmpError::generic(format!("blockdev-add: {e}")))?;
        let add = |graph: BlockGraph| async move { graph.open(&options).await.map(drop) };
        self.blocks().call(add).await.and_then(|added| added).map_err(qmp_error)
    }

    /// Removes a node that nobody uses.
    pub(super) async fn blockdev_del(&self, arguments: BlockdevDel) -> Result<(), QmpError> {
        let remove = |graph: BlockGraph| async move { graph.remove(&arguments.node_name).await };
        self.blocks().call(remove).await.and_then(|removed| removed).map_err(qmp_error)
    }
}

/// What a client reads of an error of the block layer.
pub(super) fn qmp_error(error: Error) -> QmpError {
    QmpError::generic(error.to_string())
}
