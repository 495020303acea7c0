//! Which pages changed: what KVM saw the guest write, and what our own devices wrote.

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::{PAGE, Ram};
use crate::error::{Error, Result};

const PAGES_PER_WORD: u64 = 64;

/// A set of pages, one bit each, in the order of [`Ram::pages`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirtyPages {
    words: Vec<u64>,
}

impl DirtyPages {
    /// No page.
    pub fn none(pages: u64) -> DirtyPages {
        let words = usize::try_from(pages.div_ceil(PAGES_PER_WORD)).unwrap_or(usize::MAX);
        DirtyPages { words: vec![0; words] }
    }

    /// 64 pages a word, lowest bit first.
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Add a page; one past the end is ignored.
    pub fn insert(&mut self, page: u64) {
        let word = usize::try_from(page / PAGES_PER_WORD).ok();
        if let Some(word) = word.and_then(|word| self.words.get_mut(word)) {
            *word |= 1 << (page % PAGES_PER_WORD);
        }
    }

    /// How many pages are in the set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Is this page in the set?
    pub fn contains(&self, page: u64) -> bool {
        let word = usize::try_from(page / PAGES_PER_WORD).ok();
        let word = word.and_then(|word| self.words.get(word)).copied().unwrap_or(0);
        word & (1 << (page % PAGES_PER_WORD)) != 0
    }
}

impl Ram {
    /// Begin to record writes. Pages written before do not count.
    pub fn start_dirty_log(&self) -> Result<()> {
        for region in self.guest.iter() {
            region.get_mmap().bitmap().reset();
        }
        self.show_to_guest(true)
    }

    /// Stop recording; the guest runs at full speed again.
    pub fn stop_dirty_log(&self) -> Result<()> {
        self.show_to_guest(false)
    }

    /// Add the pages written since the last call, by the guest or by our devices, to `into`.
    ///
    /// Call it **before** reading the pages: one that is written after the call is in the next answer. A
    /// device marks its page after it wrote to it, so a page caught in between is in the next answer too.
    pub fn take_dirty(&self, into: &mut DirtyPages) -> Result<()> {
        let mut first_word = 0;
        for (slot, region) in (0..).zip(self.guest.iter()) {
            let ours = region.get_mmap().bitmap().get_and_reset();
            let len = usize::try_from(region.len()).unwrap_or(usize::MAX);
            let guests = self.vm.fd().get_dirty_log(slot, len);
            let guests = guests.map_err(|e| Error::host("read KVM's log of dirty pages", e))?;
            // RAM is whole MiB, so no word belongs to two regions.
            let words = &mut into.words[first_word..];
            for ((word, ours), guests) in words.iter_mut().zip(ours).zip(guests) {
                *word |= ours | guests;
            }
            first_word += usize::try_from(region.len() / PAGE / PAGES_PER_WORD).unwrap_or(0);
        }
        Ok(())
    }
}
