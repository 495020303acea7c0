//! Keeping the rate below `max-bandwidth`.

use std::time::Duration;

/// How much of a second's worth may be sent ahead, as a divisor: a short wait elsewhere costs nothing.
const BURST_SHARE: u64 = 50;

/// A token bucket that knows no clock: times are given to it, since any one start.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    /// Bytes sent and not yet paid for by time.
    debt: u64,
    /// When that was so.
    at: Duration,
}

impl Throttle {
    /// Notes that `bytes` were sent at `now` and returns how long to wait before sending more. `rate` is
    /// in bytes per second and may change from call to call; 0 means no limit.
    pub(crate) fn spend(&mut self, bytes: u64, now: Duration, rate: u64) -> Duration {
        let elapsed = now.saturating_sub(self.at);
        self.at = now;
        if rate == 0 {
            self.debt = 0;
            return Duration::ZERO;
        }
        let paid = saturate(u128::from(rate) * elapsed.as_nanos() / 1_000_000_000);
        self.debt = self.debt.saturating_sub(paid).saturating_add(bytes);
        let over = self.debt.saturating_sub(rate / BURST_SHARE);
        Duration::from_nanos(saturate(u128::from(over) * 1_000_000_000 / u128::from(rate)))
    }
}

fn saturate(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: u64 = 100 << 20;

    /// Sends batches for as long as told, sleeping as told; returns the bytes.
    fn run(rate: u64, batch: u64, time: Duration) -> u64 {
        let mut throttle = Throttle::default();
        let (mut now, mut sent) = (Duration::ZERO, 0);
        while now < time {
            sent += batch;
            now += throttle.spend(batch, now, rate) + Duration::from_micros(100);
        }
        sent
    }

    #[test]
    fn the_rate_is_kept_within_one_percent() {
        let sent = run(RATE, 1 << 20, Duration::from_secs(10));
        let wanted = RATE * 10;
        assert!(sent.abs_diff(wanted) < wanted / 100, "{sent} of {wanted}");
    }

    #[test]
    fn idle_time_is_not_saved_up() {
        let mut throttle = Throttle::default();
        throttle.spend(1 << 20, Duration::ZERO, RATE);
        let wait = throttle.spend(RATE, Duration::from_secs(100), RATE);
        assert_eq!(wait, Duration::from_millis(980));
    }

    #[test]
    fn a_new_rate_takes_effect_on_what_is_owed() {
        let mut throttle = Throttle::default();
        assert!(throttle.spend(RATE * 60, Duration::ZERO, RATE) > Duration::from_secs(50));
        assert!(throttle.spend(0, Duration::ZERO, RATE * 60) < Duration::from_secs(1));
        assert_eq!(throttle.spend(u64::MAX, Duration::from_secs(1), 0), Duration::ZERO);
        assert_eq!(throttle.spend(1, Duration::from_secs(1), RATE), Duration::ZERO);
    }

    #[test]
    fn absurd_numbers_saturate() {
        let mut throttle = Throttle::default();
        throttle.spend(u64::MAX, Duration::MAX, 1);
        throttle.spend(u64::MAX, Duration::ZERO, u64::MAX);
    }
}
