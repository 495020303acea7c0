//! The configuration space of a function (PCI 3.0, chapter 6).
//!
//! Every register is bytes with a mask of what the guest can write. All behaviour beyond that is
//! derived after a write: where BARs decode, whether INTx may be driven, whether MSI-X is on.

use std::sync::Arc;

use ferry_migration::state::Bytes;
use ferry_migration::{Error as StateError, Result as StateResult};

use super::bar::Bar;
use super::intx::Intx;
use super::msix::{CONTROL_ENABLE, CONTROL_FUNCTION_MASK, MsixTable};
use super::state::ConfigState;
use super::{BAR_COUNT, BarKind, PciError};

/// Bytes of a conventional function's configuration space.
pub(super) const CONFIG_LEN: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const FIRST_BAR: usize = 0x10;
const BARS_END: usize = FIRST_BAR + 4 * BAR_COUNT;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
/// The first byte after the type 0 header.
const FIRST_CAPABILITY: usize = 0x40;

/// Command register (section 6.2.2).
const COMMAND_IO: u16 = 1 << 0;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_PARITY: u16 = 1 << 6;
const COMMAND_SERR: u16 = 1 << 8;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status register (section 6.2.3).
const STATUS_INTERRUPT: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// Capability ID of MSI-X.
const CAPABILITY_MSIX: u8 = 0x11;

/// Who a function says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciIdentity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, subclass and programming interface, as three bytes from high to low.
    pub class: [u8; 3],
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// What a configuration write may have changed outside the configuration space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "the bus must move the BARs"]
pub struct ConfigChange {
    /// Where the BARs decode.
    pub bars: bool,
}

/// The configuration space of one function.
pub struct ConfigSpace {
    registers: [u8; CONFIG_LEN],
    writable: [u8; CONFIG_LEN],
    /// The registers after power-on.
    power_on: [u8; CONFIG_LEN],
    bars: [Option<Bar>; BAR_COUNT],
    capabilities_end: usize,
    /// Where the offset of the next capability will be written.
    last_link: usize,
    intx: Option<Arc<Intx>>,
    /// The capability's offset and the table.
    msix: Option<(usize, Arc<MsixTable>)>,
}

impl ConfigSpace {
    /// A type 0 header without BARs, capabilities and interrupt pin.
    pub fn new(identity: PciIdentity) -> Self {
        let mut config = Self {
            registers: [0; CONFIG_LEN],
            writable: [0; CONFIG_LEN],
            power_on: [0; CONFIG_LEN],
            bars: [None; BAR_COUNT],
            capabilities_end: FIRST_CAPABILITY,
            last_link: CAPABILITIES,
            intx: None,
            msix: None,
        };
        config.define(0x00, &identity.vendor.to_le_bytes(), &[]);
        config.define(0x02, &identity.device.to_le_bytes(), &[]);
        let command = COMMAND_IO
            | COMMAND_MEMORY
            | COMMAND_BUS_MASTER
            | COMMAND_PARITY
            | COMMAND_SERR
            | COMMAND_INTX_DISABLE;
        config.define(COMMAND, &[0, 0], &command.to_le_bytes());
        let [base, sub, interface] = identity.class;
        config.define(0x08, &[identity.revision, interface, sub, base], &[]);
        // Cache line size: software may write it, nothing comes of it (section 6.2.4).
        config.define(0x0c, &[0], &[0xff]);
        config.define(0x2c, &identity.subsystem_vendor.to_le_bytes(), &[]);
        config.define(0x2e, &identity.subsystem.to_le_bytes(), &[]);
        config.define(INTERRUPT_LINE, &[0xff], &[0xff]);
        config
    }

    /// Adds base address register `index`; `size` in bytes or ports.
    ///
    /// # Errors [`PciError::Bar`] when the size is no power of two, too small or too large for its
    /// kind, or the register does not exist or is taken.
    pub fn add_bar(&mut self, index: usize, kind: BarKind, size: u64) -> Result<(), PciError> {
        let bar = Bar::new(index, kind, size)?;
        let after_64 = index.checked_sub(1).and_then(|before| self.bars[before]);
        let upper_taken = kind.is_64_bit() && self.bars[index + 1].is_some();
        if self.bars[index].is_some()
            || upper_taken
            || after_64.is_some_and(|before| before.kind.is_64_bit())
        {
            return Err(PciError::Bar { bar: index, size, kind, why: "the register is taken" });
        }
        self.bars[index] = Some(bar);
        let len = if kind.is_64_bit() { 8 } else { 4 };
        let at = FIRST_BAR + 4 * index;
        let (value, writable) = (kind.type_bits().to_le_bytes(), bar.writable().to_le_bytes());
        self.define(at, &value[..len], &writable[..len]);
        Ok(())
    }

    /// Appends a capability (section 6.7): `body` follows its ID and link byte, and `writable` says
    /// which bits of the body the guest can write (a shorter mask leaves the rest read-only).
    /// Returns the offset of the ID byte.
    ///
    /// # Errors
    /// [`PciError::CapabilitySpace`] when there is no room.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u8, PciError> {
        let full = || PciError::CapabilitySpace { len: body.len() };
        let at = self.capabilities_end;
        let end = at.checked_add(body.len()).and_then(|end| end.checked_add(2)).ok_or_else(full)?;
        let Some(offset) = u8::try_from(at).ok().filter(|_| end <= CONFIG_LEN) else {
            return Err(full());
        };
        self.define(at, &[id, 0], &[]);
        self.define(at + 2, body, &writable[..writable.len().min(body.len())]);
        self.define(self.last_link, &[offset], &[]);
        self.define(STATUS, &[STATUS_CAPABILITIES], &[]);
        self.last_link = at + 1;
        // Capabilities start at dwords.
        self.capabilities_end = end.next_multiple_of(4);
        Ok(offset)
    }

    /// Appends the MSI-X capability (section 6.8.2) for `table`, whose BARs are there already.
    /// Message control acts on the table from now on by itself.
    ///
    /// # Errors [`PciError::Msix`] when the table does not lie within its BAR,
    /// [`PciError::CapabilitySpace`] when there is no room.
    pub fn add_msix(&mut self, table: Arc<MsixTable>) -> Result<u8, PciError> {
        let layout = table.layout();
        for bar in [layout.table_bar, layout.pba_bar] {
            let size = self.bars.get(bar).copied().flatten().map_or(0, |bar| bar.size);
            if table.end_in_bar(bar) > size {
                return Err(PciError::Msix { why: "table or pending bits lie outside their BAR" });
            }
        }
        let dword = |offset: u32, bar: usize| offset | u32::try_from(bar).unwrap_or(0);
        let mut body = Vec::with_capacity(10);
        body.extend((table.vector_count() - 1).to_le_bytes());
        body.extend(dword(layout.table_offset, layout.table_bar).to_le_bytes());
        body.extend(dword(layout.pba_offset, layout.pba_bar).to_le_bytes());
        let control = CONTROL_ENABLE | CONTROL_FUNCTION_MASK;
        let offset = self.add_capability(CAPABILITY_MSIX, &body, &control.to_le_bytes())?;
        self.msix = Some((usize::from(offset) + 2, table));
        Ok(offset)
    }

    /// Gives the function the interrupt pin INTA#, reported on input `gsi` of the interrupt
    /// controller. The interrupt disable and status bits act on `intx` from now on by themselves.
    pub fn set_intx(&mut self, intx: Arc<Intx>, gsi: u8) {
        self.define(INTERRUPT_LINE, &[gsi], &[0xff]);
        self.define(INTERRUPT_PIN, &[1], &[]);
        self.intx = Some(intx);
    }

    /// The guest, or the device itself, reads at `offset`. Beyond the end all ones are read.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data.iter_mut()) {
            *byte = self.registers.get(at).copied().unwrap_or(0xff);
            if at == STATUS && self.intx.as_ref().is_some_and(|intx| intx.is_asserted()) {
                *byte |= STATUS_INTERRUPT;
            }
        }
    }

    /// The guest writes at `offset`. Read-only bits keep their value; what is beyond the end is
    /// ignored.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> ConfigChange {
        let start = usize::from(offset);
        for (at, byte) in (start..CONFIG_LEN).zip(data) {
            let mask = self.writable[at];
            self.registers[at] = (self.registers[at] & !mask) | (byte & mask);
        }
        let end = start.saturating_add(data.len());
        let touched = |from: usize, to: usize| start.max(from) < end.min(to);
        if touched(COMMAND, COMMAND + 2) {
            self.apply_command();
        }
        if self.msix.as_ref().is_some_and(|(control, _)| touched(*control, control + 2)) {
            self.apply_msix_control();
        }
        ConfigChange { bars: touched(COMMAND, COMMAND + 2) || touched(FIRST_BAR, BARS_END) }
    }

    /// Whether the guest lets the function reach memory (command register, bit 2).
    pub fn is_bus_master(&self) -> bool {
        self.word(COMMAND) & COMMAND_BUS_MASTER != 0
    }

    /// The size of BAR `index` in bytes or ports, and its kind.
    pub fn bar(&self, index: usize) -> Option<(BarKind, u64)> {
        let bar = self.bars.get(index).copied().flatten()?;
        Some((bar.kind, bar.size))
    }

    /// Where BAR `index` decodes now: nowhere while the command register keeps its space off, while
    /// no address is set, or when the address leaves no room for its size.
    pub fn bar_base(&self, index: usize) -> Option<u64> {
        let bar = self.bars.get(index).copied().flatten()?;
        let enable = if bar.kind.is_io() { COMMAND_IO } else { COMMAND_MEMORY };
        if self.word(COMMAND) & enable == 0 {
            return None;
        }
        let base = self.bar_register(index, bar) & bar.writable();
        // The last address of the space is not decoded either: a guest that sizes a BAR without
        // turning decoding off must not thereby map it there.
        let limit = if bar.kind.is_64_bit() { u64::MAX } else { u64::from(u32::MAX) };
        (base != 0 && base.checked_add(bar.size).is_some_and(|end| end <= limit)).then_some(base)
    }

    /// Places BAR `index` as firmware does, and turns the decoding of its space on.
    pub(super) fn place_bar(&mut self, index: usize, base: u64) {
        let Some(bar) = self.bars.get(index).copied().flatten() else {
            return;
        };
        let value = ((base & bar.writable()) | bar.kind.type_bits()).to_le_bytes();
        let len = if bar.kind.is_64_bit() { 8 } else { 4 };
        let at = FIRST_BAR + 4 * index;
        self.registers[at..at + len].copy_from_slice(&value[..len]);
        let enable = if bar.kind.is_io() { COMMAND_IO } else { COMMAND_MEMORY };
        let command = self.word(COMMAND) | enable;
        self.registers[COMMAND..COMMAND + 2].copy_from_slice(&command.to_le_bytes());
    }

    /// All registers as after power-on; BARs are not placed, INTx is released, MSI-X is off and its
    /// table empty.
    pub fn reset(&mut self) {
        self.registers = self.power_on;
        if let Some((_, table)) = &self.msix {
            table.reset();
        }
        if let Some(intx) = &self.intx {
            intx.set(false);
        }
        self.apply_command();
        self.apply_msix_control();
    }

    /// For the device's saved state.
    pub fn save(&self) -> ConfigState {
        ConfigState {
            registers: Bytes(self.registers.to_vec()),
            intx_asserted: self.intx.as_ref().is_some_and(|intx| intx.is_asserted()),
        }
    }

    /// Takes over saved registers, and drives INTx and MSI-X accordingly. The MSI-X table is
    /// restored before this, and the BARs move when [`PciBus::sync_bars`](super::PciBus::sync_bars)
    /// is called afterwards.
    ///
    /// # Errors
    /// When a register that the guest cannot write differs from this device's: the state is another
    /// device's. Nothing has changed then.
    pub fn restore(&mut self, state: &ConfigState) -> StateResult<()> {
        let Ok(saved) = <[u8; CONFIG_LEN]>::try_from(state.registers.0.as_slice()) else {
            return Err(StateError::state(format!(
                "saved PCI configuration space has {} bytes, not {CONFIG_LEN}",
                state.registers.0.len()
            )));
        };
        for (at, byte) in saved.iter().enumerate() {
            if (byte ^ self.power_on[at]) & !self.writable[at] != 0 {
                return Err(StateError::state(format!(
                    "saved PCI configuration space has {byte:#04x} at {at:#04x}, \
                     this device {:#04x}",
                    self.power_on[at]
                )));
            }
        }
        if state.intx_asserted && self.intx.is_none() {
            return Err(StateError::state("saved PCI function asserts an interrupt pin it lacks"));
        }
        self.registers = saved;
        self.apply_command();
        if let Some(intx) = &self.intx {
            intx.set(state.intx_asserted);
        }
        self.apply_msix_control();
        Ok(())
    }

    fn apply_command(&self) {
        if let Some(intx) = &self.intx {
            intx.set_disabled(self.word(COMMAND) & COMMAND_INTX_DISABLE != 0);
        }
    }

    fn apply_msix_control(&self) {
        if let Some((at, table)) = &self.msix {
            table.set_control(self.word(*at));
        }
    }

    /// Sets what a register reads after power-on and which bits of it are writable.
    fn define(&mut self, at: usize, value: &[u8], writable: &[u8]) {
        self.registers[at..at + value.len()].copy_from_slice(value);
        self.power_on[at..at + value.len()].copy_from_slice(value);
        self.writable[at..at + writable.len()].copy_from_slice(writable);
    }

    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.registers[at], self.registers[at + 1]])
    }

    fn bar_register(&self, index: usize, bar: Bar) -> u64 {
        let len = if bar.kind.is_64_bit() { 8 } else { 4 };
        let at = FIRST_BAR + 4 * index;
        let mut value = [0; 8];
        value[..len].copy_from_slice(&self.registers[at..at + len]);
        u64::from_le_bytes(value)
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
