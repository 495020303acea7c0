//! How much of an image file has references.

use super::container::{read_at, read_words};
use super::entry::{RefcountTableEntry, refcount};
use super::header::Header;
use crate::edge::Edge;
use crate::error::Result;

/// Clusters of the image in `file` that have references, counted no further than to more than
/// `enough`.
///
/// # Errors
/// The table or a block cannot be read.
pub async fn referenced_clusters(file: &Edge, header: &Header, enough: u64) -> Result<u64> {
    let geometry = header.geometry;
    // Blocks of clusters behind the end of the file could be as many as somebody likes.
    let clusters = file.len().div_ceil(geometry.cluster_size());
    let blocks = clusters.div_ceil(geometry.refcount_block_entries());
    let entries = blocks.min(header.refcount_table_bytes() / 8);
    let entries = usize::try_from(entries).unwrap_or(0);
    let per_block = usize::try_from(geometry.refcount_block_entries()).unwrap_or(0);
    let mut count = 0;
    let table = read_words(file, header.refcount_table_offset, entries).await?;
    for at in table.into_iter().filter_map(|entry| RefcountTableEntry(entry).offset()) {
        let block = read_at(file, at, geometry.cluster_len()).await?;
        let used = (0..per_block).filter(|index| refcount(&block, *index, geometry) != 0);
        count += used.count() as u64;
        if count > enough {
            break;
        }
    }
    Ok(count)
}
