//! The keyboard controller, as far as it resets the machine.
//!
//! Firmware tables say that there is none (see [`crate::power::IAPC_BOOT_ARCH`]), so Linux does not
//! look for one. A guest that looks anyway finds out at once: it gets more bytes, all of them noise,
//! than a controller can hold, and its driver gives up. They end all the same, for code that only
//! wants the output buffer empty does not count; and each command is answered with as many. The
//! input buffer is always empty, so that code which waits for it before it sends the reset command
//! does not wait.

use ferry_migration::Result as StateResult;
use ferry_migration::state::{Migrate, Sections};

use crate::bus::{BusDevice, BusRange};
use crate::power::{PowerEvent, PowerEvents};

/// Data port 0x60 to command and status port 0x64. Of the ports between, 0x61 belongs to the PIT,
/// which the kernel emulates: its accesses do not get here.
pub const I8042_PORTS: BusRange = BusRange::new(0x60, 5);

const DATA: u64 = 0;
const COMMAND: u64 = 4;
/// Status: output buffer full. The input buffer (bit 1) is always empty.
const OUTPUT_FULL: u8 = 1;
/// How many bytes of noise there are. Linux takes more than 16 for a sign that nothing is there.
const NOISE: u8 = 32;
/// Commands 0xF0 to 0xFF pulse the lines whose bits are clear; bit 0 is the CPU's reset.
const PULSE: u8 = 0xf0;
const RESET_LINE: u8 = 1;

/// The controller; a device for [`I8042_PORTS`].
pub struct I8042 {
    events: PowerEvents,
    /// Bytes in the output buffer.
    noise: u8,
}

impl I8042 {
    /// A controller whose resets go to `events`.
    pub fn new(events: PowerEvents) -> Self {
        Self { events, noise: NOISE }
    }

    /// Back to the state after power-on.
    pub fn reset(&mut self) {
        self.noise = NOISE;
    }
}

impl BusDevice for I8042 {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (port, byte) in (offset..).zip(data.iter_mut()) {
            *byte = match port {
                DATA => {
                    self.noise = self.noise.saturating_sub(1);
                    0xff
                }
                COMMAND if self.noise > 0 => OUTPUT_FULL,
                _ => 0,
            };
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.noise = NOISE;
        let resets = (offset..)
            .zip(data)
            .any(|(port, byte)| port == COMMAND && byte & PULSE == PULSE && byte & RESET_LINE == 0);
        if resets {
            (self.events)(PowerEvent::Reset);
        }
    }
}

impl Migrate for I8042 {
    // It has no state that matters: how much noise is left is nobody's business.
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
