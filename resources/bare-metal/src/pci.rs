//! PCI configuration by ports 0xCF8 and 0xCFC, bus 0.

use crate::memory::Memory;
use crate::port::{in32, out32};

const COMMAND: u8 = 0x04;
const FIRST_BAR: u8 = 0x10;
const CAPABILITIES: u8 = 0x34;
const MEMORY_AND_MASTER_NO_INTX: u32 = 0x406;
/// Where unassigned registers go: a part of the 32-bit hole that no machine here fills.
const HOLE: u64 = 0xd000_0000;

/// One function of a device on bus 0.
#[derive(Clone, Copy)]
pub struct Function(u32);

impl Function {
    /// Finds the function number `nth` with one of these device numbers (vendor 0x1af4).
    pub fn find(devices: [u16; 2], mut nth: u64) -> Option<Function> {
        for slot in 0..32 {
            let first = Function(slot << 11);
            if first.read(0) == u32::MAX {
                continue;
            }
            let several = first.read(0x0c) & 0x80_0000 != 0;
            for number in 0..if several { 8 } else { 1 } {
                let function = Function(slot << 11 | number << 8);
                let identity = function.read(0);
                if identity & 0xffff == 0x1af4 && devices.contains(&((identity >> 16) as u16)) {
                    if nth == 0 {
                        return Some(function);
                    }
                    nth -= 1;
                }
            }
        }
        None
    }

    /// The slot number, for reports.
    pub fn slot(self) -> u32 {
        self.0 >> 11
    }

    /// Reads the aligned 32 bits at an offset.
    pub fn read(self, offset: u8) -> u32 {
        out32(0xcf8, 0x8000_0000 | self.0 | u32::from(offset & 0xfc));
        in32(0xcfc)
    }

    /// Writes the aligned 32 bits at an offset.
    pub fn write(self, offset: u8, value: u32) {
        out32(0xcf8, 0x8000_0000 | self.0 | u32::from(offset & 0xfc));
        out32(0xcfc, value);
    }

    /// Lets the device answer at its memory registers and use ours; its line interrupt stays off.
    pub fn enable(self) {
        self.write(COMMAND, MEMORY_AND_MASTER_NO_INTX);
    }

    /// Calls with each capability's id and offset.
    pub fn capabilities(self, mut each: impl FnMut(u8, u8)) {
        let mut at = self.read(CAPABILITIES) as u8 & 0xfc;
        for _ in 0..48 {
            if at == 0 {
                return;
            }
            let head = self.read(at);
            each(head as u8, at);
            at = (head >> 8) as u8 & 0xfc;
        }
    }

    /// The address of a memory register block; given one when the firmware did not.
    pub fn bar(self, index: u8, memory: &mut Memory) -> u64 {
        let at = FIRST_BAR + 4 * index;
        let low = self.read(at);
        let wide = low & 6 == 4;
        let high = if wide { self.read(at + 4) } else { 0 };
        let mut address = u64::from(low & !15) | u64::from(high) << 32;
        self.write(at, u32::MAX);
        let bytes = u64::from((!(self.read(at) & !15)).wrapping_add(1));
        if address == 0 {
            address = HOLE + u64::from(self.slot()) * 0x80_0000 + u64::from(index) * 0x10_0000;
        }
        self.write(at, address as u32);
        if wide {
            self.write(at + 4, (address >> 32) as u32);
        }
        memory.map_device(address, bytes);
        address
    }
}
