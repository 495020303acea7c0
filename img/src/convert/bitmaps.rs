//! The dirty bitmaps of a source go to the target.

use ferry_block::bitmap::DirtyBitmap;
use ferry_block::format::qcow2::Qcow2Driver;
use ferry_block::format::qcow2::bitmap::{ToStore, load_bitmap, load_directory, store_bitmaps};
use ferry_block::{BlockNode, Edge};

use crate::failure::{Failure, Result};
use crate::session::Image;

/// Copies them, once everything else is there.
pub(super) async fn copy(sources: &[Image], target: &Image, skip_broken: bool) -> Result<()> {
    let [source] = sources else {
        return Err(Failure::new("Copying bitmaps only possible with single source"));
    };
    let driver = |node: &BlockNode| node.driver::<Qcow2Driver>().is_some();
    if !driver(&source.node) {
        return Err(Failure::new("This will not copy bitmaps: the source has none"));
    }
    let Some(target) = target.node.driver::<Qcow2Driver>() else {
        return Err(Failure::new("Format driver of the target does not support bitmaps"));
    };
    let bitmaps = load(source, skip_broken).await?;
    let store = |file: Edge| async move {
        let list: Vec<ToStore<'_>> =
            bitmaps.iter().map(|(name, bits)| ToStore::Bits { name, bits }).collect();
        store_bitmaps(&file, &list).await
    };
    Ok(target.offline(store).await?)
}

/// The bitmaps of an image, by name.
async fn load(source: &Image, skip_broken: bool) -> Result<Vec<(String, DirtyBitmap)>> {
    let mut bitmaps = Vec::new();
    let Some(driver) = source.node.driver::<Qcow2Driver>() else { return Ok(bitmaps) };
    let (file, header) = (driver.file(), driver.header());
    let Some(extension) = header.bitmaps() else { return Ok(bitmaps) };
    for entry in load_directory(&file, extension, header.geometry).await? {
        let name = entry.name.clone();
        if entry.in_use && skip_broken {
            crate::say(&format!("warning: Skipping inconsistent bitmap '{name}'"));
            continue;
        }
        if entry.in_use {
            let text = format!(
                "Cannot copy inconsistent bitmap '{name}': try --skip-broken-bitmaps, or use \
                 'ferry img bitmap --remove'"
            );
            return Err(Failure::new(text));
        }
        bitmaps.push((name, load_bitmap(&file, &header, &entry).await?));
    }
    Ok(bitmaps)
}
