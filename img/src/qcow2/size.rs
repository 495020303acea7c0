//! How long a qcow2 image gets.

use ferry_block::format::qcow2::create::CreateOptions;

use crate::failure::{Failure, Result};

/// Bytes of an entry in the first-level tables, and longest table of L1 entries.
const ENTRY: u64 = 8;
const MAX_L1: u64 = 32 << 20;
/// Bytes of a bitmap directory entry before the bitmap's name.
const DIRECTORY_ENTRY: u64 = 24;

/// Bytes of an image file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Needs {
    /// With the data that there is.
    pub(crate) required: u64,
    /// With data everywhere.
    pub(crate) fully_allocated: u64,
    /// More, for the bitmaps of the source if they are copied, too.
    pub(crate) bitmaps: Option<u64>,
}

/// What an image with these options needs for a disk of `size` bytes of which `data` bytes, in whole
/// clusters, are not zero. Tables are counted for all of the disk, as in QEMU.
pub(crate) fn needs(options: &CreateOptions, size: u64, data: u64) -> Result<Needs> {
    let geometry = options.geometry()?;
    let cluster = geometry.cluster_size();
    let too_large =
        || Failure::new("The image size is too large (try using a larger cluster size)");
    let disk = size.checked_next_multiple_of(cluster).ok_or_else(too_large)?;
    let entries = (disk / cluster).next_multiple_of(geometry.l2_entries());
    let l2 = entries * geometry.l2_entry_size();
    if l2 / cluster * ENTRY > MAX_L1 {
        return Err(too_large());
    }
    let l1 = (l2 / cluster * ENTRY).next_multiple_of(cluster);
    let clusters = (cluster + l2 + l1 + disk) / cluster;
    let (mut blocks, mut table) = (0, 0);
    // Refcount blocks count themselves and their table, too.
    loop {
        let more = (clusters + table + blocks).div_ceil(geometry.refcount_block_entries());
        let more_table = more.div_ceil(cluster / ENTRY);
        if (more, more_table) == (blocks, table) {
            break;
        }
        (blocks, table) = (more, more_table);
    }
    let fully_allocated = (clusters + blocks + table) * cluster;
    let required = fully_allocated - disk + data.min(disk);
    Ok(Needs { required, fully_allocated, bitmaps: None })
}

/// What bitmaps of a disk of `size` bytes need at most, each given by the length of its name and its
/// granularity in bytes: their bits, the tables that point to those, and their directory.
pub(crate) fn bitmap_needs(
    bitmaps: impl Iterator<Item = (u64, u64)>,
    size: u64,
    cluster: u64,
) -> u64 {
    let (mut bytes, mut directory) = (0, 0_u64);
    for (name_len, granularity) in bitmaps {
        let clusters = size.div_ceil(granularity).div_ceil(8).div_ceil(cluster);
        bytes += clusters * cluster + (clusters * ENTRY).next_multiple_of(cluster);
        directory += (DIRECTORY_ENTRY + name_len).next_multiple_of(8);
    }
    bytes + directory.next_multiple_of(cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_image_needs_its_tables() {
        let needs = needs(&CreateOptions::new(0), 5 << 20, 65_536).unwrap();
        assert_eq!(needs, Needs { required: 393_216, fully_allocated: 5_570_560, bitmaps: None });
    }

    #[test]
    fn a_disk_that_no_table_describes_is_refused() {
        assert!(super::needs(&CreateOptions::new(0), 1 << 62, 0).is_err());
    }
}
