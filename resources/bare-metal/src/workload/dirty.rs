//! Dirties memory at a rate and checks that every page still holds what was last written to it.

use crate::args::Args;
use crate::clock::{Clock, tsc};
use crate::console;
use crate::memory::{Memory, PAGE};
use crate::pattern::{PAGE_WORDS, page_word};
use crate::workload::Random;

/// The pages under test and what each must hold.
pub struct Dirtier {
    memory: Memory,
    pages: u64,
    generations: *mut u32,
    /// Bytes a second; the largest number means as fast as it goes.
    rate: u64,
    scattered: bool,
    random: Random,
    cursor: u64,
    checked: u64,
    last: u64,
    credit: u64,
    /// Pages written since the start.
    pub written: u64,
    /// Pages that did not hold what they must.
    pub failures: u64,
}

impl Dirtier {
    /// Takes `mem_mib=` of the free memory (or all of it) and fills every page.
    pub fn new(args: &Args, mut memory: Memory) -> Dirtier {
        let asked = args.number("mem_mib", u64::MAX >> 20) << 20;
        let all = memory.free_pages();
        let table = memory.take(4 * all);
        let pages = memory.free_pages().min(asked / PAGE);
        let rate = match args.text("dirty_mib_s") {
            Some("max") => u64::MAX,
            _ => args.number("dirty_mib_s", 0) << 20,
        };
        let mut dirtier = Dirtier {
            memory,
            pages,
            generations: table.cast(),
            rate,
            scattered: args.text("dirty_order") == Some("random"),
            random: Random::new(args.number("seed", 1)),
            cursor: 0,
            checked: 0,
            last: tsc(),
            credit: 0,
            written: 0,
            failures: 0,
        };
        (0..pages).for_each(|page| dirtier.write(page));
        dirtier.last = tsc();
        dirtier
    }

    /// Pages under test.
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// Writes what the rate allows by now, a little at a time, and checks a page as it goes.
    pub fn step(&mut self, clock: &Clock) {
        if self.pages == 0 || self.rate == 0 {
            return;
        }
        let now = tsc();
        // After a pause the guest does not catch up: a burst would not be the rate that was asked.
        let ns = clock.ns(now - self.last).min(10_000_000);
        self.last = now;
        let earned = u128::from(self.rate) * u128::from(ns) / 1_000_000_000;
        self.credit = self.credit.saturating_add(u64::try_from(earned).unwrap_or(u64::MAX));
        self.credit =
            self.credit.min(64 * PAGE).max(if self.rate == u64::MAX { 16 * PAGE } else { 0 });
        for _ in 0..16 {
            if self.credit < PAGE {
                return;
            }
            self.credit -= PAGE;
            let page = if self.scattered { self.random.below(self.pages) } else { self.cursor };
            self.cursor = (self.cursor + 1) % self.pages;
            self.check(page);
            self.write(page);
            self.written += 1;
        }
    }

    /// Checks every page; true when all hold what they must.
    pub fn check_all(&mut self) -> bool {
        (0..self.pages).for_each(|page| self.check(page));
        self.failures == 0
    }

    fn generation(&mut self, page: u64) -> &mut u32 {
        assert!(page < self.pages);
        // SAFETY: the table has an entry for every page.
        unsafe { &mut *self.generations.add(page as usize) }
    }

    fn write(&mut self, page: u64) {
        let generation = self.generation(page);
        *generation += 1;
        let first = page_word(page, *generation, 0);
        let words = self.memory.page(page);
        for index in 0..PAGE_WORDS {
            // SAFETY: the page is free memory of ours.
            unsafe { words.add(index).write(first.wrapping_add(index as u64)) };
        }
        core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
    }

    fn check(&mut self, page: u64) {
        let generation = *self.generation(page);
        let first = page_word(page, generation, 0);
        let words = self.memory.page(page);
        self.checked += 1;
        for index in 0..PAGE_WORDS {
            // SAFETY: the page is free memory of ours.
            let found = unsafe { words.add(index).read() };
            let expected = first.wrapping_add(index as u64);
            if found != expected {
                self.failures += 1;
                if self.failures <= 8 {
                    console::line(format_args!(
                        "FAIL memory page={page} at={words:p} word={index} found={found:#x} \
                         expected={expected:#x} generation={generation}"
                    ));
                }
                return;
            }
        }
    }
}
