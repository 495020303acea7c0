//! The door to an executor for other threads, and the queue of what is ready.
//!
//! Functions posted and tasks woken from other threads go through **one** queue, so what one thread
//! did in some order is seen here in that order: an event posted before a result was sent is
//! handled before the result is seen.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Wake;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Executor;
use crate::error::{Error, Result};

/// A function for the home thread.
pub(super) type Call = Box<dyn FnOnce(&Executor) + Send>;

/// Something that is ready.
pub(super) enum Item {
    Run(async_task::Runnable),
    Call(Call),
}

/// What is ready on the home thread, first come first served.
#[derive(Default)]
pub(super) struct ReadyQueue(RefCell<VecDeque<Item>>);

impl ReadyQueue {
    pub(super) fn push(&self, item: Item) {
        self.0.borrow_mut().push_back(item);
    }

    pub(super) fn pop(&self) -> Option<Item> {
        self.0.borrow_mut().pop_front()
    }
}

/// The part of an executor that other threads touch.
pub(super) struct Shared {
    injected: Mutex<Injected>,
    /// Whether `injected` may hold something: looked at every turn without taking the lock.
    pending: AtomicBool,
    sleeping: AtomicBool,
    wake: Option<EventFd>,
}

#[derive(Default)]
struct Injected {
    items: VecDeque<Item>,
    closed: bool,
}

/// A door to an executor: posts functions to its thread. Cheap to clone, may go anywhere.
#[derive(Clone)]
pub struct Remote(Arc<Shared>);

impl Remote {
    pub(super) fn new(shared: Arc<Shared>) -> Remote {
        Remote(shared)
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.0
    }

    /// Runs `call` on the executor's thread, after everything posted or woken before. If that
    /// executor is gone the function is dropped without being called.
    pub fn post(&self, call: impl FnOnce(&Executor) + Send + 'static) {
        self.0.inject(Item::Call(Box::new(call)));
    }

    /// The door of the executor that is running on this thread, if one is.
    pub fn current() -> Option<Remote> {
        CURRENT
            .with_borrow(|current| current.as_ref().map(|(shared, _)| Remote(Arc::clone(shared))))
    }

    /// Makes the executor look for completed work.
    pub(crate) fn wake(&self) {
        self.0.wake();
    }
}

thread_local! {
    /// The executor that is running on this thread, so that its own wake-ups need no lock.
    static CURRENT: RefCell<Option<(Arc<Shared>, Rc<ReadyQueue>)>> = const { RefCell::new(None) };
    /// Its address, to recognise it without borrowing.
    static CURRENT_ID: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
}

/// While it lives, this thread runs that executor.
pub(super) struct Entered {
    previous: Option<(Arc<Shared>, Rc<ReadyQueue>)>,
}

impl Entered {
    pub(super) fn new(shared: &Arc<Shared>, ready: &Rc<ReadyQueue>) -> Entered {
        let current = Some((Arc::clone(shared), Rc::clone(ready)));
        CURRENT_ID.set(Arc::as_ptr(shared));
        Entered { previous: CURRENT.replace(current) }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let previous = self.previous.take();
        let id = previous.as_ref().map_or(std::ptr::null(), |(shared, _)| Arc::as_ptr(shared));
        CURRENT_ID.set(id);
        drop(CURRENT.replace(previous));
    }
}

impl Shared {
    pub(super) fn new(with_eventfd: bool) -> Result<Arc<Shared>> {
        let wake = if with_eventfd {
            let eventfd = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK)
                .map_err(|error| Error::from_io(error, "cannot make an eventfd"))?;
            Some(eventfd)
        } else {
            None
        };
        Ok(Arc::new(Shared {
            injected: Mutex::default(),
            pending: AtomicBool::new(false),
            sleeping: AtomicBool::new(false),
            wake,
        }))
    }

    pub(super) fn wake_fd(&self) -> Option<RawFd> {
        self.wake.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Makes a task ready: directly on its own thread, through the queue from elsewhere.
    pub(super) fn schedule(self: &Arc<Self>, item: Item) {
        if CURRENT_ID.get() == Arc::as_ptr(self) {
            CURRENT.with_borrow(|current| {
                if let Some((_, ready)) = current {
                    // A task that another thread wakes while it runs is made ready here, after
                    // its poll: what that thread injected before must still come first.
                    self.drain_into(ready);
                    ready.push(item);
                }
            });
        } else {
            self.inject(item);
        }
    }

    fn inject(&self, item: Item) {
        let mut injected = self.injected.lock().unwrap_or_else(PoisonError::into_inner);
        if injected.closed {
            drop(injected);
            // A task may only be dropped on its own thread, which has ended: its memory is lost.
            match item {
                Item::Run(runnable) => std::mem::forget(runnable),
                Item::Call(call) => drop(call),
            }
            return;
        }
        injected.items.push_back(item);
        drop(injected);
        self.wake();
    }

    /// Makes the executor take another turn.
    pub(super) fn wake(&self) {
        self.pending.store(true, Ordering::SeqCst);
        if self.sleeping.swap(false, Ordering::SeqCst)
            && let Some(eventfd) = &self.wake
            && let Err(error) = eventfd.write(1)
        {
            // A full counter means that it is readable already.
            tracing::trace!("wake-up: {error}");
        }
    }

    pub(super) fn has_pending(&self) -> bool {
        self.pending.load(Ordering::SeqCst)
    }

    /// Moves what was injected behind what is ready; whether there was a wake-up at all.
    pub(super) fn drain_into(&self, ready: &ReadyQueue) -> bool {
        if !self.pending.load(Ordering::Relaxed) || !self.pending.swap(false, Ordering::SeqCst) {
            return false;
        }
        let mut injected = self.injected.lock().unwrap_or_else(PoisonError::into_inner);
        let items = std::mem::take(&mut injected.items);
        drop(injected);
        for item in items {
            ready.push(item);
        }
        true
    }

    /// From here on, whoever injects must write the eventfd.
    pub(super) fn announce_sleep(&self) {
        self.sleeping.store(true, Ordering::SeqCst);
    }

    pub(super) fn announce_awake(&self) {
        self.sleeping.store(false, Ordering::SeqCst);
    }

    /// Refuses everything from now on and drops what is queued.
    pub(super) fn close(&self) {
        let mut injected = self.injected.lock().unwrap_or_else(PoisonError::into_inner);
        injected.closed = true;
        let items = std::mem::take(&mut injected.items);
        drop(injected);
        drop(items);
    }
}

/// Waker of the future that [`Executor::block_on`] runs.
pub(super) struct RootWaker {
    woken: AtomicBool,
    shared: Arc<Shared>,
}

impl RootWaker {
    /// Starts woken, for the first poll.
    pub(super) fn new(shared: Arc<Shared>) -> Arc<RootWaker> {
        Arc::new(RootWaker { woken: AtomicBool::new(true), shared })
    }

    pub(super) fn take(&self) -> bool {
        self.woken.swap(false, Ordering::SeqCst)
    }

    pub(super) fn is_set(&self) -> bool {
        self.woken.load(Ordering::SeqCst)
    }
}

impl Wake for RootWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        if CURRENT_ID.get() != Arc::as_ptr(&self.shared) {
            self.shared.wake();
        }
    }
}
