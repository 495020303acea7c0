//! Requests in flight: each owns what the kernel uses until the kernel is done.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use slab::Slab;

use super::{OpenFile, Verb};
use crate::sys::{MAX_IOVECS, Way};

/// All requests in flight of one thread.
#[derive(Default)]
pub(super) struct OpTable {
    slots: RefCell<Slab<Slot>>,
    waiting: Cell<usize>,
}

struct Slot {
    state: State,
    held: Option<Held>,
}

enum State {
    /// The kernel has it; whom to wake.
    Waiting(Option<Waker>),
    /// The kernel is done: what it answered.
    Done(i32),
    /// Nobody waits for it any more.
    Detached,
}

/// What the kernel uses while a request is in flight.
pub(super) struct Held {
    pub(super) file: Option<Rc<OpenFile>>,
    pub(super) verb: Verb,
    sync: Option<u64>,
    /// Empty when the buffer is in one piece.
    pub(super) iovecs: Box<[libc::iovec]>,
}

impl Held {
    pub(super) fn new(file: &Rc<OpenFile>, verb: Verb) -> Held {
        let iovecs = match &verb {
            Verb::Transfer { buf, .. } if buf.single().is_none() => buf.iovecs(MAX_IOVECS),
            _ => Vec::new(),
        };
        let sync = file.begin(&verb);
        Held { file: Some(Rc::clone(file)), verb, sync, iovecs: iovecs.into_boxed_slice() }
    }

    /// A function instead of a request.
    pub(super) fn nothing() -> Held {
        Held { file: None, verb: Verb::Sync { range: None }, sync: None, iovecs: Box::default() }
    }

    /// The kernel is done and answered `result`.
    fn finish(self, result: i32) {
        if let (Verb::Transfer { way: Way::Read, buf, .. }, Ok(count)) =
            (&self.verb, usize::try_from(result))
        {
            buf.slice(0..count.min(buf.len())).mark_written();
        }
        if let Some(file) = &self.file {
            file.end(&self.verb, self.sync, result);
        }
    }
}

impl OpTable {
    /// Enters a request; its number names it to the kernel.
    pub(super) fn insert(&self, held: Held) -> usize {
        self.waiting.set(self.waiting.get() + 1);
        self.slots.borrow_mut().insert(Slot { state: State::Waiting(None), held: Some(held) })
    }

    /// Lets `look` see what a request in flight holds.
    pub(super) fn with_held<R>(&self, key: usize, look: impl FnOnce(&Held) -> R) -> Option<R> {
        self.slots.borrow().get(key).and_then(|slot| slot.held.as_ref()).map(look)
    }

    /// The kernel is done with `key`: frees what it held and wakes who waits.
    pub(super) fn complete(&self, key: usize, result: i32) {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(key) else {
            tracing::error!("completion of a request that was never made: {key}");
            return;
        };
        let held = slot.held.take();
        let waker = match std::mem::replace(&mut slot.state, State::Done(result)) {
            State::Waiting(waker) => waker,
            State::Detached => {
                slots.remove(key);
                None
            }
            State::Done(_) => None,
        };
        drop(slots);
        self.waiting.set(self.waiting.get() - 1);
        if let Some(held) = held {
            held.finish(result);
        }
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// How many requests the kernel has.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.get()
    }
}

/// Waits for one request. Dropping it lets the request go on by itself.
pub(crate) struct Op {
    table: Rc<OpTable>,
    key: usize,
    taken: bool,
}

impl Op {
    pub(super) fn new(table: &Rc<OpTable>, key: usize) -> Op {
        Op { table: Rc::clone(table), key, taken: false }
    }
}

impl Future for Op {
    /// What the system call answers: a count, or a negative errno.
    type Output = i32;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<i32> {
        let mut slots = self.table.slots.borrow_mut();
        let slot = &mut slots[self.key];
        match &mut slot.state {
            State::Done(result) => {
                let result = *result;
                slots.remove(self.key);
                drop(slots);
                self.taken = true;
                Poll::Ready(result)
            }
            State::Waiting(waker) => {
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                Poll::Pending
            }
            State::Detached => Poll::Pending,
        }
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        if self.taken {
            return;
        }
        let mut slots = self.table.slots.borrow_mut();
        if matches!(slots[self.key].state, State::Done(_)) {
            slots.remove(self.key);
        } else {
            slots[self.key].state = State::Detached;
        }
    }
}

#[cfg(test)]
#[path = "op_tests.rs"]
mod tests;
