//! Busy polling before sleeping, for as long as it has paid off recently.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use crate::clock::Clock;

/// Default of the longest busy polling: what a fast disk takes. With 32 us, a sleep whose wake-up takes longer
/// than that ended the polling for good: 4 KiB writes to tmpfs at depth 1 were at 13 k a second, and are at 320 k.
pub(crate) const DEFAULT_POLL_MAX_NS: u64 = 131_072;
/// First polling time after polling had been given up.
const POLL_START_NS: u64 = 4_096;
/// After so many waits without polling, one is polled as long as allowed: how long a wait was is only known with
/// its wake-up, which may take longer than what was waited for.
const TRIAL_EVERY: u32 = 32;

/// A source of work that can be looked at cheaply, such as a virtqueue in guest memory.
pub trait Poller {
    /// Looks once and wakes whoever handles what it finds; whether there was anything.
    fn poll(&self) -> bool;

    /// The thread is about to sleep: ask the other side for notifications. Called before one last
    /// [`poll`](Poller::poll).
    fn arm(&self);

    /// The thread is awake: notifications are not needed.
    fn disarm(&self);
}

/// Keeps a poller registered; dropping it takes the poller out.
pub struct PollerGuard {
    pollers: Weak<Pollers>,
    id: u64,
}

/// A list that is replaced, never changed: a poller may add or drop others while it is walked.
type List = Rc<[(u64, Rc<dyn Poller>)]>;

/// All pollers of an executor and how long to spin.
pub(super) struct Pollers {
    list: RefCell<List>,
    next_id: Cell<u64>,
    max_ns: Cell<u64>,
    spin_ns: Cell<u64>,
    /// Waits that no allowed polling would have caught.
    given_up: Cell<u32>,
}

impl Default for Pollers {
    fn default() -> Pollers {
        Pollers {
            list: RefCell::new(Rc::new([])),
            next_id: Cell::new(0),
            max_ns: Cell::new(DEFAULT_POLL_MAX_NS),
            given_up: Cell::new(0),
            spin_ns: Cell::new(0),
        }
    }
}

impl Pollers {
    pub(super) fn add(self: &Rc<Self>, poller: Rc<dyn Poller>) -> PollerGuard {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let longer = self.snapshot().iter().cloned().chain([(id, poller)]).collect();
        self.list.replace(longer);
        PollerGuard { pollers: Rc::downgrade(self), id }
    }

    fn remove(&self, id: u64) {
        let shorter = self.snapshot().iter().filter(|(other, _)| *other != id).cloned().collect();
        let old = self.list.replace(shorter);
        drop(old);
    }

    fn snapshot(&self) -> List {
        Rc::clone(&self.list.borrow())
    }

    pub(super) fn max_ns(&self) -> u64 {
        self.max_ns.get()
    }

    pub(super) fn set_max_ns(&self, limit: u64) {
        self.max_ns.set(limit);
        self.spin_ns.set(self.spin_ns.get().min(limit));
    }

    /// How long is polled now, ns.
    pub(super) fn spin_ns(&self) -> u64 {
        self.spin_ns.get()
    }

    /// Looks at every poller once; whether one found work.
    pub(super) fn poll(&self) -> bool {
        self.snapshot().iter().fold(false, |found, (_, poller)| poller.poll() | found)
    }

    /// Spins until a poller or `other` finds work or the time is up; whether work was found. Without
    /// pollers, and unless `other` sees `more` than what ends a sleep late, it only looks.
    pub(super) fn spin(
        &self,
        clock: &Clock,
        started: u64,
        more: bool,
        other: impl Fn() -> bool,
    ) -> bool {
        let only_look = !more && self.list.borrow().is_empty();
        loop {
            if other() || self.poll() {
                return true;
            }
            if only_look {
                return false;
            }
            if clock.now().saturating_sub(started) >= self.spin_ns.get() {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    /// Asks for notifications, then looks once more; whether there is work already.
    pub(super) fn arm_all(&self) -> bool {
        for (_, poller) in self.snapshot().iter() {
            poller.arm();
        }
        self.poll()
    }

    pub(super) fn disarm_all(&self) {
        for (_, poller) in self.snapshot().iter() {
            poller.disarm();
        }
    }

    /// Learns from a wait of `waited` ns, spinning and sleeping together: a wait that a longer spin
    /// would have caught makes it longer, one that no allowed spin would have caught ends it.
    pub(super) fn adapt(&self, waited: u64) {
        let (spin, max) = (self.spin_ns.get(), self.max_ns.get());
        if waited <= spin {
            return;
        }
        if waited <= max {
            self.spin_ns.set((spin * 2).max(POLL_START_NS).min(max));
            return;
        }
        let given_up = self.given_up.get().wrapping_add(1);
        self.given_up.set(given_up);
        self.spin_ns.set(if given_up.is_multiple_of(TRIAL_EVERY) { max } else { 0 });
    }
}

impl Drop for PollerGuard {
    fn drop(&mut self) {
        if let Some(pollers) = self.pollers.upgrade() {
            pollers.remove(self.id);
        }
    }
}
