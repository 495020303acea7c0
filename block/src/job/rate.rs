//! The rate limit of a job: so many bytes a second, counted in slices of a tenth of a second.

/// Nanoseconds of one slice.
const SLICE_NS: u64 = 100_000_000;

/// Bytes a second, with a memory of what was spent.
///
/// Work is charged after it was started, so the first slice may overdraw; what was overdrawn is waited for.
#[derive(Debug, Default)]
pub(crate) struct RateLimit {
    /// Bytes a second; 0 is no limit.
    speed: u64,
    /// When the bytes spent so far will have been earned, in ns of the job's clock.
    earned_at: u64,
}

impl RateLimit {
    pub(crate) fn speed(&self) -> u64 {
        self.speed
    }

    /// A new limit holds from `now` on; debts of the old one are forgiven.
    pub(crate) fn set_speed(&mut self, speed: u64, now: u64) {
        self.speed = speed;
        self.earned_at = now;
    }

    /// `bytes` were spent at `now`.
    pub(crate) fn charge(&mut self, bytes: u64, now: u64) {
        if self.speed == 0 {
            return;
        }
        self.earned_at = self.earned_at.max(now).saturating_add(self.cost(bytes));
    }

    /// `bytes` that were charged cost nothing after all.
    pub(crate) fn refund(&mut self, bytes: u64) {
        if self.speed != 0 {
            self.earned_at = self.earned_at.saturating_sub(self.cost(bytes));
        }
    }

    /// Nanoseconds it takes to earn `bytes`. Only asked with a limit set.
    fn cost(&self, bytes: u64) -> u64 {
        let cost = u128::from(bytes) * 1_000_000_000 / u128::from(self.speed.max(1));
        u64::try_from(cost).unwrap_or(u64::MAX)
    }

    /// When the next work may start, if not at `now`. A slice is lent, so that a fast job does not
    /// wait for every single operation.
    pub(crate) fn wait_until(&self, now: u64) -> Option<u64> {
        let at = self.earned_at.saturating_sub(SLICE_NS);
        (self.speed != 0 && at > now).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_is_the_speed() {
        for (speed, piece) in [(1 << 20, 4096), (10 << 20, 1 << 20), (1 << 10, 64 << 10)] {
            let mut limit = RateLimit::default();
            let mut now = 5_000;
            limit.set_speed(speed, now);
            let (start, mut sent) = (now, 0);
            while sent < (speed * 5).max(piece * 10) {
                now = limit.wait_until(now).unwrap_or(now);
                limit.charge(piece, now);
                sent += piece;
            }
            now = limit.wait_until(now).unwrap_or(now);
            let seconds = (now - start) as f64 / 1e9;
            let rate = sent as f64 / seconds;
            assert!(rate < speed as f64 * 1.03, "{rate} against {speed}");
            assert!(rate > speed as f64 * 0.97, "{rate} against {speed}");
        }
    }

    #[test]
    fn no_limit_never_waits_and_a_new_one_forgives() {
        let mut limit = RateLimit::default();
        limit.charge(u64::MAX, 0);
        assert_eq!(limit.wait_until(0), None);
        limit.set_speed(1, 0);
        limit.charge(1 << 30, 0);
        assert!(limit.wait_until(0).is_some());
        limit.set_speed(0, 10);
        assert_eq!(limit.wait_until(10), None);
    }
}
