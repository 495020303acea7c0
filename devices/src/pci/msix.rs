//! MSI-X: the vector table, the pending bit array and their masks (PCI 3.0, section 6.8.2).
//!
//! Queue threads fire vectors while vCPUs program them. Each vector has its own lock, held while it
//! fires: a message is either sent with the entry as it was, or its pending bit is set and the
//! message goes out when the vector is unmasked. No interrupt is lost between the two.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ferry_migration::{Error as StateError, Result as StateResult};

use super::PciError;
use super::state::{MsixState, MsixVectorState};
use crate::irq::{MsiMessage, MsiSink};

/// Bytes of one table entry.
pub const MSIX_ENTRY_LEN: u64 = 16;
/// A function has at most this many vectors (section 6.8.2.3: 11 bits, encoded as N - 1).
pub const MAX_VECTORS: u16 = 2048;

/// Message control, bit 15: MSI-X enable.
pub(super) const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control, bit 14: function mask.
pub(super) const CONTROL_FUNCTION_MASK: u16 = 1 << 14;

/// Where table and pending bit array lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixLayout {
    /// BAR of the vector table.
    pub table_bar: usize,
    /// Offset of the table in its BAR; a multiple of 8.
    pub table_offset: u32,
    /// BAR of the pending bit array.
    pub pba_bar: usize,
    /// Offset of the pending bit array in its BAR; a multiple of 8.
    pub pba_offset: u32,
}

#[derive(Clone, Copy)]
struct Vector {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
    /// MSI-X enable of the function; a copy, so that firing takes one lock.
    enabled: bool,
    /// Function mask; a copy likewise.
    function_masked: bool,
    /// What the sink was told last.
    routed: Option<MsiMessage>,
}

impl Vector {
    /// As after reset: masked and not pending (section 6.8.2.9).
    const RESET: Self = Self {
        address: 0,
        data: 0,
        masked: true,
        pending: false,
        enabled: false,
        function_masked: false,
        routed: None,
    };

    fn deliverable(&self) -> bool {
        self.enabled && !self.masked && !self.function_masked
    }
}

/// The MSI-X vectors of one function.
pub struct MsixTable {
    vectors: Box<[Mutex<Vector>]>,
    layout: MsixLayout,
    sink: Arc<dyn MsiSink>,
}

impl MsixTable {
    /// A table of `vectors` masked vectors.
    ///
    /// # Errors [`PciError::Msix`] when the number is 0 or above [`MAX_VECTORS`], or table and
    /// pending bit array are misaligned or overlap.
    pub fn new(
        vectors: u16,
        layout: MsixLayout,
        sink: Arc<dyn MsiSink>,
    ) -> Result<Arc<Self>, PciError> {
        let bad = |why| Err(PciError::Msix { why });
        if vectors == 0 || vectors > MAX_VECTORS {
            return bad("there must be 1 to 2048 vectors");
        }
        if !layout.table_offset.is_multiple_of(8) || !layout.pba_offset.is_multiple_of(8) {
            return bad("table and pending bit array must start at a multiple of 8");
        }
        let vectors = (0..vectors).map(|_| Mutex::new(Vector::RESET)).collect();
        let table = Self { vectors, layout, sink };
        let (table_start, table_end) = table.table_range();
        let (pba_start, pba_end) = table.pba_range();
        if layout.table_bar == layout.pba_bar && table_start < pba_end && pba_start < table_end {
            return bad("table and pending bit array overlap");
        }
        Ok(Arc::new(table))
    }

    /// How many vectors there are.
    pub fn vector_count(&self) -> u16 {
        // `new` allows no more than 2048.
        u16::try_from(self.vectors.len()).unwrap_or(MAX_VECTORS)
    }

    /// Where table and pending bit array lie.
    pub fn layout(&self) -> MsixLayout {
        self.layout
    }

    /// Whether the guest has enabled MSI-X; while it has not, the device uses its INTx pin.
    pub fn is_enabled(&self) -> bool {
        self.vectors.first().is_some_and(|vector| lock(vector).enabled)
    }

    /// Sends the message of `vector`, or sets its pending bit when it is masked. Returns `false`
    /// when MSI-X is disabled, and the caller then uses INTx. A vector that does not exist (the
    /// guest may have named any) is never sent. Callable from any thread.
    pub fn fire(&self, vector: u16) -> bool {
        let Some(entry) = self.vectors.get(usize::from(vector)) else {
            return self.is_enabled();
        };
        let mut entry = lock(entry);
        if !entry.enabled {
            return false;
        }
        if entry.deliverable() {
            // Under the lock: once the guest's write of the mask bit is done, nothing more may be
            // sent.
            self.sink.fire(vector);
        } else {
            entry.pending = true;
        }
        true
    }

    /// Answers a guest read of a BAR when it falls into the table or the pending bit array; `false`
    /// when it does not, and `data` is then untouched. Bytes beyond them read as zero.
    pub fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) -> bool {
        let Some((in_table, base)) = self.decode(bar, offset) else {
            return false;
        };
        for (at, byte) in (base..).zip(data.iter_mut()) {
            *byte = if in_table { self.table_byte(at) } else { self.pba_byte(at) };
        }
        true
    }

    /// Takes a guest write of a BAR when it falls into the table or the pending bit array (which is
    /// read-only); `false` when it does not.
    ///
    /// Software must write whole aligned dwords or qwords (section 6.8.2); other writes are merged
    /// byte by byte, which harms nobody but the guest.
    pub fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) -> bool {
        let Some((in_table, base)) = self.decode(bar, offset) else {
            return false;
        };
        if in_table {
            self.table_write(base, data);
        }
        true
    }

    fn table_range(&self) -> (u64, u64) {
        let start = u64::from(self.layout.table_offset);
        (start, start + u64::from(self.vector_count()) * MSIX_ENTRY_LEN)
    }

    fn pba_range(&self) -> (u64, u64) {
        let start = u64::from(self.layout.pba_offset);
        // One bit a vector, in whole qwords.
        (start, start + u64::from(self.vector_count().div_ceil(64)) * 8)
    }

    /// The largest end, in bytes from the start of BAR `bar`, of what lies in it.
    pub(super) fn end_in_bar(&self, bar: usize) -> u64 {
        let table = if bar == self.layout.table_bar { self.table_range().1 } else { 0 };
        let pba = if bar == self.layout.pba_bar { self.pba_range().1 } else { 0 };
        table.max(pba)
    }

    /// Whether the address is in the table (and not in the array), and the offset therein.
    fn decode(&self, bar: usize, offset: u64) -> Option<(bool, u64)> {
        let (start, end) = self.table_range();
        if bar == self.layout.table_bar && (start..end).contains(&offset) {
            return Some((true, offset - start));
        }
        let (start, end) = self.pba_range();
        if bar == self.layout.pba_bar && (start..end).contains(&offset) {
            return Some((false, offset - start));
        }
        None
    }

    fn vector_at(&self, at: u64) -> Option<(u16, &Mutex<Vector>)> {
        let index = u16::try_from(at / MSIX_ENTRY_LEN).ok()?;
        Some((index, self.vectors.get(usize::from(index))?))
    }

    fn table_byte(&self, at: u64) -> u8 {
        let Some((_, vector)) = self.vector_at(at) else {
            return 0;
        };
        entry_bytes(&lock(vector))[byte_index(at % MSIX_ENTRY_LEN)]
    }

    fn pba_byte(&self, at: u64) -> u8 {
        (0..8u8).fold(0, |byte, bit| {
            let vector = at.checked_mul(8).and_then(|first| first.checked_add(u64::from(bit)));
            let pending = vector
                .and_then(|index| self.vectors.get(usize::try_from(index).ok()?))
                .is_some_and(|vector| lock(vector).pending);
            byte | (u8::from(pending) << bit)
        })
    }

    fn table_write(&self, base: u64, data: &[u8]) {
        let mut rest = data;
        let mut at = base;
        while let Some((index, vector)) = self.vector_at(at) {
            let start = byte_index(at % MSIX_ENTRY_LEN);
            let len = rest.len().min(byte_index(MSIX_ENTRY_LEN) - start);
            if len == 0 {
                return;
            }
            let (now, later) = rest.split_at(len);
            let mut entry = lock(vector);
            let mut bytes = entry_bytes(&entry);
            bytes[start..start + len].copy_from_slice(now);
            set_entry_bytes(&mut entry, bytes);
            self.settle(index, &mut entry);
            rest = later;
            at += u64::try_from(len).unwrap_or(MSIX_ENTRY_LEN);
        }
    }

    /// The guest wrote message control (section 6.8.2.3).
    pub(super) fn set_control(&self, control: u16) {
        for (index, vector) in (0..).zip(&self.vectors) {
            let mut entry = lock(vector);
            entry.enabled = control & CONTROL_ENABLE != 0;
            entry.function_masked = control & CONTROL_FUNCTION_MASK != 0;
            self.settle(index, &mut entry);
        }
    }

    /// Brings route and pending message in line with the entry, after any change of it.
    fn settle(&self, index: u16, entry: &mut Vector) {
        if !entry.deliverable() {
            return;
        }
        // Routes stay while a vector is masked: masking and unmasking is frequent, routing is slow.
        let message = MsiMessage { address: entry.address, data: entry.data };
        if entry.routed != Some(message) {
            self.sink.route(index, Some(message));
            entry.routed = Some(message);
        }
        if std::mem::take(&mut entry.pending) {
            self.sink.fire(index);
        }
    }

    /// All vectors as after power-on, and no routes.
    pub fn reset(&self) {
        for (index, vector) in (0..).zip(&self.vectors) {
            let mut entry = lock(vector);
            if entry.routed.is_some() {
                self.sink.route(index, None);
            }
            *entry = Vector::RESET;
        }
    }

    /// The table and the pending bits, for the device's own saved state.
    pub fn save(&self) -> MsixState {
        let vectors = self.vectors.iter().map(|vector| {
            let Vector { address, data, masked, pending, .. } = *lock(vector);
            MsixVectorState { address, data, masked, pending }
        });
        MsixState { vectors: vectors.collect() }
    }

    /// Takes over a saved table. Routes are made, and pending messages sent, when
    /// [`ConfigSpace::restore`](super::ConfigSpace::restore) then says that MSI-X is enabled; so
    /// call that one second.
    ///
    /// # Errors
    /// When the number of vectors differs; nothing has changed then.
    pub fn restore(&self, state: &MsixState) -> StateResult<()> {
        if state.vectors.len() != self.vectors.len() {
            return Err(StateError::state(format!(
                "the saved MSI-X table has {} vectors and this device {}",
                state.vectors.len(),
                self.vectors.len()
            )));
        }
        self.reset();
        for (saved, vector) in state.vectors.iter().zip(&self.vectors) {
            let mut entry = lock(vector);
            entry.address = saved.address & !3;
            entry.data = saved.data;
            entry.masked = saved.masked;
            entry.pending = saved.pending;
        }
        Ok(())
    }
}

fn lock(vector: &Mutex<Vector>) -> MutexGuard<'_, Vector> {
    vector.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An offset within one entry as an index; the callers reduce it modulo the entry's length.
fn byte_index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(0)
}

/// Message address, upper address, data and vector control, little endian (section 6.8.2.6 and
/// after).
fn entry_bytes(entry: &Vector) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..8].copy_from_slice(&entry.address.to_le_bytes());
    bytes[8..12].copy_from_slice(&entry.data.to_le_bytes());
    bytes[12] = u8::from(entry.masked);
    bytes
}

fn set_entry_bytes(entry: &mut Vector, bytes: [u8; 16]) {
    let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, control, ..] = bytes;
    // The low two bits of the address are zero (section 6.8.2.7).
    entry.address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]) & !3;
    entry.data = u32::from_le_bytes([d0, d1, d2, d3]);
    // Only the mask bit of vector control exists.
    entry.masked = control & 1 != 0;
}

#[cfg(test)]
#[path = "msix_tests.rs"]
mod tests;
