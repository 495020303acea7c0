//! io_uring: queues requests, hands them over in one system call per turn, collects completions.
#![expect(
    unsafe_code,
    reason = "submission entries name memory; the operation table keeps it alive"
)]

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{Ordering, fence};

use io_uring::{IoUring, opcode, squeue, types};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::op::{Held, Op, OpTable};
use super::{OpenFile, Verb};
use crate::sys::Way;

/// Requests queued between two system calls; more are handed over early.
const ENTRIES: u32 = 256;
/// Room for completions. The kernel keeps what does not fit and gives it later.
const COMPLETIONS: u32 = 4096;
/// Bytes from which a request to a disk is handed over at once. The kernel joins neighbours that arrive in one
/// system call, and what it joined completes as one: of eight sequential 1 MiB reads it made two of
/// 4 MiB, so that the first answer waited for the fourth. Alone they were 5 % faster on a disk.
const LARGE: usize = 512 << 10;
/// Completions collected at once, so that tasks get their turn.
const REAP_LIMIT: usize = 256;

pub(super) struct Ring {
    ring: RefCell<IoUring>,
    table: Rc<OpTable>,
    /// Whether completions can only arrive while this thread is in the kernel.
    deferred: bool,
    /// What the kernel writes when completions arrive while this thread sleeps. Polling the ring
    /// itself would not do: with deferred task work it need not become readable.
    eventfd: EventFd,
}

impl Ring {
    pub(super) fn new(table: Rc<OpTable>) -> io::Result<Ring> {
        // Linux 6.1 has all of these flags, 5.19 has the middle ones, older kernels none.
        let mut deferred = true;
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(COMPLETIONS)
            .build(ENTRIES)
            .or_else(|_| {
                deferred = false;
                IoUring::builder()
                    .setup_coop_taskrun()
                    .setup_taskrun_flag()
                    .setup_cqsize(COMPLETIONS)
                    .build(ENTRIES)
            })
            .or_else(|_| IoUring::builder().setup_cqsize(COMPLETIONS).build(ENTRIES))?;
        Self::check(&ring)?;
        let eventfd = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)?;
        ring.submitter().register_eventfd(eventfd.as_raw_fd())?;
        let ring = Ring { ring: RefCell::new(ring), table, deferred, eventfd };
        ring.disarm();
        Ok(ring)
    }

    /// Asks for the eventfd to be written; whether there are completions already.
    pub(super) fn arm(&self) -> bool {
        self.ring.borrow_mut().completion().enable_eventfd();
        // The kernel queues work and then looks at the flag; this is the other half.
        fence(Ordering::SeqCst);
        self.has_completions()
    }

    /// This thread is awake: writing the eventfd would be wasted.
    pub(super) fn disarm(&self) {
        self.ring.borrow_mut().completion().disable_eventfd();
    }

    /// Refuses kernels whose rings lack what we use.
    fn check(ring: &IoUring) -> io::Result<()> {
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let needed = [
            opcode::Read::CODE,
            opcode::Readv::CODE,
            opcode::Write::CODE,
            opcode::Writev::CODE,
            opcode::Fsync::CODE,
            opcode::Fallocate::CODE,
        ];
        if ring.params().is_feature_nodrop() && needed.iter().all(|code| probe.is_supported(*code))
        {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::Unsupported, "this kernel's rings are too old"))
    }

    /// The descriptor that becomes readable after [`arm`](Ring::arm).
    pub(super) fn fd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }

    /// Queues a request; it leaves at the end of this turn, a long one now.
    pub(super) fn start(&self, file: &Rc<OpenFile>, verb: Verb) -> Op {
        let fd = types::Fd(file.as_raw_fd());
        let (at_once, flags) = match &verb {
            Verb::Transfer { elsewhere: true, .. } => (true, squeue::Flags::ASYNC),
            Verb::Transfer { buf, .. } => (buf.len() >= LARGE, squeue::Flags::empty()),
            Verb::Sync { .. } | Verb::Allocate { .. } => (false, squeue::Flags::empty()),
        };
        let key = self.table.insert(Held::new(file, verb));
        let entry = |held: &Held| entry(fd, held).user_data(key as u64).flags(flags);
        let entry = self.table.with_held(key, entry);
        if let Some(entry) = entry {
            let mut ring = self.ring.borrow_mut();
            // SAFETY: everything the entry names is owned by the table until its completion.
            while unsafe { ring.submission().push(&entry) }.is_err() {
                // Full: hand over what is queued. This fails only while the kernel has no memory
                // or too many completions that we must collect first.
                if ring.submit().is_err() {
                    self.reap(&mut ring);
                }
            }
            // What the kernel does not take now stays queued for the turn.
            if at_once && let Err(error) = ring.submit() {
                tracing::trace!("io_uring: {error}");
            }
        }
        Op::new(&self.table, key)
    }

    /// Hands over what is queued and collects what is done; whether there was anything.
    pub(super) fn turn(&self) -> bool {
        let mut ring = self.ring.borrow_mut();
        let (queued, must_enter) = {
            let submission = ring.submission();
            let queued = submission.len();
            (queued, queued != 0 || submission.taskrun() || submission.cq_overflow())
        };
        if must_enter {
            // With deferred task work a plain submission collects nothing that was waiting.
            let entered = if self.deferred || queued == 0 {
                submit_and_collect(&ring)
            } else {
                ring.submit()
            };
            // Busy or interrupted: what is queued stays queued.
            if let Err(error) = entered {
                tracing::trace!("io_uring: {error}");
            }
        }
        self.reap(&mut ring) || queued != 0
    }

    /// Whether [`turn`](Ring::turn) would find completions.
    pub(super) fn has_completions(&self) -> bool {
        let mut ring = self.ring.borrow_mut();
        !ring.completion().is_empty() || ring.submission().taskrun()
    }

    fn reap(&self, ring: &mut IoUring) -> bool {
        let mut any = false;
        for completion in ring.completion().take(REAP_LIMIT) {
            any = true;
            if let Ok(key) = usize::try_from(completion.user_data()) {
                // This may wake tasks but runs none, so nobody can come back for the ring.
                self.table.complete(key, completion.result());
            }
        }
        any
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel writes into buffers of requests in flight: they must be over first.
        let ring = self.ring.get_mut();
        while self.table.waiting() != 0 {
            if let Err(error) = ring.submit_and_wait(1)
                && error.raw_os_error() != Some(libc::EINTR)
                && error.raw_os_error() != Some(libc::EBUSY)
            {
                // Their memory can never be used again.
                tracing::error!("io_uring: requests cannot be finished: {error}");
                std::mem::forget(Rc::clone(&self.table));
                return;
            }
            for completion in ring.completion() {
                if let Ok(key) = usize::try_from(completion.user_data()) {
                    self.table.complete(key, completion.result());
                }
            }
        }
    }
}

/// Enters the kernel to submit and to run what it has put off, without waiting.
fn submit_and_collect(ring: &IoUring) -> io::Result<usize> {
    const GETEVENTS: u32 = 1;
    let submitter = ring.submitter();
    // SAFETY: counts what is between the heads and tails; nobody else touches the queue.
    let queued = unsafe { ring.submission_shared() }.len();
    let count = u32::try_from(queued).unwrap_or(u32::MAX);
    // SAFETY: no argument structure is passed.
    unsafe { submitter.enter::<libc::sigset_t>(count, 0, GETEVENTS, None) }
}

/// The submission entry of a request.
fn entry(fd: types::Fd, held: &Held) -> squeue::Entry {
    match &held.verb {
        Verb::Transfer { way, at, buf, durable, .. } => {
            let flags = if *durable { libc::RWF_DSYNC } else { 0 };
            match (way, buf.single()) {
                (Way::Read, Some((start, len))) => {
                    opcode::Read::new(fd, start, clamp(len)).offset(*at).build()
                }
                (Way::Write, Some((start, len))) => {
                    opcode::Write::new(fd, start, clamp(len)).offset(*at).rw_flags(flags).build()
                }
                (Way::Read, None) => {
                    let count = clamp(held.iovecs.len());
                    opcode::Readv::new(fd, held.iovecs.as_ptr(), count).offset(*at).build()
                }
                (Way::Write, None) => {
                    let count = clamp(held.iovecs.len());
                    opcode::Writev::new(fd, held.iovecs.as_ptr(), count)
                        .offset(*at)
                        .rw_flags(flags)
                        .build()
                }
            }
        }
        Verb::Sync { range } => {
            let sync = opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC);
            match range.as_ref().map(|range| (range.start, u32::try_from(range.end - range.start)))
            {
                Some((at, Ok(len))) => sync.offset(at).len(len).build(),
                _ => sync.build(),
            }
        }
        Verb::Allocate { mode, at, len } => {
            opcode::Fallocate::new(fd, *len).offset(*at).mode(*mode).build()
        }
    }
}

/// The kernel moves at most 2 GiB at once anyway; the rest is asked for again.
fn clamp(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(0x7fff_f000)
}
