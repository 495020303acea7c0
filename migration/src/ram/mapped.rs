//! Guest memory as it is mapped in this process: the one place where page numbers become addresses.
#![expect(
    unsafe_code,
    reason = "guest memory is shared with running vCPUs: no slices, only addresses"
)]

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{PAGE_SIZE, PageBitmap, PageRun, WORD_BITS};
use crate::error::{Error, ErrorKind, Result};
use crate::handshake::MemoryRange;

/// What stands behind a region, for finding the pages that were never touched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Private anonymous memory.
    Anonymous,
    /// A memfd or a file on tmpfs, mapped shared from this offset. The descriptor must stay open as
    /// long as the memory is mapped.
    SharedFile {
        /// The file.
        fd: RawFd,
        /// Where in it the region starts, in bytes.
        offset: u64,
    },
}

/// One region of guest RAM.
#[derive(Debug, Clone, Copy)]
pub struct RamRegion {
    /// First guest-physical address.
    pub start: u64,
    /// Length in bytes, a multiple of the page size.
    pub len: u64,
    /// Where it is mapped here, page aligned.
    pub host: NonNull<u8>,
    /// What stands behind it.
    pub backing: Backing,
}

/// Guest memory of this process.
///
/// # Safety
///
/// For as long as the value lives, every region that `regions` returns must stay mapped readable and
/// writable at `host` for `len` bytes, regions must not overlap, and whoever else accesses the memory
/// at the same time must do so only in ways that tolerate concurrent writes: as a vCPU does, through
/// volatile or atomic accesses, or in the kernel.
pub unsafe trait GuestRam: Send + Sync {
    /// The regions, in address order; always the same.
    fn regions(&self) -> Vec<RamRegion>;
}

/// A region and its place in the page number space.
#[derive(Debug, Clone, Copy)]
struct Region {
    first_page: u64,
    pages: u64,
    region: RamRegion,
}

/// Page numbers over guest memory.
///
/// Regions follow each other in the number space in address order; each starts at a multiple of 64,
/// so that a word of the kernel's dirty log is a word of a [`PageBitmap`]. Both sides have the same
/// regions (the handshake sees to it) and so the same numbers.
pub struct RamMap {
    regions: Vec<Region>,
    pages: u64,
    /// Keeps the mappings alive.
    _ram: Arc<dyn GuestRam>,
}

// SAFETY: the addresses in `regions` are valid on every thread for as long as `_ram` lives, which is
// `Send`, and every access through them is atomic or made by the kernel.
unsafe impl Send for RamMap {}
// SAFETY: as above; nothing in here changes after construction.
unsafe impl Sync for RamMap {}

impl RamMap {
    /// Numbers the pages of `ram`.
    pub fn new(ram: Arc<dyn GuestRam>) -> Result<RamMap> {
        let mut regions = Vec::new();
        let mut next = 0u64;
        for region in ram.regions() {
            let aligned = region.len.is_multiple_of(PAGE_SIZE)
                && region.start.is_multiple_of(PAGE_SIZE)
                && (region.host.as_ptr() as usize as u64).is_multiple_of(PAGE_SIZE);
            if !aligned || region.len == 0 || isize::try_from(region.len).is_err() {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    format!(
                        "guest memory at {:#x} is {} bytes long: not whole pages of {PAGE_SIZE}",
                        region.start, region.len
                    ),
                ));
            }
            let pages = region.len / PAGE_SIZE;
            regions.push(Region { first_page: next, pages, region });
            next = (next + pages).next_multiple_of(WORD_BITS);
        }
        Ok(RamMap { regions, pages: next, _ram: ram })
    }

    /// Bound of the page numbers; some below it, between regions, do not exist.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Bytes of RAM.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|r| r.region.len).sum()
    }

    /// Number of the first page of the region that starts at guest address `start`; what dirty log
    /// words of that region are added at.
    pub fn first_page_of(&self, start: u64) -> Option<u64> {
        self.regions.iter().find(|r| r.region.start == start).map(|r| r.first_page)
    }

    /// Number of the page that holds guest address `address`.
    pub fn page_of(&self, address: u64) -> Option<u64> {
        self.regions.iter().find_map(|r| {
            let within = address.checked_sub(r.region.start)?;
            (within < r.region.len).then(|| r.first_page + within / PAGE_SIZE)
        })
    }

    /// An empty bitmap of the right size.
    pub fn bitmap(&self) -> PageBitmap {
        PageBitmap::new(self.pages)
    }

    /// The regions with the number of each one's first page.
    pub fn regions(&self) -> impl Iterator<Item = (u64, RamRegion)> + '_ {
        self.regions.iter().map(|r| (r.first_page, r.region))
    }

    /// The layout as the handshake compares it.
    pub fn layout(&self) -> Vec<MemoryRange> {
        self.regions
            .iter()
            .map(|r| MemoryRange { start: r.region.start, len: r.region.len })
            .collect()
    }

    /// The parts of `run` that are pages, one per region.
    pub(crate) fn split(&self, run: PageRun) -> impl Iterator<Item = PageRun> + '_ {
        self.regions.iter().filter_map(move |r| {
            let first = run.first.max(r.first_page);
            let end = run.end().min(r.first_page + r.pages);
            let count = end.checked_sub(first)?;
            (count > 0).then_some(PageRun { first, count })
        })
    }

    /// The memory of a run, which must lie in one region: the check that keeps a hostile stream out
    /// of all other memory.
    pub(crate) fn slice(&self, run: PageRun) -> Result<GuestSlice<'_>> {
        let region = self.region_of(run.first).filter(|r| {
            let left = r.first_page + r.pages - run.first;
            run.count > 0 && run.count <= left
        });
        let Some(region) = region else {
            return Err(Error::corrupt(format!(
                "pages {}+{} are not guest memory",
                run.first, run.count
            )));
        };
        let within = (run.first - region.first_page) * PAGE_SIZE;
        let within = usize::try_from(within).expect("the region is mapped");
        let len = usize::try_from(run.bytes()).expect("the region is mapped");
        // SAFETY: `run` lies in the region, so `within` is inside its mapping.
        let start = unsafe { region.region.host.add(within) };
        Ok(GuestSlice { start, len, _map: PhantomData })
    }

    /// Checksum of a page as it is now.
    pub(crate) fn page_sum(&self, page: u64) -> Result<u32> {
        Ok(self.slice(PageRun { first: page, count: 1 })?.sum())
    }

    /// Guest address of a page.
    pub(crate) fn address_of(&self, page: u64) -> Option<u64> {
        let region = self.region_of(page)?;
        Some(region.region.start + (page - region.first_page) * PAGE_SIZE)
    }

    fn region_of(&self, page: u64) -> Option<&Region> {
        let at = self.regions.partition_point(|r| r.first_page <= page);
        let region = self.regions.get(at.checked_sub(1)?)?;
        (page - region.first_page < region.pages).then_some(region)
    }
}

impl fmt::Debug for RamMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RamMap").field("regions", &self.regions).finish_non_exhaustive()
    }
}

/// Whole pages of guest memory, for the kernel to read from or write to. No Rust slice: the guest may
/// change it at any time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GuestSlice<'a> {
    start: NonNull<u8>,
    len: usize,
    _map: PhantomData<&'a RamMap>,
}

/// 64-bit words of a page.
const PAGE_WORDS: usize = 512;
/// 64-bit words looked at together: enough to keep the load units busy, few enough to leave early.
const WORDS_AT_ONCE: usize = 8;

impl GuestSlice<'_> {
    /// Address, for the kernel.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Are all bytes zero at the moment they are looked at?
    pub(crate) fn is_zero(&self) -> bool {
        let words = self.len / 8;
        let mut at = 0;
        while at < words {
            let mut any = 0;
            for word in at..at + WORDS_AT_ONCE {
                any |= self.word(word).load(Ordering::Relaxed);
            }
            if any != 0 {
                return false;
            }
            at += WORDS_AT_ONCE;
        }
        true
    }

    /// CRC-32 of the bytes at the moment they are looked at.
    pub(crate) fn sum(&self) -> u32 {
        // The guest may change them meanwhile, so the sum is taken of copies of a page's size.
        let mut copy = [[0; 8]; PAGE_WORDS];
        let mut sum = crc32fast::Hasher::new();
        for page in 0..self.len / 8 / PAGE_WORDS {
            for (index, word) in copy.iter_mut().enumerate() {
                *word = self.word(page * PAGE_WORDS + index).load(Ordering::Relaxed).to_ne_bytes();
            }
            sum.update(copy.as_flattened());
        }
        sum.finalize()
    }

    /// Writes zeros, where there is anything else: a page never touched stays so.
    pub(crate) fn fill_zero(&self) {
        for word in 0..self.len / 8 {
            let word = self.word(word);
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        debug_assert!(index < self.len / 8, "callers stay inside the slice");
        // SAFETY: `index` is inside the slice, whose length is a multiple of the page size and whose
        // start is page aligned.
        let address = unsafe { self.start.as_ptr().cast::<u64>().add(index) };
        // SAFETY: mapped for as long as the map lives; everyone else who touches it tolerates
        // concurrent access (the contract of `GuestRam`).
        unsafe { AtomicU64::from_ptr(address) }
    }
}

#[cfg(test)]
#[path = "mapped_tests.rs"]
mod tests;
