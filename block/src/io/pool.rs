//! Threads that make blocking system calls: for hosts that refuse io_uring, and for what rings
//! cannot do.
#![expect(
    unsafe_code,
    reason = "memory of requests is used on other threads; the table keeps it alive"
)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::op::{Held, Op, OpTable};
use super::{OpenFile, Verb};
use crate::executor::Remote;
use crate::sys::{self, Way};
use crate::thread;

/// Most threads at once: enough to keep a disk busy.
const MAX_THREADS: usize = 16;

pub(super) struct Pool {
    table: Rc<OpTable>,
    shared: Arc<Shared>,
    threads: RefCell<Vec<JoinHandle<()>>>,
}

struct Shared {
    queue: Mutex<Queue>,
    work: Condvar,
    done: Mutex<Vec<(usize, i32)>>,
    any_done: AtomicBool,
    remote: Remote,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Files that a thread is copying to through the page cache.
    copied_to: Vec<RawFd>,
    idle: usize,
    stop: bool,
}

struct Job {
    key: usize,
    /// The file that is copied to through the page cache. The kernel lets one thread at a time do so; a
    /// second would spin for the file's lock, a tenth of the time that both took for an image, and read nothing
    /// meanwhile.
    copies_to: Option<RawFd>,
    work: Work,
}

impl Queue {
    /// Whether a thread may do this job now.
    fn is_free(&self, job: &Job) -> bool {
        job.copies_to.is_none_or(|fd| !self.copied_to.contains(&fd))
    }

    /// The first job that may be done now.
    fn take(&mut self) -> Option<Job> {
        let job = self.jobs.remove(self.jobs.iter().position(|job| self.is_free(job))?)?;
        self.copied_to.extend(job.copies_to);
        Some(job)
    }

    /// The job that copied to this file is done.
    fn give_back(&mut self, file: Option<RawFd>) {
        self.copied_to.retain(|fd| Some(*fd) != file);
    }
}

enum Work {
    Transfer { way: Way, fd: RawFd, at: u64, memory: Memory, flags: i32 },
    Sync { fd: RawFd },
    Allocate { fd: RawFd, mode: i32, at: u64, len: u64 },
    Call(Box<dyn FnOnce() + Send>),
}

/// Memory of a request in flight.
enum Memory {
    One(libc::iovec),
    Many(*const libc::iovec, usize),
}

// SAFETY: the operation table keeps the buffer and the iovecs alive and in place until the job's
// completion is collected, and others may change such memory at any time anyway.
unsafe impl Send for Memory {}

impl Pool {
    pub(super) fn new(table: Rc<OpTable>, remote: Remote) -> Pool {
        let shared = Shared {
            queue: Mutex::default(),
            work: Condvar::new(),
            done: Mutex::default(),
            any_done: AtomicBool::new(false),
            remote,
        };
        Pool { table, shared: Arc::new(shared), threads: RefCell::default() }
    }

    pub(super) fn start(&self, file: &Rc<OpenFile>, verb: Verb) -> Op {
        let fd = file.as_raw_fd();
        let copies_to = verb.copies_to_cache().then_some(fd);
        let key = self.table.insert(Held::new(file, verb));
        if let Some(work) = self.table.with_held(key, |held| work(fd, held)) {
            self.queue(Job { key, copies_to, work });
        }
        Op::new(&self.table, key)
    }

    /// Runs `call` on one of the threads.
    pub(super) async fn call<R: Send + 'static>(
        &self,
        call: impl FnOnce() -> io::Result<R> + Send + 'static,
    ) -> io::Result<R> {
        let result = Arc::new(Mutex::new(None));
        let slot = Arc::clone(&result);
        let key = self.table.insert(Held::nothing());
        let run = Box::new(move || {
            let answer = call();
            *lock(&slot) = Some(answer);
        });
        self.queue(Job { key, copies_to: None, work: Work::Call(run) });
        let status = Op::new(&self.table, key).await;
        let answer = lock(&result).take();
        answer.unwrap_or_else(|| Err(io::Error::from_raw_os_error(-status)))
    }

    fn queue(&self, job: Job) {
        let mut queue = lock(&self.shared.queue);
        let is_free = queue.is_free(&job);
        // One that is not free is taken by the thread that it waits for.
        let need_thread = is_free && queue.idle <= queue.jobs.len();
        queue.jobs.push_back(job);
        drop(queue);
        if is_free {
            self.shared.work.notify_one();
        }
        let mut threads = self.threads.borrow_mut();
        if need_thread && threads.len() < MAX_THREADS {
            let shared = Arc::clone(&self.shared);
            match thread::spawn("ferry-disk", move || shared.serve()) {
                Ok(thread) => threads.push(thread),
                Err(error) if threads.is_empty() => {
                    // Nobody will ever take it: fail what is queued instead of hanging.
                    tracing::error!("{error}");
                    let jobs = std::mem::take(&mut lock(&self.shared.queue).jobs);
                    for job in jobs {
                        self.shared.finish(job.key, -libc::EAGAIN);
                    }
                }
                Err(error) => tracing::warn!("{error}"),
            }
        }
    }

    /// Hands out results; whether there were any.
    pub(super) fn collect(&self) -> bool {
        if !self.shared.any_done.swap(false, Ordering::Acquire) {
            return false;
        }
        let done = std::mem::take(&mut *lock(&self.shared.done));
        for (key, result) in &done {
            self.table.complete(*key, *result);
        }
        !done.is_empty()
    }

    pub(super) fn has_completions(&self) -> bool {
        self.shared.any_done.load(Ordering::Acquire)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        lock(&self.shared.queue).stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.take() {
            if thread.join().is_err() {
                tracing::error!("a disk thread has panicked");
            }
        }
        self.collect();
    }
}

impl Shared {
    fn serve(&self) {
        let mut queue = lock(&self.queue);
        let mut gave_back = false;
        loop {
            if let Some(Job { key, copies_to, work }) = queue.take() {
                // The job that waited for the file need not be the one that this thread takes.
                if gave_back && queue.jobs.iter().any(|job| queue.is_free(job)) {
                    self.work.notify_one();
                }
                drop(queue);
                self.finish(key, run(work));
                queue = lock(&self.queue);
                queue.give_back(copies_to);
                gave_back = copies_to.is_some();
            } else if queue.stop {
                return;
            } else {
                queue.idle += 1;
                queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
                queue.idle -= 1;
            }
        }
    }

    fn finish(&self, key: usize, result: i32) {
        lock(&self.done).push((key, result));
        self.any_done.store(true, Ordering::Release);
        self.remote.wake();
    }
}

fn work(fd: RawFd, held: &Held) -> Work {
    match &held.verb {
        Verb::Transfer { way, at, buf, durable, .. } => {
            let memory = match buf.single() {
                Some((start, len)) => {
                    Memory::One(libc::iovec { iov_base: start.cast(), iov_len: len })
                }
                None => Memory::Many(held.iovecs.as_ptr(), held.iovecs.len()),
            };
            let flags = if *durable { libc::RWF_DSYNC } else { 0 };
            Work::Transfer { way: *way, fd, at: *at, memory, flags }
        }
        Verb::Sync { .. } => Work::Sync { fd },
        Verb::Allocate { mode, at, len } => Work::Allocate { fd, mode: *mode, at: *at, len: *len },
    }
}

/// Does the work; a count, or a negative errno, as io_uring answers.
fn run(work: Work) -> i32 {
    let result = match work {
        Work::Transfer { way, fd, at, memory, flags } => {
            let (iovecs, count) = match &memory {
                Memory::One(iovec) => (std::ptr::from_ref(iovec), 1),
                Memory::Many(iovecs, count) => (*iovecs, *count),
            };
            // SAFETY: see `Memory`: everything named is alive until this job is collected.
            unsafe { sys::vectored(way, fd, iovecs, count, at, flags) }
        }
        Work::Sync { fd } => sys::fdatasync(fd),
        Work::Allocate { fd, mode, at, len } => sys::fallocate(fd, mode, at, len),
        Work::Call(call) => {
            call();
            Ok(0)
        }
    };
    match result {
        Ok(count) => i32::try_from(count).unwrap_or(i32::MAX),
        Err(error) => -error.raw_os_error().unwrap_or(libc::EIO),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
