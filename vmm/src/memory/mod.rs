//! The guest's RAM: where it lies, how it is mapped, and which pages changed.

#![expect(unsafe_code, reason = "maps memory and hands its address to KVM")]

mod dirty;

use std::num::NonZeroUsize;
use std::sync::Arc;

use ferry_devices::GuestMemory;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap, MmapRegion};

use crate::arch::x86_64::layout::RamLayout;
use crate::error::{Error, Result};
use crate::kvm::Vm;

/// Bytes of a page of the dirty bitmaps: KVM's are the same.
const PAGE: usize = 4096;
/// A page table entry of the second level covers this much; memory aligned to it can use one.
const HUGE_PAGE: usize = 2 << 20;

/// The guest's RAM, mapped into this process and into the guest.
#[derive(Debug, Clone)]
pub struct Ram {
    guest: GuestMemory,
    layout: RamLayout,
    vm: Arc<Vm>,
}

impl Ram {
    /// Map `bytes` of zeroed memory and show it to the guest of `vm`.
    ///
    /// No page is allocated before it is touched.
    pub fn new(vm: &Arc<Vm>, bytes: u64) -> Result<Ram> {
        let layout = RamLayout::new(bytes);
        let mut regions = Vec::new();
        for (start, len) in layout.ranges() {
            regions.push(map_region(start, len)?);
        }
        let guest = GuestMemory::from_regions(regions)
            .map_err(|e| Error::host("lay out guest memory", e))?;
        let ram = Ram { guest, layout, vm: Arc::clone(vm) };
        ram.show_to_guest(false)?;
        Ok(ram)
    }

    /// The memory as devices use it.
    pub fn guest(&self) -> &GuestMemory {
        &self.guest
    }

    /// Where it lies.
    pub fn layout(&self) -> RamLayout {
        self.layout
    }

    /// Bytes in total.
    pub fn bytes(&self) -> u64 {
        self.layout.low + self.layout.high
    }

    /// Let every page read as zero again, and give its memory back to the host. Whoever records writes sees
    /// every page change.
    ///
    /// No vCPU and no device may use the memory meanwhile.
    pub fn forget_contents(&self) -> Result<()> {
        for region in self.guest.iter() {
            let len = region.get_mmap().size();
            // SAFETY: the range is exactly one private anonymous mapping of ours.
            let done = unsafe { libc::madvise(region.as_ptr().cast(), len, libc::MADV_DONTNEED) };
            if done != 0 {
                return Err(Error::host("clear guest memory", std::io::Error::last_os_error()));
            }
            region.get_mmap().bitmap().set_addr_range(0, len);
        }
        Ok(())
    }

    /// Make the memory known to KVM, or change whether KVM logs writes to it.
    fn show_to_guest(&self, log_dirty: bool) -> Result<()> {
        for (slot, region) in (0..).zip(self.guest.iter()) {
            let gpa = region.start_addr().0;
            // SAFETY: regions are never unmapped (see `map_region`).
            unsafe { self.vm.map_ram(slot, gpa, region.as_ptr(), region.len(), log_dirty) }?;
        }
        Ok(())
    }
}

/// Map `len` bytes for RAM at `start`.
///
/// Private anonymous memory: pages that were never touched cost nothing and are told apart by
/// /proc/self/pagemap. It is aligned as the guest sees it, else KVM could not use huge pages. The mapping
/// is never unmapped: a read that the kernel still works on may land in it at any later moment.
fn map_region(start: u64, len: u64) -> Result<GuestRegionMmap<AtomicBitmap>> {
    let what = || format!("reserve {} MiB of guest memory", len >> 20);
    let size = usize::try_from(len).map_err(|e| Error::host(&what(), e))?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let reserved = size + HUGE_PAGE;
    // SAFETY: a new mapping where the kernel likes it.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), reserved, prot, flags, -1, 0) };
    if base == libc::MAP_FAILED {
        return Err(Error::host(&what(), std::io::Error::last_os_error()));
    }
    let head = (base as usize).next_multiple_of(HUGE_PAGE) - base as usize;
    // SAFETY: `head` is less than `HUGE_PAGE`, so `size` bytes from there are within the mapping.
    let host: *mut u8 = unsafe { base.cast::<u8>().add(head) };
    advise_huge(host, size);
    let page = NonZeroUsize::new(PAGE).expect("not zero");
    let builder = MmapRegionBuilder::new_with_bitmap(size, AtomicBitmap::new(size, page))
        .with_mmap_prot(prot)
        .with_mmap_flags(flags);
    // SAFETY: the mapping was just made, has this size and stays for ever.
    let builder = unsafe { builder.with_raw_mmap_pointer(host) };
    let mapping: MmapRegion<AtomicBitmap> = builder.build().map_err(|e| Error::host(&what(), e))?;
    GuestRegionMmap::new(mapping, GuestAddress(start))
        .ok_or_else(|| Error::state(format!("guest memory at {start:#x} does not fit")))
}

/// Ask for huge pages; a host without them is no reason to fail.
fn advise_huge(host: *mut u8, len: usize) {
    // SAFETY: advice on our own mapping changes nothing that a program can see.
    let advised = unsafe { libc::madvise(host.cast(), len, libc::MADV_HUGEPAGE) };
    if advised != 0 {
        tracing::debug!("no huge pages: {}", std::io::Error::last_os_error());
    }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
