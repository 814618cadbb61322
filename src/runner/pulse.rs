//! What a device thread says of itself, in one place that can be read without waiting for it.
//!
//! A forward pass is overdue when it takes longer than its tokens took when the model was loaded, several times over:
//! long rows on slow machines are no stall. Waiting for the turn of another model is none either; a turn that never
//! comes is the stall of the model that holds it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::runner::{Breakage, Health, Limits};

/// A forward pass may take this many times what its tokens took at start: the processor is shared, and attention over
/// long rows costs more per token than over the short one that was measured.
const SLACK: u32 = 4;

/// The state of one device thread.
#[derive(Debug)]
pub(super) struct Pulse {
    limits: Limits,
    /// Per token, as measured at start.
    pace: Duration,
    now: Mutex<Now>,
}

#[derive(Debug, Clone, Copy)]
struct Now {
    doing: Doing,
    /// When a forward pass last gave a vector.
    success: Instant,
    broken: Option<Breakage>,
    ended: bool,
}

#[derive(Debug, Clone, Copy)]
enum Doing {
    /// Between batches; the thread wakes up for its canary.
    Resting {
        since: Instant,
    },
    /// Other models have their turns.
    Waiting,
    Computing {
        since: Instant,
        allowance: Duration,
        canary: bool,
    },
}

/// Why a forward pass is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Rows,
    Canary,
}

/// Work that is about to begin or under way.
#[derive(Debug)]
#[must_use = "the work ends when this is dropped"]
pub(super) struct Work<'a>(&'a Pulse);

impl Pulse {
    /// Of a thread whose model has just passed its self-test.
    pub(super) fn new(limits: Limits, pace: Duration) -> Self {
        let now = Instant::now();
        let now = Now { doing: Doing::Resting { since: now }, success: now, broken: None, ended: false };
        Self { limits, pace, now: Mutex::new(now) }
    }

    /// The thread asks for its turn.
    pub(super) fn begin(&self) -> Work<'_> {
        self.lock().doing = Doing::Waiting;
        Work(self)
    }

    /// A forward pass has given a vector.
    pub(super) fn succeeded(&self) {
        self.lock().success = Instant::now();
    }

    /// When the canary is to be computed next.
    pub(super) fn canary_due(&self) -> Instant {
        self.lock().success + self.limits.canary_interval
    }

    pub(super) fn broke(&self, breakage: Breakage) {
        self.lock().broken = Some(breakage);
    }

    pub(super) fn ended(&self) {
        self.lock().ended = true;
    }

    pub(super) fn health(&self) -> Health {
        let now = *self.lock();
        if let Some(breakage) = now.broken {
            return Health::Broken(breakage);
        }
        if now.ended {
            return Health::Dead;
        }
        let (overdue, canary) = match now.doing {
            Doing::Waiting => (Duration::ZERO, false),
            Doing::Resting { since } => (since.elapsed().saturating_sub(self.limits.canary_interval), false),
            Doing::Computing { since, allowance, canary } => (since.elapsed().saturating_sub(allowance), canary),
        };
        if overdue > self.limits.heartbeat { Health::Stalled { overdue, canary } } else { Health::Ready }
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        // No code that can panic runs under this lock.
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Work<'_> {
    /// The turn has come, and a forward pass over so many tokens begins.
    pub(super) fn compute(&self, n_tokens: usize, purpose: Purpose) {
        let n_tokens = u32::try_from(n_tokens).unwrap_or(u32::MAX);
        let allowance = self.0.pace.saturating_mul(SLACK).saturating_mul(n_tokens);
        let canary = purpose == Purpose::Canary;
        self.0.lock().doing = Doing::Computing { since: Instant::now(), allowance, canary };
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        self.0.lock().doing = Doing::Resting { since: Instant::now() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulse(heartbeat: Duration, pace: Duration) -> Pulse {
        let canary_interval = Duration::from_mins(1);
        Pulse::new(Limits { canary_interval, heartbeat, longest_row: 1, isolation_passes_per_second: 1 }, pace)
    }

    // I-06: a pass over many tokens may take long; one over few may not.
    #[test]
    fn a_pass_is_overdue_after_what_its_tokens_may_take() {
        let pulse = pulse(Duration::ZERO, Duration::from_secs(1));
        let work = pulse.begin();
        work.compute(1000, Purpose::Rows);
        assert_eq!(pulse.health(), Health::Ready);
        work.compute(0, Purpose::Canary);
        assert!(matches!(pulse.health(), Health::Stalled { canary: true, .. }));
        drop(work);
        assert_eq!(pulse.health(), Health::Ready);
    }

    // I-06
    #[test]
    fn neither_a_wait_for_a_turn_nor_rest_is_a_stall() {
        let pulse = pulse(Duration::ZERO, Duration::ZERO);
        assert_eq!(pulse.health(), Health::Ready);
        let _work = pulse.begin();
        assert_eq!(pulse.health(), Health::Ready);
    }

    // I-06: a thread that does not come back for its canary hangs outside a forward pass.
    #[test]
    fn endless_rest_is_a_stall() {
        let limits = pulse(Duration::ZERO, Duration::ZERO).limits;
        let pulse = Pulse::new(Limits { canary_interval: Duration::ZERO, ..limits }, Duration::ZERO);
        assert!(matches!(pulse.health(), Health::Stalled { canary: false, .. }));
    }

    // I-07, I-09: what is broken stays broken, and says so also when the thread has ended.
    #[test]
    fn a_breakage_outlives_the_thread() {
        let pulse = pulse(Duration::from_mins(1), Duration::ZERO);
        pulse.broke(Breakage::DeviceLost);
        pulse.ended();
        pulse.succeeded();
        assert_eq!(pulse.health(), Health::Broken(Breakage::DeviceLost));
    }
}
