//! A "vCPU": a thread that writes to memory and marks what it wrote.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use ferry_migration::ram::PageBitmap;

use super::ram::FakeRam;
use super::thread;

/// What it does.
#[derive(Debug, Clone, Copy)]
pub struct Workload {
    /// Pages it writes to, from the first.
    pub pages: u64,
    /// Pages written per millisecond.
    pub rate: u64,
    /// Does it sometimes write zeros?
    pub zeroes: bool,
}

/// Memory, its dirty log and the thread.
pub struct Guest {
    pub ram: Arc<FakeRam>,
    dirty: Vec<AtomicU64>,
    run: Mutex<Run>,
    changed: Condvar,
    pub writes: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Run {
    Running,
    Stopped,
    Gone,
}

impl Guest {
    pub fn new(ram: FakeRam, running: bool) -> Arc<Guest> {
        let words = ram.pages().div_ceil(64);
        Arc::new(Guest {
            ram: Arc::new(ram),
            dirty: (0..words).map(|_| AtomicU64::new(0)).collect(),
            run: Mutex::new(if running { Run::Running } else { Run::Stopped }),
            changed: Condvar::new(),
            writes: AtomicU64::new(0),
        })
    }

    /// Starts the thread; it ends when the guest is dropped by its machine.
    pub fn work(self: &Arc<Guest>, load: Workload) {
        let guest = Arc::clone(self);
        thread("guest", move || {
            let mut seed = 88_172_645_463_325_252u64;
            loop {
                let mut run = guest.run.lock().unwrap();
                while *run == Run::Stopped {
                    run = guest.changed.wait(run).unwrap();
                }
                if *run == Run::Gone {
                    return;
                }
                for _ in 0..load.rate {
                    seed ^= seed << 13;
                    seed ^= seed >> 7;
                    seed ^= seed << 17;
                    let zero = load.zeroes && seed.is_multiple_of(3);
                    guest.write(seed % load.pages, if zero { 0 } else { seed });
                }
                drop(run);
                std::thread::sleep(Duration::from_millis(1));
            }
        });
    }

    /// Writes a page, then marks it: in this order a sync in between only costs a second copy.
    pub fn write(&self, page: u64, value: u64) {
        self.ram.fill(page, value);
        let word = usize::try_from(page / 64).unwrap();
        self.dirty[word].fetch_or(1 << (page % 64), Ordering::AcqRel);
        self.writes.fetch_add(1, Ordering::Relaxed);
    }

    /// The regions of the fake memory are whole words long but for the end, as in the page numbers.
    pub fn fetch_dirty(&self, into: &mut PageBitmap) {
        for (index, word) in self.dirty.iter().enumerate() {
            into.or_words(index as u64 * 64, &[word.swap(0, Ordering::AcqRel)]);
        }
    }

    pub fn is_running(&self) -> bool {
        *self.run.lock().unwrap() == Run::Running
    }

    pub fn set_running(&self, running: bool) {
        self.set(if running { Run::Running } else { Run::Stopped });
    }

    pub fn end(&self) {
        self.set(Run::Gone);
    }

    fn set(&self, run: Run) {
        *self.run.lock().unwrap() = run;
        self.changed.notify_all();
    }
}
