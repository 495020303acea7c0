//! Waiting on behalf of the guest's CMOS clock, which has interrupts but no thread of its own.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

use ferry_block::{Executor, Notify, within};
use ferry_devices::rtc::Rtc;

/// The task that waits, as those see it who know that there is something new to wait for.
#[derive(Default)]
pub(super) struct ClockWatch {
    told: Cell<bool>,
    changed: Notify,
}

impl ClockWatch {
    /// Looks after `clock` from now on.
    pub(super) fn start(self: &Rc<Self>, executor: &Executor, clock: Arc<Mutex<Rtc>>) {
        let (this, sleeper) = (Rc::clone(self), executor.clone());
        drop(executor.spawn(async move {
            loop {
                this.told.set(false);
                let due = clock.lock().unwrap_or_else(PoisonError::into_inner).tick();
                let changed = this.changed.wait_until(|| this.told.get());
                match due {
                    Some(wait) => drop(within(&sleeper, wait, changed).await),
                    None => changed.await,
                }
            }
        }));
    }

    /// The clock has another answer by now.
    pub(super) fn look_again(&self) {
        self.told.set(true);
        self.changed.notify_all();
    }
}
