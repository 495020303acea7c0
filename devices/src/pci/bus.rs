//! The one PCI bus: slots, configuration accesses, and BARs mapped where the guest wants them.
//!
//! Lock order: `mapped`, then `slots`, then a device, then the address map of a [`Bus`]. A device's
//! lock is never held while `mapped` or `slots` is taken.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::config::CONFIG_LEN;
use super::{BAR_COUNT, BarKind, PciDevice, PciError};
use crate::bus::{Bus, BusDevice, BusRange};

/// Slots of a bus.
pub const SLOT_COUNT: u8 = 32;
/// 64-bit BARs up to this size are placed below 4 GiB when there is room: guests that map only the
/// low addresses then reach them.
const LOW_PLACEMENT_LIMIT: u64 = 16 << 20;

type SharedPciDevice = Arc<Mutex<dyn PciDevice>>;

/// The address windows of the host bridge, which the ACPI tables report to the guest.
#[derive(Clone, Debug)]
pub struct PciWindows {
    /// Memory below 4 GiB.
    pub mmio32: Range<u64>,
    /// Memory above the guest's RAM.
    pub mmio64: Range<u64>,
    /// I/O ports.
    pub io: Range<u64>,
}

struct Slot {
    device: SharedPciDevice,
    /// Where its BARs are after power-on.
    placement: [Option<u64>; BAR_COUNT],
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Mapping {
    slot: u8,
    bar: usize,
    io: bool,
    range: BusRange,
}

/// Bus 0 and the functions in its slots.
pub struct PciBus {
    mmio: Arc<Bus>,
    pio: Arc<Bus>,
    windows: PciWindows,
    slots: RwLock<[Option<Slot>; SLOT_COUNT as usize]>,
    /// What is on the address maps now.
    mapped: Mutex<Vec<Mapping>>,
}

impl PciBus {
    /// An empty bus that maps BARs on `mmio` and `pio`.
    pub fn new(mmio: Arc<Bus>, pio: Arc<Bus>, windows: PciWindows) -> Arc<Self> {
        let slots = RwLock::new([const { None }; SLOT_COUNT as usize]);
        Arc::new(Self { mmio, pio, windows, slots, mapped: Mutex::default() })
    }

    /// The address windows.
    pub fn windows(&self) -> &PciWindows {
        &self.windows
    }

    /// Puts `device` into `slot` and its BARs where there is room, decoded as firmware leaves them.
    /// The same devices added in the same order get the same addresses.
    ///
    /// # Errors
    /// [`PciError::Slot`] when the slot is taken, [`PciError::WindowFull`] when a BAR has no room.
    pub fn add(&self, slot: u8, device: SharedPciDevice) -> Result<(), PciError> {
        {
            let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
            if slots.get(usize::from(slot)).is_none_or(Option::is_some) {
                return Err(PciError::Slot { slot });
            }
            let placement = {
                let mut device = lock(&device);
                let placement = self.place(&slots[..], &*device)?;
                for (bar, base) in placed(&placement) {
                    device.config_mut().place_bar(bar, base);
                }
                placement
            };
            slots[usize::from(slot)] = Some(Slot { device, placement });
        }
        self.sync_bars();
        Ok(())
    }

    /// Takes the device out of `slot` and its BARs off the address maps.
    pub fn remove(&self, slot: u8) -> Option<SharedPciDevice> {
        let taken = {
            let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
            slots.get_mut(usize::from(slot))?.take()?
        };
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        mapped.retain(|mapping| {
            if mapping.slot == slot {
                self.unmap(mapping, Some(&taken.device));
            }
            mapping.slot != slot
        });
        Some(taken.device)
    }

    /// The guest reads configuration space; all ones where there is nothing.
    pub fn config_read(&self, address: FunctionAddress, offset: u16, data: &mut [u8]) {
        match self.function(address) {
            Some(device) if in_config(offset, data.len()) => {
                lock(&device).config_read(offset, data)
            }
            _ => data.fill(0xff),
        }
    }

    /// The guest writes configuration space; nothing happens where there is nothing.
    pub fn config_write(&self, address: FunctionAddress, offset: u16, data: &[u8]) {
        let Some(device) = self.function(address).filter(|_| in_config(offset, data.len())) else {
            return;
        };
        let change = lock(&device).config_write(offset, data);
        if change.bars {
            self.sync_bars();
        }
    }

    /// Maps every BAR where its register says, and tells devices whose BARs moved. To be called
    /// after the restore of all devices; the bus calls it itself after guest writes.
    ///
    /// A BAR that overlaps something else stays unmapped until the other has gone.
    pub fn sync_bars(&self) {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let wanted = wanted(&slots[..]);
        let device = |slot: u8| Some(&slots.get(usize::from(slot))?.as_ref()?.device);
        // First everything that goes, so that two BARs can change places.
        mapped.retain(|mapping| {
            let stays = wanted.contains(mapping);
            if !stays {
                self.unmap(mapping, device(mapping.slot));
            }
            stays
        });
        for mapping in wanted {
            let Some(device) = device(mapping.slot).filter(|_| !mapped.contains(&mapping)) else {
                continue;
            };
            let window = BarWindow { device: Arc::clone(device), bar: mapping.bar };
            match self.space(&mapping).insert(mapping.range, Arc::new(Mutex::new(window))) {
                Ok(()) => {
                    lock(device).bar_moved(mapping.bar, Some(mapping.range.base));
                    mapped.push(mapping);
                }
                // The guest can cause this as often as it likes: no louder than debug.
                Err(why) => tracing::debug!(slot = mapping.slot, "BAR stays unmapped: {why}"),
            }
        }
    }

    /// Resets every function and places the BARs again as at power-on.
    pub fn reset(&self) {
        {
            let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
            for slot in slots.iter().flatten() {
                let mut device = lock(&slot.device);
                device.reset();
                device.config_mut().reset();
                for (bar, base) in placed(&slot.placement) {
                    device.config_mut().place_bar(bar, base);
                }
            }
        }
        self.sync_bars();
    }

    fn function(&self, address: FunctionAddress) -> Option<SharedPciDevice> {
        if address.bus != 0 || address.function != 0 {
            return None;
        }
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&slots.get(usize::from(address.slot))?.as_ref()?.device))
    }

    fn space(&self, mapping: &Mapping) -> &Bus {
        if mapping.io { &self.pio } else { &self.mmio }
    }

    fn unmap(&self, mapping: &Mapping, device: Option<&SharedPciDevice>) {
        // The device lets its doorbells go first: none may be bound where something else is mapped
        // next.
        if let Some(device) = device {
            lock(device).bar_moved(mapping.bar, None);
        }
        if self.space(mapping).remove(mapping.range).is_none() {
            tracing::error!(slot = mapping.slot, "BAR at {} was not on its bus", mapping.range);
        }
    }

    /// Finds room for all BARs of a new device.
    fn place(
        &self,
        slots: &[Option<Slot>],
        device: &dyn PciDevice,
    ) -> Result<[Option<u64>; BAR_COUNT], PciError> {
        let mut taken = taken(slots);
        let mut placement = [None; BAR_COUNT];
        for (bar, base) in placement.iter_mut().enumerate() {
            let Some((kind, size)) = device.config().bar(bar) else {
                continue;
            };
            let windows: &[&Range<u64>] = match kind {
                BarKind::Io => &[&self.windows.io],
                BarKind::Memory32 { .. } => &[&self.windows.mmio32],
                BarKind::Memory64 { .. } if size <= LOW_PLACEMENT_LIMIT => {
                    &[&self.windows.mmio32, &self.windows.mmio64]
                }
                BarKind::Memory64 { .. } => &[&self.windows.mmio64],
            };
            let found = windows
                .iter()
                .find_map(|window| first_fit(window, size, kind.is_io(), &taken))
                .ok_or(PciError::WindowFull { size, kind })?;
            taken.push((kind.is_io(), BusRange::new(found, size)));
            *base = Some(found);
        }
        Ok(placement)
    }
}

/// Which function a configuration access names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionAddress {
    /// Bus number.
    pub bus: u8,
    /// Slot ("device") number, below 32.
    pub slot: u8,
    /// Function number, below 8.
    pub function: u8,
}

/// One BAR of a device as a bus sees it.
struct BarWindow {
    device: SharedPciDevice,
    bar: usize,
}

impl BusDevice for BarWindow {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        lock(&self.device).bar_read(self.bar, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        lock(&self.device).bar_write(self.bar, offset, data);
    }
}

fn lock(device: &SharedPciDevice) -> MutexGuard<'_, dyn PciDevice + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether an access stays within the configuration space.
fn in_config(offset: u16, len: usize) -> bool {
    usize::from(offset).checked_add(len).is_some_and(|end| end <= CONFIG_LEN)
}

fn placed(placement: &[Option<u64>; BAR_COUNT]) -> impl Iterator<Item = (usize, u64)> + '_ {
    placement.iter().enumerate().filter_map(|(bar, base)| Some((bar, (*base)?)))
}

/// Where the BARs of all functions decode by their registers.
fn wanted(slots: &[Option<Slot>]) -> Vec<Mapping> {
    let mut wanted = Vec::new();
    for (number, slot) in (0..).zip(slots) {
        let Some(slot) = slot else {
            continue;
        };
        let device = lock(&slot.device);
        for bar in 0..BAR_COUNT {
            let Some((kind, size)) = device.config().bar(bar) else {
                continue;
            };
            if let Some(base) = device.config().bar_base(bar) {
                let range = BusRange::new(base, size);
                wanted.push(Mapping { slot: number, bar, io: kind.is_io(), range });
            }
        }
    }
    wanted
}

/// The power-on placements of all functions.
fn taken(slots: &[Option<Slot>]) -> Vec<(bool, BusRange)> {
    let mut taken = Vec::new();
    for slot in slots.iter().flatten() {
        let device = lock(&slot.device);
        for (bar, base) in placed(&slot.placement) {
            if let Some((kind, size)) = device.config().bar(bar) {
                taken.push((kind.is_io(), BusRange::new(base, size)));
            }
        }
    }
    taken
}

/// The lowest aligned address in `window` that overlaps nothing in `taken`.
fn first_fit(window: &Range<u64>, size: u64, io: bool, taken: &[(bool, BusRange)]) -> Option<u64> {
    let mut base = window.start.checked_next_multiple_of(size)?;
    loop {
        let range = BusRange::new(base, size);
        if base.checked_add(size)? > window.end {
            return None;
        }
        let hit = taken.iter().find(|(other_io, other)| *other_io == io && other.overlaps(&range));
        match hit {
            None => return Some(base),
            Some((_, other)) => {
                base = other.last()?.checked_add(1)?.checked_next_multiple_of(size)?
            }
        }
    }
}

#[cfg(test)]
#[path = "bus_tests.rs"]
mod tests;
