//! Holding the guest up for a moment, so that the last bytes can be copied.
//!
//! A guest that never stops writing never leaves both sides equal by itself. So when what is left can be
//! copied in a moment, the gates are shut for that moment: once to become ready, once to finish. How long
//! a moment is starts small and grows with every pass over the disk that did not get there: to become
//! ready slowly and not far, to finish, which the user asked for, until it is enough.

use super::state::Mirror;
use crate::graph::Drained;

/// The first moment, in ns.
const FIRST_NS: u64 = 1_000_000;

/// What nobody notices much, in ns: a moment doubles with every pass up to this.
const SHORT_NS: u64 = 50_000_000;

/// The longest that a guest is held up for a mirror to become ready, in ns.
const READY_NS: u64 = 500_000_000;

/// What is added for drains and flushes, which nobody can predict, in ns.
const SLACK_NS: u64 = 200_000_000;

/// The guest is held up: no request enters before this is dropped.
pub(super) struct Held {
    pub(super) drained: Drained,
    pub(super) since: u64,
    /// Then it is let go, whatever has been reached (ns).
    pub(super) until: u64,
}

/// Decides when the guest is held up, and for how long.
pub(super) struct Hold {
    moment: u64,
    passes: u64,
    /// When the current pass began, and how much was done then.
    since: (u64, u64),
    /// Bytes copied in a second of the last pass.
    rate: u64,
    /// The longest flush of the target so far, in ns.
    flush: u64,
    /// The guest was held up in vain and is left alone until then (ns).
    pause: u64,
}

impl Hold {
    pub(super) fn new(mirror: &Mirror) -> Hold {
        let since = (mirror.ctx.now(), mirror.done());
        Hold { moment: FIRST_NS, passes: mirror.passes.get(), since, rate: 0, flush: 0, pause: 0 }
    }

    /// Whether what is left is so little that the guest may be held up for it now.
    pub(super) fn is_due(&mut self, mirror: &Mirror) -> bool {
        let finishing = mirror.ctx.should_finish();
        if mirror.ctx.is_ready() && !finishing {
            return false;
        }
        if self.passes != mirror.passes.get() {
            self.passes = mirror.passes.get();
            self.measure(mirror);
            self.longer(finishing);
        }
        let left = mirror.dirty_bytes() + mirror.op_bytes.get();
        let enough = self.rate != 0 && self.time_for(left) <= self.moment;
        enough && self.paused_until(mirror.ctx.now()).is_none()
    }

    /// The rate of the pass that ended just now.
    fn measure(&mut self, mirror: &Mirror) {
        let (now, done) = (mirror.ctx.now(), mirror.done());
        let (began, had) = std::mem::replace(&mut self.since, (now, done));
        let ns = u128::from(now.saturating_sub(began).max(1));
        let rate = u128::from(done.saturating_sub(had)) * 1_000_000_000 / ns;
        self.rate = u64::try_from(rate).unwrap_or(u64::MAX);
    }

    /// Nanoseconds it takes to copy `bytes`.
    fn time_for(&self, bytes: u64) -> u64 {
        let ns = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.max(1));
        u64::try_from(ns).unwrap_or(u64::MAX)
    }

    fn longer(&mut self, finishing: bool) {
        let more = if finishing || self.moment < SHORT_NS { self.moment } else { self.moment / 8 };
        let most = if finishing { u64::MAX } else { READY_NS };
        self.moment = self.moment.saturating_add(more).min(most);
    }

    /// When a hold that begins now has to end.
    pub(super) fn deadline(&self, now: u64) -> u64 {
        let work = self.moment.saturating_mul(2).saturating_add(self.flush.saturating_mul(4));
        now.saturating_add(SLACK_NS).saturating_add(work)
    }

    /// Until when the guest must be left alone, if it must now.
    pub(super) fn paused_until(&self, now: u64) -> Option<u64> {
        Some(self.pause).filter(|until| *until > now)
    }

    /// The guest had to be let go before both sides were equal. It was held up since `since`, and may work
    /// as long before the next attempt.
    pub(super) fn ran_out(&mut self, mirror: &Mirror, since: u64) {
        let now = mirror.ctx.now();
        self.pause = now.saturating_add(now.saturating_sub(since));
        self.longer(mirror.ctx.should_finish());
        tracing::debug!(job = mirror.ctx.id(), ns = self.moment, "the guest was held up in vain");
    }

    /// A flush of the target took so long.
    pub(super) fn flushed(&mut self, ns: u64) {
        self.flush = self.flush.max(ns);
    }

    /// The mirror became ready: the next hold is for finishing, and starts small again.
    pub(super) fn begin_again(&mut self) {
        self.moment = FIRST_NS;
    }
}
