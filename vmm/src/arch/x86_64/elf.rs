//! ELF kernels in forms that the loader does not read: 32 bits wide, or with their notes in several segments
//! (it looks at one). They are written down anew in the form that it does read.

use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::os::unix::fs::FileExt;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// `EI_DATA` of the processors that this is for.
const LITTLE_ENDIAN: u8 = 1;
/// `EI_CLASS`: 32-bit headers, and the value for 64-bit ones.
const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
/// Lengths of a 64-bit ELF header and of one of its program headers.
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// "Xen\0" and the number of PVH's note (`XEN_ELFNOTE_PHYS32_ENTRY`).
const XEN: &[u8] = b"Xen\0";
const PVH_ENTRY: u32 = 18;

/// What matters of an ELF file.
struct Elf {
    entry: u64,
    segments: Vec<Segment>,
}

/// A segment that is to be loaded, or one with notes.
struct Segment {
    kind: u32,
    /// Where its first `bytes` are in the file.
    offset: u64,
    bytes: u64,
    /// Where they belong in memory, and how much of that it takes up.
    address: u64,
    memory: u64,
}

/// The same kernel as a 64-bit ELF file with one segment of notes, when `file` is not one already. Segments
/// of more than `limit` bytes together are refused.
///
/// # Errors
/// The file cannot be read, its headers are damaged, or it is 32 bits wide and has no PVH entry.
pub(super) fn rewritten(file: &File, limit: u64) -> Result<Option<Vec<u8>>> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    let class = header[4];
    // The loader refuses other byte orders itself, and says so.
    if header[5] != LITTLE_ENDIAN {
        return Ok(None);
    }
    let Some(mut elf) = read(file, &header)? else { return Ok(None) };
    let notes = elf.segments.iter().filter(|segment| segment.kind == PT_NOTE).count();
    if class == CLASS_64 && notes < 2 {
        return Ok(None);
    }
    let total = elf.segments.iter().try_fold(0_u64, |sum, segment| sum.checked_add(segment.bytes));
    if total.is_none_or(|total| total > limit) {
        return Err(damaged("its segments are larger than the memory"));
    }
    let mut contents = Vec::new();
    for segment in &elf.segments {
        let mut bytes = vec![0; usize::try_from(segment.bytes).map_err(Error::other)?];
        file.read_exact_at(&mut bytes, segment.offset)?;
        contents.push(bytes);
    }
    let mut kept = contents.into_iter();
    let mut contents = Vec::new();
    elf.segments.retain(|segment| {
        let bytes = kept.next().unwrap_or_default();
        let wanted = segment.kind == PT_LOAD || has_pvh_entry(&bytes);
        contents.extend(wanted.then_some(bytes));
        wanted
    });
    // Only PVH starts such a kernel in its own mode.
    let starts = elf.segments.iter().any(|segment| segment.kind == PT_NOTE);
    if class == CLASS_32 && !starts {
        return Err(damaged(
            "it is a 32-bit ELF file without a PVH entry note (XEN_ELFNOTE_PHYS32_ENTRY), \
             the only way to start one; a Multiboot header is not read",
        ));
    }
    Ok(Some(write(&elf, &contents)))
}

/// Where the memory ends that the segments take up; `None` for what the loader refuses itself.
///
/// # Errors
/// The file cannot be read or its headers are damaged.
pub(super) fn memory_end(file: &File) -> Result<Option<u64>> {
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0)?;
    let Some(elf) = read(file, &header)? else { return Ok(None) };
    let loaded = elf.segments.iter().filter(|segment| segment.kind == PT_LOAD);
    let end = loaded.map(|segment| segment.address.saturating_add(segment.memory)).max();
    Ok(Some(end.unwrap_or(0)))
}

/// Reads the headers; `None` for what is neither 32 nor 64 bits wide, which the loader refuses itself.
fn read(file: &File, header: &[u8]) -> Result<Option<Elf>> {
    let wide = match header[4] {
        CLASS_32 => false,
        CLASS_64 => true,
        _ => return Ok(None),
    };
    // The offsets of e_entry, e_phoff, e_phentsize and e_phnum.
    let [entry, table, size, count] = if wide { [24, 32, 54, 56] } else { [24, 28, 42, 44] };
    let (table, size) = (address(header, table, wide)?, number(header, size, 2)?);
    let mut segments = Vec::new();
    for index in 0..number(header, count, 2)? {
        let at = index.checked_mul(size).and_then(|at| at.checked_add(table));
        let mut program = [0; PROGRAM_HEADER];
        let program = &mut program[..if wide { PROGRAM_HEADER } else { 32 }];
        file.read_exact_at(program, at.ok_or_else(|| damaged("its headers are damaged"))?)?;
        // The offsets of p_offset, p_paddr, p_filesz and p_memsz.
        let [offset, paddr, bytes, memory] = if wide { [8, 24, 32, 40] } else { [4, 12, 16, 20] };
        let kind = u32::try_from(number(program, 0, 4)?).map_err(Error::other)?;
        if matches!(kind, PT_LOAD | PT_NOTE) {
            segments.push(Segment {
                kind,
                offset: address(program, offset, wide)?,
                bytes: address(program, bytes, wide)?,
                address: address(program, paddr, wide)?,
                memory: address(program, memory, wide)?,
            });
        }
    }
    Ok(Some(Elf { entry: address(header, entry, wide)?, segments }))
}

/// Whether these notes tell where PVH starts. Names and descriptions are padded to four bytes.
fn has_pvh_entry(mut notes: &[u8]) -> bool {
    let padded = |len: u64| usize::try_from(len.next_multiple_of(4)).unwrap_or(usize::MAX);
    while let (Ok(name), Ok(desc), Ok(kind)) =
        (number(notes, 0, 4), number(notes, 4, 4), number(notes, 8, 4))
    {
        if kind == u64::from(PVH_ENTRY) && name == 4 && notes[12..].starts_with(XEN) {
            return true;
        }
        let len = padded(name).saturating_add(padded(desc)).saturating_add(12);
        notes = notes.get(len..).unwrap_or_default();
    }
    false
}

/// A 64-bit ELF file of these segments.
fn write(elf: &Elf, contents: &[Vec<u8>]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // An executable for x86-64, in version 1.
    file.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    let mut offset = (HEADER + PROGRAM_HEADER * contents.len()) as u64;
    for value in [elf.entry, HEADER as u64, 0] {
        file.extend(value.to_le_bytes());
    }
    file.extend([0; 4]);
    for value in [HEADER, PROGRAM_HEADER, contents.len(), 0, 0, 0] {
        // There were no more of them than such a number holds.
        file.extend(&value.to_le_bytes()[..2]);
    }
    for segment in &elf.segments {
        file.extend(segment.kind.to_le_bytes());
        file.extend([0; 4]);
        let Segment { address, bytes, memory, .. } = *segment;
        for value in [offset, address, address, bytes, memory, 0] {
            file.extend(value.to_le_bytes());
        }
        offset += bytes;
    }
    contents.iter().for_each(|bytes| file.extend(bytes));
    file
}

/// An address or length, as wide as the file's class has them.
fn address(bytes: &[u8], at: usize, wide: bool) -> Result<u64> {
    number(bytes, at, if wide { 8 } else { 4 })
}

/// The number in `len` bytes.
fn number(bytes: &[u8], at: usize, len: usize) -> Result<u64> {
    let found = bytes.get(at..at + len).ok_or_else(|| damaged("its headers are damaged"))?;
    Ok(found.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

fn damaged(why: &str) -> Error {
    Error::new(ErrorKind::InvalidData, why)
}

#[cfg(test)]
#[path = "elf_tests.rs"]
mod tests;
