//! Latencies to percentiles.

use std::time::Duration;

/// A summary of many latencies, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Percentiles {
    pub(super) n: usize,
    pub(super) p50: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
}

impl Percentiles {
    /// Nearest rank: each percentile is a latency that occurred. `None` of nothing.
    pub(super) fn of(samples: &[Duration]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        let rank = |percent: usize| {
            let rank = (percent * sorted.len()).div_ceil(100).max(1);
            sorted.get(rank - 1).map(Duration::as_secs_f64)
        };
        Some(Self { n: sorted.len(), p50: rank(50)?, p95: rank(95)?, p99: rank(99)?, max: rank(100)? })
    }
}

/// The middle of some numbers; NaN of none.
pub(super) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(milliseconds: impl IntoIterator<Item = u64>) -> Option<Percentiles> {
        Percentiles::of(&milliseconds.into_iter().map(Duration::from_millis).collect::<Vec<_>>())
    }

    #[test]
    fn percentiles_are_latencies_that_occurred() {
        let hundred = of((1..=100).rev());
        assert_eq!(hundred, Some(Percentiles { n: 100, p50: 0.050, p95: 0.095, p99: 0.099, max: 0.1 }));
        // Of few samples, the high percentiles are the largest.
        assert_eq!(of([5]), Some(Percentiles { n: 1, p50: 0.005, p95: 0.005, p99: 0.005, max: 0.005 }));
        assert_eq!(of([3, 1, 2]), Some(Percentiles { n: 3, p50: 0.002, p95: 0.003, p99: 0.003, max: 0.003 }));
        assert_eq!(of([1, 1, 1, 9]), Some(Percentiles { n: 4, p50: 0.001, p95: 0.009, p99: 0.009, max: 0.009 }));
        assert_eq!(of([]), None);
    }

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]).to_bits(), 2.0_f64.to_bits());
        assert!(median(Vec::new()).is_nan());
    }
}
