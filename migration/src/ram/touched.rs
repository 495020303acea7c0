//! Which pages hold anything at all: memory that nobody ever touched is zero and need not be read.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::{Backing, PAGE_SIZE, PageBitmap, PageRun, RamMap, RamRegion};
use crate::error::{Error, Result};
use crate::sys::{self, Seek};

/// Bit of a page map entry: in memory. (Linux, Documentation/admin-guide/mm/pagemap.rst)
const PRESENT: u64 = 1 << 63;
/// Bit of a page map entry: swapped out.
const SWAPPED: u64 = 1 << 62;
/// Bytes of page map entries read at once.
const CHUNK: usize = 64 << 10;

/// All pages that may hold something other than zeros. Pages that change later are the dirty log's
/// business, so start that first.
pub fn touched(map: &RamMap) -> Result<PageBitmap> {
    let mut pages = map.bitmap();
    for (first, region) in map.regions() {
        let found = match region.backing {
            Backing::Anonymous => page_map(first, &region, &mut pages),
            Backing::SharedFile { fd, offset } => file_data(first, &region, fd, offset, &mut pages),
        };
        if let Err(error) = found {
            // Correct without it, only slower.
            tracing::debug!("reading all of guest memory at {:#x}: {error}", region.start);
            pages.set_run(PageRun { first, count: region.len / PAGE_SIZE });
        }
    }
    Ok(pages)
}

fn page_map(first: u64, region: &RamRegion, pages: &mut PageBitmap) -> Result<()> {
    let path = "/proc/self/pagemap";
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    let count = region.len / PAGE_SIZE;
    let start = (region.host.as_ptr() as usize as u64) / PAGE_SIZE * 8;
    let mut buffer = vec![0; CHUNK];
    let mut page = 0;
    while page < count {
        let want = usize::try_from((count - page) * 8).unwrap_or(CHUNK).min(CHUNK);
        file.read_exact_at(&mut buffer[..want], start + page * 8)
            .map_err(|e| Error::io(path, e))?;
        for entry in buffer[..want].chunks_exact(8) {
            let entry = u64::from_ne_bytes(entry.try_into().expect("chunks of eight"));
            if entry & (PRESENT | SWAPPED) != 0 {
                pages.set(first + page);
            }
            page += 1;
        }
    }
    Ok(())
}

/// A shared file keeps pages that this process has never mapped, or lost to swap, so the file is asked
/// and not the page table.
fn file_data(
    first: u64,
    region: &RamRegion,
    fd: i32,
    offset: u64,
    pages: &mut PageBitmap,
) -> Result<()> {
    let failed = |e| Error::io("looking for data in the guest memory file", e);
    let end = offset + region.len;
    let mut at = offset;
    while at < end {
        let Some(data) = sys::seek(fd, Seek::Data, at).map_err(failed)? else { break };
        let hole = sys::seek(fd, Seek::Hole, data).map_err(failed)?.unwrap_or(end).min(end);
        if data >= hole {
            break;
        }
        let from = (data - offset) / PAGE_SIZE;
        let to = (hole - offset).div_ceil(PAGE_SIZE);
        pages.set_run(PageRun { first: first + from, count: to - from });
        at = hole;
    }
    Ok(())
}
