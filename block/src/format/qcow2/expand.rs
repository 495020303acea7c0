//! Zero clusters become what version 2 of the format can say: no cluster, or one full of zeroes.

use std::collections::BTreeSet;

use super::at_rest::AtRest;
use super::container::{read_at, write_at};
use super::entry::{Cluster, L2Entry};
use super::snapshot::{l2_tables, load_l1, load_snapshots};
use crate::error::Result;

/// Expands the zero clusters of the disk and of all snapshots. What is read stays the same at every
/// moment.
///
/// # Errors
/// A table makes no sense, there is no space, or a read or a write failed.
pub(super) async fn expand_zeroes(image: &mut AtRest<'_>) -> Result<()> {
    let snapshots = load_snapshots(image.file, &image.header).await?.snapshots;
    let mut tables = BTreeSet::new();
    for l1 in snapshots.iter().map(|snapshot| snapshot.l1).chain([image.header.l1]) {
        let entries = load_l1(image, l1).await?;
        tables.extend(l2_tables(image, &entries)?);
    }
    for at in tables {
        expand_table(image, at).await?;
    }
    image.write_refcounts().await
}

/// Expands what one L2 table says.
async fn expand_table(image: &mut AtRest<'_>, at: u64) -> Result<()> {
    let geometry = image.geometry();
    let size = geometry.cluster_size();
    // Each disk and snapshot that has this table has its clusters.
    let users = image.refcount(geometry.cluster_index(at)).await?;
    let mut table = read_at(image.file, at, geometry.cluster_len()).await?;
    let (mut changed, mut places, mut given_up) = (false, Vec::new(), Vec::new());
    for index in 0..usize::try_from(geometry.l2_entries()).unwrap_or(0) {
        let entry = L2Entry::get(&table, index, geometry);
        let host = match entry.decode(geometry)? {
            Cluster::Standard { host, parts } if parts.zero != 0 => host,
            _ => continue,
        };
        let (cluster, copied) = match host {
            Some(host) if entry.is_copied() => {
                places.push(host);
                (Cluster::data(geometry, host), true)
            }
            None if image.header.backing_file.is_none() => (Cluster::UNALLOCATED, false),
            _ => {
                let place = image.allocate(size).await?;
                for _ in 1..users {
                    image.change(place, size, true).await?;
                }
                given_up.extend(host);
                places.push(place);
                (Cluster::data(geometry, place), users == 1)
            }
        };
        L2Entry::encode(cluster, copied, geometry)?.put(&mut table, index, geometry);
        changed = true;
    }
    if !changed {
        return Ok(());
    }
    image.write_refcounts().await?;
    let zeroes = vec![0; geometry.cluster_len()];
    for place in places {
        write_at(image.file, place, &zeroes).await?;
    }
    image.file.flush().await?;
    write_at(image.file, at, &table).await?;
    image.file.flush().await?;
    for host in given_up {
        for _ in 0..users {
            image.change(host, size, false).await?;
        }
    }
    Ok(())
}
