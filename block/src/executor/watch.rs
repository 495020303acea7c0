//! A descriptor that is waited for again and again: the kernel is told of it once, not for each wait.

use std::cell::Cell;
use std::os::fd::RawFd;
use std::rc::Rc;

use vmm_sys_util::epoll::EventSet;

use super::Executor;
use crate::error::{Error, Result};
use crate::notify::Notify;

/// A registered descriptor. It must be dropped before the descriptor is closed.
///
/// Registration is edge-triggered: a wait may begin only after the descriptor had nothing more to
/// give or no more room, for only a change after that ends it. It may end although nothing changed.
pub(crate) struct Watch {
    executor: Executor,
    fd: RawFd,
    key: usize,
    seen: Rc<Readiness>,
}

/// What was seen of a descriptor since it was last waited for.
#[derive(Default)]
pub(super) struct Readiness {
    readable: Cell<bool>,
    /// The other side has said its last word. That may come in one event with what it said before, and
    /// never again: from then on there always is something to receive, if only the end.
    ended: Cell<bool>,
    writable: Cell<bool>,
    /// The kernel tells of room to write, which most of the time nobody wants to know.
    wants_room: Cell<bool>,
    changed: Notify,
}

impl Readiness {
    /// Takes note of events; whether to stop asking for room because nobody took the last one.
    pub(super) fn note(&self, events: EventSet) -> bool {
        let broken = events.intersects(EventSet::ERROR | EventSet::HANG_UP);
        if broken || events.intersects(EventSet::IN | EventSet::READ_HANG_UP) {
            self.readable.set(true);
        }
        if broken || events.contains(EventSet::READ_HANG_UP) {
            self.ended.set(true);
        }
        let room = broken || events.contains(EventSet::OUT);
        let unwanted = room && self.writable.replace(true);
        self.changed.notify_all();
        unwanted && self.wants_room.replace(false)
    }

    /// What the kernel is to tell of.
    pub(super) fn interest(&self) -> EventSet {
        let always = EventSet::IN | EventSet::READ_HANG_UP | EventSet::EDGE_TRIGGERED;
        if self.wants_room.get() { always | EventSet::OUT } else { always }
    }
}

impl Watch {
    /// Registers a descriptor that is no regular file.
    pub(crate) fn new(executor: &Executor, fd: RawFd) -> Result<Watch> {
        let seen = Rc::new(Readiness::default());
        let key = executor.reactor()?.watch(fd, &seen).map_err(|error| failed(fd, error))?;
        Ok(Watch { executor: executor.clone(), fd, key, seen })
    }

    /// Waits until something can be received, or the connection ended.
    pub(crate) async fn readable(&self) {
        self.seen.changed.wait_until(|| self.seen.readable.take() || self.seen.ended.get()).await;
    }

    /// Waits until something can be sent, or the connection ended.
    pub(crate) async fn writable(&self) -> Result<()> {
        if !self.seen.wants_room.replace(true) {
            let asked = self.executor.reactor()?.ask(self.key);
            asked.map_err(|error| failed(self.fd, error))?;
        }
        self.seen.changed.wait_until(|| self.seen.writable.take()).await;
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Ok(reactor) = self.executor.reactor() {
            reactor.unwatch(self.key);
        }
    }
}

fn failed(fd: RawFd, error: std::io::Error) -> Error {
    Error::from_io(error, format!("cannot wait for descriptor {fd}"))
}
