//! Which pages were ever touched: the others are zero and need not even be looked at.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{DirtyPages, PAGE, Ram};
use crate::error::{Error, Result};

/// Bits of an entry of /proc/self/pagemap: the page is in memory, or in swap.
const PRESENT_OR_SWAPPED: u64 = (1 << 63) | (1 << 62);
const ENTRY: usize = 8;
/// Entries read at once.
const CHUNK: usize = 8192;

impl Ram {
    /// The pages that have memory behind them. Every other page reads as zero and was never written.
    ///
    /// The guest may touch more at any time; start the dirty log first.
    pub fn touched(&self) -> Result<DirtyPages> {
        let failed = |e| Error::host("read /proc/self/pagemap", e);
        let map = File::open("/proc/self/pagemap").map_err(failed)?;
        let mut touched = DirtyPages::none(self.pages());
        let mut buffer = vec![0; CHUNK * ENTRY];
        let mut page = 0;
        for region in self.guest.iter() {
            let entry = region.as_ptr() as u64 / PAGE;
            let pages = region.len() / PAGE;
            let mut done = 0;
            while done < pages {
                let count = usize::try_from(pages - done).unwrap_or(CHUNK).min(CHUNK);
                let bytes = &mut buffer[..count * ENTRY];
                map.read_exact_at(bytes, (entry + done) * ENTRY as u64).map_err(failed)?;
                for raw in bytes.as_chunks::<ENTRY>().0 {
                    if u64::from_ne_bytes(*raw) & PRESENT_OR_SWAPPED != 0 {
                        touched.insert(page);
                    }
                    page += 1;
                }
                done += count as u64;
            }
        }
        Ok(touched)
    }
}
