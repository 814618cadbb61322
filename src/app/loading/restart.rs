//! Which models are loaded again after the death of their device thread, and when. Bookkeeping without a clock of its own.

use std::time::{Duration, Instant};

/// What is done about a death.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is loaded again after a short while.
    Again,
    /// It died a short while ago already.
    GivenUp,
}

/// The deaths so far, by model.
#[derive(Debug)]
pub(super) struct Restarts {
    delay: Duration,
    window: Duration,
    last: Vec<Option<Instant>>,
    due: Vec<(Instant, usize)>,
}

impl Restarts {
    /// Models come back after `delay`; one that dies twice within `window` does not.
    pub(super) fn new(n_models: usize, delay: Duration, window: Duration) -> Self {
        Self { delay, window, last: vec![None; n_models], due: Vec::new() }
    }

    /// A device thread died.
    pub(super) fn died(&mut self, index: usize, now: Instant) -> Fate {
        let before = self.last[index].replace(now);
        if before.is_some_and(|before| now.saturating_duration_since(before) < self.window) {
            return Fate::GivenUp;
        }
        self.due.push((now + self.delay, index));
        Fate::Again
    }

    /// When the next model comes back.
    pub(super) fn next(&self) -> Option<Instant> {
        self.due.iter().map(|(due, _)| *due).min()
    }

    /// A model whose time has come.
    pub(super) fn take(&mut self, now: Instant) -> Option<usize> {
        let place = self.due.iter().position(|(due, _)| *due <= now)?;
        Some(self.due.swap_remove(place).1)
    }

    /// Whether the model has died and come back lately, so that it has had its chance.
    pub(super) fn has_had_its_chance(&self, index: usize, now: Instant) -> bool {
        self.last[index].is_some_and(|last| now.saturating_duration_since(last) < self.window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // I-07
    #[test]
    fn a_model_comes_back_once_and_again_when_the_window_has_passed() {
        let (delay, window) = (Duration::from_secs(1), Duration::from_mins(10));
        let mut restarts = Restarts::new(2, delay, window);
        let start = Instant::now();
        assert_eq!((restarts.next(), restarts.take(start)), (None, None));
        assert_eq!(restarts.died(1, start), Fate::Again);
        assert!(restarts.has_had_its_chance(1, start) && !restarts.has_had_its_chance(0, start));
        assert_eq!((restarts.next(), restarts.take(start)), (Some(start + delay), None));
        assert_eq!((restarts.take(start + delay), restarts.take(start + delay)), (Some(1), None));
        assert_eq!(restarts.died(0, start), Fate::Again, "models do not count for each other");
        assert_eq!(restarts.died(1, start + window / 2), Fate::GivenUp);
        assert_eq!(restarts.died(1, start + window * 2), Fate::Again);
    }
}
