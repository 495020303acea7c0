//! Dirty bitmaps.

use ferry_api::command::{
    BlockDirtyBitmap, BlockDirtyBitmapAdd, BlockDirtyBitmapMerge, BlockDirtyBitmapOrStr,
    BlockDirtyBitmapSha256,
};
use ferry_block::{BitmapChange, BitmapOptions, BitmapSource, BlockGraph};
use ring::digest::{SHA256, digest};

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

impl Storage {
    /// Makes one change.
    pub(super) async fn change_bitmap(&self, change: Change) -> Result<()> {
        let make =
            |graph: BlockGraph| async move { change.make(&graph).await.map(BitmapChange::commit) };
        self.in_turn(make).await
    }

    /// `x-debug-block-dirty-bitmap-sha256`: of the bits as little-endian words, as QEMU keeps them.
    pub(super) async fn bitmap_sha256(
        &self,
        bitmap: BlockDirtyBitmap,
    ) -> Result<BlockDirtyBitmapSha256> {
        let read = |graph: BlockGraph| async move {
            let (_, found) = graph.find_bitmap(&bitmap.node, &bitmap.name)?;
            let words = found.bits.borrow().to_le_bytes();
            Ok(words)
        };
        let digest = digest(&SHA256, &self.on_graph(read).await?);
        let sha256 = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(BlockDirtyBitmapSha256 { sha256 })
    }
}

impl Change {
    pub(super) async fn make(self, graph: &BlockGraph) -> ferry_block::Result<BitmapChange> {
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
            Change::Remove(BlockDirtyBitmap { node, name }) => {
                graph.remove_bitmap(&node, &name).await
            }
            Change::Clear(BlockDirtyBitmap { node, name }) => {
                graph.clear_bitmap(&node, &name).await
            }
            Change::Enable(BlockDirtyBitmap { node, name }) => {
                graph.enable_bitmap(&node, &name).await
            }
            Change::Disable(BlockDirtyBitmap { node, name }) => {
                graph.disable_bitmap(&node, &name).await
            }
            Change::Merge(merge) => {
                let sources = merge.bitmaps.into_iter().map(|bitmap| match bitmap {
                    BlockDirtyBitmapOrStr::Local(name) => BitmapSource { node: None, name },
                    BlockDirtyBitmapOrStr::External(BlockDirtyBitmap { node, name }) => {
                        BitmapSource { node: Some(node), name }
                    }
                });
                let sources: Vec<BitmapSource> = sources.collect();
                graph.merge_bitmaps(&merge.node, &merge.target, &sources).await
            }
        }
    }
}
