//! What an image at rest has and does not need: refcount blocks that describe nothing, and the end of
//! the file behind the last cluster in use.
//!
//! Giving up one block may empty the one that describes it, and so on down a chain as long as whoever
//! made the image likes. So it is found out first which blocks go, which reads each block at most
//! twice, and then they go all at once.

use std::collections::BTreeSet;

use super::super::container;
use super::super::entry::{RefcountTableEntry, refcount};
use super::AtRest;
use crate::error::{Error, ErrorKind, Result};

/// Most blocks that are kept in memory: an image may have more than are worth keeping.
const KEPT_BLOCKS: usize = 64;

impl AtRest<'_> {
    /// Gives up every refcount block that says of nothing but itself that it is in use, and those
    /// that describe nothing else but such blocks.
    ///
    /// # Errors
    /// `Corrupt`, before anything was changed, if the table and its blocks contradict each other.
    pub(in super::super) async fn drop_empty_blocks(&mut self) -> Result<()> {
        // A block that waits to be written must not be forgotten.
        self.write_refcounts().await?;
        let geometry = self.geometry();
        let mut gone = Vec::new();
        for place in self.empty_blocks().await? {
            gone.push(std::mem::take(&mut self.table[place]));
            self.table_changed = true;
        }
        // Nothing points to them any more when their own refcounts are lowered.
        self.write_refcounts().await?;
        // Blocks in the order in which they are described.
        gone.sort_unstable();
        for at in gone {
            let index = geometry.refcount_table_index(geometry.cluster_index(at));
            if self.block(index).await?.is_some() {
                self.change(at, geometry.cluster_size(), false).await?;
            }
            if self.blocks.len() > KEPT_BLOCKS {
                self.write_refcounts().await?;
                self.blocks.clear();
            }
        }
        self.write_refcounts().await
    }

    /// The places in the table of the blocks that are not needed.
    async fn empty_blocks(&mut self) -> Result<Vec<usize>> {
        let geometry = self.geometry();
        let corrupt = |at: u64, text: &str| {
            Err(Error::new(ErrorKind::Corrupt, format!("the refcount block at {at:#x} {text}")))
        };
        let (mut used, mut empty) = (vec![0_usize; self.table.len()], Vec::new());
        let mut seen = BTreeSet::new();
        for (place, used) in used.iter_mut().enumerate() {
            let Some(at) = RefcountTableEntry(self.table[place]).offset() else { continue };
            if !seen.insert(at) {
                return corrupt(at, "is in the refcount table twice");
            }
            *used = self.others_in(place).await?;
            if *used == 0 {
                empty.push(place);
            }
        }
        let mut found = Vec::new();
        while let Some(place) = empty.pop() {
            found.push(place);
            let own = geometry.cluster_index(self.table[place]);
            let index = geometry.refcount_table_index(own);
            let describes = usize::try_from(index).unwrap_or(usize::MAX);
            if describes == place {
                continue;
            }
            match self.refcount(own).await? {
                0 => return corrupt(self.table[place], "is in use, but its refcount is 0"),
                1 => {
                    used[describes] -= 1;
                    if used[describes] == 0 {
                        empty.push(describes);
                    }
                }
                _ => {}
            }
            self.blocks.remove(&index);
        }
        Ok(found)
    }

    /// How many clusters the block at a place of the table has references for, not counting itself.
    async fn others_in(&mut self, place: usize) -> Result<usize> {
        let (geometry, index) = (self.geometry(), place as u64);
        let own = geometry.cluster_index(self.table[place]);
        let Some(block) = self.block(index).await? else { return Ok(0) };
        let describes_itself = geometry.refcount_table_index(own) == index;
        let own = describes_itself.then(|| geometry.refcount_block_index(own));
        let entries = usize::try_from(geometry.refcount_block_entries()).unwrap_or(0);
        let used = |entry: &usize| refcount(&block.bytes, *entry, geometry) != 0;
        let others = (0..entries).filter(used).filter(|entry| Some(*entry) != own).count();
        self.blocks.remove(&index);
        Ok(others)
    }

    /// Cuts the file off behind its last cluster in use. Everything was written before.
    pub(in super::super) async fn trim_file(&mut self) -> Result<()> {
        self.end = self.end_in_use().await?;
        container::cut(self.file, self.end << self.geometry().cluster_bits()).await
    }

    /// The cluster behind the last one of the file that is in use.
    pub(super) async fn end_in_use(&mut self) -> Result<u64> {
        let geometry = self.geometry();
        let per_block = geometry.refcount_block_entries();
        let blocks = geometry.refcount_table_index(self.end - 1) + 1;
        for index in (0..blocks.min(self.table.len() as u64)).rev() {
            let first = index * per_block;
            let entries = usize::try_from(per_block.min(self.end - first)).unwrap_or(0);
            let Some(block) = self.block(index).await? else { continue };
            let last = (0..entries).rfind(|entry| refcount(&block.bytes, *entry, geometry) != 0);
            if !block.changed {
                self.blocks.remove(&index);
            }
            if let Some(last) = last {
                return Ok(first + last as u64 + 1);
            }
        }
        // The header is always there.
        Ok(1)
    }
}
