//! The INTx pin of a function (PCI 3.0, sections 2.2.6, 6.2.2 and 6.2.3).

use std::sync::{Arc, Mutex, PoisonError};

use crate::irq::IrqLine;

/// A function's level-triggered interrupt pin.
///
/// The interrupt status bit shows what the device asserts even while the interrupt disable bit
/// keeps it off the line.
pub struct Intx {
    line: Arc<dyn IrqLine>,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Default)]
struct State {
    asserted: bool,
    disabled: bool,
}

impl Intx {
    /// A pin on `line`, not asserted. Pins that share a line take an input of a
    /// [`SharedLine`](crate::irq::SharedLine) each.
    pub fn new(line: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new(Self { line, state: Mutex::default() })
    }

    /// The device asserts or releases the pin. Callable from any thread.
    pub fn set(&self, asserted: bool) {
        self.change(|state| state.asserted = asserted);
    }

    /// Whether the device asserts the pin: the interrupt status bit of the status register.
    pub fn is_asserted(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).asserted
    }

    /// The interrupt disable bit of the command register.
    pub(super) fn set_disabled(&self, disabled: bool) {
        self.change(|state| state.disabled = disabled);
    }

    fn change(&self, edit: impl FnOnce(&mut State)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        edit(&mut state);
        // Under the lock: two threads must not deliver their levels out of order.
        self.line.set_level(state.asserted && !state.disabled);
    }
}
