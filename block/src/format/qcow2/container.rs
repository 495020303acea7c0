//! Reading and writing tables in the image file, for operations that keep nothing in a cache.

use crate::buf::IoBuf;
use crate::driver::{WriteFlags, whole_sectors};
use crate::edge::Edge;
use crate::error::{Error, ErrorKind, Result};

use super::bytes::Reader;

/// Most bytes in one read or write.
const PIECE: usize = 2 << 20;

/// `len` bytes from `at`. What lies behind the end of the file is zero, as QEMU reads it: the last
/// cluster of an image may be cut off. `len` is the caller's to bound.
pub(super) async fn read_at(file: &Edge, at: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let there = usize::try_from(file.len().saturating_sub(at)).unwrap_or(usize::MAX).min(len);
    let mut done = 0;
    while done < there {
        let piece = (there - done).min(PIECE);
        let buf = IoBuf::alloc(piece);
        file.read(at + done as u64, buf.clone()).await?;
        buf.copy_to(&mut bytes[done..done + piece]);
        done += piece;
    }
    Ok(bytes)
}

/// A table of `entries` 64-bit entries at `at`. The number is the caller's to bound.
pub(super) async fn read_words(file: &Edge, at: u64, entries: usize) -> Result<Vec<u64>> {
    let bytes = read_at(file, at, entries * 8).await?;
    let mut reader = Reader::new(&bytes);
    Ok(std::iter::from_fn(|| reader.u64()).collect())
}

/// Writes `bytes` at `at`; the file grows as it must.
pub(super) async fn write_at(file: &Edge, at: u64, bytes: &[u8]) -> Result<()> {
    // The container may be an image itself, which has whole sectors.
    let end = at.checked_add(bytes.len() as u64).map(whole_sectors);
    let Some(end) = end.filter(|&end| i64::try_from(end).is_ok()) else {
        let context = format!("a write at {at:#x} leaves what a file can hold");
        return Err(Error::new(ErrorKind::OutOfRange, context));
    };
    if end > file.len() {
        file.grow(end).await?;
    }
    let mut at = at;
    for piece in bytes.chunks(PIECE) {
        file.write(at, IoBuf::from_vec(piece), WriteFlags::NONE).await?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Cuts the file off at `len`, if it is longer. One that cannot be shortened stays as it is: what is behind
/// is of no use and does no harm.
pub(super) async fn cut(file: &Edge, len: u64) -> Result<()> {
    if len >= file.len() {
        return Ok(());
    }
    match file.resize(len).await {
        Err(error) if error.kind() == ErrorKind::Unsupported => Ok(()),
        other => other,
    }
}

/// The file of an image in messages.
pub(super) fn name_of(file: &Edge) -> String {
    let node = file.node();
    node.filename().unwrap_or_else(|| format!("node '{}'", node.name()))
}

/// Writes a table of 64-bit entries at `at`.
pub(super) async fn write_words(file: &Edge, at: u64, words: &[u64]) -> Result<()> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    write_at(file, at, &bytes).await
}
