//! The directory of persistent bitmaps: qcow2 specification, "Bitmaps".

use super::super::bytes::{Reader, padding};
use super::super::container::read_at;
use super::super::geometry::Geometry;
use super::super::header::{BitmapsExtension, Table};
use crate::edge::Edge;
use crate::error::{Error, ErrorKind, Result};

/// Longest name, in bytes: QEMU's limit.
pub(super) const MAX_NAME: usize = 1023;
/// Longest table of one bitmap, in entries: QEMU's limit.
const MAX_TABLE_ENTRIES: u32 = 0x800_0000;
/// Smallest and largest granularity, as powers of two: QEMU's limits.
const GRANULARITY_BITS: std::ops::RangeInclusive<u8> = 9..=31;
/// Bits 9-55 of a table entry: where a cluster of bits is.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The only type of bitmap there is.
const DIRTY_TRACKING: u8 = 1;

const IN_USE: u32 = 1;
const AUTO: u32 = 2;
const EXTRA_DATA_COMPATIBLE: u32 = 4;

/// A bitmap in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapEntry {
    /// Its name, unique in the image.
    pub name: String,
    /// Where its bits are.
    pub table: Table,
    /// It was not saved by who used it last: its bits may miss writes.
    pub in_use: bool,
    /// It records writes.
    pub auto: bool,
    /// log2 of the bytes that one bit stands for.
    pub granularity_bits: u8,
}

/// What a cluster of a stored bitmap holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum BitsAt {
    /// All bits are clear.
    Zeroes,
    /// All bits are set.
    Ones,
    /// The bits are in this cluster.
    Cluster(u64),
}

impl BitsAt {
    /// # Errors
    /// Reserved bits are set, or the cluster is not at the start of one.
    pub(in super::super) fn decode(entry: u64, geometry: Geometry) -> Result<BitsAt> {
        let at = entry & OFFSET;
        let allowed = if at == 0 { 1 } else { OFFSET };
        if entry & !allowed != 0 || !geometry.is_aligned(at) {
            let context = format!("bitmap table entry {entry:#x} makes no sense");
            return Err(Error::new(ErrorKind::Corrupt, context));
        }
        Ok(match (at, entry) {
            (0, 0) => BitsAt::Zeroes,
            (0, _) => BitsAt::Ones,
            _ => BitsAt::Cluster(at),
        })
    }

    pub(super) fn encode(self) -> u64 {
        match self {
            BitsAt::Zeroes => 0,
            BitsAt::Ones => 1,
            BitsAt::Cluster(at) => at,
        }
    }
}

/// Reads the directory that `extension` points to.
///
/// # Errors
/// `Corrupt`, naming the bitmap and the field that makes no sense; `Unsupported` for a bitmap with
/// data that must be understood.
pub async fn load_directory(
    file: &Edge,
    extension: BitmapsExtension,
    geometry: Geometry,
) -> Result<Vec<BitmapEntry>> {
    let there = file.len().saturating_sub(extension.directory_offset);
    if extension.directory_size > there {
        return refuse(format!(
            "bitmap_directory_size is {}, but the file has only {there} bytes there",
            extension.directory_size
        ));
    }
    // The header's parser has bounded the size.
    let len = usize::try_from(extension.directory_size).unwrap_or(0);
    let bytes = read_at(file, extension.directory_offset, len).await?;
    parse(&bytes, extension.count, geometry)
}

fn parse(bytes: &[u8], count: u32, geometry: Geometry) -> Result<Vec<BitmapEntry>> {
    let mut reader = Reader::new(bytes);
    let mut entries: Vec<BitmapEntry> = Vec::new();
    let mut names = std::collections::BTreeSet::new();
    for index in 0..count {
        let Some(entry) = parse_one(&mut reader, geometry)? else {
            return refuse(format!("the bitmap directory ends in bitmap {index} of {count}"));
        };
        if !names.insert(entry.name.clone()) {
            return refuse(format!("two bitmaps are called '{}'", entry.name));
        }
        entries.push(entry);
    }
    if reader.left() != 0 {
        return refuse(format!("{} bytes follow the bitmap directory's last entry", reader.left()));
    }
    Ok(entries)
}

fn parse_one(reader: &mut Reader<'_>, geometry: Geometry) -> Result<Option<BitmapEntry>> {
    let before = reader.left();
    let fields = (reader.u64(), reader.u32(), reader.u32(), reader.take(2), reader.u16());
    let (Some(offset), Some(entries), Some(flags), Some(&[kind, bits]), Some(name_len)) = fields
    else {
        return Ok(None);
    };
    let Some(extra_len) = reader.u32() else { return Ok(None) };
    let (Some(_), Some(name)) = (reader.take(extra_len as usize), reader.take(name_len.into()))
    else {
        return Ok(None);
    };
    let used = before - reader.left();
    if reader.take(padding(used).len()).is_none() {
        return Ok(None);
    }
    let name = match str::from_utf8(name) {
        Ok(name) if !name.is_empty() && name.len() <= MAX_NAME => name.to_owned(),
        _ => return refuse(format!("a bitmap's name has {name_len} bytes or is no text")),
    };
    if extra_len != 0 {
        let context = format!("bitmap '{name}' has extra data, which is not supported");
        return Err(Error::new(ErrorKind::Unsupported, context));
    }
    if kind != DIRTY_TRACKING || flags & !(IN_USE | AUTO | EXTRA_DATA_COMPATIBLE) != 0 {
        return refuse(format!("bitmap '{name}' has type {kind} and flags {flags:#x}"));
    }
    if !GRANULARITY_BITS.contains(&bits) {
        return refuse(format!("granularity_bits of bitmap '{name}' is {bits}"));
    }
    let end = offset.checked_add(u64::from(entries) * 8);
    let fits = end.is_some_and(|end| i64::try_from(end).is_ok());
    if entries == 0
        || entries > MAX_TABLE_ENTRIES
        || offset == 0
        || !geometry.is_aligned(offset)
        || !fits
    {
        return refuse(format!(
            "the table of bitmap '{name}' has {entries} entries at {offset:#x}"
        ));
    }
    let (in_use, auto) = (flags & IN_USE != 0, flags & AUTO != 0);
    let table = Table { offset, entries };
    Ok(Some(BitmapEntry { name, table, in_use, auto, granularity_bits: bits }))
}

/// The directory as it is stored.
pub(super) fn serialise(entries: &[BitmapEntry]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in entries {
        let flag = |set: bool, flag: u32| if set { flag } else { 0 };
        let flags = flag(entry.in_use, IN_USE) | flag(entry.auto, AUTO);
        bytes.extend(entry.table.offset.to_be_bytes());
        bytes.extend(entry.table.entries.to_be_bytes());
        bytes.extend(flags.to_be_bytes());
        bytes.extend([DIRTY_TRACKING, entry.granularity_bits]);
        // Names are checked before they come here.
        bytes.extend(u16::try_from(entry.name.len()).unwrap_or(0).to_be_bytes());
        bytes.extend(0_u32.to_be_bytes());
        bytes.extend(entry.name.bytes());
        bytes.extend(padding(bytes.len()));
    }
    bytes
}

fn refuse<T>(text: String) -> Result<T> {
    Err(Error::new(ErrorKind::Corrupt, text))
}
