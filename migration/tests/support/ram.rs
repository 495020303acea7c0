//! Guest memory between guard pages.
#![expect(unsafe_code, reason = "memory that two threads and the kernel write to")]

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use ferry_migration::handshake::MemoryRange;
use ferry_migration::ram::{Backing, GuestRam, PAGE_SIZE, RamRegion};

/// Two regions, like a machine with a hole below 4 GiB; every access outside is a crash.
pub struct FakeRam {
    low: Mapping,
    high: Mapping,
}

const HIGH: u64 = 4 << 30;

struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// Of a shared mapping.
    fd: Option<i32>,
}

// SAFETY: all access is atomic.
unsafe impl Send for Mapping {}
// SAFETY: all access is atomic.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(pages: u64, shared: bool) -> Mapping {
        let guard = usize::try_from(PAGE_SIZE).unwrap();
        let len = usize::try_from(pages * PAGE_SIZE).unwrap();
        let (none, anonymous) = (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh mapping.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), len + 2 * guard, none, anonymous, -1, 0) };
        assert_ne!(base, libc::MAP_FAILED);
        // SAFETY: inside the mapping just made.
        let start = unsafe { base.cast::<u8>().add(guard) };
        let (flags, fd) = if shared {
            // SAFETY: a valid name.
            let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
            assert!(fd >= 0);
            // SAFETY: no pointers.
            assert_eq!(unsafe { libc::ftruncate(fd, i64::try_from(len).unwrap()) }, 0);
            (libc::MAP_SHARED, Some(fd))
        } else {
            (anonymous, None)
        };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: replaces a part of our own mapping.
        let placed = unsafe {
            libc::mmap(start.cast(), len, access, flags | libc::MAP_FIXED, fd.unwrap_or(-1), 0)
        };
        assert_eq!(placed, start.cast());
        Mapping { start: NonNull::new(start).unwrap(), len, fd }
    }

    fn region(&self, start: u64) -> RamRegion {
        let backing = match self.fd {
            None => Backing::Anonymous,
            Some(fd) => Backing::SharedFile { fd, offset: 0 },
        };
        RamRegion { start, len: self.len as u64, host: self.start, backing }
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.len / 8);
        // SAFETY: in bounds.
        let word = unsafe { self.start.as_ptr().cast::<u64>().add(index) };
        // SAFETY: mapped and aligned, and everybody uses atomics.
        unsafe { AtomicU64::from_ptr(word) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let guard = usize::try_from(PAGE_SIZE).unwrap();
        // SAFETY: the mapping begins one guard before.
        let base = unsafe { self.start.as_ptr().sub(guard) };
        // SAFETY: our own mapping, no longer used by anybody.
        unsafe { libc::munmap(base.cast(), self.len + 2 * guard) };
        if let Some(fd) = self.fd {
            // SAFETY: our own descriptor.
            unsafe { libc::close(fd) };
        }
    }
}

impl FakeRam {
    /// Memory of so many pages below and above the hole, all zero.
    pub fn new(low: u64, high: u64) -> FakeRam {
        FakeRam { low: Mapping::new(low, false), high: Mapping::new(high, true) }
    }

    pub fn pages(&self) -> u64 {
        (self.low.len as u64 + self.high.len as u64) / PAGE_SIZE
    }

    pub fn layout(&self) -> Vec<MemoryRange> {
        self.regions().iter().map(|r| MemoryRange { start: r.start, len: r.len }).collect()
    }

    /// A word of the guest's `page`th page, counted through both regions without the hole.
    fn word(&self, page: u64, index: usize) -> &AtomicU64 {
        let low = self.low.len as u64 / PAGE_SIZE;
        let (mapping, page) = if page < low { (&self.low, page) } else { (&self.high, page - low) };
        mapping.word(usize::try_from(page).unwrap() * 512 + index)
    }

    pub fn read(&self, page: u64, index: usize) -> u64 {
        self.word(page, index).load(Ordering::Relaxed)
    }

    pub fn write(&self, page: u64, index: usize, value: u64) {
        self.word(page, index).store(value, Ordering::Relaxed);
    }

    /// Fills a page with something that depends on `value`, or with zeros for 0.
    pub fn fill(&self, page: u64, value: u64) {
        for index in 0..512 {
            self.write(page, index, if value == 0 { 0 } else { value ^ (index as u64) << 32 });
        }
    }

    /// The first page whose contents differ, if any.
    pub fn first_difference(&self, other: &FakeRam) -> Option<u64> {
        (0..self.pages()).find(|page| (0..512).any(|i| self.read(*page, i) != other.read(*page, i)))
    }

    pub fn is_zero(&self) -> bool {
        (0..self.pages()).all(|page| (0..512).all(|i| self.read(page, i) == 0))
    }
}

// SAFETY: mapped until dropped, and everybody uses atomics or the kernel.
unsafe impl GuestRam for FakeRam {
    fn regions(&self) -> Vec<RamRegion> {
        vec![self.low.region(0), self.high.region(HIGH)]
    }
}
