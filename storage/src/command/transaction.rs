//! `transaction`: several changes at one moment, all of them or none.

use ferry_api::QmpError;
use ferry_api::command::{
    ActionCompletionMode, BlockdevSnapshotInternal, Transaction, TransactionActionKind,
};
use ferry_block::{BitmapChange, BlockGraph, BlockNode, Drained, Error, ErrorKind};

use super::bitmap::Change;
use super::snapshot::{Overlay, Placed, take_internal};
use super::{Result, Storage};

/// One step of a transaction.
enum Step {
    Abort,
    Bitmap(Change),
    External(Overlay),
    Internal(BlockdevSnapshotInternal),
}

/// A step that was made and can be taken back.
enum Made {
    Bitmap(BitmapChange),
    External(Placed),
    /// The device, its node and the snapshot's id.
    Internal(String, BlockNode, String),
}

impl Storage {
    /// `transaction`: requests wait until all of it is done or taken back.
    pub(super) async fn transaction(&self, arguments: Transaction) -> Result<()> {
        let properties = arguments.properties.unwrap_or_default();
        if properties.completion_mode == Some(ActionCompletionMode::Grouped) {
            let text = "completion-mode=grouped is for jobs, and no action here starts one";
            return Err(QmpError::generic(text));
        }
        let steps: Vec<Step> =
            arguments.actions.into_iter().map(|action| step(action.action)).collect();
        let run = |graph: BlockGraph| async move {
            let drained = graph.drain_all(&[]).await;
            let mut made = Vec::new();
            for step in steps {
                match step.make(&graph, &drained).await {
                    Ok(change) => made.push(change),
                    Err(error) => {
                        // Last change first: a later one may build on an earlier one.
                        for change in made.into_iter().rev() {
                            change.undo(&graph, &drained).await;
                        }
                        return Err(error);
                    }
                }
            }
            drop(drained);
            // Bitmaps first: what is taken from below an overlay is stored without those that were removed.
            made.sort_by_key(|change| !matches!(change, Made::Bitmap(_)));
            for change in made {
                change.commit(&graph).await;
            }
            Ok(())
        };
        self.in_turn(run).await
    }
}

fn step(action: TransactionActionKind) -> Step {
    use TransactionActionKind as Kind;
    let change = match action {
        Kind::Abort(_) => return Step::Abort,
        Kind::BlockdevSnapshot(node) => return Step::External(Overlay::Node(node.data)),
        Kind::BlockdevSnapshotSync(image) => return Step::External(Overlay::Image(image.data)),
        Kind::BlockdevSnapshotInternalSync(asked) => return Step::Internal(asked.data),
        Kind::BlockDirtyBitmapAdd(add) => Change::Add(add.data),
        Kind::BlockDirtyBitmapRemove(bitmap) => Change::Remove(bitmap.data),
        Kind::BlockDirtyBitmapClear(bitmap) => Change::Clear(bitmap.data),
        Kind::BlockDirtyBitmapEnable(bitmap) => Change::Enable(bitmap.data),
        Kind::BlockDirtyBitmapDisable(bitmap) => Change::Disable(bitmap.data),
        Kind::BlockDirtyBitmapMerge(merge) => Change::Merge(merge.data),
    };
    Step::Bitmap(change)
}

impl Step {
    async fn make(self, graph: &BlockGraph, drained: &Drained) -> ferry_block::Result<Made> {
        match self {
            Step::Abort => {
                let context = "Transaction aborted using Abort action";
                Err(Error::new(ErrorKind::Cancelled, context))
            }
            Step::Bitmap(change) => change.make(graph).await.map(Made::Bitmap),
            Step::External(overlay) => {
                let prepared = overlay.prepare(graph).await?;
                prepared.place(graph, drained).await.map(Made::External)
            }
            Step::Internal(asked) => {
                let (node, snapshot) = take_internal(graph, &asked).await?;
                Ok(Made::Internal(asked.device, node, snapshot.id))
            }
        }
    }
}

impl Made {
    async fn commit(self, graph: &BlockGraph) {
        match self {
            Made::Bitmap(change) => change.commit(),
            Made::External(placed) => placed.commit(graph).await,
            Made::Internal(..) => {}
        }
    }

    async fn undo(self, graph: &BlockGraph, drained: &Drained) {
        match self {
            Made::Bitmap(change) => change.undo(),
            Made::External(placed) => placed.undo(graph, drained).await,
            Made::Internal(device, node, id) => {
                let deleted = graph.delete_internal_snapshot(&device, &node, Some(&id), None).await;
                if let Err(error) = deleted {
                    tracing::error!("snapshot '{id}' of '{device}' cannot be undone: {error}");
                }
            }
        }
    }
}
