//! Guest memory as the block layer's buffers, and the small reads and writes around them.
//!
//! UNSAFETY: an [`IoBuf`] holds raw pointers. They come from slices that vm-memory bounds-checked, and the
//! buffer's owner holds a clone of the guest memory, which counts its mappings: they stay mapped until the
//! last buffer over them is gone, also when a request outlives its device.
#![expect(
    unsafe_code,
    reason = "makes IoBufs over guest memory; the pointers are checked and counted"
)]

use std::ptr::NonNull;
use std::rc::Rc;

use ferry_block::{BufOwner, IoBuf};
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, VolatileSlice,
};

use super::queue::{Chain, QueueError, Segment};
use crate::GuestMemory;

/// Guest memory, as the owner of buffers over it.
#[derive(Clone)]
pub(super) struct GuestBuffers(Rc<Owner>);

struct Owner {
    memory: GuestMemory,
    /// Host address, length and guest address of each mapping: to find a guest page from a host pointer.
    regions: Vec<(usize, usize, GuestAddress)>,
}

impl GuestBuffers {
    /// Buffers over `memory`.
    pub(super) fn new(memory: GuestMemory) -> Self {
        let host_range = |region: &vm_memory::GuestRegionMmap<_>| {
            let host = region.get_host_address(MemoryRegionAddress(0)).ok()?;
            Some((host.addr(), region.size(), region.start_addr()))
        };
        let regions = memory.iter().filter_map(host_range).collect();
        Self(Rc::new(Owner { memory, regions }))
    }

    /// The memory itself.
    pub(super) fn memory(&self) -> &GuestMemory {
        &self.0.memory
    }

    /// A buffer over what `segments` cover after their first `skip` bytes, `len` bytes in all.
    ///
    /// # Errors
    /// [`QueueError::BufferOutOfMemory`] when any of it is not guest memory.
    pub(super) fn io_buf(
        &self,
        head: u16,
        segments: &[Segment],
        skip: u64,
        len: u64,
    ) -> Result<IoBuf, QueueError> {
        let outside = QueueError::BufferOutOfMemory(head);
        let owner = Rc::clone(&self.0) as Rc<dyn BufOwner>;
        let mut pieces = Window { segments, skip, left: len };
        let first = pieces.next().unwrap_or(Segment { addr: GuestAddress(0), len: 0 });
        if pieces.left == 0
            && let Ok(slice) = self.0.memory.get_slice(first.addr, len_of(first))
        {
            // By far the commonest: one buffer in one mapping. No list is made for it.
            return Ok(io_buf_over(pointer(&slice), owner));
        }
        let mut pointers = Vec::with_capacity(segments.len());
        let pieces = Window { segments, skip, left: len };
        for piece in pieces {
            // A piece may run on from one mapping into an adjacent one.
            for slice in self.0.memory.get_slices(piece.addr, len_of(piece)) {
                let slice = slice.map_err(|_outside| outside)?;
                pointers.extend(pointer(&slice));
            }
        }
        Ok(io_buf_over(pointers, owner))
    }

    /// Copies the first bytes of the chain's readable part out.
    ///
    /// # Errors
    /// [`QueueError`] when there are too few of them, or they are not guest memory.
    pub(super) fn read_head(&self, chain: &Chain, to: &mut [u8]) -> Result<(), QueueError> {
        let memory = &self.0.memory;
        let outside = |_outside| QueueError::BufferOutOfMemory(chain.head());
        let mut filled = 0;
        for segment in chain.readable() {
            let rest = to.get_mut(filled..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            let count = rest.len().min(len_of(*segment));
            let (now, _later) = rest.split_at_mut(count);
            if let Ok(slice) = memory.get_slice(segment.addr, count) {
                slice.copy_to(now);
            } else {
                memory.read_slice(now, segment.addr).map_err(outside)?;
            }
            filled += count;
        }
        if filled < to.len() { Err(QueueError::Truncated(chain.head())) } else { Ok(()) }
    }

    /// The address of the last writable byte of a chain, where many devices put their status.
    ///
    /// # Errors
    /// [`QueueError`] when there is none, or it is not guest memory.
    pub(super) fn last_writable(&self, chain: &Chain) -> Result<GuestAddress, QueueError> {
        let outside = QueueError::BufferOutOfMemory(chain.head());
        let last = chain.writable().last().ok_or(QueueError::Truncated(chain.head()))?;
        let addr = last.addr.0.checked_add(u64::from(last.len) - 1).ok_or(outside)?;
        let addr = GuestAddress(addr);
        if self.0.memory.address_in_range(addr) { Ok(addr) } else { Err(outside) }
    }

    /// Writes one byte at an address that [`GuestBuffers::last_writable`] gave.
    pub(super) fn write_byte(&self, addr: GuestAddress, value: u8) {
        match self.0.memory.get_slice(addr, 1) {
            Ok(slice) => slice.copy_from(&[value]),
            // It was checked when the request was read, and guest memory is never unmapped.
            Err(error) => tracing::error!("guest memory at {:#x} vanished: {error}", addr.0),
        }
    }
}

impl BufOwner for Owner {
    fn written(&self, start: NonNull<u8>, len: usize) {
        let host = start.addr().get();
        for (base, size, guest) in &self.regions {
            let Some(offset) = host.checked_sub(*base).filter(|offset| offset < size) else {
                continue;
            };
            if let Some(region) = self.memory.find_region(*guest) {
                region.bitmap().mark_dirty(offset, len);
            }
            return;
        }
    }
}

/// What is left of segments after skipping at the front and cutting at the end.
struct Window<'a> {
    segments: &'a [Segment],
    skip: u64,
    left: u64,
}

impl Iterator for Window<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        while self.left > 0 {
            let (first, rest) = self.segments.split_first()?;
            self.segments = rest;
            let len = u64::from(first.len);
            if self.skip >= len {
                self.skip -= len;
                continue;
            }
            // An address that overflows is answered by the lookup: the saturated one is not memory.
            let addr = GuestAddress(first.addr.0.saturating_add(self.skip));
            let count = (len - self.skip).min(self.left);
            self.skip = 0;
            self.left -= count;
            // `count` is at most `first.len`, so this cannot fail.
            return Some(Segment { addr, len: u32::try_from(count).unwrap_or(u32::MAX) });
        }
        None
    }
}

fn len_of(segment: Segment) -> usize {
    // usize has 64 bits wherever vm-memory compiles.
    usize::try_from(segment.len).unwrap_or(usize::MAX)
}

fn pointer<B: vm_memory::bitmap::BitmapSlice>(
    slice: &VolatileSlice<'_, B>,
) -> Option<(NonNull<u8>, usize)> {
    NonNull::new(slice.ptr_guard_mut().as_ptr()).map(|start| (start, slice.len()))
}

/// `pointers` must come from slices of the memory that `owner` holds.
fn io_buf_over(
    pointers: impl IntoIterator<Item = (NonNull<u8>, usize)>,
    owner: Rc<dyn BufOwner>,
) -> IoBuf {
    // SAFETY: both callers are above: every pair is a slice that vm-memory checked to lie within a mapping
    // of the memory that the owner, an `Owner`, holds counted; so it stays mapped read-write for the
    // owner's life. Nobody makes Rust references into guest memory.
    unsafe { IoBuf::from_segments(pointers, owner) }
}

#[cfg(test)]
#[path = "guest_buf_tests.rs"]
mod tests;
