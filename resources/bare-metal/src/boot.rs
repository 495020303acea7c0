//! What the entry code left behind: the start info of the PVH protocol and the CPUID leaves.

use core::arch::global_asm;
use core::ptr::{addr_of, read_volatile};

use crate::args::Args;
use crate::memory::Region;

global_asm!(include_str!("boot.s"));

const START_INFO_MAGIC: u32 = 0x336e_c578;
const MAP_RAM: u32 = 1;
/// Everything above is not in the page tables (`MAPPED_GIB` in boot.s).
pub const MAPPED_LIMIT: u64 = 8 << 30;

/// One CPUID leaf: eax, ebx, ecx, edx.
pub type Leaf = [u32; 4];

/// Filled in by ring 0 before anything else ran; the layout is `boot_facts` in boot.s.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Facts {
    start_info: u64,
    /// Time stamp counter at the first instruction.
    pub entry_tsc: u64,
    /// Leaf 0x4000_0000: the hypervisor's name.
    pub hypervisor: Leaf,
    /// Leaf 0x4000_0001: KVM's features.
    pub features: Leaf,
    /// Leaf 0x4000_0010: frequencies.
    pub timing: Leaf,
    /// Leaf 0x15: the crystal's ratio, zeroes when the processor has none.
    pub crystal: Leaf,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    module_count: u32,
    modules: u64,
    command_line: u64,
    rsdp: u64,
    map: u64,
    map_entries: u32,
    reserved: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct MapEntry {
    start: u64,
    size: u64,
    kind: u32,
    reserved: u32,
}

unsafe extern "C" {
    static boot_facts: Facts;
    static boot_kvmclock: u8;
    static mut boot_idt: [u64; 64];
    static exception_stubs: u8;
    static image_end: u8;
    static mut boot_pml4: [u64; 512];
}

/// The facts of the entry.
pub fn facts() -> Facts {
    // SAFETY: ring 0 wrote the block before ring 3 began, and nobody writes it since.
    unsafe { read_volatile(addr_of!(boot_facts)) }
}

/// Where the host keeps this processor's clock page, when it keeps one.
pub fn clock_page() -> *const u8 {
    addr_of!(boot_kvmclock)
}

/// The interrupt descriptor table, two words a gate.
pub fn idt() -> *mut u64 {
    (&raw mut boot_idt).cast()
}

/// Where the code of exception 0 lies; the others follow at 16 bytes each.
pub fn exception_stub(vector: u64) -> u64 {
    addr_of!(exception_stubs) as u64 + 16 * vector
}

/// The root page table, writable from ring 3.
pub fn page_table_root() -> *mut u64 {
    (&raw mut boot_pml4).cast()
}

/// The first address behind this program.
pub fn first_free() -> u64 {
    addr_of!(image_end) as u64
}

fn start_info() -> Option<StartInfo> {
    let at = facts().start_info as *const StartInfo;
    // SAFETY: the PVH protocol hands this address over in ebx; it lies in mapped memory.
    let info = unsafe { at.read_unaligned() };
    (info.magic == START_INFO_MAGIC).then_some(info)
}

/// The command line, copied out before memory is handed out.
pub fn command_line() -> Args {
    let text = start_info().map_or(0, |info| info.command_line) as *const u8;
    if text.is_null() {
        return Args::new(&[]);
    }
    let mut len = 0;
    // SAFETY: the loader ends the line with a zero byte in mapped memory.
    while len < Args::LONGEST && unsafe { text.add(len).read() } != 0 {
        len += 1;
    }
    // SAFETY: `len` bytes were just read one by one.
    Args::new(unsafe { core::slice::from_raw_parts(text, len) })
}

/// The usable memory behind the program that the page tables reach, in ascending order.
pub fn usable_memory(regions: &mut [Region]) -> usize {
    let Some(info) = start_info().filter(|info| info.version > 0) else { return 0 };
    let mut count = 0;
    for index in 0..u64::from(info.map_entries) {
        let at = (info.map + index * size_of::<MapEntry>() as u64) as *const MapEntry;
        // SAFETY: the loader put `map_entries` entries there, in mapped memory.
        let entry = unsafe { at.read_unaligned() };
        let start = entry.start.max(first_free()).next_multiple_of(4096);
        let end = entry.start.saturating_add(entry.size).min(MAPPED_LIMIT) & !4095;
        if entry.kind == MAP_RAM && start < end && count < regions.len() {
            regions[count] = Region { start, end };
            count += 1;
        }
    }
    count
}
