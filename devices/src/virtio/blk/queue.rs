//! One queue of a disk, on the I/O thread: takes what the driver offers, gives back what is done.
//!
//! Every request becomes a task. What finishes in one turn of the executor is given back together by the
//! `deliver` task, with one store of the used index and at most one interrupt. While the thread is awake it
//! looks at the ring every turn and the driver does not ring the doorbell.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use ferry_block::{
    BlockBackend, Error, ErrorKind, Executor, Notify, Poller, PollerGuard, WriteFlags,
};
use vm_memory::GuestAddress;

use super::config::{ErrorAction, FailedRequest};
use super::request::{Op, Request, Status, ZeroRange};
use super::shared::Shared;
use crate::virtio::guest_buf::GuestBuffers;
use crate::virtio::queue::{Chain, QueueError, Ring, Used};
use crate::virtio::{DriverSignal, QueuePosition};

/// A queue that the driver started.
pub(super) struct BlkQueue {
    index: u16,
    ring: RefCell<Ring>,
    chain: RefCell<Chain>,
    buffers: GuestBuffers,
    signal: Rc<dyn DriverSignal>,
    disk: Disk,
    executor: Executor,
    /// Whether new requests are taken.
    running: Cell<bool>,
    /// Finished and not yet given back.
    done: RefCell<Vec<Used>>,
    /// The other of the two lists that `done` alternates between.
    delivering: RefCell<Vec<Used>>,
    finished: Notify,
    /// The queue is being torn down: `deliver` ends.
    closed: Cell<bool>,
    /// Requests whose heads are in flight but that wait for the next resume.
    parked: RefCell<Vec<u16>>,
    /// Told whenever nothing is in flight any more.
    idle: Rc<Notify>,
    poller: RefCell<Option<PollerGuard>>,
}

/// The disk behind all queues of a device.
#[derive(Clone)]
pub(super) struct Disk {
    pub(super) backend: BlockBackend,
    pub(super) shared: Arc<Shared>,
    pub(super) features: u64,
    /// The driver broke one queue: none of the device goes on.
    pub(super) broken: Rc<Cell<bool>>,
}

/// What a queue is made with.
pub(super) struct Parts {
    pub(super) index: u16,
    pub(super) ring: Ring,
    pub(super) buffers: GuestBuffers,
    pub(super) signal: Rc<dyn DriverSignal>,
    pub(super) disk: Disk,
    pub(super) executor: Executor,
    pub(super) idle: Rc<Notify>,
}

impl BlkQueue {
    /// A queue that does not run yet.
    pub(super) fn new(parts: Parts) -> Rc<Self> {
        let Parts { index, ring, buffers, signal, disk, executor, idle } = parts;
        let queue = Rc::new(Self {
            index,
            ring: RefCell::new(ring),
            chain: RefCell::new(Chain::new()),
            buffers,
            signal,
            disk,
            executor: executor.clone(),
            running: Cell::new(false),
            done: RefCell::default(),
            delivering: RefCell::default(),
            finished: Notify::new(),
            closed: Cell::new(false),
            parked: RefCell::default(),
            idle,
            poller: RefCell::default(),
        });
        executor.spawn(Rc::clone(&queue).deliver());
        queue
    }

    /// Takes requests from now on.
    pub(super) fn run(self: &Rc<Self>) {
        if self.running.replace(true) {
            return;
        }
        let poller = Rc::new(QueuePoller(Rc::clone(self)));
        *self.poller.borrow_mut() = Some(self.executor.add_poller(poller));
    }

    /// Takes nothing more. Requests in flight go on.
    pub(super) fn pause(&self) {
        self.running.set(false);
        drop(self.poller.borrow_mut().take());
    }

    /// Ends the queue; nothing may be in flight.
    pub(super) fn close(&self) {
        self.pause();
        self.closed.set(true);
        self.finished.notify_all();
    }

    /// Marks a request as failed earlier, in another process; it is tried again by `retry`.
    pub(super) fn adopt(&self, head: u16) -> Result<(), QueueError> {
        self.ring.borrow_mut().adopt(head)?;
        self.parked.borrow_mut().push(head);
        Ok(())
    }

    /// Tries parked requests again, and tells the driver to look: notifications may have been lost.
    pub(super) fn retry(self: &Rc<Self>) {
        for head in self.parked.take() {
            let read = {
                let mut chain = self.chain.borrow_mut();
                let memory = self.buffers.memory();
                self.ring
                    .borrow_mut()
                    .read_again(head, memory, &mut chain)
                    .and_then(|()| Request::read(&chain, &self.buffers, &self.disk.rules()))
            };
            match read {
                Ok(request) => self.submit(request),
                Err(error) => {
                    self.ring.borrow_mut().abandon(head);
                    self.fail(error);
                }
            }
        }
        self.signal.queue(self.index);
    }

    /// Requests that wait for `retry`.
    pub(super) fn parked(&self) -> Vec<u16> {
        self.parked.borrow().clone()
    }

    /// Whether every request that was taken is given back or parked.
    pub(super) fn is_idle(&self) -> bool {
        self.ring.borrow().in_flight() == self.parked.borrow().len()
    }

    /// Where the queue stands.
    pub(super) fn position(&self) -> QueuePosition {
        let state = self.ring.borrow().state();
        QueuePosition {
            index: self.index,
            next_avail: state.next_avail,
            next_used: state.next_used,
        }
    }

    fn is_running(&self) -> bool {
        self.running.get() && !self.disk.broken.get()
    }

    /// Takes what the driver has offered. Returns whether there was anything.
    fn take(self: &Rc<Self>) -> bool {
        if !self.is_running() || !self.ring.borrow().has_available(self.buffers.memory()) {
            return false;
        }
        let rules = self.disk.rules();
        let mut chain = self.chain.borrow_mut();
        let mut ring = self.ring.borrow_mut();
        let mut batch = match ring.batch(self.buffers.memory()) {
            Ok(batch) => batch,
            Err(error) => {
                drop(ring);
                self.fail(error);
                return true;
            }
        };
        let broken = loop {
            match batch.next(&mut chain) {
                Ok(true) => {}
                Ok(false) => break None,
                Err(error) => break Some(error),
            }
            match Request::read(&chain, &self.buffers, &rules) {
                Ok(request) => self.submit(request),
                Err(error) => {
                    batch.abandon(chain.head());
                    break Some(error);
                }
            }
        };
        drop(ring);
        if let Some(error) = broken {
            self.fail(error);
        }
        true
    }

    /// The driver broke the queue: it gets no further and needs a reset. What is in flight still ends.
    fn fail(&self, error: QueueError) {
        self.disk.shared.complain(self.index, error);
        self.disk.broken.set(true);
        self.signal.needs_reset();
    }

    fn submit(self: &Rc<Self>, request: Request) {
        let Request { head, status_at, room, op } = request;
        let ticket = Ticket { queue: Rc::clone(self), head, status_at, room, open: true };
        if let Op::Done { status, written } = op {
            return ticket.complete(status, written);
        }
        self.executor.spawn(ticket.serve(op));
    }

    /// Gives finished requests back, all of one turn at a time.
    async fn deliver(self: Rc<Self>) {
        loop {
            self.finished.wait_until(|| self.closed.get() || !self.done.borrow().is_empty()).await;
            if self.done.borrow().is_empty() {
                return;
            }
            self.deliver_now();
        }
    }

    fn deliver_now(&self) {
        let mut batch = self.delivering.borrow_mut();
        std::mem::swap(&mut *batch, &mut *self.done.borrow_mut());
        let wanted = self.ring.borrow_mut().push_used(self.buffers.memory(), &batch);
        batch.clear();
        match wanted {
            Ok(true) => self.signal.queue(self.index),
            Ok(false) => {}
            Err(error) => self.fail(error),
        }
        if self.is_idle() {
            self.idle.notify_all();
        }
    }
}

impl Disk {
    fn rules(&self) -> super::request::Rules {
        self.shared.rules(self.features)
    }

    async fn serve(&self, op: Op) -> Result<(), Error> {
        match op {
            Op::Read { at, into } => self.backend.read(at, into).await,
            Op::Write { at, from } => self.backend.write(at, from, self.write_flags()).await,
            // Boxed, as they are rare: every request of the common kinds would be as large as they are.
            other => Box::pin(self.serve_rare(other)).await,
        }
    }

    async fn serve_rare(&self, op: Op) -> Result<(), Error> {
        match op {
            Op::Flush => self.backend.flush().await,
            Op::Discard(ranges) => {
                for ZeroRange { range, .. } in ranges {
                    self.backend.discard(range).await?;
                }
                Ok(())
            }
            Op::WriteZeroes(ranges) => {
                for ZeroRange { range, unmap } in ranges {
                    let flags = WriteFlags { may_unmap: unmap, ..self.write_flags() };
                    self.backend.write_zeroes(range, flags).await?;
                }
                Ok(())
            }
            Op::Read { .. } | Op::Write { .. } | Op::Done { .. } => Ok(()),
        }
    }

    /// Without a write cache a write is durable when it completes (section 5.2.6.2).
    fn write_flags(&self) -> WriteFlags {
        WriteFlags { fua: !self.shared.write_cache(self.features), ..WriteFlags::NONE }
    }
}

/// The duty to answer one request. Dropped without an answer it is a bug, and the driver gets an error.
struct Ticket {
    queue: Rc<BlkQueue>,
    head: u16,
    status_at: GuestAddress,
    room: u64,
    open: bool,
}

impl Ticket {
    async fn serve(self, op: Op) {
        let (is_write, read_len) = match op {
            Op::Read { .. } => (false, self.room),
            _ => (true, 0),
        };
        match self.queue.disk.serve(op).await {
            Ok(()) => self.complete(Status::Ok, read_len),
            Err(error) => self.refuse(&error, is_write),
        }
    }

    fn refuse(self, error: &Error, is_write: bool) {
        if error.kind() == ErrorKind::Cancelled && self.queue.disk.backend.is_retired() {
            // Nothing is wrong with the disk: whoever serves the ring next takes the request again.
            return self.park();
        }
        let failed = FailedRequest { is_write, kind: error.kind(), message: error.to_string() };
        match self.queue.disk.shared.on_error(&failed) {
            ErrorAction::Report => self.complete(Status::IoErr, 0),
            ErrorAction::Ignore => self.complete(Status::Ok, 0),
            ErrorAction::Stop => self.park(),
        }
    }

    /// Keeps the request for `retry`.
    fn park(mut self) {
        self.open = false;
        self.queue.parked.borrow_mut().push(self.head);
        if self.queue.is_idle() {
            self.queue.idle.notify_all();
        }
    }

    /// Answers, with `written` bytes before the status byte filled from the start.
    fn complete(mut self, status: Status, written: u64) {
        self.answer(status, written);
    }

    fn answer(&mut self, status: Status, written: u64) {
        self.open = false;
        self.queue.buffers.write_byte(self.status_at, status as u8);
        // Section 2.7.8.2: the length counts bytes from the start, so the status byte only counts when
        // there is no gap before it.
        let len = if written == self.room { written + 1 } else { written };
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        let mut done = self.queue.done.borrow_mut();
        done.push(Used { head: self.head, len });
        if done.len() == 1 {
            drop(done);
            self.queue.finished.notify_all();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.open {
            self.answer(Status::IoErr, 0);
            if cfg!(test) && !std::thread::panicking() {
                panic!("request {} was dropped without an answer", self.head);
            }
            tracing::error!(head = self.head, "a disk request was dropped without an answer");
        }
    }
}

/// Looks at the ring every turn of the executor.
struct QueuePoller(Rc<BlkQueue>);

impl Poller for QueuePoller {
    fn poll(&self) -> bool {
        self.0.take()
    }

    fn arm(&self) {
        if self.0.is_running() {
            // What came in meanwhile is found by the poll that follows.
            let armed = self.0.ring.borrow_mut().enable_kicks(self.0.buffers.memory());
            if let Err(error) = armed {
                self.0.fail(error);
            }
        }
    }

    fn disarm(&self) {
        if self.0.is_running() {
            let disarmed = self.0.ring.borrow_mut().disable_kicks(self.0.buffers.memory());
            if let Err(error) = disarmed {
                self.0.fail(error);
            }
        }
    }
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
