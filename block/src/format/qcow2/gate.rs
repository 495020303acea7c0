//! [`Gate`]: which requests are under way, and how to wait for them.
//!
//! Every request holds a [`Pass`] from before it looks anything up until its last byte has moved, also
//! when nobody waits for that any more.
//! Two things wait for passes:
//!
//! - an operation on the whole image (snapshot, check, resize, inactivation) *closes* the gate: it
//!   waits for all passes, and new requests wait for it;
//! - freed clusters wait for a *grace period*: a request that looked an entry up before it was
//!   changed may still read or write where it pointed to, so nobody else may be given that place
//!   until all requests that were under way then have ended. New ones go on meanwhile.

use std::cell::Cell;
use std::rc::Rc;

use crate::notify::Notify;

/// The gate of one image.
#[derive(Clone, Default)]
pub(super) struct Gate(Rc<State>);

#[derive(Default)]
struct State {
    /// Passes of the two generations that can be alive at once.
    passes: [Cell<u32>; 2],
    /// The generation that new passes belong to.
    generation: Cell<usize>,
    closed: Cell<bool>,
    stale: Cell<bool>,
    changed: Notify,
}

/// A request under way.
pub(super) struct Pass {
    gate: Gate,
    generation: usize,
}

/// The whole image, for one operation alone.
pub(super) struct Closed(Gate);

impl Gate {
    /// Begins a request; `None` while the gate is closed, or what is in memory is stale.
    pub(super) fn try_enter(&self) -> Option<Pass> {
        if self.0.closed.get() || self.0.stale.get() {
            return None;
        }
        let generation = self.0.generation.get();
        let count = &self.0.passes[generation];
        count.set(count.get() + 1);
        Some(Pass { gate: self.clone(), generation })
    }

    /// Waits until the gate is open.
    pub(super) async fn opened(&self) {
        self.0.changed.wait_until(|| !self.0.closed.get()).await;
    }

    /// Whether the file was changed behind the back of what is in memory: no request may go by that
    /// before it was read again.
    pub(super) fn is_stale(&self) -> bool {
        self.0.stale.get()
    }

    /// Says so, or that it was. Called with the gate closed.
    pub(super) fn set_stale(&self, stale: bool) {
        self.0.stale.set(stale);
    }

    /// Waits until no request is under way, and keeps new ones off.
    pub(super) async fn close(&self) -> Closed {
        self.0.changed.wait_until(|| !self.0.closed.replace(true)).await;
        let closed = Closed(self.clone());
        self.0.changed.wait_until(|| self.0.passes.iter().all(|count| count.get() == 0)).await;
        closed
    }

    /// Waits for the end of every request that is under way now. Only one task may wait here at a
    /// time.
    pub(super) async fn grace(&self) {
        let state = &self.0;
        let old = state.generation.get();
        let new = 1 - old;
        // The generation before that gets nobody new, and must be empty to be used again.
        state.changed.wait_until(|| state.passes[new].get() == 0).await;
        state.generation.set(new);
        state.changed.wait_until(|| state.passes[old].get() == 0).await;
    }
}

impl Pass {
    /// Another one for the same request: for a part of it that goes on when the rest is given up.
    pub(super) fn again(&self) -> Pass {
        let count = &self.gate.0.passes[self.generation];
        count.set(count.get() + 1);
        Pass { gate: self.gate.clone(), generation: self.generation }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let state = &self.gate.0;
        let left = state.passes[self.generation].get() - 1;
        state.passes[self.generation].set(left);
        if left == 0 {
            state.changed.notify_all();
        }
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.0.closed.set(false);
        self.0.0.changed.notify_all();
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
