//! The bits of a stored bitmap, in memory and back.

use super::super::at_rest::AtRest;
use super::super::container::{read_at, read_words, write_at, write_words};
use super::super::header::{Header, Table};
use super::directory::{BitmapEntry, BitsAt, load_directory};
use crate::bitmap::{BitmapState, DirtyBitmap};
use crate::edge::Edge;
use crate::error::{Error, ErrorKind, Result};

/// Most bytes of bits in one bitmap: QEMU's limit.
const MAX_BYTES: u64 = 512 << 20;
/// Most bytes of bits in all bitmaps of an image that is in use.
const MAX_TOTAL: u64 = 1 << 30;

/// Bytes that the bits of a disk of `size` bytes take.
fn bytes_for(size: u64, granularity_bits: u8) -> u64 {
    size.div_ceil(1 << granularity_bits).div_ceil(8)
}

/// Bytes of bits that are stored; of one that is inconsistent none are.
fn bytes_of(bitmap: &DirtyBitmap) -> u64 {
    if bitmap.state() == BitmapState::Inconsistent {
        return 0;
    }
    let bits = u8::try_from(bitmap.granularity().trailing_zeros()).unwrap_or(u8::MAX);
    bytes_for(bitmap.len(), bits)
}

/// Bytes of bits that an entry has. One that was in use when its user went away has none worth reading, also if the disk
/// has become too long for them.
fn stored_bytes(header: &Header, entry: &BitmapEntry) -> u64 {
    if entry.in_use { 0 } else { bytes_for(header.size, entry.granularity_bits) }
}

/// Whether a bitmap can be stored: an empty disk has no bits, and there is a most of them.
pub(crate) fn is_storable(bitmap: &DirtyBitmap) -> bool {
    !bitmap.is_empty() && bytes_of(bitmap) <= MAX_BYTES
}

/// Bytes of bits that an image can have besides those that it has. With more nobody could take it over.
pub struct Room(u64);

impl Default for Room {
    fn default() -> Room {
        Room(MAX_TOTAL)
    }
}

impl Room {
    /// Whether there is room for this bitmap, too; it is taken then.
    pub fn take(&mut self, bitmap: &DirtyBitmap) -> bool {
        let bytes = bytes_of(bitmap);
        let left = self.0.checked_sub(bytes).filter(|_| bytes <= MAX_BYTES);
        self.0 = left.unwrap_or(self.0);
        left.is_some()
    }
}

/// The bitmap that `entry` describes. One that was in use when its user went away is inconsistent
/// and has no bits; one that does not record is disabled.
///
/// # Errors
/// `Corrupt` when the table does not fit the disk or points outside the file, `Unsupported` for
/// more than 512 MiB of bits.
pub async fn load_bitmap(file: &Edge, header: &Header, entry: &BitmapEntry) -> Result<DirtyBitmap> {
    let explain =
        |error| Error::new(ErrorKind::Corrupt, format!("bitmap '{}': {error}", entry.name));
    let bytes = stored_bytes(header, entry);
    if bytes > MAX_BYTES {
        let name = &entry.name;
        let context = format!("bitmap '{name}' has {bytes} bytes of bits, more than 512 MiB");
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    let granularity = 1 << entry.granularity_bits;
    if entry.in_use {
        let lost = DirtyBitmap::inconsistent(header.size, granularity);
        return lost.map_err(|error| explain(error.to_string()));
    }
    let bitmap = DirtyBitmap::new(header.size, granularity);
    let mut bitmap = bitmap.map_err(|error| explain(error.to_string()))?;
    load_bits(file, header, entry, &mut bitmap)
        .await
        .map_err(|error| explain(error.to_string()))?;
    if !entry.auto {
        bitmap.disable().map_err(|error| explain(error.to_string()))?;
    }
    Ok(bitmap)
}

/// All bitmaps of an image, by name.
///
/// # Errors
/// Those of [`load_directory`] and [`load_bitmap`], and `Unsupported` for more than 1 GiB of bits
/// in all.
pub(in super::super) async fn load_bitmaps(
    file: &Edge,
    header: &Header,
) -> Result<Vec<(String, DirtyBitmap)>> {
    let Some(extension) = header.bitmaps() else { return Ok(Vec::new()) };
    let entries = load_directory(file, extension, header.geometry).await?;
    // Many entries may point to one table: a short file describes as many bits as it likes.
    let sizes = entries.iter().map(|entry| stored_bytes(header, entry));
    let total = sizes.fold(0, u64::saturating_add);
    if total > MAX_TOTAL {
        let context = format!("the bitmaps have {total} bytes of bits, more than 1 GiB");
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    let mut bitmaps = Vec::new();
    for entry in entries {
        let bits = load_bitmap(file, header, &entry).await?;
        bitmaps.push((entry.name, bits));
    }
    Ok(bitmaps)
}

async fn load_bits(
    file: &Edge,
    header: &Header,
    entry: &BitmapEntry,
    bitmap: &mut DirtyBitmap,
) -> Result<()> {
    let geometry = header.geometry;
    let refuse = |text: String| Err(Error::new(ErrorKind::Corrupt, text));
    let bytes = bytes_for(header.size, entry.granularity_bits);
    let Table { offset, entries } = entry.table;
    let end = offset.checked_add(u64::from(entries) * 8);
    if u64::from(entries) != geometry.clusters_for(bytes) || end.is_none_or(|end| end > file.len())
    {
        return refuse(format!(
            "a table of {entries} entries at {offset:#x} does not fit the disk"
        ));
    }
    // Both are bounded now: by 512 MiB of bits, and by the file.
    let bytes = usize::try_from(bytes).unwrap_or(0);
    let mut bits = vec![0; bytes.next_multiple_of(8)];
    let table = read_words(file, offset, entries as usize).await?;
    for (number, word) in table.into_iter().enumerate() {
        let start = number << geometry.cluster_bits();
        let len = (bytes - start).min(geometry.cluster_len());
        match BitsAt::decode(word, geometry)? {
            BitsAt::Zeroes => {}
            BitsAt::Ones => {
                let span = (8 << entry.granularity_bits) * geometry.cluster_size();
                let from = number as u64 * span;
                bitmap.mark(from..from.saturating_add(span));
            }
            BitsAt::Cluster(at) if at < file.len() => {
                bits[start..start + len].copy_from_slice(&read_at(file, at, len).await?);
            }
            BitsAt::Cluster(at) => {
                return refuse(format!("its bits at {at:#x} are behind the end of the file"));
            }
        }
    }
    let loaded = bitmap.load_le_bytes(&bits);
    loaded.map_err(|error| Error::new(ErrorKind::Corrupt, error.to_string()))
}

/// Writes the bits where nothing points to them yet; answers the table that says where.
pub(super) async fn store_bits(image: &mut AtRest<'_>, bitmap: &DirtyBitmap) -> Result<Table> {
    let geometry = image.geometry();
    let bytes = bytes_of(bitmap);
    let bits = bitmap.to_le_bytes();
    let bits = &bits[..usize::try_from(bytes).unwrap_or(bits.len()).min(bits.len())];
    let mut table = Vec::new();
    if bits.is_empty() {
        // There are no tables without entries.
        table.push(BitsAt::Zeroes.encode());
    }
    for piece in bits.chunks(geometry.cluster_len()) {
        if piece.iter().all(|&byte| byte == 0) {
            table.push(BitsAt::Zeroes.encode());
            continue;
        }
        let at = image.allocate(geometry.cluster_size()).await?;
        // The rest of the last cluster must be zero.
        let mut cluster = piece.to_vec();
        cluster.resize(geometry.cluster_len(), 0);
        write_at(image.file, at, &cluster).await?;
        table.push(BitsAt::Cluster(at).encode());
    }
    let offset = image.allocate(table.len() as u64 * 8).await?;
    write_words(image.file, offset, &table).await?;
    Ok(Table { offset, entries: u32::try_from(table.len()).unwrap_or(u32::MAX) })
}
