//! The snapshot table: qcow2 specification, "Snapshots".

use super::super::bytes::{Reader, padding};
use super::super::container::read_at;
use super::super::header::{Header, Table, Version};
use crate::edge::Edge;
use crate::error::{Error, ErrorKind, Result};

/// Longest table that is read, in bytes: QEMU's limit.
const MAX_TABLE: u64 = 64 << 20;
/// Longest extra data of one snapshot, in bytes: QEMU's limit.
const MAX_EXTRA: usize = 1024;
/// What is read at first: most tables are short.
const FIRST_READ: u64 = 64 << 10;

/// An internal snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Its L1 table, which nobody has looked at.
    pub l1: Table,
    /// Its id, a decimal number if QEMU or ferry made it.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made: seconds since the epoch.
    pub date_sec: u32,
    /// The same, nanoseconds.
    pub date_nsec: u32,
    /// How long the guest had been running, in nanoseconds.
    pub vm_clock_nsec: u64,
    /// Bytes of the saved machine behind the disk's content.
    pub vm_state_size: u64,
    /// Bytes of the disk then, if it is said.
    pub disk_size: Option<u64>,
    /// Instructions executed, with record and replay.
    pub icount: Option<u64>,
    /// Extra data that this program does not know.
    pub more: Vec<u8>,
}

impl Snapshot {
    /// Whether it does not say how long the disk was, which version 3 demands.
    pub(in super::super) fn is_incomplete(&self, version: Version) -> bool {
        version >= Version::V3 && self.disk_size.is_none()
    }
}

/// The snapshots, and how many bytes their table has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotTable {
    /// In the order of the table.
    pub snapshots: Vec<Snapshot>,
    /// Bytes of the table in the file.
    pub bytes: u64,
    /// Places of the snapshots whose extra data was too long and has lost its end, and how many bytes
    /// it had.
    pub(in super::super) cut: Vec<(usize, usize)>,
}

/// Reads the snapshot table of an image.
///
/// # Errors
/// `Corrupt` when the table is cut off or says impossible things.
pub async fn load_snapshots(file: &Edge, header: &Header) -> Result<SnapshotTable> {
    let table = load_cut(file, header).await?;
    if let Some((index, len)) = table.cut.first() {
        let context =
            format!("snapshot {index} has {len} bytes of extra data, more than {MAX_EXTRA}");
        return Err(Error::new(ErrorKind::Corrupt, context));
    }
    Ok(table)
}

/// [`load_snapshots`] for a repair, which cuts off extra data that is too long.
pub(in super::super) async fn load_cut(file: &Edge, header: &Header) -> Result<SnapshotTable> {
    let Table { offset, entries } = header.snapshots;
    if entries == 0 {
        return Ok(SnapshotTable::default());
    }
    let there = file.len().saturating_sub(offset).min(MAX_TABLE);
    let mut len = FIRST_READ.min(there);
    loop {
        let bytes = read_at(file, offset, usize::try_from(len).unwrap_or(0)).await?;
        match parse(&bytes, entries) {
            Some(table) => return Ok(table),
            None if len < there => len = there.min(len * 8),
            None => {
                let context = format!(
                    "the snapshot table at {offset:#x} ends after {there} bytes, before its \
                     {entries} snapshots do"
                );
                return Err(Error::new(ErrorKind::Corrupt, context));
            }
        }
    }
}

/// Parses a table; `None` if more bytes are needed.
fn parse(bytes: &[u8], entries: u32) -> Option<SnapshotTable> {
    let mut reader = Reader::new(bytes);
    let mut table = SnapshotTable::default();
    for _ in 0..entries {
        let (snapshot, extra_len) = parse_one(&mut reader)?;
        if extra_len > MAX_EXTRA {
            table.cut.push((table.snapshots.len(), extra_len));
        }
        table.snapshots.push(snapshot);
    }
    table.bytes = (bytes.len() - reader.left()) as u64;
    Some(table)
}

/// The next snapshot, and how many bytes of extra data it has.
fn parse_one(reader: &mut Reader<'_>) -> Option<(Snapshot, usize)> {
    let before = reader.left();
    let fixed = Fixed::parse(reader)?;
    let extra = reader.take(fixed.extra_len)?;
    let (id, name) = (reader.take(fixed.id_len)?, reader.take(fixed.name_len)?);
    let mut extra = Reader::new(&extra[..extra.len().min(MAX_EXTRA)]);
    let (long_size, disk_size, icount) = (extra.u64(), extra.u64(), extra.u64());
    let used = before - reader.left();
    // The last entry's padding may be cut off.
    reader.take(padding(used).len().min(reader.left()));
    let snapshot = Snapshot {
        vm_state_size: long_size.unwrap_or(fixed.snapshot.vm_state_size),
        disk_size,
        icount: icount.filter(|&count| count != u64::MAX),
        more: extra.take(extra.left()).unwrap_or_default().to_vec(),
        id: String::from_utf8_lossy(id).into_owned(),
        name: String::from_utf8_lossy(name).into_owned(),
        ..fixed.snapshot
    };
    Some((snapshot, fixed.extra_len))
}

/// The part of an entry that has always the same length.
struct Fixed {
    snapshot: Snapshot,
    id_len: usize,
    name_len: usize,
    extra_len: usize,
}

impl Fixed {
    fn parse(reader: &mut Reader<'_>) -> Option<Fixed> {
        let l1 = Table { offset: reader.u64()?, entries: reader.u32()? };
        let (id_len, name_len) = (reader.u16()?, reader.u16()?);
        let (date_sec, date_nsec, vm_clock_nsec) = (reader.u32()?, reader.u32()?, reader.u64()?);
        let vm_state_size = u64::from(reader.u32()?);
        let extra_len = reader.u32()? as usize;
        let snapshot = Snapshot {
            l1,
            date_sec,
            date_nsec,
            vm_clock_nsec,
            vm_state_size,
            ..Snapshot::default()
        };
        Some(Fixed { snapshot, id_len: id_len.into(), name_len: name_len.into(), extra_len })
    }
}

/// The table as it is stored.
///
/// # Errors
/// `InvalidArgument` for an id or a name that is too long, or too many snapshots.
pub(super) fn serialise(snapshots: &[Snapshot], version: Version) -> Result<Vec<u8>> {
    let mut table = Vec::new();
    for snapshot in snapshots {
        append(&mut table, snapshot, version)?;
    }
    if table.len() as u64 > MAX_TABLE {
        let context = "the snapshot table would be longer than 64 MiB";
        return Err(Error::new(ErrorKind::NoSpace, context));
    }
    Ok(table)
}

fn append(table: &mut Vec<u8>, snapshot: &Snapshot, version: Version) -> Result<()> {
    let short = |what: &str, text: &str| {
        u16::try_from(text.len()).map_err(|_too_long| {
            let context = format!("the snapshot's {what} is longer than 65535 bytes");
            Error::new(ErrorKind::InvalidArgument, context)
        })
    };
    let mut extra = Vec::new();
    // Version 3 must say how long the disk was; version 2 says what it has said so far.
    if snapshot.disk_size.is_some() || version >= Version::V3 {
        extra.extend(snapshot.vm_state_size.to_be_bytes());
        extra.extend(snapshot.disk_size.unwrap_or(0).to_be_bytes());
        extra.extend(snapshot.icount.unwrap_or(u64::MAX).to_be_bytes());
        extra.extend(&snapshot.more);
    }
    table.extend(snapshot.l1.offset.to_be_bytes());
    table.extend(snapshot.l1.entries.to_be_bytes());
    table.extend(short("id", &snapshot.id)?.to_be_bytes());
    table.extend(short("name", &snapshot.name)?.to_be_bytes());
    table.extend(snapshot.date_sec.to_be_bytes());
    table.extend(snapshot.date_nsec.to_be_bytes());
    table.extend(snapshot.vm_clock_nsec.to_be_bytes());
    table.extend(u32::try_from(snapshot.vm_state_size).unwrap_or(0).to_be_bytes());
    table.extend(u32::try_from(extra.len()).unwrap_or(0).to_be_bytes());
    table.extend(extra);
    table.extend(snapshot.id.bytes());
    table.extend(snapshot.name.bytes());
    table.extend(padding(table.len()));
    Ok(())
}
