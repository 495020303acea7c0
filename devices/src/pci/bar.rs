//! Base address registers (PCI 3.0, section 6.2.5.1).
//!
//! The sizing protocol needs no state of its own: address bits below the size are not writable, so
//! a guest that writes all ones reads back the size, and one that writes an address reads back what
//! it wrote.

use super::PciError;

/// How many base address registers a type 0 header has.
pub const BAR_COUNT: usize = 6;

/// Low bits of an I/O BAR: bit 0 set, bit 1 reserved.
const IO_BITS: u64 = 0b01;
/// Memory BAR, bits 2:1: the address has 64 bits and uses two registers.
const MEMORY_64: u64 = 0b100;
/// Memory BAR, bit 3.
const PREFETCHABLE: u64 = 0b1000;
/// A guest cannot map more than this with one BAR of ours.
const MAX_SIZE: u64 = 1 << 40;
/// I/O BARs may not exceed 256 ports (section 6.2.5.1).
const MAX_IO_SIZE: u64 = 256;

/// The kind of address space a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// Memory, anywhere below 4 GiB.
    Memory32 {
        /// Reads have no side effects and writes may be merged.
        prefetchable: bool,
    },
    /// Memory, anywhere; uses this register and the next.
    Memory64 {
        /// Reads have no side effects and writes may be merged.
        prefetchable: bool,
    },
}

impl BarKind {
    /// The read-only low bits of the register.
    pub(super) fn type_bits(self) -> u64 {
        match self {
            Self::Io => IO_BITS,
            Self::Memory32 { prefetchable: false } => 0,
            Self::Memory32 { prefetchable: true } => PREFETCHABLE,
            Self::Memory64 { prefetchable: false } => MEMORY_64,
            Self::Memory64 { prefetchable: true } => MEMORY_64 | PREFETCHABLE,
        }
    }

    /// Whether the BAR uses two registers.
    pub(super) fn is_64_bit(self) -> bool {
        matches!(self, Self::Memory64 { .. })
    }

    /// Whether it decodes ports and not memory.
    pub(super) fn is_io(self) -> bool {
        matches!(self, Self::Io)
    }
}

/// A BAR that a device has: what the guest cannot change about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bar {
    pub(super) kind: BarKind,
    /// Bytes or ports, a power of two.
    pub(super) size: u64,
}

impl Bar {
    /// A BAR for register `index`.
    pub(super) fn new(index: usize, kind: BarKind, size: u64) -> Result<Self, PciError> {
        let bad = |why| PciError::Bar { bar: index, size, kind, why };
        let registers = if kind.is_64_bit() { 2 } else { 1 };
        if index.checked_add(registers).is_none_or(|end| end > BAR_COUNT) {
            return Err(bad("there are six registers, and 64 bits take two"));
        }
        if !size.is_power_of_two() {
            return Err(bad("the size must be a power of two"));
        }
        let (least, most) = match kind {
            BarKind::Io => (4, MAX_IO_SIZE),
            BarKind::Memory32 { .. } => (16, 1 << 31),
            BarKind::Memory64 { .. } => (16, MAX_SIZE),
        };
        if size < least || size > most {
            return Err(bad("the size is out of range for this kind"));
        }
        Ok(Self { kind, size })
    }

    /// Which bits of the (up to 64-bit) register the guest can write.
    pub(super) fn writable(self) -> u64 {
        let address = !(self.size - 1);
        if self.kind.is_64_bit() { address } else { address & u64::from(u32::MAX) }
    }
}
