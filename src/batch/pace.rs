//! How fast a device computes, as its batches show it: what a wait is predicted from.

use std::time::Duration;

/// Tokens per second. Only a batch that had no room for all that waited shows what the device can do, and such batches
/// are averaged. One that took everything may be slow for being small: it can raise the rate, never lower it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// 0: nothing was computed yet.
    tokens_per_second: f64,
}

/// The weight of one full batch.
const WEIGHT: f64 = 0.2;

impl Pace {
    pub(super) fn observe(&mut self, n_tokens: usize, took: Duration, full: bool) {
        let rate = n_tokens as f64 / took.as_secs_f64().max(1e-6);
        let old = self.tokens_per_second;
        self.tokens_per_second = if full && old > 0.0 { old + WEIGHT * (rate - old) } else { old.max(rate) };
    }

    /// How many tokens are computed in this time; 0 before anything was computed.
    pub(super) fn tokens(self, time: Duration) -> usize {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is never negative")]
        let tokens = (self.tokens_per_second * time.as_secs_f64()) as usize;
        tokens
    }

    /// How long so many tokens take; `None` before anything was computed.
    pub(super) fn time(self, n_tokens: usize) -> Option<Duration> {
        /// Beyond what any client waits for: bounded before the conversion, which panics on what no clock holds.
        const LONGEST: f64 = 3600.0;
        let seconds = n_tokens as f64 / self.tokens_per_second;
        (self.tokens_per_second > 0.0).then(|| Duration::from_secs_f64(seconds.clamp(0.0, LONGEST)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn full_batches_are_averaged_and_others_only_raise() {
        let mut pace = Pace::default();
        assert_eq!(pace.time(1000), None);
        // The first one, whatever it was.
        pace.observe(10, SECOND, true);
        assert_eq!(pace.time(1000), Some(100 * SECOND));
        pace.observe(1000, SECOND, false);
        assert_eq!(pace.time(1000), Some(SECOND));
        // A single short text takes as long as ten of them.
        pace.observe(5, SECOND, false);
        assert_eq!(pace.time(1000), Some(SECOND));
        // A device that has become slow.
        pace.observe(500, SECOND, true);
        assert_eq!(pace.time(900), Some(SECOND));
    }

    #[test]
    fn tokens_are_what_a_time_is_enough_for() {
        let mut pace = Pace::default();
        assert_eq!(pace.tokens(SECOND), 0);
        pace.observe(1000, SECOND, true);
        assert_eq!((pace.tokens(SECOND), pace.tokens(SECOND / 20)), (1000, 50));
    }

    #[test]
    fn no_time_is_beyond_the_clock() {
        let mut pace = Pace::default();
        pace.observe(0, SECOND, true);
        assert_eq!(pace.time(1), None);
        pace.observe(1, Duration::from_secs(u64::MAX), true);
        assert_eq!(pace.time(usize::MAX), Some(3600 * SECOND));
        pace.observe(usize::MAX, Duration::ZERO, true);
        assert!(pace.time(1).is_some());
    }
}
