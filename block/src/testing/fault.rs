//! Faults of a simulated disk, addressed by operation, range and count.

use std::ops::Range;
use std::time::Duration;

use crate::error::ErrorKind;

/// What a simulated disk can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the driver method of that name")]
pub enum SimOp {
    Read,
    Write,
    Zeroes,
    Discard,
    Flush,
    Map,
}

/// What happens to an operation that a fault strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It fails; a write may have reached the medium in part.
    Fail(ErrorKind),
    /// It does not come back until the disk is healed.
    Hang,
    /// It takes that much longer.
    Delay(Duration),
}

/// A fault: which operations it strikes, and what it does to them.
#[derive(Clone, Debug)]
pub struct Fault {
    op: SimOp,
    range: Option<Range<u64>>,
    skip: u64,
    times: u64,
    effect: Effect,
}

impl Fault {
    /// Strikes every operation of this kind.
    pub fn every(op: SimOp, effect: Effect) -> Fault {
        Fault { op, range: None, skip: 0, times: u64::MAX, effect }
    }

    /// Strikes the next operation of this kind, once.
    pub fn once(op: SimOp, effect: Effect) -> Fault {
        Fault { times: 1, ..Fault::every(op, effect) }
    }

    /// Only operations that touch `range`.
    #[must_use]
    pub fn within(mut self, range: Range<u64>) -> Fault {
        self.range = Some(range);
        self
    }

    /// Lets the first `skip` of them pass.
    #[must_use]
    pub fn after(mut self, skip: u64) -> Fault {
        self.skip = skip;
        self
    }

    /// Strikes so many times.
    #[must_use]
    pub fn times(mut self, times: u64) -> Fault {
        self.times = times;
        self
    }

    /// The effect of the first of `faults` that strikes this operation; spent faults disappear.
    pub(super) fn strike(faults: &mut Vec<Fault>, op: SimOp, at: &Range<u64>) -> Option<Effect> {
        let mut effect = None;
        for fault in faults.iter_mut() {
            let touched = fault
                .range
                .as_ref()
                .is_none_or(|range| range.start < at.end && at.start < range.end);
            if fault.op != op || !touched || effect.is_some() {
                continue;
            }
            if fault.skip > 0 {
                fault.skip -= 1;
            } else {
                fault.times -= 1;
                effect = Some(fault.effect);
            }
        }
        faults.retain(|fault| fault.times > 0);
        effect
    }
}
