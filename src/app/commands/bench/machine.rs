//! What the machine can do, and whether it is quiet enough to be measured.

use std::time::{Duration, Instant};

use crate::app::commands::bench::samples::median;
use crate::kernel::Isa;
use crate::kernel::cpu::roofline;
use crate::threads;

/// The processors as this process may use them.
#[derive(Debug, Clone)]
pub(super) struct Machine {
    pub(super) cores: usize,
    pub(super) isa: Isa,
    /// Operations per second of f32 multiply-adds, on one core and on all.
    pub(super) peak_one: f64,
    pub(super) peak_all: f64,
    /// What two cores do at once, over what one does: 2 on a quiet machine. Absent where there is only one.
    pub(super) two_over_one: Option<f64>,
}

/// Below this, something else was running: 1.95 and more is seen on quiet machines with two real cores, and less where
/// the two are threads of one core or share its clock.
const QUIET_RATIO: f64 = 1.9;

impl Machine {
    /// Measures for about `time`, and three times at least.
    pub(super) fn measure(time: Duration) -> Self {
        const MIN_ROUNDS: usize = 3;
        let (start, cores) = (Instant::now(), threads::available());
        let (mut one, mut two, mut all) = (Vec::new(), Vec::new(), Vec::new());
        while one.len() < MIN_ROUNDS || start.elapsed() < time {
            one.push(roofline::multiply_adds(1));
            if cores >= 2 {
                two.push(roofline::multiply_adds(2));
            }
            if cores > 2 {
                all.push(roofline::multiply_adds(cores));
            }
        }
        let best = |rates: &[f64]| rates.iter().copied().fold(0.0, f64::max);
        let peak_all = [&one, &two, &all].map(|rates| best(rates)).into_iter().fold(0.0, f64::max);
        let ratios: Vec<f64> = two.iter().zip(&one).map(|(two, one)| two / one).collect();
        let two_over_one = (!ratios.is_empty()).then(|| median(ratios));
        Self { cores, isa: Isa::detect(), peak_one: best(&one), peak_all, two_over_one }
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.two_over_one.is_none_or(|ratio| ratio >= QUIET_RATIO)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_all_cores_do_is_at_least_what_one_does() {
        let machine = Machine::measure(Duration::ZERO);
        assert!(machine.peak_one > 0.0 && machine.peak_all >= machine.peak_one, "{machine:?}");
        assert_eq!(machine.two_over_one.is_some(), machine.cores > 1);
        let with = |ratio| Machine { two_over_one: ratio, ..machine.clone() }.is_quiet();
        assert_eq!([with(Some(2.0)), with(Some(1.3)), with(None)], [true, false, true]);
    }
}
