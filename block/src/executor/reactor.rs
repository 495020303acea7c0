//! Readiness of file descriptors through epoll.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::watch::Readiness;
use crate::error::{Error, Result};
use crate::sys;

/// Token of the eventfd that other threads write; descriptors' tokens are their numbers.
const WAKE_TOKEN: u64 = u64::MAX;
/// Token of the eventfd that the kernel writes for the io_uring.
const RING_TOKEN: u64 = u64::MAX - 1;
/// Tokens from here on are of watched descriptors; those below are numbers of others.
const FIRST_WATCHED: u64 = 1 << 32;
/// Events taken per look.
const BATCH: usize = 64;

/// What is waited for. Errors and hang-ups end every wait.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Condition {
    Readable,
    Writable,
    /// Both directions are over.
    HungUp,
}

impl Condition {
    /// What the kernel is asked for; errors and hang-ups it tells of by itself.
    fn events(self) -> EventSet {
        match self {
            Condition::Readable => EventSet::IN | EventSet::READ_HANG_UP,
            Condition::Writable => EventSet::OUT,
            Condition::HungUp => EventSet::empty(),
        }
    }
}

pub(super) struct Reactor {
    epoll: Epoll,
    waiters: RefCell<BTreeMap<RawFd, Vec<Waiter>>>,
    watched: RefCell<Slab<(RawFd, Rc<Readiness>)>>,
    next_id: Cell<u64>,
}

struct Waiter {
    id: u64,
    condition: Condition,
    waker: Waker,
    fired: bool,
}

impl Reactor {
    /// `wake_fd` is an eventfd that only has to end a sleep.
    pub(super) fn new(wake_fd: Option<RawFd>) -> Result<Reactor> {
        let failed = |error| Error::from_io(error, "cannot set up epoll");
        let epoll = Epoll::new().map_err(failed)?;
        if let Some(fd) = wake_fd {
            // Edge-triggered, so that nobody has to read the counter back.
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            epoll
                .ctl(ControlOperation::Add, fd, EpollEvent::new(events, WAKE_TOKEN))
                .map_err(failed)?;
        }
        Ok(Reactor {
            epoll,
            waiters: RefCell::default(),
            watched: RefCell::default(),
            next_id: Cell::new(0),
        })
    }

    /// Makes completions of the ring end a sleep.
    pub(super) fn watch_ring(&self, fd: RawFd) {
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, RING_TOKEN);
        if let Err(error) = self.epoll.ctl(ControlOperation::Add, fd, event) {
            tracing::error!("completions of disk requests cannot wake this thread: {error}");
        }
    }

    pub(super) fn ready(&self, fd: RawFd, condition: Condition) -> Ready<'_> {
        Ready { reactor: self, fd, condition, id: None }
    }

    /// Looks for events, waiting at most `timeout` (`None`: for ever); whether there were any.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> bool {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; BATCH];
        let count = match sys::epoll_wait(self.epoll.as_raw_fd(), &mut events, timeout) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return false,
            Err(error) => {
                tracing::error!("epoll: {error}");
                return false;
            }
        };
        for event in &events[..count] {
            let seen = EventSet::from_bits_truncate(event.events);
            // Tokens of descriptors are their numbers; the others fit no descriptor.
            match RawFd::try_from(event.u64) {
                Ok(fd) => self.fire(fd, seen),
                Err(_) => self.note(event.u64, seen),
            }
        }
        count != 0
    }

    /// Tells the kernel of a descriptor that will be waited for often; its key from now on.
    pub(super) fn watch(&self, fd: RawFd, seen: &Rc<Readiness>) -> io::Result<usize> {
        let key = self.watched.borrow_mut().insert((fd, Rc::clone(seen)));
        let event = EpollEvent::new(seen.interest(), FIRST_WATCHED + key as u64);
        let mut told = self.epoll.ctl(ControlOperation::Add, fd, event);
        // It was waited for before, as a socket is that was being connected.
        if told.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EEXIST)) {
            told = self.epoll.ctl(ControlOperation::Modify, fd, event);
        }
        told.inspect_err(|_| {
            self.watched.borrow_mut().remove(key);
        })?;
        Ok(key)
    }

    /// Tells the kernel what is wanted of a watched descriptor now.
    pub(super) fn ask(&self, key: usize) -> io::Result<()> {
        let (fd, interest) = match self.watched.borrow().get(key) {
            Some((fd, seen)) => (*fd, seen.interest()),
            None => return Ok(()),
        };
        let event = EpollEvent::new(interest, FIRST_WATCHED + key as u64);
        self.epoll.ctl(ControlOperation::Modify, fd, event)
    }

    pub(super) fn unwatch(&self, key: usize) {
        let (fd, _) = self.watched.borrow_mut().remove(key);
        if let Err(error) = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default()) {
            tracing::error!("epoll on descriptor {fd}: {error}");
        }
    }

    fn note(&self, token: u64, events: EventSet) {
        let key = token.checked_sub(FIRST_WATCHED).and_then(|key| usize::try_from(key).ok());
        let known = key.and_then(|key| {
            let seen = Rc::clone(&self.watched.borrow().get(key)?.1);
            Some((key, seen))
        });
        if let Some((key, seen)) = known
            && seen.note(events)
            && let Err(error) = self.ask(key)
        {
            tracing::error!("epoll on a watched descriptor: {error}");
        }
    }

    fn fire(&self, fd: RawFd, events: EventSet) {
        let broken = events.intersects(EventSet::ERROR | EventSet::HANG_UP);
        let hits = |condition: Condition| broken || events.intersects(condition.events());
        let mut wakers = Vec::new();
        if let Some(waiters) = self.waiters.borrow_mut().get_mut(&fd) {
            for waiter in waiters.iter_mut().filter(|waiter| hits(waiter.condition)) {
                waiter.fired = true;
                wakers.push(waiter.waker.clone());
            }
        }
        // One-shot: what else is waited for must be armed again.
        if let Err(error) = self.arm(fd) {
            tracing::error!("epoll on descriptor {fd}: {error}");
        }
        for waker in wakers {
            waker.wake();
        }
    }

    /// Asks the kernel for what is waited for on `fd`.
    fn arm(&self, fd: RawFd) -> io::Result<()> {
        let wanted = self.waiters.borrow().get(&fd).and_then(|waiters| {
            let waiting = waiters.iter().filter(|waiter| !waiter.fired);
            waiting.map(|waiter| waiter.condition.events()).reduce(|all, events| all | events)
        });
        let Some(wanted) = wanted else { return Ok(()) };
        let token = u64::try_from(fd).map_err(|_negative| io::ErrorKind::InvalidInput)?;
        let event = EpollEvent::new(wanted | EventSet::ONE_SHOT, token);
        // The kernel forgets closed descriptors by itself, so whether it knows this one is found
        // out by trying.
        match self.epoll.ctl(ControlOperation::Modify, fd, event) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                self.epoll.ctl(ControlOperation::Add, fd, event)
            }
            other => other,
        }
    }

    fn forget(&self, fd: RawFd, id: u64) {
        let mut all = self.waiters.borrow_mut();
        let Some(waiters) = all.get_mut(&fd) else { return };
        waiters.retain(|waiter| waiter.id != id);
        if waiters.is_empty() {
            // The kernel may still report it once, to nobody.
            all.remove(&fd);
        }
    }
}

/// Waits for readiness of one descriptor.
pub(super) struct Ready<'a> {
    reactor: &'a Reactor,
    fd: RawFd,
    condition: Condition,
    id: Option<u64>,
}

impl Future for Ready<'_> {
    type Output = Result<()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let reactor = self.reactor;
        if let Some(id) = self.id {
            let mut all = reactor.waiters.borrow_mut();
            let waiter = all
                .get_mut(&self.fd)
                .and_then(|waiters| waiters.iter_mut().find(|waiter| waiter.id == id));
            return match waiter {
                Some(waiter) if !waiter.fired => {
                    waiter.waker.clone_from(cx.waker());
                    Poll::Pending
                }
                _ => Poll::Ready(Ok(())),
            };
        }
        let id = reactor.next_id.get();
        reactor.next_id.set(id + 1);
        let (condition, waker) = (self.condition, cx.waker().clone());
        let waiter = Waiter { id, condition, waker, fired: false };
        reactor.waiters.borrow_mut().entry(self.fd).or_default().push(waiter);
        self.id = Some(id);
        match reactor.arm(self.fd) {
            Ok(()) => Poll::Pending,
            // Regular files cannot be waited for: they are always ready and never hang up.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => match condition {
                Condition::Readable | Condition::Writable => Poll::Ready(Ok(())),
                Condition::HungUp => Poll::Pending,
            },
            Err(error) => {
                let context = format!("cannot wait for descriptor {}", self.fd);
                Poll::Ready(Err(Error::from_io(error, context)))
            }
        }
    }
}

impl Drop for Ready<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.reactor.forget(self.fd, id);
        }
    }
}
