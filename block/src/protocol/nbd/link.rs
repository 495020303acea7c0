//! One connection of a session: what it has to send, and the tasks that send and receive.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::{Rc, Weak};

use super::command::Command;
use super::incoming::Incoming;
use super::negotiate::Facts;
use super::session::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::executor::{Counted, Executor};
use crate::nbd::proto::request::Request;
use crate::nbd::proto::{HeaderStyle, cmd};
use crate::net::{Outbox, Stream, lost};
use crate::notify::Notify;

pub(super) struct Link {
    id: u64,
    style: HeaderStyle,
    context: Option<u32>,
    stream: Stream,
    outbox: RefCell<Outbox>,
    in_flight: Cell<usize>,
    executor: Executor,
    /// Held while there is one request: whoever waits for its reply has nothing else to do.
    expecting: Cell<Option<Counted>>,
    wake_writer: Notify,
    /// Carries to their ends what it has, and nothing else.
    retired: Cell<bool>,
    /// What it carries is the last.
    parting: Cell<bool>,
    over: Cell<bool>,
}

impl Link {
    /// Starts to carry requests of `session`. The session keeps the link, not the other way round:
    /// a session that goes takes its links with it.
    pub(super) fn start(session: &Rc<Session>, stream: Stream, facts: Facts) -> Rc<Link> {
        let executor = session.executor();
        let link = Rc::new(Link {
            id: session.next_link(),
            style: facts.style,
            context: facts.context,
            stream,
            outbox: RefCell::default(),
            in_flight: Cell::new(0),
            executor: executor.clone(),
            expecting: Cell::default(),
            wake_writer: Notify::new(),
            retired: Cell::new(false),
            parting: Cell::new(false),
            over: Cell::new(false),
        });
        let (reader, writer, owner) = (Rc::clone(&link), Rc::clone(&link), Rc::downgrade(session));
        drop(executor.spawn(async move {
            let error = match reader.receive(&owner).await {
                Err(error) => error,
                Ok(()) => Error::new(ErrorKind::Disconnected, "the server hung up"),
            };
            reader.shut_down();
            if let Some(session) = owner.upgrade() {
                session.link_lost(reader.id, error);
            }
        }));
        drop(executor.spawn(async move { writer.transmit().await }));
        link
    }

    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// How many requests it carries.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Queues a request. It leaves when everything that is ready now has run, together with what
    /// that has queued.
    pub(super) fn send(&self, cookie: u64, command: &Command) {
        self.carries(self.in_flight.get() + 1);
        command.encode(self.style, cookie, &mut self.outbox.borrow_mut());
        self.wake_writer.notify_all();
    }

    /// A request that it carried is answered.
    pub(super) fn answered(&self) {
        self.carries(self.in_flight.get().saturating_sub(1));
    }

    /// From now on it only carries to their ends what it has.
    pub(super) fn retire(&self) {
        self.retired.set(true);
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// What it is sent now is the last.
    pub(super) fn part(&self) {
        self.parting.set(true);
    }

    pub(super) fn is_parting(&self) -> bool {
        self.parting.get()
    }

    fn carries(&self, requests: usize) {
        self.in_flight.set(requests);
        self.expecting.set((requests == 1).then(|| self.executor.expecting()));
    }

    /// Ends it at once.
    pub(super) fn shut_down(&self) {
        self.over.set(true);
        self.expecting.take();
        self.stream.shut_down();
        self.outbox.borrow_mut().clear();
        self.wake_writer.notify_all();
    }

    /// Takes leave, as far as that goes without waiting.
    pub(super) fn disconnect(&self) {
        let goodbye = Request { flags: 0, command: cmd::DISC, cookie: 0, offset: 0, len: 0 };
        self.outbox.borrow_mut().head(|out| goodbye.encode(self.style, out));
        if let Err(error) = self.outbox.borrow_mut().send(&self.stream) {
            tracing::debug!("goodbye: {error}");
        }
        self.stream.say_goodbye();
        self.shut_down();
    }

    async fn transmit(&self) {
        loop {
            let ready = || self.over.get() || !self.outbox.borrow().is_empty();
            self.wake_writer.wait_until(ready).await;
            // An empty queue is not the end of it: TLS may hold what it has encrypted.
            loop {
                if self.over.get() {
                    return;
                }
                let sent = self.outbox.borrow_mut().send(&self.stream);
                let ended = match sent {
                    Ok(()) => break,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.stream.writable().await.is_err()
                    }
                    Err(_) => true,
                };
                if ended {
                    // The reader sees the end too and says what it was.
                    return self.shut_down();
                }
            }
        }
    }

    async fn receive(&self, session: &Weak<Session>) -> Result<()> {
        let mut incoming = Incoming::new(self.style, self.context);
        loop {
            match incoming.receive(&self.stream) {
                Ok(0) => return Ok(()),
                Ok(_) => {
                    let Some(session) = session.upgrade() else { return Ok(()) };
                    incoming.work_through(&session, self)?;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stream.readable().await;
                    continue;
                }
                Err(error) => return Err(lost(error)),
            }
            // Those who were waiting go on, and meanwhile more may arrive.
            self.executor.yield_now().await;
        }
    }
}
