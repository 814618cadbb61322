//! Threads that compute one tile of tokens together: who takes which part, and waiting for each other.
//!
//! All members run the same program; where one needs what another wrote, all of them pass a [`Team::wait`]. A team of one
//! never waits.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Looks at the barrier before going to sleep: tens of microseconds, longer than a well-balanced team waits, and little
/// beside what it costs to be woken.
const SPINS: usize = 4_000;
/// Looks after which the processor is offered to others, once: the one waited for may have been put on the same one, and
/// would run only when this thread has used up its looks, at every barrier of the pass. Not more often: where other
/// programs compute, each offer gives a whole turn away.
const SPINS_BEFORE_OFFER: usize = 64;
/// Shares are of about equal work, so who comes this much later than another, and took several times as long, did not
/// have its processor for a while: less than a turn of another program, more than a hypervisor's hiccups.
const LATE: Duration = Duration::from_millis(2);
const TIMES_AS_LONG: u32 = 2;

/// A barrier that can be used any number of times.
#[derive(Debug, Default)]
pub(super) struct Barrier {
    arrived: AtomicUsize,
    /// How often everybody has arrived.
    round: AtomicUsize,
    /// Set when a member panicked: nobody waits for it.
    broken: AtomicBool,
    /// Set when a member came late, as others measure it.
    late: AtomicBool,
    sleeping: Mutex<()>,
    woken: Condvar,
}

/// One thread's membership.
#[derive(Debug, Clone)]
pub(super) struct Team<'a> {
    pub(super) index: usize,
    pub(super) size: usize,
    barrier: &'a Barrier,
    /// Since when this member computes its share.
    since: Cell<Instant>,
    /// One of its shares since then was empty: it waits for the others' work, however punctual they are.
    idle: Cell<bool>,
}

impl<'a> Team<'a> {
    pub(super) fn new(index: usize, size: usize, barrier: &'a Barrier) -> Self {
        Self { index, size, barrier, since: Cell::new(Instant::now()), idle: Cell::new(false) }
    }

    /// Returns when every member has called this as often; what they wrote before can be read after.
    ///
    /// # Panics
    /// When another member panicked.
    pub(super) fn wait(&self) {
        if self.size == 1 {
            return;
        }
        let arrived = Instant::now();
        // Ends a forward pass whose other half is gone; the caller of the pass catches it.
        assert!(self.barrier.wait(self.size), "another compute thread panicked");
        let (computed, over) = (arrived - self.since.get(), Instant::now());
        if !self.idle.take() && over - arrived > LATE.max(computed * TIMES_AS_LONG) {
            self.barrier.late.store(true, Ordering::Relaxed);
        }
        self.since.set(over);
    }

    /// This member's share of `n` units, contiguous, in multiples of `unit` but for the last.
    pub(super) fn share(&self, n: usize, unit: usize) -> Range<usize> {
        let units = n.div_ceil(unit);
        let border = |index: usize| (units * index / self.size * unit).min(n);
        self.noted(border(self.index)..border(self.index + 1))
    }

    /// A share that was cut otherwise.
    pub(super) fn noted(&self, share: Range<usize>) -> Range<usize> {
        self.idle.set(self.idle.get() || share.is_empty());
        share
    }
}

impl Barrier {
    /// Whether a member came so late that it must have been without its processor.
    pub(super) fn was_late(&self) -> bool {
        self.late.load(Ordering::Relaxed)
    }

    /// False when a member will never come.
    fn wait(&self, size: usize) -> bool {
        let round = self.round.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == size {
            self.arrived.store(0, Ordering::Relaxed);
            self.round.store(round.wrapping_add(1), Ordering::Release);
            self.wake();
            return !self.is_broken();
        }
        let is_over = || self.round.load(Ordering::Acquire) != round || self.is_broken();
        for spin in 1..=SPINS {
            if is_over() {
                return !self.is_broken();
            }
            if spin == SPINS_BEFORE_OFFER {
                std::thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
        let mut sleeping = self.sleeping.lock().unwrap_or_else(PoisonError::into_inner);
        while !is_over() {
            sleeping = self.woken.wait(sleeping).unwrap_or_else(PoisonError::into_inner);
        }
        !self.is_broken()
    }

    fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Acquire)
    }

    /// The lock orders this after the sleepers' last look.
    fn wake(&self) {
        drop(self.sleeping.lock().unwrap_or_else(PoisonError::into_inner));
        self.woken.notify_all();
    }
}

/// Breaks the barrier when it is dropped in a panic.
#[derive(Debug)]
pub(super) struct BreakOnPanic<'a>(pub(super) &'a Barrier);

impl Drop for BreakOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.broken.store(true, Ordering::Release);
            self.0.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_passes_before_everybody_came() {
        let (barrier, counter) = (Barrier::default(), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for index in 0..3 {
                let (barrier, counter) = (&barrier, &counter);
                scope.spawn(move || {
                    let team = Team::new(index, 3, barrier);
                    for round in 1..=200 {
                        counter.fetch_add(1, Ordering::Relaxed);
                        if round % 50 == index * 7 {
                            // Long enough for the others to fall asleep.
                            #[expect(clippy::disallowed_methods, reason = "being late is what is tested")]
                            std::thread::sleep(std::time::Duration::from_millis(2));
                        }
                        team.wait();
                        assert_eq!(counter.load(Ordering::Relaxed), 3 * round);
                        team.wait();
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_frees_the_others() {
        let barrier = Barrier::default();
        let outcomes = std::thread::scope(|scope| {
            let members: Vec<_> = (0..3)
                .map(|index| {
                    let barrier = &barrier;
                    scope.spawn(move || {
                        let team = Team::new(index, 3, barrier);
                        let _guard = BreakOnPanic(team.barrier);
                        assert!(index != 1, "poisoned");
                        team.wait();
                    })
                })
                .collect();
            members.into_iter().map(|member| member.join().is_err()).collect::<Vec<_>>()
        });
        assert_eq!(outcomes, [true, true, true]);
    }

    #[test]
    fn shares_cover_everything_once() {
        let barrier = Barrier::default();
        for (n, unit, size) in [(100, 8, 3), (7, 8, 2), (0, 8, 2), (64, 1, 5), (17, 16, 4)] {
            let shares: Vec<_> = (0..size).map(|index| Team::new(index, size, &barrier).share(n, unit)).collect();
            assert_eq!(shares.iter().map(Range::len).sum::<usize>(), n);
            assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start));
            assert!(shares.iter().all(|share| share.is_empty() || share.start % unit == 0));
        }
    }
}
