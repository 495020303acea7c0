//! Address decoding for port I/O and memory-mapped I/O.
//!
//! A vCPU exit looks its address up in a sorted list under a read lock, takes a counted handle of
//! the device, lets the lock go and only then locks the device. So a device may itself change the
//! map while it handles an access (a PCI configuration write moves a BAR), and exits of different
//! vCPUs to different devices share nothing but the short read lock.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// A device that answers on a bus.
///
/// `offset` counts from the start of the range the device was inserted at, and `offset +
/// data.len()` never exceeds that range. The guest chooses offset and length otherwise: no
/// combination may panic.
pub trait BusDevice: Send {
    /// The guest reads `data.len()` bytes at `offset`; every byte must be filled.
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// The guest writes `data` at `offset`.
    fn write(&mut self, offset: u64, data: &[u8]);
}

/// A device as buses hold it.
pub type SharedDevice = Arc<Mutex<dyn BusDevice>>;

/// `len` addresses from `base`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusRange {
    /// First address.
    pub base: u64,
    /// How many addresses; not zero.
    pub len: u64,
}

impl BusRange {
    /// `len` addresses from `base`.
    pub const fn new(base: u64, len: u64) -> Self {
        Self { base, len }
    }

    /// The last address, or `None` when the range is empty or runs past the end of the address
    /// space.
    pub fn last(&self) -> Option<u64> {
        self.base.checked_add(self.len.checked_sub(1)?)
    }

    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        match (self.last(), other.last()) {
            (Some(last), Some(other_last)) => self.base <= other_last && other.base <= last,
            _ => false,
        }
    }
}

impl fmt::Display for BusRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x}", self.base, self.len)
    }
}

/// Why a range could not be inserted.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BusError {
    /// The range is empty or runs past the end of the address space.
    #[error("{bus}: the range {range} is empty or runs past the end of the address space")]
    BadRange {
        /// Name of the bus.
        bus: &'static str,
        /// The range asked for.
        range: BusRange,
    },
    /// Another device already answers there.
    #[error("{bus}: the range {range} overlaps the device at {other}")]
    Overlap {
        /// Name of the bus.
        bus: &'static str,
        /// The range asked for.
        range: BusRange,
        /// The range of the device in the way.
        other: BusRange,
    },
}

struct Entry {
    range: BusRange,
    device: SharedDevice,
}

/// The port or the memory-mapped address space of the machine.
pub struct Bus {
    name: &'static str,
    /// Sorted by base, without overlaps.
    entries: RwLock<Vec<Entry>>,
}

impl Bus {
    /// An empty bus; `name` appears in messages.
    pub const fn new(name: &'static str) -> Self {
        Self { name, entries: RwLock::new(Vec::new()) }
    }

    /// Lets `device` answer for `range`.
    ///
    /// # Errors
    /// [`BusError`] when the range is no range or is taken; nothing has changed then.
    pub fn insert(&self, range: BusRange, device: SharedDevice) -> Result<(), BusError> {
        if range.last().is_none() {
            return Err(BusError::BadRange { bus: self.name, range });
        }
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = entries.iter().find(|entry| entry.range.overlaps(&range)) {
            return Err(BusError::Overlap { bus: self.name, range, other: other.range });
        }
        let at = entries.partition_point(|entry| entry.range.base < range.base);
        entries.insert(at, Entry { range, device });
        Ok(())
    }

    /// Removes the device whose range is exactly `range`. An access that another vCPU has already
    /// begun still ends in the device.
    pub fn remove(&self, range: BusRange) -> Option<SharedDevice> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let at = entries.iter().position(|entry| entry.range == range)?;
        Some(entries.remove(at).device)
    }

    /// Reads at `addr`. Where no device answers for the whole access, fills `data` with ones as an
    /// empty bus does and returns `false`.
    pub fn read(&self, addr: u64, data: &mut [u8]) -> bool {
        let Some((offset, device)) = self.find(addr, data.len()) else {
            data.fill(0xff);
            return false;
        };
        device.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
        true
    }

    /// Writes at `addr`. Returns `false`, and does nothing, where no device answers for the whole
    /// access.
    pub fn write(&self, addr: u64, data: &[u8]) -> bool {
        let Some((offset, device)) = self.find(addr, data.len()) else {
            return false;
        };
        device.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        true
    }

    fn find(&self, addr: u64, len: usize) -> Option<(u64, SharedDevice)> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let after = entries.partition_point(|entry| entry.range.base <= addr);
        let entry = entries.get(after.checked_sub(1)?)?;
        let offset = addr - entry.range.base;
        let end = offset.checked_add(u64::try_from(len).ok()?)?;
        (end <= entry.range.len).then(|| (offset, Arc::clone(&entry.device)))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        f.debug_struct("Bus")
            .field("name", &self.name)
            .field(
                "ranges",
                &entries.iter().map(|entry| entry.range.to_string()).collect::<Vec<_>>(),
            )
            .finish()
    }
}

#[cfg(test)]
#[path = "bus_tests.rs"]
mod tests;
