//! Writing the persistent bitmaps of an image at rest, and marking them as in use.

use std::collections::BTreeSet;

use super::super::at_rest::AtRest;
use super::super::container::{read_words, write_at};
use super::super::header::{Autoclear, BitmapsExtension, MAX_BITMAPS, Version};
use super::bits::{is_storable, store_bits};
use super::directory::{BitmapEntry, BitsAt, MAX_NAME, load_directory, serialise};
use crate::bitmap::{BitmapState, DirtyBitmap};
use crate::edge::Edge;
use crate::error::{Error, ErrorKind, Result};

/// A bitmap that the image is to have.
#[derive(Clone, Copy, Debug)]
pub enum ToStore<'a> {
    /// As it is in the image already: one that is inconsistent, say, or was not loaded.
    Kept(&'a BitmapEntry),
    /// With these bits. Its state says whether it records; an inconsistent one stays so.
    Bits {
        /// Its name.
        name: &'a str,
        /// Its bits.
        bits: &'a DirtyBitmap,
    },
}

/// Makes `bitmaps` the persistent bitmaps of the image, and frees what is not kept.
///
/// # Errors
/// `Unsupported` in version 2, `InvalidArgument` for a name that cannot be stored or is there twice
/// or a bitmap of another length than the disk's, or of a disk without bytes.
pub async fn store_bitmaps(file: &Edge, bitmaps: &[ToStore<'_>]) -> Result<()> {
    let mut image = AtRest::open(file).await?;
    check(&image, bitmaps)?;
    let old_extension = image.header.bitmaps();
    let old = match old_extension {
        Some(extension) => load_directory(file, extension, image.geometry()).await?,
        None => Vec::new(),
    };
    let mut entries = Vec::new();
    for bitmap in bitmaps {
        entries.push(match bitmap {
            ToStore::Kept(entry) => (*entry).clone(),
            ToStore::Bits { name, bits } => BitmapEntry {
                name: (*name).to_owned(),
                table: store_bits(&mut image, bits).await?,
                in_use: bits.state() == BitmapState::Inconsistent,
                auto: bits.state() != BitmapState::Disabled,
                granularity_bits: u8::try_from(bits.granularity().trailing_zeros()).unwrap_or(0),
            },
        });
    }
    let directory = serialise(&entries);
    image.header.extensions.bitmaps = None;
    if !entries.is_empty() {
        let directory_offset = image.allocate(directory.len() as u64).await?;
        write_at(file, directory_offset, &directory).await?;
        image.header.extensions.bitmaps = Some(BitmapsExtension {
            count: u32::try_from(entries.len()).unwrap_or(u32::MAX),
            directory_size: directory.len() as u64,
            directory_offset,
        });
    }
    let any = !entries.is_empty();
    image.header.autoclear = image.header.autoclear.with(Autoclear::BITMAPS, any);
    image.write_refcounts().await?;
    image.write_header().await?;

    // Nothing points to the old ones any more.
    let kept: BTreeSet<u64> = entries.iter().map(|entry| entry.table.offset).collect();
    for entry in old.iter().filter(|entry| !kept.contains(&entry.table.offset)) {
        free(&mut image, entry).await?;
    }
    if let Some(extension) = old_extension {
        image.change(extension.directory_offset, extension.directory_size, false).await?;
    }
    image.write_refcounts().await
}

/// Marks all bitmaps as in use, durably, before the first write to an image: until they are stored
/// again, nobody else may rely on them. Those that do not record are no exception, for whoever has
/// the image open may make them record. Answers the directory as it was, with which bitmaps were
/// good.
///
/// The directory is changed in place; while it is, the autoclear bit is off, so that a crash makes
/// the bitmaps void and not wrong.
pub async fn mark_in_use(file: &Edge) -> Result<Vec<BitmapEntry>> {
    let mut image = AtRest::open(file).await?;
    let Some(extension) = image.header.bitmaps() else { return Ok(Vec::new()) };
    let before = load_directory(file, extension, image.geometry()).await?;
    let mut after = before.clone();
    for entry in &mut after {
        entry.in_use = true;
    }
    if after != before {
        let autoclear = image.header.autoclear;
        image.header.autoclear = autoclear.with(Autoclear::BITMAPS, false);
        image.write_header().await?;
        write_at(file, extension.directory_offset, &serialise(&after)).await?;
        image.header.autoclear = autoclear;
        image.write_header().await?;
    }
    Ok(before)
}

fn check(image: &AtRest<'_>, bitmaps: &[ToStore<'_>]) -> Result<()> {
    let refuse = |kind, text: String| Err(Error::new(kind, text));
    if image.geometry().version() == Version::V2 && !bitmaps.is_empty() {
        let text = "Cannot store dirty bitmaps in qcow2 v2 files".to_owned();
        return refuse(ErrorKind::Unsupported, text);
    }
    if bitmaps.len() as u64 > u64::from(MAX_BITMAPS) {
        let text =
            format!("Maximum number of persistent bitmaps is already reached ({MAX_BITMAPS})");
        return refuse(ErrorKind::InvalidArgument, text);
    }
    let mut names = BTreeSet::new();
    for bitmap in bitmaps {
        let name = match bitmap {
            ToStore::Kept(entry) => entry.name.as_str(),
            ToStore::Bits { name, bits } => {
                let (len, size) = (bits.len(), image.header.size);
                if len != size {
                    let text = format!("bitmap '{name}' is of a disk of {len} bytes, not {size}");
                    return refuse(ErrorKind::InvalidArgument, text);
                }
                if !is_storable(bits) {
                    let text = format!("a disk of {size} bytes cannot have bitmap '{name}' stored");
                    return refuse(ErrorKind::InvalidArgument, text);
                }
                name
            }
        };
        if name.is_empty() || name.len() > MAX_NAME || !names.insert(name) {
            let text = format!("a bitmap cannot be stored under the name '{name}'");
            return refuse(ErrorKind::InvalidArgument, text);
        }
    }
    Ok(())
}

/// Frees the clusters of a bitmap. What makes no sense stays: it leaks.
async fn free(image: &mut AtRest<'_>, entry: &BitmapEntry) -> Result<()> {
    let geometry = image.geometry();
    let bytes = u64::from(entry.table.entries) * 8;
    let end = entry.table.offset.saturating_add(bytes);
    if end > image.file.len() {
        return Ok(());
    }
    for word in read_words(image.file, entry.table.offset, entry.table.entries as usize).await? {
        if let Ok(BitsAt::Cluster(at)) = BitsAt::decode(word, geometry) {
            image.change(at, geometry.cluster_size(), false).await?;
        }
    }
    image.change(entry.table.offset, bytes, false).await
}
