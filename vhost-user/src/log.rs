//! The log of pages that were written, for the front end's live migration.
//!
//! Writes are recorded in the bitmaps of the mapped regions, as for a guest of ours, and carried over into the
//! front end's log now and then and whenever a queue stops. A page may so get into the log a moment after it was
//! written, never before: the front end sends it again, and reads the log a last time when all queues have
//! stopped.

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use ferry_block::{Error, Executor, Result, Task};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{FileOffset, GuestMemoryRegion, MmapRegion, VolatileMemory};

use crate::fault::Guard;
use crate::memory::{Mapped, PAGE};
use crate::wire::bad;

/// How often pages are carried over.
const INTERVAL: Duration = Duration::from_millis(20);

/// The front end's log: a bit for each page, by guest address.
pub(crate) struct DirtyLog {
    guard: Guard,
    bits: MmapRegion<()>,
}

impl DirtyLog {
    /// Maps a log of `size` bytes, of the front end that is connected by `socket`.
    ///
    /// # Errors
    /// It leaves its file or cannot be mapped.
    pub(crate) fn map(fd: OwnedFd, size: u64, offset: u64, socket: RawFd) -> Result<DirtyLog> {
        let file = File::from(fd);
        let metadata = file.metadata();
        let len = metadata.map_err(|error| Error::from_io(error, "the log has no file"))?.len();
        if size == 0 || offset.checked_add(size).is_none_or(|end| end > len) {
            return Err(bad(format!("a log of {size:#x} bytes leaves its file of {len:#x}")));
        }
        let size = usize::try_from(size).map_err(|_large| bad("the log is too long"))?;
        let mapping = MmapRegionBuilder::new_with_bitmap(size, ())
            .with_file_offset(FileOffset::new(file, offset))
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(libc::MAP_SHARED)
            .build();
        let bits = mapping.map_err(|error| bad(format!("the log cannot be mapped: {error}")))?;
        let guard = Guard::new(bits.as_ptr(), size, socket)?;
        Ok(DirtyLog { guard, bits })
    }

    /// Whether the front end took it away while we used it.
    pub(crate) fn is_lost(&self) -> bool {
        self.guard.is_lost()
    }

    /// Marks a page; one that the log is too short for belongs to memory that does not migrate.
    fn mark(&self, page: u64) {
        let byte = usize::try_from(page / 8).unwrap_or(usize::MAX);
        if let Ok(bits) = self.bits.get_atomic_ref::<AtomicU8>(byte) {
            bits.fetch_or(1 << (page % 8), Ordering::AcqRel);
        }
    }
}

/// Carries over what is written to these regions, until it is dropped.
pub(crate) struct Logging {
    log: Rc<DirtyLog>,
    regions: Rc<[Mapped]>,
    executor: Executor,
    task: Option<Task<()>>,
}

impl Logging {
    /// Begins. The regions are tracked.
    pub(crate) fn start(executor: &Executor, log: Rc<DirtyLog>, regions: Vec<Mapped>) -> Logging {
        let regions: Rc<[Mapped]> = regions.into();
        let (to, from, clock) = (Rc::clone(&log), Rc::clone(&regions), executor.clone());
        let task = executor.spawn(async move {
            loop {
                clock.sleep(INTERVAL).await;
                carry_over(&from, &to);
            }
        });
        Logging { log, regions, executor: executor.clone(), task: Some(task) }
    }

    /// Whatever has been written until now is in the log afterwards.
    pub(crate) fn carry_over(&self) {
        carry_over(&self.regions, &self.log);
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        self.carry_over();
        if let Some(task) = self.task.take() {
            drop(self.executor.spawn(task.cancel()));
        }
    }
}

fn carry_over(regions: &[Mapped], log: &DirtyLog) {
    for region in regions {
        let first = region.start_addr().0 / PAGE;
        for (at, word) in (0..).zip(region.get_mmap().bitmap().get_and_reset()) {
            let mut rest = word;
            while rest != 0 {
                log.mark(first + at * 64 + u64::from(rest.trailing_zeros()));
                rest &= rest - 1;
            }
        }
    }
}

#[cfg(test)]
#[path = "log_tests.rs"]
mod tests;
