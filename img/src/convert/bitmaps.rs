//! The dirty bitmaps of a source go to the target.

use ferry_block::BitmapOptions;
use ferry_block::bitmap::DirtyBitmap;
use ferry_block::format::qcow2::Qcow2Driver;
use ferry_block::format::qcow2::bitmap::{Room, load_bitmap, load_directory};

use crate::failure::{Failure, Result};
use crate::session::{Image, Session};

/// A bitmap and its name.
type Named = (String, DirtyBitmap);

/// The bitmaps of the only source.
pub(super) async fn load(sources: &[Image], skip_broken: bool) -> Result<Vec<Named>> {
    let [source] = sources else {
        return Err(Failure::new("Copying bitmaps only possible with single source"));
    };
    let Some(driver) = source.node.driver::<Qcow2Driver>() else {
        return Err(Failure::new("This will not copy bitmaps: the source has none"));
    };
    let (mut bitmaps, mut room) = (Vec::new(), Room::default());
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
        let bits = load_bitmap(&file, &header, &entry).await?;
        // Many may point to one table: a short file describes as many bits as it likes.
        if !room.take(&bits) {
            let text = "This will not copy bitmaps: together they have more than 1 GiB of bits";
            return Err(Failure::new(text));
        }
        bitmaps.push((name, bits));
    }
    Ok(bitmaps)
}

/// Refuses those of a disk of another length: a target that was there already may be longer.
pub(super) fn check(bitmaps: &[Named], len: u64) -> Result<()> {
    let Some((name, bits)) = bitmaps.iter().find(|(_, bits)| bits.len() != len) else {
        return Ok(());
    };
    Err(Failure::new(format!(
        "Failed to populate bitmap {name}: Bitmaps are of different sizes (destination size is {len}, \
         source size is {}) and can't be merged",
        bits.len()
    )))
}

/// Gives them to the target, once everything else is there: it stores them when it is closed.
pub(super) fn store(session: &Session, bitmaps: Vec<Named>, target: &Image) -> Result<()> {
    if target.node.driver::<Qcow2Driver>().is_none() {
        return Err(Failure::new("Format driver of the target does not support bitmaps"));
    }
    for (name, bits) in bitmaps {
        let granularity = Some(bits.granularity());
        let options = BitmapOptions { name, granularity, persistent: true, disabled: false };
        let change = session.graph.add_bitmap(target.node.name(), &options)?;
        change.bitmap().bits.replace(bits);
        change.commit();
    }
    Ok(())
}
