//! The dirty bitmaps of a source go to the target.

use ferry_block::bitmap::DirtyBitmap;
use ferry_block::format::qcow2::Qcow2Driver;
use ferry_block::format::qcow2::bitmap::{load_bitmap, load_directory};
use ferry_block::{BitmapOptions, BlockNode};

use crate::failure::{Failure, Result};
use crate::session::{Image, Session};

/// Copies them, once everything else is there: the target stores them when it is closed.
pub(super) async fn copy(
    session: &Session,
    sources: &[Image],
    target: &Image,
    skip_broken: bool,
) -> Result<()> {
    let [source] = sources else {
        return Err(Failure::new("Copying bitmaps only possible with single source"));
    };
    let driver = |node: &BlockNode| node.driver::<Qcow2Driver>().is_some();
    if !driver(&source.node) {
        return Err(Failure::new("This will not copy bitmaps: the source has none"));
    }
    if !driver(&target.node) {
        return Err(Failure::new("Format driver of the target does not support bitmaps"));
    }
    for (name, bits) in load(source, skip_broken).await? {
        let granularity = Some(bits.granularity());
        let options = BitmapOptions { name, granularity, persistent: true, disabled: false };
        let change = session.graph.add_bitmap(target.node.name(), &options)?;
        change.bitmap().bits.replace(bits);
        change.commit();
    }
    Ok(())
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
