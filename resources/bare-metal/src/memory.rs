//! The machine's memory: a bump allocator for our own tables and buffers, the rest as numbered pages.

use crate::args::Args;
use crate::boot;

const MAX_REGIONS: usize = 8;
const PRESENT_WRITE_USER: u64 = 7;
const LARGE_PAGE: u64 = 0x97; // present, write, user, uncached, large
/// Bytes of a page of memory.
pub const PAGE: u64 = 4096;

/// Usable memory from `start` to before `end`, both multiples of a page.
#[derive(Clone, Copy, Default)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// First address behind.
    pub end: u64,
}

/// What is left of the memory.
pub struct Memory {
    regions: [Region; MAX_REGIONS],
    count: usize,
}

impl Memory {
    /// Takes the loader's map, or `ram_mib=` where the loader gave none.
    pub fn new(args: &Args) -> Memory {
        let mut regions = [Region::default(); MAX_REGIONS];
        let mut count = boot::usable_memory(&mut regions);
        if count == 0 {
            let end = args.number("ram_mib", 64) << 20;
            regions[0] = Region { start: boot::first_free().next_multiple_of(PAGE), end };
            count = 1;
        }
        Memory { regions, count }
    }

    /// Hands out zeroed, page-aligned memory for good.
    pub fn take(&mut self, bytes: u64) -> *mut u8 {
        let bytes = bytes.next_multiple_of(PAGE);
        for region in &mut self.regions[..self.count] {
            if region.end - region.start >= bytes {
                let at = region.start as *mut u8;
                region.start += bytes;
                // SAFETY: the range was free until now and is mapped.
                unsafe { at.write_bytes(0, bytes as usize) };
                return at;
            }
        }
        panic!("out of memory: {bytes} bytes wanted");
    }

    /// Pages that nobody took.
    pub fn free_pages(&self) -> u64 {
        self.regions[..self.count].iter().map(|region| (region.end - region.start) / PAGE).sum()
    }

    /// The address of a free page; `index` is below `free_pages()`.
    pub fn page(&self, index: u64) -> *mut u64 {
        let mut offset = index * PAGE;
        for region in &self.regions[..self.count] {
            if offset < region.end - region.start {
                return (region.start + offset) as *mut u64;
            }
            offset -= region.end - region.start;
        }
        panic!("page {index} is not ours");
    }

    /// Makes device registers reachable at their own address.
    pub fn map_device(&mut self, at: u64, bytes: u64) {
        let mut address = at & !0x1f_ffff;
        while at + bytes > boot::MAPPED_LIMIT && address < at + bytes {
            let pointers = self.table_below(boot::page_table_root(), address >> 39 & 511);
            let directory = self.table_below(pointers, address >> 30 & 511);
            // SAFETY: a page directory has 512 entries.
            unsafe {
                directory.add((address >> 21 & 511) as usize).write_volatile(address | LARGE_PAGE)
            };
            address += 0x20_0000;
        }
    }

    /// The table that an entry points to, made when it is not there.
    fn table_below(&mut self, table: *mut u64, index: u64) -> *mut u64 {
        // SAFETY: `table` is a page table of 512 entries and `index` is below 512.
        let entry = unsafe { &mut *table.add(index as usize) };
        if *entry & 1 == 0 {
            *entry = self.take(PAGE) as u64 | PRESENT_WRITE_USER;
        }
        (*entry & !0xfff) as *mut u64
    }
}

/// The compiler calls these; the string instructions are fast enough everywhere.
mod intrinsics {
    use core::arch::asm;

    /// Copies forward.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        // SAFETY: the caller gives two ranges of `len` bytes.
        unsafe {
            asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
                 options(nostack, preserves_flags));
        }
        to
    }

    /// Copies between ranges that may overlap.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        if (to as usize).wrapping_sub(from as usize) >= len {
            // SAFETY: a forward copy never overtakes its source here.
            return unsafe { memcpy(to, from, len) };
        }
        for index in (0..len).rev() {
            // SAFETY: within the two ranges; backwards, so no byte is read after it was overwritten.
            unsafe { to.add(index).write_volatile(from.add(index).read()) };
        }
        to
    }

    /// Fills.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, value: i32, len: usize) -> *mut u8 {
        // SAFETY: the caller gives a range of `len` bytes.
        unsafe {
            asm!("rep stosb", inout("rcx") len => _, inout("rdi") to => _, in("al") value as u8,
                 options(nostack, preserves_flags));
        }
        to
    }

    /// Compares.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(one: *const u8, two: *const u8, len: usize) -> i32 {
        for index in 0..len {
            // SAFETY: the caller gives two ranges of `len` bytes.
            let (a, b) =
                unsafe { (one.add(index).read_volatile(), two.add(index).read_volatile()) };
            if a != b {
                return i32::from(a) - i32::from(b);
            }
        }
        0
    }

    /// Compares for equality.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(one: *const u8, two: *const u8, len: usize) -> i32 {
        // SAFETY: as our caller promises.
        unsafe { memcmp(one, two, len) }
    }
}
