//! The requests of one disk, whatever becomes of the connections that carry them.
//!
//! A request belongs to the session. It is sent over a link; when the link breaks it is sent over
//! another, or over the next one that comes up. Reads and writes can be repeated without harm.
//!
//! A server says how long the disk is when a connection begins, and may hold it to that until it
//! ends. So a disk that has grown is carried on over new links, and those from before end with their
//! last answers.

mod renewal;
mod successor;

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;

use super::command::{Answer, Command};
use super::connect::{Target, connect};
use super::link::Link;
use super::negotiate::Facts;
use crate::error::{Error, ErrorKind, Result};
use crate::executor::{Executor, within};
use crate::nbd::proto::export;
use crate::net::Stream;

use successor::succeed;

/// Time between two attempts to connect: the first, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(30);
/// How long a server that works may take to accept one connection more.
const ONE_MORE: Duration = Duration::from_secs(10);

/// What can be said of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is a link.
    Up,
    /// There is none; requests wait.
    Waiting,
    /// There has been none for too long: requests fail until one comes up.
    Lost,
    /// Never again.
    Over,
}

pub(super) struct Session {
    executor: Executor,
    target: Target,
    reconnect_delay: Duration,
    facts: Cell<Facts>,
    state: Cell<State>,
    links: RefCell<Vec<Rc<Link>>>,
    requests: RefCell<Slab<Entry>>,
    next_number: Cell<u32>,
    link_count: Cell<u64>,
    /// How often there was no link left.
    outage: Cell<u64>,
    /// Why the last link broke.
    why: RefCell<Option<Error>>,
    /// Why connecting again failed since.
    again: RefCell<Option<Error>>,
    /// Why a link that was retired could not make durable what it had acknowledged. No flush promises
    /// anything about that any more.
    undone: RefCell<Option<Error>>,
}

/// One request.
struct Entry {
    /// Tells this request from others that had its place before.
    number: u32,
    command: Command,
    /// The link it was sent over.
    link: Option<u64>,
    outcome: Option<Result<Answer>>,
    waker: Option<Waker>,
    /// Nobody waits for it any more: it only is there for the link's reply.
    detached: bool,
}

impl Entry {
    fn new(command: Command) -> Entry {
        Entry { number: 0, command, link: None, outcome: None, waker: None, detached: false }
    }

    fn is_flush(&self) -> bool {
        matches!(self.command, Command::Flush)
    }
}

/// Waits for a request. Dropping it lets the request go on by itself, as far as it was sent.
struct Waiting {
    session: Rc<Session>,
    key: usize,
    done: bool,
}

impl Session {
    /// Connects; tries again for `open_timeout` if the server cannot be reached.
    pub(super) async fn open(
        executor: &Executor,
        target: Target,
        open_timeout: Duration,
        reconnect_delay: Duration,
    ) -> Result<Rc<Session>> {
        let attempts = async {
            let mut pause = FIRST_PAUSE;
            loop {
                match connect(executor, &target).await {
                    Ok(connected) => return Ok(connected),
                    Err(error) if open_timeout.is_zero() || is_final(&error) => return Err(error),
                    Err(error) => tracing::debug!("{error}"),
                }
                executor.sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        };
        let limit = if open_timeout.is_zero() { ATTEMPT } else { open_timeout };
        let (stream, facts) = within(executor, limit, attempts).await.unwrap_or_else(|| {
            let text = format!("Failed to connect to '{}' in time", target.options.server);
            Err(Error::new(ErrorKind::TimedOut, text))
        })?;
        let session = Rc::new(Session {
            executor: executor.clone(),
            target,
            reconnect_delay,
            facts: Cell::new(facts),
            state: Cell::new(State::Up),
            links: RefCell::default(),
            requests: RefCell::default(),
            next_number: Cell::new(0),
            link_count: Cell::new(0),
            outage: Cell::new(0),
            why: RefCell::default(),
            again: RefCell::default(),
            undone: RefCell::default(),
        });
        session.links.borrow_mut().push(Link::start(&session, stream, facts));
        session.add_links().await;
        Ok(session)
    }

    /// Opens as many more connections as were asked for, if the server keeps them consistent.
    async fn add_links(self: &Rc<Self>) {
        let wanted = self.target.options.x_connections.unwrap_or(1);
        if !self.facts.get().can(export::CAN_MULTI_CONN) {
            return;
        }
        while self.current_links() < wanted.clamp(1, 16) as usize {
            let connected = within(&self.executor, ATTEMPT, connect(&self.executor, &self.target));
            match connected.await {
                _ if self.state.get() != State::Up => return,
                Some(Ok((stream, facts))) if succeed(&self.facts(), &facts).is_ok() => {
                    self.links.borrow_mut().push(Link::start(self, stream, facts));
                }
                Some(Err(error)) => {
                    tracing::warn!("one connection less: {error}");
                    return;
                }
                _ => return,
            }
        }
    }

    /// How many links take new requests.
    fn current_links(&self) -> usize {
        self.links.borrow().iter().filter(|link| !link.is_retired()).count()
    }

    pub(super) fn executor(&self) -> &Executor {
        &self.executor
    }

    /// A number for a new link.
    pub(super) fn next_link(&self) -> u64 {
        let id = self.link_count.get() + 1;
        self.link_count.set(id);
        id
    }

    /// What the server offers, as last heard, as far as the first one offered it too.
    pub(super) fn facts(&self) -> Facts {
        self.facts.get()
    }

    /// Sends a request and waits for its answer.
    pub(super) async fn request(self: &Rc<Self>, command: Command) -> Result<Answer> {
        match self.state.get() {
            State::Up | State::Waiting => {}
            State::Lost | State::Over => return Err(self.failure()),
        }
        let key = self.insert(Entry::new(command));
        self.send(key);
        Waiting { session: Rc::clone(self), key, done: false }.await
    }

    fn insert(&self, entry: Entry) -> usize {
        let number = self.next_number.get();
        self.next_number.set(number.wrapping_add(1));
        self.requests.borrow_mut().insert(Entry { number, ..entry })
    }

    /// Hands a request to the link with the least to do, unless it has to wait.
    fn send(&self, key: usize) {
        let is_flush = self.requests.borrow().get(key).is_some_and(Entry::is_flush);
        if self.is_held(is_flush) {
            return;
        }
        let undone = if is_flush { self.undone.borrow().clone() } else { None };
        if let Some(error) = undone {
            return self.settle(key, Err(error));
        }
        let links = self.links.borrow();
        let current = links.iter().filter(|link| !link.is_retired());
        if let Some(link) = current.min_by_key(|link| link.in_flight()) {
            self.send_over(link, key);
        }
    }

    fn send_over(&self, link: &Link, key: usize) {
        let mut requests = self.requests.borrow_mut();
        let Some(entry) = requests.get_mut(key) else { return };
        entry.link = Some(link.id());
        let cookie = u64::from(entry.number) << 32 | key as u64;
        link.send(cookie, &entry.command);
    }

    /// The request that a reply of `link` speaks of, unless there is none of that name.
    pub(super) fn find(&self, link: u64, cookie: u64) -> Option<Command> {
        let requests = self.requests.borrow();
        let entry = requests.get(key_of(cookie)?)?;
        let same = u64::from(entry.number) == cookie >> 32 && entry.link == Some(link);
        same.then(|| entry.command.clone())
    }

    fn finish(&self, cookie: u64, outcome: Result<Answer>) {
        if let Some(key) = key_of(cookie) {
            self.settle(key, outcome);
        }
    }

    fn settle(&self, key: usize, outcome: Result<Answer>) {
        let mut requests = self.requests.borrow_mut();
        let Some(entry) = requests.get_mut(key) else { return };
        if entry.detached {
            requests.remove(key);
            return;
        }
        entry.link = None;
        entry.outcome = Some(outcome);
        let waker = entry.waker.take();
        drop(requests);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A link broke: what it carried goes another way, now or later.
    pub(super) fn link_lost(self: &Rc<Self>, id: u64, error: Error) {
        let place = self.links.borrow().iter().position(|link| link.id() == id);
        let Some(place) = place else { return };
        let link = self.links.borrow_mut().swap_remove(place);
        let carried = self.take_back(id);
        if link.in_flight() != 0 || !link.is_retired() {
            tracing::warn!("{}: {error}", self.target.options.filename());
        }
        if link.is_retired() {
            return self.parted();
        }
        if self.current_links() != 0 {
            carried.into_iter().for_each(|key| self.send(key));
            return;
        }
        if self.state.get() != State::Up {
            return;
        }
        self.state.set(State::Waiting);
        self.why.replace(Some(error));
        self.again.take();
        let this = Rc::downgrade(self);
        drop(self.executor.spawn(reconnect(this)));
        if self.reconnect_delay.is_zero() {
            self.give_up_waiting();
        } else {
            let outage = self.outage.get() + 1;
            self.outage.set(outage);
            let (this, executor, delay) =
                (Rc::downgrade(self), self.executor.clone(), self.reconnect_delay);
            drop(self.executor.spawn(async move {
                executor.sleep(delay).await;
                if let Some(session) = this.upgrade().filter(|it| it.outage.get() == outage) {
                    session.give_up_waiting();
                }
            }));
        }
    }

    /// What a link carried and somebody still waits for. The rest is forgotten: sent again, a write that was
    /// given up could overwrite what was written since.
    fn take_back(&self, id: u64) -> Vec<usize> {
        let mut carried = self.unanswered(|link| link == Some(id));
        let mut requests = self.requests.borrow_mut();
        carried.retain(|key| {
            let entry = &mut requests[*key];
            entry.link = None;
            !entry.detached
        });
        requests.retain(|_, entry| !entry.detached || entry.link.is_some());
        carried
    }

    fn unanswered(&self, which: impl Fn(Option<u64>) -> bool) -> Vec<usize> {
        let requests = self.requests.borrow();
        let open = requests.iter().filter(|(_, entry)| entry.outcome.is_none());
        open.filter(|(_, entry)| which(entry.link)).map(|(key, _)| key).collect()
    }

    /// The server has been away for too long.
    fn give_up_waiting(&self) {
        if self.state.get() == State::Waiting {
            self.state.set(State::Lost);
            self.fail_all();
        }
    }

    fn fail_all(&self) {
        for key in self.unanswered(|_| true) {
            self.settle(key, Err(self.failure()));
        }
    }

    /// Connecting again has failed. That nobody is there says less than why one that was there would not do.
    fn fails_again(&self, error: Error) {
        let mut again = self.again.borrow_mut();
        if is_final(&error) || !again.as_ref().is_some_and(is_final) {
            *again = Some(error);
        }
    }

    fn failure(&self) -> Error {
        let name = self.target.options.filename();
        let mut text = format!("{name} is lost");
        if self.state.get() == State::Over {
            text = format!("the connection to {name} was given up");
        } else if let Some(why) = &*self.why.borrow() {
            text = format!("{text}: {why}");
            if let Some(again) = &*self.again.borrow() {
                text = format!("{text}; then: {again}");
            }
        }
        Error::new(ErrorKind::Disconnected, text)
    }

    /// Fails everything at once and never connects again: the way out when a server hangs.
    pub(super) fn abandon(&self) {
        self.state.set(State::Over);
        for link in self.links.take() {
            link.shut_down();
        }
        self.fail_all();
    }

    /// Whether it was given up.
    pub(super) fn is_over(&self) -> bool {
        self.state.get() == State::Over
    }

    /// Takes leave of the server.
    pub(super) fn close(&self) {
        if self.state.replace(State::Over) == State::Over {
            return;
        }
        for link in self.links.take() {
            link.disconnect();
        }
    }
}

/// Tries to connect until it works or the session is over.
async fn reconnect(session: Weak<Session>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let Some(this) = session.upgrade() else { return };
        let (executor, target) = (this.executor.clone(), this.target.clone());
        drop(this);
        let connected = within(&executor, ATTEMPT, connect(&executor, &target)).await;
        let Some(this) = session.upgrade() else { return };
        if matches!(this.state.get(), State::Up | State::Over) {
            return;
        }
        let connected = connected.unwrap_or_else(|| Err(no_answer()));
        let checked = connected.and_then(|(stream, facts)| {
            let kept = succeed(&this.facts(), &facts)?;
            Ok((stream, facts, kept))
        });
        match checked {
            Ok((stream, facts, kept)) => {
                this.go_on_over(stream, facts, kept);
                this.add_links().await;
                return;
            }
            Err(error) => this.fails_again(error),
        }
        drop(this);
        executor.sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

impl Session {
    /// Sends over a new connection whatever waits; what it says and what holds of that.
    fn go_on_over(self: &Rc<Self>, stream: Stream, facts: Facts, kept: Facts) {
        self.facts.set(kept);
        self.state.set(State::Up);
        self.links.borrow_mut().push(Link::start(self, stream, facts));
        self.unanswered(|link| link.is_none()).into_iter().for_each(|key| self.send(key));
    }
}

fn no_answer() -> Error {
    Error::new(ErrorKind::TimedOut, "no answer")
}

impl Future for Waiting {
    type Output = Result<Answer>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<Answer>> {
        let mut requests = self.session.requests.borrow_mut();
        let entry = &mut requests[self.key];
        if let Some(outcome) = entry.outcome.take() {
            requests.remove(self.key);
            drop(requests);
            self.done = true;
            return Poll::Ready(outcome);
        }
        match &mut entry.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => entry.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut requests = self.session.requests.borrow_mut();
        match requests.get_mut(self.key) {
            // What no link carries will never be sent.
            Some(entry) if entry.outcome.is_none() && entry.link.is_some() => entry.detached = true,
            Some(_) => drop(requests.remove(self.key)),
            None => {}
        }
    }
}

fn key_of(cookie: u64) -> Option<usize> {
    usize::try_from(cookie & u64::from(u32::MAX)).ok()
}

/// Whether trying again cannot help.
fn is_final(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::Disconnected | ErrorKind::NotFound | ErrorKind::TimedOut)
}
