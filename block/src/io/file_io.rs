//! A file on the disk I/O of this thread: whole transfers, whatever the kernel gives at once.

use std::cell::Cell;
use std::io;
use std::ops::Range;
use std::os::fd::AsFd;
use std::rc::Rc;

use super::{OpenFile, RingChoice, Verb};
use crate::buf::IoBuf;
use crate::executor::Executor;
use crate::sys::{self, Way};

/// Longest transfer through the page cache that this thread always makes itself, bytes. A longer one
/// is copied by another thread while this one has streams to copy to: an NBD server's rate grew by
/// half at 128 KiB, for the same processor time. With nothing else to do, the wake-up of the other
/// would only cost: a third of the rate at 128 KiB, and an eighth of what a guest writes at 1 MiB.
const OWN_LIMIT: usize = 64 << 10;

/// What is longer is copied by another thread whenever there are streams, bytes: at 1 MiB the wake-up
/// costs a client that waits for each answer an eighth of its rate, and gives the others two thirds.
const OTHERS_LIMIT: usize = 512 << 10;

/// Longest that is copied at a stretch.
const INLINE_LIMIT: usize = 256 << 10;

/// An open file with the executor that does its I/O.
pub(crate) struct FileIo {
    executor: Executor,
    file: Rc<OpenFile>,
    /// The content is in memory, so that system calls never wait for a device. A ring would hand
    /// each request to another thread there (tmpfs has no asynchronous path), which costs more
    /// than copying a few bytes.
    in_memory: bool,
    /// Transfers copy: the content is in memory, or in the page cache.
    cached: bool,
    /// The executor's pauses at the last transfer that another thread could have made.
    pauses: Cell<u64>,
}

impl FileIo {
    pub(crate) fn new(executor: Executor, file: std::fs::File) -> FileIo {
        let in_memory = sys::is_tmpfs(file.as_fd());
        let cached = in_memory || !sys::is_direct(file.as_fd());
        FileIo { executor, file: OpenFile::new(file), in_memory, cached, pauses: Cell::new(0) }
    }

    pub(crate) fn file(&self) -> &Rc<OpenFile> {
        &self.file
    }

    pub(crate) fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// Fills the buffer; what lies behind the end of the file reads as zeroes.
    pub(crate) async fn read(&self, at: u64, into: IoBuf) -> io::Result<()> {
        let elsewhere = self.is_for_others(into.len());
        let (mut at, mut rest) = (at, into);
        while !rest.is_empty() {
            let done = self.transfer(Way::Read, at, &rest, false, elsewhere).await?;
            if done == 0 {
                rest.fill_zero();
                break;
            }
            at += done as u64;
            rest = rest.slice(done..rest.len());
        }
        Ok(())
    }

    /// Writes the buffer, durably if asked.
    pub(crate) async fn write(&self, at: u64, from: IoBuf, durable: bool) -> io::Result<()> {
        let elsewhere = self.is_for_others(from.len());
        let range = at..at + from.len() as u64;
        let (mut at, mut rest) = (at, from);
        while !rest.is_empty() {
            let by_itself = durable && !self.cached;
            let done = self.transfer(Way::Write, at, &rest, by_itself, elsewhere).await?;
            if done == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            at += done as u64;
            rest = rest.slice(done..rest.len());
        }
        if durable && self.cached { self.sync(Some(range)).await } else { Ok(()) }
    }

    /// One attempt; how many bytes.
    async fn transfer(
        &self,
        way: Way,
        at: u64,
        buf: &IoBuf,
        durable: bool,
        elsewhere: bool,
    ) -> io::Result<usize> {
        if self.in_memory && !elsewhere {
            let piece = buf.slice(0..buf.len().min(INLINE_LIMIT));
            let done = self.transfer_here(way, at, &piece)?;
            if done < buf.len() {
                self.executor.yield_now().await;
            }
            return Ok(done);
        }
        let verb = || Verb::Transfer { way, at, buf: buf.clone(), durable, elsewhere };
        let count = self.request(verb).await?;
        Ok(usize::try_from(count).unwrap_or(0).min(buf.len()))
    }

    /// Whether another thread should copy so many bytes.
    pub(super) fn is_for_others(&self, len: usize) -> bool {
        if !self.cached || len <= OWN_LIMIT {
            return false;
        }
        let pauses = self.executor.pauses();
        let had_pause = self.pauses.replace(pauses) != pauses;
        let pressed = !had_pause || len > OTHERS_LIMIT || self.executor.engine().is_busy();
        let threads = self.executor.ring_choice() == RingChoice::ThreadPool;
        threads || (self.executor.has_streams() && pressed)
    }

    fn transfer_here(&self, way: Way, at: u64, buf: &IoBuf) -> io::Result<usize> {
        loop {
            match sys::transfer(way, self.file.as_fd(), buf, at) {
                Ok(count) => {
                    let count = usize::try_from(count).unwrap_or(0).min(buf.len());
                    if way == Way::Read {
                        buf.slice(0..count).mark_written();
                    }
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Makes durable what was written, to this range at least, unless [`lost`](OpenFile::lost) says otherwise then.
    /// Memory is as durable as its files get.
    pub(crate) async fn sync(&self, range: Option<Range<u64>>) -> io::Result<()> {
        if self.in_memory {
            return Ok(());
        }
        self.request(|| Verb::Sync { range: range.clone() }).await?;
        if self.cached {
            self.file.told().await;
        }
        Ok(())
    }

    /// `fallocate(2)` with `mode`.
    pub(crate) async fn allocate(&self, mode: i32, at: u64, len: u64) -> io::Result<()> {
        self.request(|| Verb::Allocate { mode, at, len }).await?;
        Ok(())
    }

    /// Runs a function on the file that may block, elsewhere.
    pub(crate) async fn blocking<R: Send + 'static>(
        &self,
        call: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> io::Result<R> + Send + 'static,
    ) -> io::Result<R> {
        let own = self.file.as_fd().try_clone_to_owned()?;
        self.executor.engine().blocking(move || call(own.as_fd())).await
    }

    async fn request(&self, verb: impl Fn() -> Verb) -> io::Result<u32> {
        loop {
            let result = self.executor.engine().start(&self.file, verb()).await;
            match u32::try_from(result) {
                Ok(count) => return Ok(count),
                // A signal or a full kernel queue is no answer: ask again.
                Err(_) if result == -libc::EINTR || result == -libc::EAGAIN => {
                    self.executor.yield_now().await;
                }
                Err(_) => return Err(io::Error::from_raw_os_error(-result)),
            }
        }
    }
}
