//! One client in the transmission phase: reading requests, starting them, sending replies.
//!
//! A request is polled once where it was read. On storage that answers at once that is all: no task,
//! no wake-up. Whatever was answered while one batch of requests was worked through leaves in one
//! system call, or a few if there is much of it; so do the replies of the requests that the disk finishes
//! in one turn.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::task::{Context, Waker};

use super::export::Export;
use super::input::Input;
use super::negotiate::Agreement;
use super::reply;
use super::request::Outcome;
use crate::buf::{BufPool, IoBuf};
use crate::error::Result;
use crate::executor::{Counted, Executor};
use crate::nbd::proto::cmd;
use crate::nbd::proto::request::Request;
use crate::net::{Outbox, Stream, lost};
use crate::notify::Notify;

/// Most requests of one client that are under way at once.
const MAX_REQUESTS: usize = 1024;
/// Memory of one client's requests and replies beyond which it is not read from, bytes: two of the
/// longest requests. One more may be on its way when the limit is reached.
const MAX_MEMORY: usize = 64 << 20;
/// Bytes of replies without data that may wait to be sent before the client is not read from.
const MAX_HEADS: usize = 1 << 20;
/// Memory that is kept for the next requests, bytes: what the usual clients have under way (64 requests of
/// 256 KiB, or 8 of 1 MiB) and what requests are received in. With 8 MiB a tenth of the latter had to be
/// allocated and zeroed anew.
const KEEP_MEMORY: usize = 17 << 20;

/// So many replies, or chunks of them, are sent although more requests of the batch are left: who has sent 32 works on the first
/// half of the replies while the second half is made, and neither has to sleep. That is half as fast again with
/// 4 KiB requests on tmpfs.
const SEND_AFTER: usize = 16;

/// Requests that must have come one by one before the next is polled for: a client with more under way
/// keeps the server busy anyway, and polling in the gaps would only cost time.
const ALONE: usize = 16;

/// A client that uses an export.
pub(super) struct Connection {
    pub(super) export: Rc<Export>,
    pub(super) agreement: Agreement,
    pub(super) pool: BufPool,
    executor: Executor,
    _streaming: Counted,
    stream: Stream,
    outbox: RefCell<Outbox>,
    under_way: Cell<usize>,
    finished: Notify,
    /// The reader is working through a batch and will send what it leads to.
    reading: Cell<bool>,
    /// The writer has something to do.
    to_send: Cell<bool>,
    /// The socket is full: the writer waits for it.
    blocked: Cell<bool>,
    over: Cell<bool>,
    wake_writer: Notify,
}

impl Connection {
    pub(super) fn new(
        executor: Executor,
        stream: Stream,
        export: Rc<Export>,
        agreement: Agreement,
    ) -> Rc<Connection> {
        Rc::new(Connection {
            export,
            agreement,
            pool: BufPool::new(KEEP_MEMORY),
            _streaming: executor.streaming(),
            executor,
            stream,
            outbox: RefCell::default(),
            under_way: Cell::new(0),
            finished: Notify::new(),
            reading: Cell::new(false),
            to_send: Cell::new(false),
            blocked: Cell::new(false),
            over: Cell::new(false),
            wake_writer: Notify::new(),
        })
    }

    /// Serves until the client leaves, is thrown out, or breaks the protocol (the error says how).
    /// Afterwards none of its requests is under way.
    pub(super) async fn serve(self: &Rc<Self>) -> Result<()> {
        let this = Rc::clone(self);
        let writer = self.executor.spawn(async move { this.write().await });
        let result = self.read().await;
        // A client that says goodbye still gets the replies that it is owed.
        self.finished.wait_until(|| self.under_way.get() == 0).await;
        self.over.set(true);
        self.wake_writer.notify_all();
        writer.await;
        self.stream.say_goodbye();
        self.stream.shut_down();
        result
    }

    /// Throws the client out. Requests under way go on; their replies reach nobody.
    pub(super) fn shut_down(&self) {
        self.stream.shut_down();
        self.to_send.set(true);
        self.wake_writer.notify_all();
    }

    async fn read(self: &Rc<Self>) -> Result<()> {
        let mut input = Input::new(self.agreement.style, &self.pool);
        let mut alone = 0;
        loop {
            self.reading.set(true);
            let begun = self.work_through(&mut input).await;
            self.reading.set(false);
            self.send_now();
            let Some(begun) = begun? else { return Ok(()) };
            alone = if begun > 1 { 0 } else { alone + begun };
            // Who asks for one thing at a time asks for the next when it has the reply.
            if begun == 1 && self.under_way.get() == 0 && self.stream.is_drained() {
                let _expecting = (alone > ALONE).then(|| self.executor.expecting());
                self.stream.readable().await;
            }
            match input.receive(&self.stream) {
                Ok(0) => return Ok(()),
                // Others have their turn, and meanwhile more may arrive.
                Ok(_) => self.executor.yield_now().await,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.readable().await;
                }
                Err(error) => return Err(lost(error)),
            }
        }
    }

    /// Starts every request that has been received; how many, or `None` if the client leaves.
    async fn work_through(self: &Rc<Self>, input: &mut Input) -> Result<Option<usize>> {
        let mut begun = 0;
        while let Some((request, payload)) = input.next()? {
            if request.command == cmd::DISC {
                return Ok(None);
            }
            begun += 1;
            if self.is_full() {
                self.reading.set(false);
                self.send_now();
                self.finished.wait_until(|| !self.is_behind()).await;
                self.pool.at_most(MAX_MEMORY).await;
                self.reading.set(true);
            }
            self.start(request, payload);
            if self.outbox.borrow().fresh() >= SEND_AFTER {
                self.send_now();
            }
        }
        Ok(Some(begun))
    }

    fn is_full(&self) -> bool {
        self.is_behind() || self.pool.out() > MAX_MEMORY
    }

    fn is_behind(&self) -> bool {
        self.under_way.get() >= MAX_REQUESTS || self.outbox.borrow().head_len() > MAX_HEADS
    }

    fn start(self: &Rc<Self>, request: Request, payload: IoBuf) {
        self.under_way.set(self.under_way.get() + 1);
        let this = Rc::clone(self);
        let mut task = Box::pin(async move {
            let outcome = this.perform(&request, payload).await;
            this.answer(&request, outcome);
        });
        // Whoever is not done at once is polled again as a task, with the waker of one.
        if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
            drop(self.executor.spawn(task));
        }
    }

    fn answer(&self, request: &Request, outcome: Outcome) {
        reply::encode(&self.agreement, request, outcome, &mut self.outbox.borrow_mut());
        self.under_way.set(self.under_way.get() - 1);
        self.finished.notify_all();
        if !self.reading.get() && !self.to_send.replace(true) {
            self.wake_writer.notify_all();
        }
    }

    /// Sends what is there, unless the writer waits for room in the socket.
    fn send_now(&self) {
        if self.blocked.get() || self.outbox.borrow().is_empty() {
            return;
        }
        let sent = self.outbox.borrow_mut().send(&self.stream);
        if let Err(error) = sent {
            // The writer waits for room, or finds out what is wrong.
            self.blocked.set(error.kind() == io::ErrorKind::WouldBlock);
            self.to_send.set(true);
            self.wake_writer.notify_all();
        }
    }

    /// Sends what the reader could not, and the replies of requests that took longer.
    async fn write(&self) {
        loop {
            self.wake_writer.wait_until(|| self.to_send.get() || self.over.get()).await;
            if !self.to_send.replace(false) {
                return;
            }
            if self.blocked.get() && self.stream.writable().await.is_err() {
                self.stream.shut_down();
            }
            let sent = self.outbox.borrow_mut().send(&self.stream);
            self.finished.notify_all();
            match sent {
                Ok(()) => self.blocked.set(false),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked.set(true);
                    self.to_send.set(true);
                }
                Err(error) => {
                    tracing::debug!("a client of export '{}' is gone: {error}", self.export.name());
                    self.outbox.borrow_mut().clear();
                    self.finished.notify_all();
                    self.blocked.set(false);
                    self.stream.shut_down();
                }
            }
        }
    }
}
