//! A modern virtio device on PCI (virtio 1.2, section 4.1), without interrupts: that of a changed
//! configuration stays masked and is seen in its pending bit.

use crate::memory::Memory;
use crate::pci::Function;
use crate::queue::Queue;

/// Ids of PCI capabilities.
const VENDOR: u8 = 0x09;
const MSIX: u8 = 0x11;
const MSIX_ENABLE: u32 = 1 << 31;

const COMMON: u8 = 1;
const NOTIFY: u8 = 2;
const DEVICE: u8 = 4;

const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
/// The device gave up (bit of the status).
pub const NEEDS_RESET: u8 = 0x40;

/// The device's register blocks.
pub struct Transport {
    common: u64,
    notify: u64,
    notify_step: u64,
    device: u64,
    /// The pending bits of its interrupts, if it has MSI-X.
    pending: u64,
    /// The features both sides agreed on.
    pub features: u64,
}

impl Transport {
    /// Finds the register blocks behind the vendor capabilities.
    pub fn open(function: Function, memory: &mut Memory) -> Option<Transport> {
        let mut found =
            Transport { common: 0, notify: 0, notify_step: 0, device: 0, pending: 0, features: 0 };
        let mut bars = [0_u64; 6];
        let mut block = |bar: usize, offset: u32| {
            if bars[bar] == 0 {
                bars[bar] = function.bar(bar as u8, memory);
            }
            bars[bar] + u64::from(offset)
        };
        function.capabilities(|id, at| {
            if id == MSIX {
                let place = function.read(at + 8);
                found.pending = block((place & 7) as usize, place & !7);
                function.write(at, function.read(at) | MSIX_ENABLE);
            }
            let kind = (function.read(at) >> 24) as u8;
            let bar = function.read(at + 4) as u8 as usize;
            if id != VENDOR || bar >= 6 || ![COMMON, NOTIFY, DEVICE].contains(&kind) {
                return;
            }
            let block = block(bar, function.read(at + 8));
            match kind {
                COMMON => found.common = block,
                DEVICE => found.device = block,
                _ => {
                    found.notify = block;
                    found.notify_step = u64::from(function.read(at + 16));
                }
            }
        });
        function.enable();
        (found.common != 0 && found.notify != 0 && found.device != 0).then_some(found)
    }

    /// Resets the device and agrees on the features that both sides know.
    pub fn negotiate(&mut self, wanted: u64) -> bool {
        self.write8(20, 0);
        while self.status() != 0 {
            core::hint::spin_loop();
        }
        self.write8(20, ACKNOWLEDGE | DRIVER);
        for half in 0..2 {
            self.write32(0, half);
            let offered = u64::from(self.read32(4)) << (32 * half);
            self.features |= offered & wanted;
        }
        for half in 0..2 {
            self.write32(8, half);
            self.write32(12, (self.features >> (32 * half)) as u32);
        }
        self.write8(20, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.status() & FEATURES_OK != 0
    }

    /// How many queues the device has.
    pub fn queue_count(&self) -> u16 {
        self.read16(18)
    }

    /// Sets queue `index` up; at most `largest` entries.
    pub fn queue(&self, index: u16, largest: u16, memory: &mut Memory) -> Queue {
        self.write16(22, index);
        let size = self.read16(24).min(largest);
        self.write16(24, size);
        let bell = self.notify + u64::from(self.read16(30)) * self.notify_step;
        let queue = Queue::new(index, size, bell, self.features, memory);
        for (at, area) in [(32, queue.descriptors), (40, queue.available), (48, queue.used)] {
            self.write32(at, area as u32);
            self.write32(at + 4, (area >> 32) as u32);
        }
        self.write16(26, 0xffff);
        self.write16(28, 1);
        queue
    }

    /// Starts the device; its first vector is for changes of the configuration.
    pub fn start(&self) {
        self.write16(16, 0);
        self.write8(20, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }

    /// The device's status byte.
    pub fn status(&self) -> u8 {
        // SAFETY: a register of the common block, mapped by `open`.
        unsafe { ((self.common + 20) as *const u8).read_volatile() }
    }

    /// Eight bytes of the device's own configuration.
    pub fn config64(&self, offset: u64) -> u64 {
        // SAFETY: a register of the device block, mapped by `open`.
        let word = |at| u64::from(unsafe { ((self.device + at) as *const u32).read_volatile() });
        word(offset) | word(offset + 4) << 32
    }

    /// How often the configuration has changed, as its generation counts.
    pub fn generation(&self) -> u8 {
        // SAFETY: a register of the common block, mapped by `open`.
        unsafe { ((self.common + 21) as *const u8).read_volatile() }
    }

    /// Whether the device has raised the interrupt of a changed configuration, which is masked.
    pub fn config_interrupt(&self) -> bool {
        // SAFETY: the pending bits of the MSI-X table, mapped by `open`.
        self.pending != 0 && unsafe { (self.pending as *const u32).read_volatile() } & 1 != 0
    }

    fn read16(&self, offset: u64) -> u16 {
        // SAFETY: a register of the common block, mapped by `open`.
        unsafe { ((self.common + offset) as *const u16).read_volatile() }
    }

    fn read32(&self, offset: u64) -> u32 {
        // SAFETY: a register of the common block, mapped by `open`.
        unsafe { ((self.common + offset) as *const u32).read_volatile() }
    }

    fn write8(&self, offset: u64, value: u8) {
        // SAFETY: a register of the common block, mapped by `open`.
        unsafe { ((self.common + offset) as *mut u8).write_volatile(value) }
    }

    fn write16(&self, offset: u64, value: u16) {
        // SAFETY: a register of the common block, mapped by `open`.
        unsafe { ((self.common + offset) as *mut u16).write_volatile(value) }
    }

    fn write32(&self, offset: u64, value: u32) {
        // SAFETY: a register of the common block, mapped by `open`.
        unsafe { ((self.common + offset) as *mut u32).write_volatile(value) }
    }
}
