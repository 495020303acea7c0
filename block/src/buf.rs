//! [`IoBuf`]: a counted, sliceable scatter list over memory that someone else may change.
//!
//! Guest memory is written by the guest while we look at it, so nothing here ever makes a Rust
//! slice of it: bytes are copied in and out through raw pointers only.
#![expect(unsafe_code, reason = "raw pointers into guest memory, and our own aligned allocations")]

mod pool;

use std::alloc::Layout;
use std::fmt;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::rc::Rc;

pub(crate) use pool::BufPool;

/// Alignment of what [`IoBuf::alloc`] returns: enough for O_DIRECT on any disk we know.
const ALLOC_ALIGNMENT: usize = 4096;

/// Keeps the memory of an [`IoBuf`] alive and hears where bytes were written into it.
pub trait BufOwner {
    /// `len` bytes from `start` were just written by us or by the host kernel, so that whoever
    /// tracks dirty guest pages can mark them. Called once per contiguous piece.
    fn written(&self, start: NonNull<u8>, len: usize);
}

#[derive(Clone, Copy)]
struct Segment {
    start: NonNull<u8>,
    len: usize,
}

/// One segment is by far the commonest, and should not cost a second allocation.
enum Segments {
    One(Segment),
    Many(Box<[Segment]>),
}

struct Shared {
    segments: Segments,
    owner: Rc<dyn BufOwner>,
}

/// A scatter list of bytes. Clones and slices share the memory and keep it alive.
#[derive(Clone)]
pub struct IoBuf {
    shared: Rc<Shared>,
    start: usize,
    len: usize,
}

/// Memory from the global allocator, given back when the last buffer over it goes.
struct Allocation {
    start: NonNull<u8>,
    layout: Layout,
}

impl BufOwner for Allocation {
    fn written(&self, _start: NonNull<u8>, _len: usize) {}
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // SAFETY: `start` came from `alloc_zeroed` with this very layout and is freed only here.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}

/// The buffers that a joined one consists of.
struct Joined(Vec<IoBuf>);

impl BufOwner for Joined {
    fn written(&self, start: NonNull<u8>, len: usize) {
        for part in &self.0 {
            for piece in part.pieces() {
                let before = start.addr().get().checked_sub(piece.start.addr().get());
                if let Some(before) = before.filter(|before| *before < piece.len) {
                    part.shared.owner.written(start, len.min(piece.len - before));
                }
            }
        }
    }
}

impl Allocation {
    /// Zeroed memory of `size` bytes, which is not 0.
    fn new(size: usize) -> Allocation {
        let Ok(layout) = Layout::from_size_align(size, ALLOC_ALIGNMENT) else {
            // Only lengths near isize::MAX come here, which no request may have.
            panic!("a buffer of {size} bytes cannot exist")
        };
        assert_ne!(size, 0, "an allocation of nothing");
        // SAFETY: the layout is not of size zero.
        let start = unsafe { std::alloc::alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { std::alloc::handle_alloc_error(layout) };
        Allocation { start, layout }
    }
}

impl IoBuf {
    /// A zeroed buffer of `len` bytes, aligned to 4 KiB.
    pub fn alloc(len: usize) -> IoBuf {
        let owner = Rc::new(Allocation::new(len.max(1)));
        let start = owner.start;
        IoBuf::over(Segments::One(Segment { start, len }), len, owner)
    }

    /// A buffer holding a copy of `bytes`.
    pub fn from_vec(bytes: &[u8]) -> IoBuf {
        let buf = IoBuf::alloc(bytes.len());
        buf.copy_from(bytes);
        buf
    }

    /// A buffer over memory of `owner`. Empty segments are dropped.
    ///
    /// # Safety
    ///
    /// Every segment must stay readable and writable for as long as `owner` lives. Others may
    /// change the memory at any time; nobody may hold a Rust reference into it.
    pub unsafe fn from_segments(
        segments: impl IntoIterator<Item = (NonNull<u8>, usize)>,
        owner: Rc<dyn BufOwner>,
    ) -> IoBuf {
        let mut pieces = segments
            .into_iter()
            .filter(|(_, len)| *len != 0)
            .map(|(start, len)| Segment { start, len });
        let first = pieces.next().unwrap_or(Segment { start: NonNull::dangling(), len: 0 });
        let Some(second) = pieces.next() else {
            return IoBuf::over(Segments::One(first), first.len, owner);
        };
        let many: Box<[Segment]> = [first, second].into_iter().chain(pieces).collect();
        let len = many.iter().map(|segment| segment.len).sum();
        IoBuf::over(Segments::Many(many), len, owner)
    }

    /// One buffer over the memory of others, one after the other.
    pub(crate) fn concat(parts: &[IoBuf]) -> IoBuf {
        let pieces: Vec<(NonNull<u8>, usize)> = parts
            .iter()
            .flat_map(|part| part.pieces().map(|piece| (piece.start, piece.len)))
            .collect();
        // SAFETY: the pieces are those of `parts`, which the owner keeps alive.
        unsafe { IoBuf::from_segments(pieces, Rc::new(Joined(parts.to_vec()))) }
    }

    fn over(segments: Segments, len: usize, owner: Rc<dyn BufOwner>) -> IoBuf {
        IoBuf { shared: Rc::new(Shared { segments, owner }), start: 0, len }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes `range` of this buffer, sharing its memory.
    ///
    /// # Panics
    ///
    /// When the range leaves the buffer: lengths are checked before memory is looked at.
    #[must_use]
    pub fn slice(&self, range: Range<usize>) -> IoBuf {
        assert!(range.start <= range.end && range.end <= self.len, "slice leaves the buffer");
        IoBuf {
            shared: Rc::clone(&self.shared),
            start: self.start + range.start,
            len: range.end - range.start,
        }
    }

    /// Whether no other buffer shares its memory.
    pub(crate) fn is_unshared(&self) -> bool {
        Rc::strong_count(&self.shared) == 1
    }

    /// How many separate pieces of memory it covers.
    pub fn segment_count(&self) -> usize {
        self.pieces().count()
    }

    /// Whether every piece starts and ends at a multiple of `alignment` (a power of two).
    pub fn is_aligned(&self, alignment: usize) -> bool {
        let mask = alignment - 1;
        self.pieces().all(|piece| (piece.start.addr().get() | piece.len) & mask == 0)
    }

    /// Copies the whole buffer out. `to` must be exactly as long.
    pub fn copy_to(&self, to: &mut [u8]) {
        assert_eq!(to.len(), self.len, "copy of another length");
        let mut done = 0;
        for piece in self.pieces() {
            let target = to[done..done + piece.len].as_mut_ptr();
            // SAFETY: the piece is readable while the owner lives (contract of `from_segments`),
            // the target was just bounds-checked, and it is a Rust slice, so they do not overlap.
            unsafe { ptr::copy_nonoverlapping(piece.start.as_ptr(), target, piece.len) };
            done += piece.len;
        }
    }

    /// Overwrites the whole buffer. `from` must be exactly as long.
    pub fn copy_from(&self, from: &[u8]) {
        assert_eq!(from.len(), self.len, "copy of another length");
        let mut done = 0;
        for piece in self.pieces() {
            let source = from[done..done + piece.len].as_ptr();
            // SAFETY: as in `copy_to`, with the directions exchanged.
            unsafe { ptr::copy_nonoverlapping(source, piece.start.as_ptr(), piece.len) };
            done += piece.len;
        }
        self.mark_written();
    }

    /// Overwrites the whole buffer with another of the same length; they may share memory.
    pub fn copy_from_buf(&self, from: &IoBuf) {
        assert_eq!(from.len, self.len, "copy of another length");
        let mut sources = from.pieces();
        let mut source = Segment { start: NonNull::dangling(), len: 0 };
        for mut target in self.pieces() {
            while target.len != 0 {
                if source.len == 0 {
                    let Some(next) = sources.next() else { break };
                    source = next;
                }
                let len = source.len.min(target.len);
                // SAFETY: both pieces are valid for `len` bytes while their owners live; `copy`
                // allows that guest descriptors overlap.
                unsafe { ptr::copy(source.start.as_ptr(), target.start.as_ptr(), len) };
                source = source.skip(len);
                target = target.skip(len);
            }
        }
        self.mark_written();
    }

    /// Overwrites the whole buffer with zeroes.
    pub fn fill_zero(&self) {
        for piece in self.pieces() {
            // SAFETY: the piece is writable while the owner lives.
            unsafe { ptr::write_bytes(piece.start.as_ptr(), 0, piece.len) };
        }
        self.mark_written();
    }

    /// Whether every byte was zero when it was looked at.
    pub fn is_zero(&self) -> bool {
        self.pieces().all(Segment::is_zero)
    }

    /// A copy of the bytes.
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.copy_to(&mut bytes);
        bytes
    }

    /// Tells the owner that the whole buffer was written, here or by the kernel.
    pub(crate) fn mark_written(&self) {
        for piece in self.pieces() {
            self.shared.owner.written(piece.start, piece.len);
        }
    }

    /// The only piece, when there is just one: what the fast paths look at.
    pub(crate) fn single(&self) -> Option<(*mut u8, usize)> {
        match &self.shared.segments {
            Segments::One(segment) => {
                let piece = segment.skip(self.start);
                Some((piece.start.as_ptr(), self.len))
            }
            Segments::Many(_) => {
                let mut pieces = self.pieces();
                let first = pieces.next()?;
                pieces.next().is_none().then_some((first.start.as_ptr(), first.len))
            }
        }
    }

    /// The pieces as the kernel wants them, at most `limit`. Valid while this buffer lives.
    pub(crate) fn iovecs(&self, limit: usize) -> Vec<libc::iovec> {
        self.pieces()
            .take(limit)
            .map(|piece| libc::iovec { iov_base: piece.start.as_ptr().cast(), iov_len: piece.len })
            .collect()
    }

    fn pieces(&self) -> Pieces<'_> {
        let segments = match &self.shared.segments {
            Segments::One(segment) => std::slice::from_ref(segment),
            Segments::Many(many) => many,
        };
        Pieces { segments, skip: self.start, left: self.len }
    }
}

impl Segment {
    /// What is left after `count` bytes; `count` never exceeds the length.
    fn skip(self, count: usize) -> Segment {
        debug_assert!(count <= self.len);
        // SAFETY: stays within the segment or one past its end.
        let start = unsafe { self.start.add(count) };
        Segment { start, len: self.len - count }
    }

    fn is_zero(self) -> bool {
        let mut rest = self;
        while rest.len != 0 {
            let aligned = rest.start.addr().get().is_multiple_of(size_of::<u64>());
            let step = if aligned && rest.len >= size_of::<u64>() { size_of::<u64>() } else { 1 };
            let zero = if step == 1 {
                // SAFETY: at least one byte is left of a segment that is readable.
                unsafe { rest.start.read_volatile() == 0 }
            } else {
                // SAFETY: eight aligned bytes are left of a segment that is readable.
                unsafe { rest.start.cast::<u64>().read_volatile() == 0 }
            };
            if !zero {
                return false;
            }
            rest = rest.skip(step);
        }
        true
    }
}

/// Walks the segments of one slice of a buffer.
struct Pieces<'a> {
    segments: &'a [Segment],
    skip: usize,
    left: usize,
}

impl Iterator for Pieces<'_> {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        while self.left != 0 {
            let (first, rest) = self.segments.split_first()?;
            self.segments = rest;
            if self.skip >= first.len {
                self.skip -= first.len;
                continue;
            }
            let mut piece = first.skip(self.skip);
            self.skip = 0;
            piece.len = piece.len.min(self.left);
            self.left -= piece.len;
            return Some(piece);
        }
        None
    }
}

impl fmt::Debug for IoBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoBuf({} bytes in {} pieces)", self.len, self.segment_count())
    }
}

#[cfg(test)]
#[path = "buf_tests.rs"]
mod tests;
