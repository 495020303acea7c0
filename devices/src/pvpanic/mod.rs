//! pvpanic: how a guest's kernel says that it has panicked (QEMU's `docs/specs/pvpanic.rst`).
//!
//! Linux finds the port through a DSDT device with the hardware ID [`PVPANIC_HID`].

use ferry_migration::Result as StateResult;
use ferry_migration::state::{Migrate, Sections};

use crate::bus::{BusDevice, BusRange};
use crate::power::{PowerEvent, PowerEvents};

/// The port of the device.
pub const PVPANIC_PORT: BusRange = BusRange::new(0x505, 1);
/// `_HID` of the DSDT device whose `_CRS` names the port.
pub const PVPANIC_HID: &str = "QEMU0001";

/// The kernel has panicked and will do nothing more.
const PANICKED: u8 = 1 << 0;
/// The kernel has panicked and hands over to its crash kernel.
const CRASH_LOADED: u8 = 1 << 1;

/// The device for [`PVPANIC_PORT`].
pub struct Pvpanic {
    events: PowerEvents,
}

impl Pvpanic {
    /// A device that reports to `events`.
    pub fn new(events: PowerEvents) -> Self {
        Self { events }
    }
}

impl BusDevice for Pvpanic {
    /// Reads say which events the device understands.
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(PANICKED | CRASH_LOADED);
    }

    fn write(&mut self, _offset: u64, data: &[u8]) {
        let value = data.first().copied().unwrap_or(0);
        // A guest that sets both has panicked for good.
        if value & PANICKED != 0 {
            (self.events)(PowerEvent::Panicked);
        } else if value & CRASH_LOADED != 0 {
            (self.events)(PowerEvent::CrashLoaded);
        }
    }
}

impl Migrate for Pvpanic {
    // It has no state: a write is reported at once and forgotten.
    fn save(&self, _out: &mut Sections) -> StateResult<()> {
        Ok(())
    }

    fn restore(&mut self, _from: &mut Sections) -> StateResult<()> {
        Ok(())
    }
}

#[cfg(test)]
#[path = "pvpanic_tests.rs"]
mod tests;
