use std::alloc::Layout;

use super::*;

/// Regions of 100 and 10 pages with a hole between them.
struct Two(NonNull<u8>);

const LEN: usize = 110 * 4096;

// SAFETY: only atomics and one thread.
unsafe impl Send for Two {}
// SAFETY: as above.
unsafe impl Sync for Two {}

fn layout() -> Layout {
    Layout::from_size_align(LEN, 4096).unwrap()
}

impl Two {
    fn new() -> Two {
        // SAFETY: not of size zero.
        Two(NonNull::new(unsafe { std::alloc::alloc_zeroed(layout()) }).unwrap())
    }
}

impl Drop for Two {
    fn drop(&mut self) {
        // SAFETY: allocated so.
        unsafe { std::alloc::dealloc(self.0.as_ptr(), layout()) };
    }
}

// SAFETY: allocated until dropped, only used by one thread.
unsafe impl GuestRam for Two {
    fn regions(&self) -> Vec<RamRegion> {
        // SAFETY: inside the allocation.
        let high = unsafe { self.0.add(100 * 4096) };
        let region = |start, pages: u64, host| RamRegion {
            start,
            len: pages * PAGE_SIZE,
            host,
            backing: Backing::Anonymous,
        };
        vec![region(0, 100, self.0), region(4 << 30, 10, high)]
    }
}

fn map() -> RamMap {
    RamMap::new(Arc::new(Two::new())).unwrap()
}

fn run(first: u64, count: u64) -> PageRun {
    PageRun { first, count }
}

#[test]
fn regions_start_on_words_of_the_dirty_log() {
    let map = map();
    assert_eq!((map.pages(), map.bytes()), (192, 110 * 4096));
    assert_eq!(map.first_page_of(4 << 30), Some(128));
    assert_eq!(map.page_of((4 << 30) + 4096 * 9 + 5), Some(137));
    assert_eq!(map.page_of(4096 * 100), None);
}

#[test]
fn no_run_reaches_out_of_its_region() {
    let map = map();
    for good in [run(0, 1), run(0, 100), run(99, 1), run(128, 10), run(137, 1)] {
        assert_eq!(map.slice(good).unwrap().len() as u64, good.bytes());
    }
    let (max, last) = (u64::MAX, u64::from(u32::MAX));
    for bad in [
        run(0, 0),
        run(0, 101),
        run(99, 2),
        run(100, 1),
        run(127, 2),
        run(128, 11),
        run(138, 1),
        run(192, 1),
        run(max, 1),
        run(max, last),
        run(1, max),
        run(0, last),
    ] {
        assert_eq!(map.slice(bad).unwrap_err().kind(), ErrorKind::Corrupt, "{bad:?}");
    }
}

#[test]
fn bits_between_regions_are_no_pages() {
    let parts: Vec<_> = map().split(run(90, 1000)).collect();
    assert_eq!(parts, [run(90, 10), run(128, 10)]);
    assert_eq!(map().split(run(100, 28)).count(), 0);
}

#[test]
fn one_bit_anywhere_makes_a_page_not_zero() {
    let map = map();
    let page = map.slice(run(130, 1)).unwrap();
    assert!(page.is_zero());
    for word in 0..512 {
        page.word(word).store(1 << (word % 64), Ordering::Relaxed);
        assert!(!page.is_zero(), "word {word}");
        page.fill_zero();
        assert!(page.is_zero());
    }
}

#[test]
fn regions_of_broken_pages_are_refused() {
    struct Odd(Two);
    // SAFETY: refused before use.
    unsafe impl GuestRam for Odd {
        fn regions(&self) -> Vec<RamRegion> {
            let mut regions = self.0.regions();
            regions[0].len -= 1;
            regions
        }
    }
    assert!(RamMap::new(Arc::new(Odd(Two::new()))).is_err());
}
