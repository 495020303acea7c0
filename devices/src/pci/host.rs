//! The host bridge and the two ways into configuration space.

use std::sync::{Arc, Mutex};

use ferry_migration::Result as StateResult;
use ferry_migration::state::{Migrate, Sections};

use super::bus::FunctionAddress;
use super::state::{PciHostState, PciPortsState};
use super::{ConfigSpace, PciBus, PciDevice, PciIdentity};
use crate::bus::{BusDevice, BusRange};
use crate::power::{PowerEvent, PowerEvents};

/// The I/O ports of [`PciPorts`].
pub const CONFIG_PORTS: BusRange = BusRange::new(0xcf8, 8);
/// The reset control register, which the FADT names as the ACPI reset register (8-bit I/O).
pub const RESET_PORT: u16 = 0xcf9;
/// What the FADT tells the guest to write to [`RESET_PORT`]: full reset of system and CPU.
pub const RESET_VALUE: u8 = 0x0e;
/// The MCFG table may report at most this many buses (1 MiB each).
pub const MAX_ECAM_BUSES: u16 = 256;

/// The interrupts of INTA# pins, level-triggered. They are free on the ISA bus, and inputs of the PICs as
/// well as of the IOAPIC: so one number is right for a guest that reads the `_PRT` and for one that only reads
/// the interrupt line register, whichever controller it uses.
pub const INTX_IRQS: [u8; 4] = [10, 11, 5, 12];

/// The interrupt controller input of a slot's INTA# pin; every fourth slot shares one. The DSDT's
/// `_PRT` must say the same.
pub const fn intx_gsi(slot: u8) -> u8 {
    INTX_IRQS[(slot % 4) as usize]
}

const CONFIG_ENABLE: u32 = 1 << 31;
/// Offsets in [`CONFIG_PORTS`].
const RESET_OFFSET: u64 = 1;
const DATA_OFFSET: u64 = 4;
/// Reset control: bit 2 resets the CPU; bits 1 and 3 say how thoroughly.
const RESET_CPU: u8 = 1 << 2;
const RESET_KIND: u8 = 0b1010;

/// A host bridge of the generic kind: vendor 0x1b36, device 8, which no guest has special code for.
const HOST_BRIDGE: PciIdentity = PciIdentity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: [0x06, 0x00, 0x00],
    subsystem_vendor: 0x1af4,
    subsystem: 0x1100,
};

/// The function at 00:00.0, by which a guest recognises that there is a PCI bus.
pub struct HostBridge {
    config: ConfigSpace,
}

impl HostBridge {
    /// The host bridge, for slot 0.
    pub fn new() -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self { config: ConfigSpace::new(HOST_BRIDGE) }))
    }
}

impl PciDevice for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    // It has no BARs.
    fn bar_read(&mut self, _bar: usize, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&mut self, _bar: usize, _offset: u64, _data: &[u8]) {}

    fn bar_moved(&mut self, _bar: usize, _base: Option<u64>) {}

    fn reset(&mut self) {}
}

impl Migrate for HostBridge {
    fn save(&self, out: &mut Sections) -> StateResult<()> {
        out.save("pci-host", &PciHostState { config: self.config.save() })
    }

    fn restore(&mut self, from: &mut Sections) -> StateResult<()> {
        let state: PciHostState = from.load("pci-host")?;
        self.config.restore(&state.config)
    }
}

/// Configuration mechanism #1 (PCI 3.0, section 3.2.2.3.2) on ports 0xCF8 to 0xCFF, with the reset
/// control register that chipsets have at 0xCF9.
pub struct PciPorts {
    bus: Arc<PciBus>,
    events: PowerEvents,
    address: u32,
    reset_control: u8,
}

impl PciPorts {
    /// For [`CONFIG_PORTS`] of the port bus; a reset goes to `events`.
    pub fn new(bus: Arc<PciBus>, events: PowerEvents) -> Self {
        Self { bus, events, address: 0, reset_control: 0 }
    }

    /// Which function and which register CONFIG_DATA is now, at `port_offset` in [`CONFIG_PORTS`].
    fn target(&self, port_offset: u64) -> Option<(FunctionAddress, u16)> {
        if self.address & CONFIG_ENABLE == 0 {
            return None;
        }
        let [register, function, bus, _] = self.address.to_le_bytes();
        let within = u16::try_from(port_offset.checked_sub(DATA_OFFSET)?).ok()?;
        let address = FunctionAddress { bus, slot: function >> 3, function: function & 7 };
        Some((address, u16::from(register & 0xfc) + within))
    }
}

impl BusDevice for PciPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        match (offset, data.len()) {
            (0, 4) => data.copy_from_slice(&self.address.to_le_bytes()),
            (RESET_OFFSET, 1) => data[0] = self.reset_control,
            _ => {
                if let Some((address, register)) = self.target(offset) {
                    self.bus.config_read(address, register, data);
                }
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            // Only whole dwords reach CONFIG_ADDRESS; other accesses to its ports are ordinary
            // ones.
            (0, &[b0, b1, b2, b3]) => self.address = u32::from_le_bytes([b0, b1, b2, b3]),
            (RESET_OFFSET, &[value]) => {
                self.reset_control = value & RESET_KIND;
                if value & RESET_CPU != 0 {
                    (self.events)(PowerEvent::Reset);
                }
            }
            _ => {
                if let Some((address, register)) = self.target(offset) {
                    self.bus.config_write(address, register, data);
                }
            }
        }
    }
}

impl Migrate for PciPorts {
    fn save(&self, out: &mut Sections) -> StateResult<()> {
        let state = PciPortsState { address: self.address, reset_control: self.reset_control };
        out.save("pci-ports", &state)
    }

    fn restore(&mut self, from: &mut Sections) -> StateResult<()> {
        let PciPortsState { address, reset_control } = from.load("pci-ports")?;
        self.address = address;
        self.reset_control = reset_control & RESET_KIND;
        Ok(())
    }
}

/// The enhanced configuration access mechanism: configuration space as memory, 4 KiB a function, as
/// the MCFG table reports it (PCI Express 4.0, section 7.2.2).
pub struct Ecam {
    bus: Arc<PciBus>,
}

impl Ecam {
    /// For an MMIO range that starts at bus 0, device 0, function 0.
    pub fn new(bus: Arc<PciBus>) -> Self {
        Self { bus }
    }
}

fn ecam_target(offset: u64) -> Option<(FunctionAddress, u16)> {
    let field = |shift: u32, mask: u64| u8::try_from((offset >> shift) & mask).ok();
    let bus = u8::try_from(offset >> 20).ok()?;
    let address = FunctionAddress { bus, slot: field(15, 31)?, function: field(12, 7)? };
    Some((address, u16::try_from(offset & 0xfff).ok()?))
}

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match ecam_target(offset) {
            Some((address, register)) => self.bus.config_read(address, register, data),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some((address, register)) = ecam_target(offset) {
            self.bus.config_write(address, register, data);
        }
    }
}

#[cfg(test)]
#[path = "host_tests.rs"]
mod tests;
