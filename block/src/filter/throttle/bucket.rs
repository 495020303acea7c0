//! The leaky bucket: what a request costs flows in, the allowed rate flows out, and who finds it
//! full waits.
//!
//! Everything is in whole numbers: a unit (a byte, or a request) is a thousand million drops, so
//! that a rate of so many units a second is as many drops a nanosecond, exactly.

use super::limits::Rate;

/// Drops of one unit.
pub(super) const UNIT: u128 = 1_000_000_000;

/// A bucket for one quantity.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    rate: Rate,
    /// What has not leaked out at the average rate.
    level: u128,
    /// What has not leaked out at the rate of bursts; only kept when bursts last.
    burst_level: u128,
}

impl Bucket {
    pub(super) fn new(rate: Rate) -> Bucket {
        Bucket { rate, level: 0, burst_level: 0 }
    }

    /// `ns` have passed.
    pub(super) fn leak(&mut self, ns: u64) {
        let leaked = |rate: u64| u128::from(rate) * u128::from(ns);
        self.level = self.level.saturating_sub(leaked(self.rate.average));
        self.burst_level = self.burst_level.saturating_sub(leaked(self.rate.max));
    }

    /// Nanoseconds until the next request may start.
    pub(super) fn wait(&self) -> u64 {
        let Rate { average, max, max_length } = self.rate;
        if average == 0 {
            return 0;
        }
        // Without bursts a tenth of a second is lent, or every other request would have to wait.
        let size = match max {
            0 => u128::from(average) * UNIT / 10,
            max => u128::from(max) * u128::from(max_length) * UNIT,
        };
        if self.level > size {
            return time(self.level - size, average);
        }
        let burst_size = u128::from(max) * UNIT / 10;
        if max_length > 1 && self.burst_level > burst_size {
            return time(self.burst_level - burst_size, max);
        }
        0
    }

    /// A request that costs so many drops starts.
    pub(super) fn pour(&mut self, drops: u128) {
        if self.rate.average == 0 {
            return;
        }
        self.level = self.level.saturating_add(drops);
        if self.rate.max_length > 1 {
            self.burst_level = self.burst_level.saturating_add(drops);
        }
    }
}

/// How long that much takes to leak out, rounded up.
fn time(drops: u128, rate: u64) -> u64 {
    u64::try_from(drops.div_ceil(u128::from(rate.max(1)))).unwrap_or(u64::MAX)
}
