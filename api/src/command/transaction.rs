//! `transaction`: several commands that happen together or not at all.

use serde::{Deserialize, Serialize};

use super::{
    BlockDirtyBitmap, BlockDirtyBitmapAdd, BlockDirtyBitmapMerge, BlockdevSnapshot,
    BlockdevSnapshotInternal, BlockdevSnapshotSync,
};
use crate::schema::{Described, Empty, Member, Object, Type, enumeration, object, union};

object! {
    /// Arguments of `transaction`.
    pub struct Transaction {
        /// What to do.
        actions: Vec<TransactionAction> = "actions",
        /// How.
        properties: Option<TransactionProperties> = "properties",
    }
}

object! {
    /// How to do it.
    #[derive(Default)]
    pub struct TransactionProperties {
        /// What becomes of jobs when one fails (default individual).
        completion_mode: Option<ActionCompletionMode> = "completion-mode",
    }
}

enumeration! {
    /// What becomes of jobs when one fails.
    pub enum ActionCompletionMode {
        /// Nothing.
        Individual = "individual",
        /// They are cancelled.
        Grouped = "grouped",
    }
}

union! {
    /// One of the actions.
    pub struct TransactionAction {
        ..
        /// The kind with its arguments.
        action: TransactionActionKind = "type",
    }
    /// The kinds of actions: what the commands of these names do.
    pub enum TransactionActionKind {
        /// Fails, and with it all others.
        Abort(Data<Empty>) = "abort",
        /// As the command of that name.
        BlockDirtyBitmapAdd(Data<BlockDirtyBitmapAdd>) = "block-dirty-bitmap-add",
        /// `block-dirty-bitmap-remove`.
        BlockDirtyBitmapRemove(Data<BlockDirtyBitmap>) = "block-dirty-bitmap-remove",
        /// `block-dirty-bitmap-clear`.
        BlockDirtyBitmapClear(Data<BlockDirtyBitmap>) = "block-dirty-bitmap-clear",
        /// `block-dirty-bitmap-enable`.
        BlockDirtyBitmapEnable(Data<BlockDirtyBitmap>) = "block-dirty-bitmap-enable",
        /// `block-dirty-bitmap-disable`.
        BlockDirtyBitmapDisable(Data<BlockDirtyBitmap>) = "block-dirty-bitmap-disable",
        /// `block-dirty-bitmap-merge`.
        BlockDirtyBitmapMerge(Data<BlockDirtyBitmapMerge>) = "block-dirty-bitmap-merge",
        /// `blockdev-snapshot`.
        BlockdevSnapshot(Data<BlockdevSnapshot>) = "blockdev-snapshot",
        /// `blockdev-snapshot-sync`.
        BlockdevSnapshotSync(Data<BlockdevSnapshotSync>) = "blockdev-snapshot-sync",
        /// `blockdev-snapshot-internal-sync`.
        BlockdevSnapshotInternalSync(Data<BlockdevSnapshotInternal>)
            = "blockdev-snapshot-internal-sync",
    }
}

/// The arguments of a transaction's action.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Data<T> {
    /// As the command takes them.
    pub data: T,
}

/// Each argument type needs a description of its own.
macro_rules! describe_data {
    ($($ty:ty),*) => {
        $(impl Described for Data<$ty> {
            fn describe() -> Type {
                static OBJECT: Object = Object {
                    name: concat!("Data of ", stringify!($ty)),
                    members: &[Member { name: "data", ty: <$ty>::describe, optional: false }],
                    variants: None,
                };
                Type::Object(&OBJECT)
            }
        })*
    };
}
describe_data!(
    Empty,
    BlockDirtyBitmap,
    BlockDirtyBitmapAdd,
    BlockDirtyBitmapMerge,
    BlockdevSnapshot,
    BlockdevSnapshotSync,
    BlockdevSnapshotInternal
);
