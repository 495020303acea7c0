//! One bit per page of guest memory.

use super::PageRun;

/// Bits per word, and the alignment of regions in the page number space.
pub const WORD_BITS: u64 = 64;

/// A set of page numbers below a fixed bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageBitmap {
    words: Vec<u64>,
    pages: u64,
}

impl PageBitmap {
    /// An empty set of numbers below `pages`.
    pub fn new(pages: u64) -> PageBitmap {
        let words = usize::try_from(pages.div_ceil(WORD_BITS)).expect("guest memory is mapped");
        PageBitmap { words: vec![0; words], pages }
    }

    /// The bound.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Adds a page; numbers out of bounds are ignored.
    pub fn set(&mut self, page: u64) {
        if page < self.pages {
            self.words[word_of(page)] |= bit_of(page);
        }
    }

    /// Removes a page; numbers out of bounds are ignored.
    pub fn clear(&mut self, page: u64) {
        if page < self.pages {
            self.words[word_of(page)] &= !bit_of(page);
        }
    }

    /// Is the page in the set?
    pub fn contains(&self, page: u64) -> bool {
        page < self.pages && self.words[word_of(page)] & bit_of(page) != 0
    }

    /// Adds all pages of a run, word by word; what is out of bounds is ignored.
    pub fn set_run(&mut self, run: PageRun) {
        let end = run.end().min(self.pages);
        let mut page = run.first;
        while page < end {
            let in_word = (WORD_BITS - page % WORD_BITS).min(end - page);
            let ones = if in_word == WORD_BITS { u64::MAX } else { (1 << in_word) - 1 };
            self.words[word_of(page)] |= ones << (page % WORD_BITS);
            page += in_word;
        }
    }

    /// Adds pages from words as the kernel gives them: bit 0 of the first is page `first`. Bits out of
    /// bounds are ignored. Cheapest where `first` is a multiple of 64, as the first page of a region is.
    pub fn or_words(&mut self, first: u64, words: &[u64]) {
        let at = word_of(first).min(self.words.len());
        let shift = first % WORD_BITS;
        let ours = &mut self.words[at..];
        for (index, theirs) in words.iter().enumerate() {
            let Some(low) = ours.get_mut(index) else { break };
            *low |= theirs << shift;
            if let (true, Some(high)) = (shift != 0, ours.get_mut(index + 1)) {
                *high |= theirs >> (WORD_BITS - shift);
            }
        }
        self.trim();
    }

    /// Adds every page of `other`, which has the same bound.
    pub fn or(&mut self, other: &PageBitmap) {
        self.or_words(0, &other.words);
    }

    /// Removes all pages.
    pub fn clear_all(&mut self) {
        self.words.fill(0);
    }

    /// Number of pages in the set.
    pub fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    /// Is it empty?
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    /// The runs of consecutive pages, ascending.
    pub fn runs(&self) -> impl Iterator<Item = PageRun> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let first = self.next(from, true)?;
            let end = self.next(first, false).unwrap_or(self.pages);
            from = end;
            Some(PageRun { first, count: end - first })
        })
    }

    /// First page at or after `from` that is in the set (`set`) or not in it.
    fn next(&self, from: u64, set: bool) -> Option<u64> {
        if from >= self.pages {
            return None;
        }
        let flip = if set { 0 } else { u64::MAX };
        let mut at = word_of(from);
        let mut word = (self.words[at] ^ flip) & (u64::MAX << (from % WORD_BITS));
        while word == 0 {
            at += 1;
            word = self.words.get(at)? ^ flip;
        }
        let page = at as u64 * WORD_BITS + u64::from(word.trailing_zeros());
        (page < self.pages).then_some(page)
    }

    /// Clears the bits of the last word that are out of bounds.
    fn trim(&mut self) {
        let used = self.pages % WORD_BITS;
        if let (Some(last), true) = (self.words.last_mut(), used != 0) {
            *last &= (1 << used) - 1;
        }
    }
}

fn word_of(page: u64) -> usize {
    usize::try_from(page / WORD_BITS).unwrap_or(usize::MAX)
}

fn bit_of(page: u64) -> u64 {
    1 << (page % WORD_BITS)
}

#[cfg(test)]
#[path = "bitmap_tests.rs"]
mod tests;
