//! Buffers that are used again, and a count of those that are out.
//!
//! An allocation of 4 KiB costs as much as a system call that moves as many bytes, for it is
//! aligned and zeroed; one of 1 MiB costs more than what is done with it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ptr::NonNull;
use std::rc::Rc;

use super::{Allocation, BufOwner, IoBuf, Segment, Segments};
use crate::notify::Notify;

/// Smallest allocation, bytes.
const SMALLEST: usize = 4096;

/// Hands buffers out and takes them back when the last [`IoBuf`] over them goes. What it hands out
/// has old content of its own: only who fills a whole buffer may show it to others.
#[derive(Clone)]
pub(crate) struct BufPool(Rc<Inner>);

struct Inner {
    /// Bytes of free allocations that are kept.
    keep: usize,
    kept: Cell<usize>,
    out: Cell<usize>,
    /// Free allocations by their size.
    free: RefCell<BTreeMap<usize, Vec<Allocation>>>,
    returned: Notify,
}

/// The memory of one buffer that is out.
struct Loan {
    allocation: Cell<Option<Allocation>>,
    pool: Rc<Inner>,
}

impl BufOwner for Loan {
    fn written(&self, _start: NonNull<u8>, _len: usize) {}
}

impl Drop for Loan {
    fn drop(&mut self) {
        if let Some(allocation) = self.allocation.take() {
            self.pool.take_back(allocation);
        }
    }
}

impl BufPool {
    /// A pool that keeps at most `keep` bytes of free memory.
    pub(crate) fn new(keep: usize) -> BufPool {
        BufPool(Rc::new(Inner {
            keep,
            kept: Cell::new(0),
            out: Cell::new(0),
            free: RefCell::default(),
            returned: Notify::new(),
        }))
    }

    /// A buffer of `len` bytes, aligned to 4 KiB, whose content is old.
    pub(crate) fn get(&self, len: usize) -> IoBuf {
        let size = len.max(SMALLEST).next_power_of_two();
        let free = self.0.free.borrow_mut().get_mut(&size).and_then(Vec::pop);
        let allocation = match free {
            Some(allocation) => {
                self.0.kept.set(self.0.kept.get() - size);
                allocation
            }
            None => Allocation::new(size),
        };
        self.0.out.set(self.0.out.get() + size);
        let start = allocation.start;
        let loan = Loan { allocation: Cell::new(Some(allocation)), pool: Rc::clone(&self.0) };
        IoBuf::over(Segments::One(Segment { start, len }), len, Rc::new(loan))
    }

    /// Bytes that are out.
    pub(crate) fn out(&self) -> usize {
        self.0.out.get()
    }

    /// Waits until at most `limit` bytes are out.
    pub(crate) async fn at_most(&self, limit: usize) {
        self.0.returned.wait_until(|| self.out() <= limit).await;
    }
}

impl Inner {
    fn take_back(&self, allocation: Allocation) {
        let size = allocation.layout.size();
        self.out.set(self.out.get() - size);
        if self.kept.get() + size <= self.keep {
            self.kept.set(self.kept.get() + size);
            self.free.borrow_mut().entry(size).or_default().push(allocation);
        }
        self.returned.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_back_with_the_last_buffer_over_it_and_is_used_again() {
        let pool = BufPool::new(16 << 10);
        let first = pool.get(5000);
        assert_eq!((first.len(), pool.out()), (5000, 8192));
        first.copy_from(&[7; 5000]);
        let part = first.slice(10..20);
        drop(first);
        assert_eq!(pool.out(), 8192);
        drop(part);
        assert_eq!(pool.out(), 0);
        let again = pool.get(6000);
        assert_eq!(again.to_vec()[..5000], [7; 5000]);
        assert!(again.is_aligned(4) && again.slice(0..0).is_empty());
    }

    #[test]
    fn it_keeps_no_more_than_it_may() {
        let pool = BufPool::new(16 << 10);
        let all: Vec<_> = (0..8).map(|_| pool.get(4096)).collect();
        assert_eq!(pool.out(), 8 * 4096);
        drop(all);
        assert_eq!((pool.out(), pool.0.kept.get()), (0, 16 << 10));
    }
}
