//! The guest's memory, as the front end describes it.

use std::fs::File;
use std::num::NonZeroUsize;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::Arc;

use ferry_block::{Error, Result};
use ferry_devices::GuestMemory;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

use crate::fault::Guard;
use crate::wire::{RegionLayout, bad};

/// Most regions at one time.
pub(crate) const MAX_REGIONS: usize = 32;
/// Bytes of a page in the log.
pub(crate) const PAGE: u64 = 4096;
/// Most memory whose writes are recorded: 128 MiB of bits, which a sparse file must not make more.
const MAX_TRACKED: u64 = 4 << 40;

/// A mapped region.
pub(crate) type Mapped = Arc<GuestRegionMmap<AtomicBitmap>>;

/// All regions.
pub(crate) struct MemoryTable {
    /// By guest address.
    regions: Vec<Region>,
    tracked: bool,
    /// The front end's connection.
    socket: RawFd,
}

struct Region {
    layout: RegionLayout,
    file: Arc<File>,
    guard: Guard,
    mapped: Mapped,
}

impl MemoryTable {
    /// No memory yet, of the front end that is connected by `socket`.
    pub(crate) fn new(socket: RawFd) -> MemoryTable {
        MemoryTable { regions: Vec::new(), tracked: false, socket }
    }

    /// Whether the front end took memory away that we used.
    pub(crate) fn is_lost(&self) -> bool {
        self.regions.iter().any(|region| region.guard.is_lost())
    }

    /// Forgets all regions. Requests that use them keep them mapped.
    pub(crate) fn clear(&mut self) {
        self.regions.clear();
    }

    /// Adds a region of the file behind `fd`.
    ///
    /// # Errors
    /// It leaves its file, overlaps another region, or cannot be mapped.
    pub(crate) fn add(&mut self, layout: RegionLayout, fd: OwnedFd) -> Result<()> {
        let RegionLayout { guest, size, user, offset } = layout;
        let region = format!("the memory region of {size:#x} bytes at {guest:#x}");
        if self.regions.len() >= MAX_REGIONS {
            return Err(bad(format!("{region} is one more than {MAX_REGIONS}")));
        }
        let file = Arc::new(File::from(fd));
        let metadata = file.metadata();
        let file_len =
            metadata.map_err(|error| Error::from_io(error, format!("{region} has no file")))?.len();
        let ends = [guest, user].map(|start| start.checked_add(size));
        let unaligned = [guest, size, offset].iter().any(|number| !number.is_multiple_of(PAGE));
        if size == 0 || unaligned || ends.contains(&None) {
            return Err(bad(format!("{region} cannot be")));
        }
        if offset.checked_add(size).is_none_or(|end| end > file_len) {
            return Err(bad(format!("{region} at {offset:#x} leaves its file of {file_len:#x}")));
        }
        let overlaps = |other: &Region| {
            guest < other.layout.guest + other.layout.size && other.layout.guest < guest + size
        };
        if self.regions.iter().any(overlaps) {
            return Err(bad(format!("{region} overlaps another one")));
        }
        self.check_tracked(self.tracked, size)?;
        let (mapped, guard) = map(&layout, &file, self.tracked, self.socket)?;
        self.regions.push(Region { layout, file, guard, mapped });
        self.regions.sort_by_key(|region| region.layout.guest);
        Ok(())
    }

    /// Takes a region away, which is known by its addresses and its size.
    ///
    /// # Errors
    /// There is none like it.
    pub(crate) fn remove(&mut self, layout: &RegionLayout) -> Result<()> {
        let same = |region: &Region| {
            let RegionLayout { guest, size, user, .. } = region.layout;
            (guest, size, user) == (layout.guest, layout.size, layout.user)
        };
        let found = self.regions.iter().position(same);
        let found = found
            .ok_or_else(|| bad(format!("there is no memory region {layout:#x?} to remove")))?;
        self.regions.remove(found);
        Ok(())
    }

    /// Whether there is no region.
    pub(crate) fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// Records, from now on or no more, which pages are written. All regions are mapped anew: nobody may use
    /// the memory that [`MemoryTable::memory`] gave for writes that shall be recorded.
    ///
    /// # Errors
    /// It is too much memory, or cannot be mapped.
    pub(crate) fn track(&mut self, on: bool) -> Result<()> {
        if self.tracked == on {
            return Ok(());
        }
        self.check_tracked(on, 0)?;
        for region in &mut self.regions {
            // The old guard goes before the old mapping.
            let (mapped, guard) = map(&region.layout, &region.file, on, self.socket)?;
            region.guard = guard;
            region.mapped = mapped;
        }
        self.tracked = on;
        Ok(())
    }

    fn check_tracked(&self, on: bool, more: u64) -> Result<()> {
        let sizes = self.regions.iter().map(|region| region.layout.size);
        let total = sizes.fold(more, u64::saturating_add);
        if on && total > MAX_TRACKED {
            return Err(bad(format!("writes to {total:#x} bytes of memory cannot be logged")));
        }
        Ok(())
    }

    /// The regions as they are mapped now.
    pub(crate) fn mapped(&self) -> Vec<Mapped> {
        self.regions.iter().map(|region| Arc::clone(&region.mapped)).collect()
    }

    /// The guest's memory.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn memory(&self) -> Result<GuestMemory> {
        GuestMemoryMmap::from_arc_regions(self.mapped())
            .map_err(|error| bad(format!("the memory cannot be used: {error}")))
    }

    /// The guest's address of one of the front end's.
    pub(crate) fn guest_address(&self, user: u64) -> Option<u64> {
        self.regions.iter().find_map(|region| {
            let inside = user.checked_sub(region.layout.user)?;
            (inside < region.layout.size).then(|| region.layout.guest + inside)
        })
    }
}

fn map(
    layout: &RegionLayout,
    file: &Arc<File>,
    tracked: bool,
    socket: RawFd,
) -> Result<(Mapped, Guard)> {
    let failed = || bad(format!("the memory at {:#x} cannot be mapped", layout.guest));
    let size = usize::try_from(layout.size).map_err(|_large| failed())?;
    // One bit for all of it where nobody wants to know.
    let unit = if tracked { PAGE } else { layout.size };
    let unit = usize::try_from(unit).ok().and_then(NonZeroUsize::new).ok_or_else(failed)?;
    let mapping = MmapRegionBuilder::new_with_bitmap(size, AtomicBitmap::new(size, unit))
        .with_file_offset(FileOffset::from_arc(Arc::clone(file), layout.offset))
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
        .build()
        .map_err(|error| bad(format!("the memory at {:#x}: {error}", layout.guest)))?;
    let guard = Guard::new(mapping.as_ptr(), size, socket)?;
    let mapped = GuestRegionMmap::new(mapping, GuestAddress(layout.guest)).ok_or_else(failed)?;
    Ok((Arc::new(mapped), guard))
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
