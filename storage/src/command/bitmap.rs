//! Dirty bitmaps, and `transaction`, which makes several changes at one moment.

use std::cell::RefCell;

use ferry_api::QmpError;
use ferry_api::command::{
    ActionCompletionMode, BlockDirtyBitmap, BlockDirtyBitmapAdd, BlockDirtyBitmapMerge,
    BlockDirtyBitmapOrStr, Transaction, TransactionActionKind,
};
use ferry_block::{BitmapChange, BitmapOptions, BitmapSource, BlockGraph, Error, ErrorKind};

use super::{Result, Storage};

/// A change to a dirty bitmap.
pub(super) enum Change {
    Add(BlockDirtyBitmapAdd),
    Remove(BlockDirtyBitmap),
    Clear(BlockDirtyBitmap),
    Enable(BlockDirtyBitmap),
    Disable(BlockDirtyBitmap),
    Merge(BlockDirtyBitmapMerge),
}

/// One step of a transaction.
enum Step {
    Abort,
    Bitmap(Change),
}

impl Storage {
    /// Makes one change.
    pub(super) async fn change_bitmap(&self, change: Change) -> Result<()> {
        self.on_graph(|graph| async move { change.make(&graph).map(BitmapChange::commit) }).await
    }

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
            let made = RefCell::new(Vec::new());
            for step in steps {
                let change = match step {
                    Step::Bitmap(change) => change.make(&graph),
                    Step::Abort => {
                        let context = "Transaction aborted using Abort action";
                        Err(Error::new(ErrorKind::Cancelled, context))
                    }
                };
                match change {
                    Ok(change) => made.borrow_mut().push(change),
                    Err(error) => {
                        // Last change first: a later one may build on an earlier one.
                        made.take().into_iter().rev().for_each(BitmapChange::undo);
                        return Err(error);
                    }
                }
            }
            made.take().into_iter().for_each(BitmapChange::commit);
            drop(drained);
            Ok(())
        };
        self.on_graph(run).await
    }
}

fn step(action: TransactionActionKind) -> Step {
    use TransactionActionKind as Kind;
    Step::Bitmap(match action {
        Kind::Abort(_) => return Step::Abort,
        Kind::BlockDirtyBitmapAdd(add) => Change::Add(add.data),
        Kind::BlockDirtyBitmapRemove(bitmap) => Change::Remove(bitmap.data),
        Kind::BlockDirtyBitmapClear(bitmap) => Change::Clear(bitmap.data),
        Kind::BlockDirtyBitmapEnable(bitmap) => Change::Enable(bitmap.data),
        Kind::BlockDirtyBitmapDisable(bitmap) => Change::Disable(bitmap.data),
        Kind::BlockDirtyBitmapMerge(merge) => Change::Merge(merge.data),
    })
}

impl Change {
    fn make(self, graph: &BlockGraph) -> ferry_block::Result<BitmapChange> {
        match self {
            Change::Add(add) => {
                let options = BitmapOptions {
                    name: add.name,
                    granularity: add.granularity.map(u64::from),
                    persistent: add.persistent == Some(true),
                    disabled: add.disabled == Some(true),
                };
                graph.add_bitmap(&add.node, &options)
            }
            Change::Remove(BlockDirtyBitmap { node, name }) => graph.remove_bitmap(&node, &name),
            Change::Clear(BlockDirtyBitmap { node, name }) => graph.clear_bitmap(&node, &name),
            Change::Enable(BlockDirtyBitmap { node, name }) => graph.enable_bitmap(&node, &name),
            Change::Disable(BlockDirtyBitmap { node, name }) => graph.disable_bitmap(&node, &name),
            Change::Merge(merge) => {
                let sources = merge.bitmaps.into_iter().map(|bitmap| match bitmap {
                    BlockDirtyBitmapOrStr::Local(name) => BitmapSource { node: None, name },
                    BlockDirtyBitmapOrStr::External(BlockDirtyBitmap { node, name }) => {
                        BitmapSource { node: Some(node), name }
                    }
                });
                let sources: Vec<BitmapSource> = sources.collect();
                graph.merge_bitmaps(&merge.node, &merge.target, &sources)
            }
        }
    }
}
