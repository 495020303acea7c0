//! The convergence model: when to stop the guest.
//!
//! After every round the downtime is predicted that stopping now would cost:
//!
//! ```text
//! predicted = pending bytes / bandwidth + dirty-log sync + 3 round trips
//! ```
//!
//! with all terms measured in this migration. As long as that exceeds `downtime-limit`, rounds go on, for
//! ever if need be: the user's limit is kept.
//! Once it fits, they go on while it **pays**: another round costs the running guest little, while
//! every millisecond of downtime costs it all. It no longer pays when what is left is negligible, when
//! the prediction has stopped falling, or after [`MAX_EXTRA_ROUNDS`].

use std::time::Duration;

/// Rounds after the prediction first fits the limit; keeps a guest that hovers around it from copying
/// for ever.
pub const MAX_EXTRA_ROUNDS: u32 = 10;
/// A rest that takes no longer than this is not worth another round: stopping and handing over cost
/// several times as much.
pub const NEGLIGIBLE: Duration = Duration::from_micros(200);
/// A round pays when it brings the prediction below this share (in percent) of the best so far.
const PAYS_BELOW_PERCENT: u32 = 85;
/// A prediction above this share (in percent) of the best so far is a bad moment to stop; the next round
/// may find a better one.
const BAD_MOMENT_PERCENT: u32 = 150;
/// A round with fewer bytes says more about latency than about bandwidth.
const MEASURABLE: u64 = 1 << 20;
/// Bytes per second assumed until a round was large enough to measure: a gigabit network.
const ASSUMED_BANDWIDTH: u64 = 110 << 20;
/// Round trips in the hand-over: Prepared, Running, and the last RAM's way there.
const ROUND_TRIPS: u32 = 3;

/// What one round showed.
#[derive(Debug, Clone, Copy, Default)]
pub struct Round {
    /// Bytes sent in it.
    pub bytes: u64,
    /// From its first byte until the destination had it all, waits for the rate limit included.
    pub time: Duration,
    /// How long the dirty-log sync after it took.
    pub sync: Duration,
    /// Bytes found dirty by that sync.
    pub pending: u64,
}

/// What to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// One more round: the limit is not met.
    TooLong,
    /// One more round: it fits, and the last one paid.
    StillFalling,
    /// One more round: it fits, but was better before.
    BadMoment,
    /// Stop: what is left is negligible.
    Negligible,
    /// Stop: the prediction does not fall any more.
    Settled,
    /// Stop: enough rounds.
    Enough,
}

impl Decision {
    /// Is it to stop the guest?
    pub fn is_switch_over(self) -> bool {
        matches!(self, Decision::Negligible | Decision::Settled | Decision::Enough)
    }

    /// For people, in `query-migrate`.
    pub fn as_str(self) -> &'static str {
        match self {
            Decision::TooLong => "continue: the predicted downtime exceeds downtime-limit",
            Decision::StillFalling => "continue: fits downtime-limit and still falling",
            Decision::BadMoment => "continue: fits downtime-limit, but was lower before",
            Decision::Negligible => "switch over: next to nothing is left",
            Decision::Settled => "switch over: the predicted downtime does not fall any more",
            Decision::Enough => "switch over: fits downtime-limit, enough rounds",
        }
    }
}

/// The model of one migration.
#[derive(Debug)]
pub struct Model {
    round_trip: Duration,
    bandwidth: Option<u64>,
    predicted: Duration,
    best: Option<Duration>,
    extra_rounds: u32,
}

impl Model {
    /// `round_trip` as measured in the handshake.
    pub fn new(round_trip: Duration) -> Model {
        Model {
            round_trip,
            bandwidth: None,
            predicted: Duration::ZERO,
            best: None,
            extra_rounds: 0,
        }
    }

    /// Bytes per second, as measured by the last round large enough.
    pub fn bandwidth(&self) -> u64 {
        self.bandwidth.unwrap_or(ASSUMED_BANDWIDTH)
    }

    /// Downtime predicted after the last round.
    pub fn predicted(&self) -> Duration {
        self.predicted
    }

    /// Takes a round in and decides. `limit` may change from call to call.
    pub fn decide(&mut self, round: &Round, limit: Duration) -> Decision {
        if round.bytes >= MEASURABLE && !round.time.is_zero() {
            let rate = u128::from(round.bytes) * 1_000_000_000 / round.time.as_nanos();
            self.bandwidth = Some(u64::try_from(rate).unwrap_or(u64::MAX).max(1));
        }
        let nanos = u128::from(round.pending) * 1_000_000_000 / u128::from(self.bandwidth());
        let rest = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.predicted = rest
            .saturating_add(round.sync)
            .saturating_add(self.round_trip.saturating_mul(ROUND_TRIPS));
        // First of all: the terms that rounds cannot shrink must not keep them going.
        if rest <= NEGLIGIBLE {
            return Decision::Negligible;
        }
        if self.predicted > limit {
            return Decision::TooLong;
        }
        self.extra_rounds += 1;
        if self.extra_rounds > MAX_EXTRA_ROUNDS {
            return Decision::Enough;
        }
        let best = self.best.replace(self.best.map_or(self.predicted, |b| b.min(self.predicted)));
        match best {
            None => Decision::StillFalling,
            Some(best) if self.predicted <= percent(best, PAYS_BELOW_PERCENT) => {
                Decision::StillFalling
            }
            Some(best) if self.predicted > percent(best, BAD_MOMENT_PERCENT) => Decision::BadMoment,
            Some(_) => Decision::Settled,
        }
    }
}

fn percent(of: Duration, percent: u32) -> Duration {
    of.saturating_mul(percent) / 100
}

#[cfg(test)]
#[path = "converge_tests.rs"]
mod tests;
