//! The keyboard controller, as far as it resets the machine.
//!
//! Firmware tables say that there is none (see [`crate::power::IAPC_BOOT_ARCH`]), so Linux does not
//! look for one. A guest that looks anyway finds out at once: the output buffer is always full,
//! which draining does not change, and its driver gives up after a few reads. The input buffer is
//! always empty, so that code which waits for it before it sends the reset command does not wait.

use ferry_migration::Result as StateResult;
use ferry_migration::state::{Migrate, Sections};

use crate::bus::{BusDevice, BusRange};
use crate::power::{PowerEvent, PowerEvents};

/// Data port 0x60 to command and status port 0x64. Of the ports between, 0x61 belongs to the PIT,
/// which the kernel emulates: its accesses do not get here.
pub const I8042_PORTS: BusRange = BusRange::new(0x60, 5);

const DATA: u64 = 0;
const COMMAND: u64 = 4;
/// Status: output buffer full (bit 0), input buffer empty (bit 1).
const STATUS: u8 = 1;
/// Commands 0xF0 to 0xFF pulse the lines whose bits are clear; bit 0 is the CPU's reset.
const PULSE: u8 = 0xf0;
const RESET_LINE: u8 = 1;

/// The controller; a device for [`I8042_PORTS`].
pub struct I8042 {
    events: PowerEvents,
}

impl I8042 {
    /// A controller whose resets go to `events`.
    pub fn new(events: PowerEvents) -> Self {
        Self { events }
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (port, byte) in (offset..).zip(data.iter_mut()) {
            *byte = match port {
                DATA => 0xff,
                COMMAND => STATUS,
                _ => 0,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let resets = (offset..)
            .zip(data)
            .any(|(port, byte)| port == COMMAND && byte & PULSE == PULSE && byte & RESET_LINE == 0);
        if resets {
            (self.events)(PowerEvent::Reset);
        }
    }
}

impl Migrate for I8042 {
    // It has no state: every access is answered by itself.
    fn save(&self, _out: &mut Sections) -> StateResult<()> {
        Ok(())
    }

    fn restore(&mut self, _from: &mut Sections) -> StateResult<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "i8042_tests.rs"]
mod tests;
