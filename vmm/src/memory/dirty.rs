//! What a migration needs of memory: where it is mapped, and which pages changed since it last asked.

use std::ptr::NonNull;

use ferry_migration::ram::{Backing, GuestRam, PageBitmap, RamMap, RamRegion};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::Ram;
use crate::error::{Error, Result};

// SAFETY: regions are never unmapped (see `map_region`) and do not overlap; vCPUs, the kernel and our
// devices' volatile copies are the only others that access them.
unsafe impl GuestRam for Ram {
    fn regions(&self) -> Vec<RamRegion> {
        let region = |region: &vm_memory::GuestRegionMmap<_>| {
            let host = NonNull::new(region.as_ptr())?;
            let (start, len) = (region.start_addr().0, region.len());
            Some(RamRegion { start, len, host, backing: Backing::Anonymous })
        };
        self.guest.iter().filter_map(region).collect()
    }
}

impl Ram {
    /// Begin to record writes. Pages written before do not count.
    pub fn start_dirty_log(&self) -> Result<()> {
        self.show_to_guest(true)?;
        for region in self.guest.iter() {
            region.get_mmap().bitmap().reset();
        }
        Ok(())
    }

    /// Stop recording; the guest runs at full speed again.
    pub fn stop_dirty_log(&self) -> Result<()> {
        self.show_to_guest(false)
    }

    /// Add the pages written since the last call, by the guest or by our devices, to `into`, by the numbers
    /// of `map`, which is a map of this memory.
    ///
    /// Call it **before** reading the pages: one that is written after the call is in the next answer. A
    /// device marks its page after it wrote to it, so a page caught in between is in the next answer too.
    pub fn take_dirty(&self, map: &RamMap, into: &mut PageBitmap) -> Result<()> {
        for (slot, region) in (0..).zip(self.guest.iter()) {
            let start = region.start_addr().0;
            let first = map.first_page_of(start).ok_or_else(|| {
                Error::state(format!("the page numbers do not know the memory at {start:#x}"))
            })?;
            into.or_words(first, &region.get_mmap().bitmap().get_and_reset());
            let len = usize::try_from(region.len()).unwrap_or(usize::MAX);
            let guests = self.vm.fd().get_dirty_log(slot, len);
            let guests = guests.map_err(|e| Error::host("read KVM's log of dirty pages", e))?;
            into.or_words(first, &guests);
        }
        Ok(())
    }
}
