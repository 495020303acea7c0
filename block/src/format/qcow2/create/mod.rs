//! New images: what `qemu-img create -f qcow2` and `blockdev-create` do.

mod layout;
mod options;

use super::container::{write_at, write_words};
use super::entry::{Cluster, L1Entry, L2Entry, Parts, put_refcount};
use super::geometry::Geometry;
use super::header::{Extensions, Header, Table, Version};
use crate::driver::WriteFlags;
use crate::edge::Edge;
use crate::error::{Error, ErrorKind, Result};

use layout::Layout;
pub use options::{CreateOptions, Preallocation};

/// Makes the node behind `file` a new, empty image. Whatever it held is lost. With an external
/// data file, `data` is the node of that file, which becomes as long as the disk.
///
/// The header is written last: until then there is no image.
///
/// # Errors
/// `InvalidArgument` for options that do not go together, or the error of a write.
pub async fn create(file: &Edge, data: Option<&Edge>, options: &CreateOptions) -> Result<()> {
    let (layout, header) = plan(options)?;
    if data.is_some() != options.data_file.is_some() {
        let context = "an external data file needs both a name and a node";
        return Err(Error::new(ErrorKind::InvalidArgument, context));
    }
    let preallocation = options.preallocation();
    make_empty(file, layout.end()).await?;
    write_refcounts(file, &layout).await?;
    if layout.l2_tables == 0 {
        file.write_zeroes(layout.l1()..layout.l2(), WriteFlags::NONE).await?;
    } else {
        write_mapping(file, &layout, options).await?;
    }
    match data {
        Some(data) => {
            make_empty(data, options.size).await?;
            preallocate(data, 0, options.size, preallocation).await?;
            data.flush().await?;
        }
        None => preallocate(file, layout.data(), layout.end(), preallocation).await?,
    }
    file.flush().await?;
    write_at(file, 0, &header).await?;
    file.flush().await
}

/// Whether there can be such an image, before anything is written.
///
/// # Errors
/// `InvalidArgument`, with what is wrong.
pub fn check(options: &CreateOptions) -> Result<()> {
    plan(options).map(|_| ())
}

/// Where everything of the image goes, and its header.
fn plan(options: &CreateOptions) -> Result<(Layout, Vec<u8>)> {
    let preallocated = options.preallocation() != Preallocation::Off;
    let layout = Layout::new(options.geometry()?, options.size, preallocated)?;
    let header = new_header(options, &layout)?;
    // What the parser would refuse must not be written either: the name may be too long, say.
    Header::parse(&header).map_err(|error| error.with_kind(ErrorKind::InvalidArgument))?;
    Ok((layout, header))
}

fn new_header(options: &CreateOptions, layout: &Layout) -> Result<Vec<u8>> {
    let short = |number: u64| u32::try_from(number).unwrap_or(u32::MAX);

    Header {
        geometry: layout.geometry,
        size: options.size,
        backing_file: options.backing_file.clone(),
        l1: Table { offset: layout.l1(), entries: short(layout.l1_entries) },
        refcount_table_offset: layout.refcount_table(),
        refcount_table_clusters: short(layout.refcounts.table_clusters),
        snapshots: Table::default(),
        incompatible: options.incompatible(),
        compatible: options.compatible(),
        autoclear: options.autoclear(),
        compression: options.compression,
        extensions: Extensions {
            backing_format: options.backing_format.clone(),
            data_file: options.data_file.clone(),
            // There from the beginning, so that the first change moves nothing in the header.
            generation: (options.version >= Version::V3).then_some(0),
            ..Extensions::default()
        },
        more_fields: Vec::new(),
    }
    .serialise()
}

/// Drops what the node holds and makes it `len` bytes of zeroes; one that cannot change its length
/// must be long enough, and keeps old bytes where nothing is written.
async fn make_empty(node: &Edge, len: u64) -> Result<()> {
    let shrunk = node.resize(0).await;
    if let Err(error) = shrunk {
        if error.kind() == ErrorKind::Unsupported && node.len() >= len {
            return Ok(());
        }
        return Err(error);
    }
    node.resize(len).await
}

/// The refcount table and its blocks, where every cluster of the layout has a refcount of one.
async fn write_refcounts(file: &Edge, layout: &Layout) -> Result<()> {
    let geometry = layout.geometry;
    let first = layout.refcount_blocks();
    let entries = geometry.cluster_size() / 8 * layout.refcounts.table_clusters;
    let mut table = Vec::new();
    for index in 0..entries {
        let used = index < layout.refcounts.blocks;
        table.push(if used { first + (index << geometry.cluster_bits()) } else { 0 });
    }
    write_words(file, layout.refcount_table(), &table).await?;

    let mut left = geometry.cluster_index(layout.end());
    let full = refcount_block(geometry, geometry.refcount_block_entries());
    for index in 0..layout.refcounts.blocks {
        let at = first + (index << geometry.cluster_bits());
        let count = left.min(geometry.refcount_block_entries());
        if count == geometry.refcount_block_entries() {
            write_at(file, at, &full).await?;
        } else {
            write_at(file, at, &refcount_block(geometry, count)).await?;
        }
        left -= count;
    }
    Ok(())
}

/// A refcount block whose first `used` refcounts are one.
fn refcount_block(geometry: Geometry, used: u64) -> Vec<u8> {
    let mut block = vec![0; geometry.cluster_len()];
    for index in 0..usize::try_from(used).unwrap_or(usize::MAX) {
        put_refcount(&mut block, index, 1, geometry);
    }
    block
}

/// L1 and L2 tables that map the whole disk.
async fn write_mapping(file: &Edge, layout: &Layout, options: &CreateOptions) -> Result<()> {
    let geometry = layout.geometry;
    let tables: Vec<u64> = (0..layout.l2_tables)
        .map(|index| L1Entry::new(layout.l2() + (index << geometry.cluster_bits()), true).0)
        .collect();
    let mut l1 = tables.clone();
    let whole = layout.l1_clusters << geometry.cluster_bits();
    l1.resize(usize::try_from(whole / 8).unwrap_or(usize::MAX), 0);
    write_words(file, layout.l1(), &l1).await?;

    let clusters = geometry.clusters_for(options.size);
    let mut guest = 0;
    for index in 0..layout.l2_tables {
        let mut table = vec![0; geometry.cluster_len()];
        for entry in 0..geometry.l2_entries().min(clusters - guest) {
            let at = (guest + entry) << geometry.cluster_bits();
            let host = if geometry.has_external_data() { at } else { layout.data() + at };
            let position = usize::try_from(entry).unwrap_or(usize::MAX);
            preallocated_entry(geometry, host, options)?.put(&mut table, position, geometry);
        }
        guest += geometry.l2_entries();
        write_at(file, layout.l2() + (index << geometry.cluster_bits()), &table).await?;
    }
    Ok(())
}

/// A cluster that is there for later writes. With subclusters none of them is allocated yet, so
/// that a backing file still shows. A data file that can be read by itself has none, and all that it
/// holds shows, whatever a crash leaves of later changes of the tables.
fn preallocated_entry(geometry: Geometry, host: u64, options: &CreateOptions) -> Result<L2Entry> {
    let cluster = if geometry.has_extended_l2() && !options.data_file_raw {
        Cluster::Standard { host: Some(host), parts: Parts::default() }
    } else {
        Cluster::data(geometry, host)
    };
    L2Entry::encode(cluster, true, geometry)
}

async fn preallocate(node: &Edge, from: u64, to: u64, how: Preallocation) -> Result<()> {
    match how {
        Preallocation::Off | Preallocation::Metadata => Ok(()),
        // Zeroes that may not unmap are space taken.
        Preallocation::Falloc => node.write_zeroes(from..to, WriteFlags::NONE).await,
        Preallocation::Full => {
            let zeroes = crate::buf::IoBuf::alloc(1 << 20);
            let mut at = from;
            while at < to {
                let len = usize::try_from(to - at).unwrap_or(usize::MAX).min(zeroes.len());
                node.write(at, zeroes.slice(0..len), WriteFlags::NONE).await?;
                at += len as u64;
            }
            Ok(())
        }
    }
}

#[cfg(test)]
#[path = "../create_tests.rs"]
mod tests;
