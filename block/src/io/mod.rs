//! Disk requests of one thread: io_uring where the kernel lets us, else a pool of threads.
//!
//! A request in flight owns its buffer and its open file until the kernel is done with both.
//! Dropping the future that waits for it only detaches it.

mod file_io;
mod op;
mod pool;
mod ring;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::rc::Rc;

use serde::Deserialize;

use crate::buf::IoBuf;
use crate::executor::Remote;
use crate::notify::Notify;
use crate::sys::{self, Way};

pub(crate) use file_io::FileIo;

use op::{Op, OpTable};
use pool::Pool;
use ring::Ring;

/// How disk requests are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RingChoice {
    /// io_uring, or threads where the host refuses it.
    #[default]
    Auto,
    /// Always threads.
    ThreadPool,
}

/// A file that requests may be in flight on, even after everybody else has dropped it.
pub(crate) struct OpenFile {
    file: File,
    in_flight: Cell<usize>,
    idle: Notify,
    /// A write to NFS tells what became of earlier ones.
    is_nfs: bool,
    /// Why something was not made durable, as an `errno`; 0 if everything was.
    lost: Cell<i32>,
    /// How many requests that the kernel may tell of a loss were begun, and which of them are under way.
    syncs_begun: Cell<u64>,
    syncs: RefCell<BTreeSet<u64>>,
    sync_ended: Notify,
}

impl OpenFile {
    pub(crate) fn new(file: File) -> Rc<OpenFile> {
        Rc::new(OpenFile {
            is_nfs: sys::is_nfs(file.as_fd()),
            file,
            in_flight: Cell::new(0),
            idle: Notify::new(),
            lost: Cell::new(0),
            syncs_begun: Cell::new(0),
            syncs: RefCell::default(),
            sync_ended: Notify::new(),
        })
    }

    /// Waits until the kernel has finished all requests, those too that nobody waits for any more.
    pub(crate) async fn quiet(&self) {
        self.idle.wait_until(|| self.in_flight.get() == 0).await;
    }

    /// What a host has answered last that could not make everything durable. It tells of that once, and
    /// perhaps when nobody waits for the answer any more.
    pub(crate) fn lost(&self) -> i32 {
        self.lost.get()
    }

    pub(crate) fn lose(&self, errno: i32) {
        self.lost.set(errno);
    }

    /// Waits for the syncs that were begun before now. The kernel tells one of those that run side by side of an
    /// error and answers the others as if there was none.
    pub(crate) async fn told(&self) {
        let last = self.syncs_begun.get();
        let is_told = || self.syncs.borrow().first().is_none_or(|first| *first > last);
        self.sync_ended.wait_until(is_told).await;
    }

    /// A request begins; its number, if it is a sync.
    fn begin(&self, verb: &Verb) -> Option<u64> {
        self.in_flight.set(self.in_flight.get() + 1);
        if !matches!(verb, Verb::Sync { .. }) {
            return None;
        }
        let number = self.syncs_begun.get() + 1;
        self.syncs_begun.set(number);
        self.syncs.borrow_mut().insert(number);
        Some(number)
    }

    /// The request of this number has ended in this way.
    fn end(&self, verb: &Verb, sync: Option<u64>, result: i32) {
        if verb.has_lost(-result, self.is_nfs) {
            self.lose(-result);
        }
        if let Some(number) = sync {
            self.syncs.borrow_mut().remove(&number);
            self.sync_ended.notify_all();
        }
        self.in_flight.set(self.in_flight.get() - 1);
        if self.in_flight.get() == 0 {
            self.idle.notify_all();
        }
    }
}

impl AsFd for OpenFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for OpenFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// What is asked of the kernel.
pub(crate) enum Verb {
    /// Bytes between the file at `at` and the buffer.
    Transfer {
        way: Way,
        at: u64,
        buf: IoBuf,
        /// Writes past the page cache, and durably. Through the cache it would be told of what became of
        /// other writes, and it could not be known whether it has failed itself: a sync follows there.
        durable: bool,
        /// Another thread is to copy the bytes.
        elsewhere: bool,
    },
    /// `fdatasync(2)`, of these bytes at least.
    Sync { range: Option<Range<u64>> },
    /// `fallocate(2)`.
    Allocate { mode: i32, at: u64, len: u64 },
}

impl Verb {
    /// Whether it failed with this `errno` because what was written before is lost, or may have.
    fn has_lost(&self, errno: i32, is_nfs: bool) -> bool {
        let tells = match self {
            Verb::Sync { .. } => true,
            Verb::Transfer { way, .. } => *way == Way::Write && is_nfs,
            Verb::Allocate { .. } => false,
        };
        tells && errno > 0 && errno != libc::EINTR && errno != libc::EAGAIN
    }

    /// Whether another thread copies to the page cache.
    fn copies_to_cache(&self) -> bool {
        matches!(self, Verb::Transfer { way: Way::Write, elsewhere: true, .. })
    }
}

/// The disk I/O of one thread.
pub(crate) struct Engine {
    /// Does everything without a ring, and with one what rings cannot do. Dropped before the ring,
    /// which waits until no request is left.
    pool: OnceCell<Pool>,
    ring: Option<Ring>,
    table: Rc<OpTable>,
    remote: Remote,
}

impl Engine {
    pub(crate) fn new(choice: RingChoice, remote: Remote) -> Engine {
        let table = Rc::new(OpTable::default());
        let ring = match choice {
            RingChoice::ThreadPool => None,
            RingChoice::Auto => match Ring::new(Rc::clone(&table)) {
                Ok(ring) => Some(ring),
                Err(error) => {
                    tracing::info!("io_uring is not to be had ({error}): using threads");
                    None
                }
            },
        };
        Engine { pool: OnceCell::new(), ring, table, remote }
    }

    /// This thread is about to sleep; whether there are completions already.
    pub(crate) fn arm(&self) -> bool {
        self.ring.as_ref().is_some_and(Ring::arm)
    }

    /// This thread is awake.
    pub(crate) fn disarm(&self) {
        if let Some(ring) = &self.ring {
            ring.disarm();
        }
    }

    /// What becomes readable when completions arrive after [`arm`](Engine::arm).
    pub(crate) fn ring_fd(&self) -> Option<RawFd> {
        self.ring.as_ref().map(Ring::fd)
    }

    /// Starts a request; the result is what the system call answers.
    ///
    /// Copies to the page cache are for the pool, which makes one at a time in each file, as the kernel does.
    /// A ring's threads spin for the lock meanwhile: a new file on tmpfs grew by 30 to 60 % faster without
    /// them, for a quarter to a third less processor time a MiB.
    pub(crate) fn start(&self, file: &Rc<OpenFile>, verb: Verb) -> Op {
        match &self.ring {
            Some(ring) if !verb.copies_to_cache() => ring.start(file, verb),
            _ => self.pool().start(file, verb),
        }
    }

    /// Runs a function that may block, elsewhere.
    pub(crate) async fn blocking<R: Send + 'static>(
        &self,
        call: impl FnOnce() -> io::Result<R> + Send + 'static,
    ) -> io::Result<R> {
        self.pool().call(call).await
    }

    /// Hands queued requests to the kernel and collects what is done; whether there was anything.
    pub(crate) fn turn(&self) -> bool {
        let mut worked = self.ring.as_ref().is_some_and(Ring::turn);
        if let Some(pool) = self.pool.get() {
            worked |= pool.collect();
        }
        worked
    }

    /// Whether requests are under way.
    pub(crate) fn is_busy(&self) -> bool {
        self.table.waiting() != 0
    }

    /// Whether [`turn`](Engine::turn) would find completions.
    pub(crate) fn has_completions(&self) -> bool {
        self.ring.as_ref().is_some_and(Ring::has_completions)
            || self.pool.get().is_some_and(Pool::has_completions)
    }

    fn pool(&self) -> &Pool {
        self.pool.get_or_init(|| Pool::new(Rc::clone(&self.table), self.remote.clone()))
    }
}

#[cfg(test)]
#[path = "../io_tests.rs"]
mod tests;
