//! The address map of machine type "pc-1". Part of the machine type: a number here never changes.
//!
//! ```text
//! 0x0000_0000 .. 0x0009_fc00  RAM; boot structures at its start
//! 0x000e_0000 .. 0x0010_0000  ACPI tables, the root pointer first
//! 0x0010_0000 .. 0xc000_0000  RAM, as much as there is
//! 0xc000_0000 .. 0xe000_0000  32-bit BARs
//! 0xe000_0000 .. 0xe010_0000  PCI configuration space (ECAM) of the one bus
//! 0xfec0_0000, 0xfee0_0000    IOAPIC, local APICs
//! 4 GiB ..                    the rest of RAM, then 64-bit BARs
//! ```

/// The machine type that this map belongs to.
pub const MACHINE_TYPE: &str = "pc-1";

/// 4 GiB.
pub const FOUR_GIB: u64 = 1 << 32;
/// Low RAM never reaches above this.
pub const LOW_RAM_END: u64 = 0xc000_0000;
/// Where RAM goes on that did not fit below.
pub const HIGH_RAM_START: u64 = FOUR_GIB;

/// First byte that is not RAM below 1 MiB (the extended BIOS data area of a PC).
pub const LOW_RAM_HOLE: u64 = 0x9_fc00;
/// ACPI tables live from here to 1 MiB; the root pointer is found by scanning.
pub const ACPI_START: u64 = 0xe_0000;
/// Kernels are loaded from here on.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// Start of the window for 32-bit BARs.
pub const MMIO32_START: u64 = LOW_RAM_END;
/// Length of the window for 32-bit BARs.
pub const MMIO32_LEN: u64 = ECAM_START - MMIO32_START;
/// Start of the PCI configuration space.
pub const ECAM_START: u64 = 0xe000_0000;
/// Length of the PCI configuration space: one bus. With room for 256, Linux looks for devices on each of them,
/// which takes it most of a second where every look is an exit.
pub const ECAM_LEN: u64 = 1 << 20;
/// Length of the window for 64-bit BARs.
pub const MMIO64_LEN: u64 = 1 << 30;
/// The window for 64-bit BARs starts at a multiple of this.
const MMIO64_ALIGN: u64 = 1 << 30;

/// IOAPIC registers.
pub const IOAPIC_BASE: u32 = 0xfec0_0000;
/// Local APIC registers.
pub const LAPIC_BASE: u32 = 0xfee0_0000;
/// Three pages that Intel's KVM needs for itself to run real mode.
pub const KVM_TSS: usize = 0xfffb_d000;
/// One page that Intel's KVM needs for its identity map.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Boot: the global descriptor table.
pub const BOOT_GDT: u64 = 0x500;
/// Boot: PVH start info, its memory map and its module list.
pub const BOOT_PVH: u64 = 0x6000;
/// Boot: Linux boot parameters (the "zero page").
pub const BOOT_PARAMS: u64 = 0x7000;
/// Boot: page tables for a kernel that starts in long mode; six pages.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// Boot: stack of a kernel that starts in long mode; grows down to the page tables.
pub const BOOT_STACK: u64 = 0x1_8ff0;
/// Boot: the kernel command line.
pub const BOOT_CMDLINE: u64 = 0x2_0000;
/// Longest command line, with its NUL: what Linux itself takes is 2048.
pub const BOOT_CMDLINE_MAX: usize = 0x1_0000;

/// Interrupt of the first serial port.
pub const COM1_IRQ: u32 = 4;
/// First I/O port of the first serial port.
pub const COM1_PORT: u16 = 0x3f8;
/// Interrupt of the real-time clock.
pub const RTC_IRQ: u32 = 8;
/// Pins of the IOAPIC.
pub const IOAPIC_PINS: u32 = 24;
/// RAM below the hole and RAM above 4 GiB, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RamLayout {
    /// Bytes from address 0.
    pub low: u64,
    /// Bytes from 4 GiB; may be none.
    pub high: u64,
}

impl RamLayout {
    /// Where `bytes` of RAM lie.
    pub fn new(bytes: u64) -> RamLayout {
        let low = bytes.min(LOW_RAM_END);
        RamLayout { low, high: bytes - low }
    }

    /// Ranges as (start, length).
    pub fn ranges(self) -> impl Iterator<Item = (u64, u64)> {
        [(0, self.low), (HIGH_RAM_START, self.high)].into_iter().filter(|&(_, len)| len > 0)
    }

    /// Start of the window for 64-bit BARs, above all RAM.
    pub fn mmio64_start(self) -> u64 {
        (HIGH_RAM_START + self.high).next_multiple_of(MMIO64_ALIGN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_is_split_around_the_hole() {
        let gib = 1 << 30;
        assert_eq!(RamLayout::new(gib), RamLayout { low: gib, high: 0 });
        assert_eq!(RamLayout::new(3 * gib), RamLayout { low: 3 * gib, high: 0 });
        let big = RamLayout::new(5 * gib);
        assert_eq!(big.ranges().collect::<Vec<_>>(), [(0, 3 * gib), (4 * gib, 2 * gib)]);
        assert_eq!(big.mmio64_start(), 6 * gib);
        assert_eq!(RamLayout::new(gib).mmio64_start(), 4 * gib);
    }
}
