//! A budget per minute that refills continuously: what was used a second ago is a sixtieth of the limit less used now.
//! Pure: the caller brings the time, of a monotonic clock.

use std::time::{Duration, Instant};

/// What of a budget is used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    used: f64,
    at: Instant,
}

/// A budget at one moment, for headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Level {
    pub(super) remaining: u64,
    /// Time until nothing is used.
    pub(super) reset: Duration,
}

impl Bucket {
    pub(super) const fn new(now: Instant) -> Self {
        Self { used: 0.0, at: now }
    }

    /// Time until `n` fit; `None`: they do now. More than the whole budget fits when nothing is used: refusing it for
    /// now would be refusing it for ever, and what it takes too much has to be waited for afterwards.
    pub(super) fn wait(&mut self, n: u64, limit: u64, now: Instant) -> Option<Duration> {
        self.refill(limit, now);
        let excess = self.used + n.min(limit) as f64 - limit as f64;
        // Refilling leaves rounding errors far below one unit.
        (excess > 1e-6).then(|| time_for(excess, limit))
    }

    pub(super) fn take(&mut self, n: u64) {
        self.used += n as f64;
    }

    pub(super) fn give_back(&mut self, n: u64) {
        self.used = (self.used - n as f64).max(0.0);
    }

    /// Used, in whole units begun.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative, far below 2^53")]
    pub(super) fn used(&self) -> u64 {
        (self.used - 1e-6).ceil().max(0.0) as u64
    }

    pub(super) fn level(&mut self, limit: u64, now: Instant) -> Level {
        self.refill(limit, now);
        Level { remaining: limit.saturating_sub(self.used()), reset: time_for(self.used, limit) }
    }

    fn refill(&mut self, limit: u64, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.used = (self.used - passed * limit as f64 / 60.0).max(0.0);
        self.at = self.at.max(now);
    }
}

/// Time in which `amount` is refilled; bounded, because a conversion panics on values that no clock holds.
fn time_for(amount: f64, limit: u64) -> Duration {
    Duration::from_secs_f64((amount * 60.0 / limit as f64).clamp(0.0, 1e9))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_refills_all_the_time() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut bucket = Bucket::new(start);
        for _ in 0..60 {
            assert_eq!(bucket.wait(1, 60, at(0.0)), None);
            bucket.take(1);
        }
        assert_eq!(bucket.wait(1, 60, at(0.0)), Some(Duration::from_secs(1)));
        assert_eq!(bucket.wait(1, 60, at(0.75)), Some(Duration::from_millis(250)));
        assert_eq!((bucket.used(), bucket.wait(1, 60, at(1.0))), (60, None));
        assert_eq!(bucket.level(60, at(1.0)), Level { remaining: 1, reset: Duration::from_secs(59) });
        // A clock that is read twice by two threads may seem to go back.
        assert_eq!(bucket.level(60, at(0.5)), Level { remaining: 1, reset: Duration::from_secs(59) });
        assert_eq!(bucket.level(60, at(3600.0)), Level { remaining: 60, reset: Duration::ZERO });
    }

    #[test]
    fn a_delay_is_the_truth() {
        let start = Instant::now();
        for (limit, taken, n) in [(60, 60, 1), (7, 7, 3), (100_000, 99_000, 50_000), (10, 35, 1)] {
            let mut bucket = Bucket::new(start);
            bucket.take(taken);
            let wait = bucket.wait(n, limit, start).unwrap();
            assert!(
                bucket.wait(n, limit, start + wait.mul_f64(0.99)).is_some(),
                "{limit}: a moment earlier it is full"
            );
            assert_eq!(bucket.wait(n, limit, start + wait + Duration::from_nanos(10)), None, "{limit}");
        }
    }

    #[test]
    fn more_than_everything_is_a_debt() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        assert_eq!(bucket.wait(600, 60, start), None);
        bucket.take(600);
        assert_eq!(bucket.level(60, start), Level { remaining: 0, reset: Duration::from_mins(10) });
        assert_eq!(bucket.wait(1, 60, start), Some(Duration::from_secs(541)));
        bucket.give_back(590);
        assert_eq!(bucket.wait(50, 60, start), None);
        bucket.give_back(1000);
        assert_eq!(bucket.level(60, start), Level { remaining: 60, reset: Duration::ZERO });
    }
}
