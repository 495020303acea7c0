//! Dirty bitmaps by name.

use serde::{Deserialize, Serialize};

use super::BlockDirtyBitmap;
use crate::schema::{Alternate, Described, Type, object};

object! {
    /// Arguments of `block-dirty-bitmap-add`.
    pub struct BlockDirtyBitmapAdd {
        /// The node.
        node: String = "node",
        /// Name of the bitmap.
        name: String = "name",
        /// Bytes per bit: a power of two (default: the cluster size, 4 KiB to 64 KiB).
        granularity: Option<u32> = "granularity",
        /// Whether it is stored with the image (default false).
        persistent: Option<bool> = "persistent",
        /// Whether it records nothing at first (default false).
        disabled: Option<bool> = "disabled",
    }
}

/// A bitmap to merge: of the same node by name, or of any.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum BlockDirtyBitmapOrStr {
    /// A bitmap of the node that the command is about.
    Local(String),
    /// A bitmap of any node.
    External(BlockDirtyBitmap),
}

impl Described for BlockDirtyBitmapOrStr {
    fn describe() -> Type {
        static ALTERNATE: Alternate = Alternate {
            name: "BlockDirtyBitmapOrStr",
            members: &[String::describe, BlockDirtyBitmap::describe],
        };
        Type::Alternate(&ALTERNATE)
    }
}

object! {
    /// Arguments of `block-dirty-bitmap-merge`.
    pub struct BlockDirtyBitmapMerge {
        /// The node.
        node: String = "node",
        /// The bitmap of the node that gets everything.
        target: String = "target",
        /// The bitmaps that are added to it.
        bitmaps: Vec<BlockDirtyBitmapOrStr> = "bitmaps",
    }
}

object! {
    /// Result of `x-debug-block-dirty-bitmap-sha256`.
    pub struct BlockDirtyBitmapSha256 {
        /// SHA-256 of the bits.
        sha256: String = "sha256",
    }
}
