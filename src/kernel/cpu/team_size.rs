//! How many threads compute a small batch together where others want the same processors.
//!
//! A team is as slow as its latest member, at each of the dozens of waits of a pass. On an idle machine that is
//! microseconds. Where other programs compute, a member that lost its processor comes back after theirs had their turn,
//! milliseconds later, and a query takes a hundred times as long as one thread would need. So passes in which someone
//! came that late halve the next teams, down to one thread, which waits for nobody; after a while they grow again. One
//! or two among many are no crowd: whoever wakes up after a rest finds cold caches, or a processor asleep.

use std::time::{Duration, Instant};

/// How long teams stay smaller after a late member; twice as long each time that a larger one was late again.
const SHORTEST_HOLD: Duration = Duration::from_millis(100);
/// A pass of tens of milliseconds every so often is what it costs to find out that the others are gone.
const LONGEST_HOLD: Duration = Duration::from_secs(3);
/// Late passes that are accidents.
const ACCIDENTS: u32 = 2;
/// Passes in a row in which nobody was late, after which earlier ones are forgotten.
const PASSES_TO_FORGET: u32 = 16;

/// Learns from pass to pass.
#[derive(Debug)]
pub(super) struct TeamSize {
    halvings: u32,
    hold: Duration,
    /// When to try a larger team, where it was made smaller.
    until: Option<Instant>,
    /// Late passes that are not forgotten.
    n_late: u32,
    /// Passes since the last of them.
    n_punctual: u32,
}

impl Default for TeamSize {
    fn default() -> Self {
        Self { halvings: 0, hold: SHORTEST_HOLD, until: None, n_late: 0, n_punctual: 0 }
    }
}

impl TeamSize {
    /// How many of `n_threads` compute a small batch that begins now; at least one.
    pub(super) fn at(&mut self, now: Instant, n_threads: usize) -> usize {
        if self.until.is_some_and(|until| until <= now) {
            self.halvings -= 1;
            self.until = (self.halvings > 0).then(|| now + self.hold);
        }
        (n_threads >> self.halvings).max(1)
    }

    /// What a pass of a team of two or more, ending now, showed.
    pub(super) fn learn(&mut self, now: Instant, was_late: bool) {
        if was_late {
            self.n_late = self.n_late.saturating_add(1);
            self.n_punctual = 0;
            if self.n_late > ACCIDENTS {
                self.halvings += 1;
                self.until = Some(now + self.hold);
                self.hold = (self.hold * 2).min(LONGEST_HOLD);
            }
        } else {
            self.n_punctual += 1;
            if self.n_punctual == PASSES_TO_FORGET {
                (self.n_late, self.n_punctual) = (0, 0);
            }
            // The others are gone, or fewer: the next step is tried soon.
            self.hold = SHORTEST_HOLD;
            self.until = self.until.map(|until| until.min(now + SHORTEST_HOLD));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a machine on which others have been late just now.
    fn suspicious() -> TeamSize {
        TeamSize { n_late: ACCIDENTS, ..TeamSize::default() }
    }

    #[test]
    fn a_few_late_passes_among_many_are_accidents() {
        let (mut size, start) = (TeamSize::default(), Instant::now());
        for _ in 0..3 {
            for _ in 0..ACCIDENTS {
                size.learn(start, true);
                assert_eq!(size.at(start, 8), 8);
            }
            (0..PASSES_TO_FORGET).for_each(|_| size.learn(start, false));
        }
        for _ in 0..ACCIDENTS {
            size.learn(start, true);
            (1..PASSES_TO_FORGET).for_each(|_| size.learn(start, false));
        }
        size.learn(start, true);
        assert_eq!(size.at(start, 8), 4, "more of them are a crowd");
    }

    #[test]
    fn a_late_member_halves_the_team_until_its_time_is_over() {
        let (mut size, start) = (suspicious(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(size.at(start, 8), 8);
        size.learn(start, true);
        assert_eq!((size.at(at(1), 8), size.at(at(99), 8)), (4, 4));
        size.learn(at(99), true);
        assert_eq!((size.at(at(100), 8), size.at(at(298), 8)), (2, 2));
        // One step at a time, and the next only after as long again.
        assert_eq!((size.at(at(299), 8), size.at(at(500), 8)), (4, 4));
        assert_eq!(size.at(at(699), 8), 8);
    }

    #[test]
    fn it_is_never_less_than_one_thread_and_tried_ever_less_often() {
        let (mut size, mut now) = (suspicious(), Instant::now());
        let mut holds = Vec::new();
        for _ in 0..8 {
            assert_eq!(size.at(now, 2), 2);
            size.learn(now, true);
            let begun = now;
            while size.at(now, 2) == 1 {
                now += Duration::from_millis(10);
            }
            size.halvings += 1;
            size.until = Some(now);
            holds.push((now - begun).as_millis());
        }
        assert_eq!(holds, [100, 200, 400, 800, 1600, 3000, 3000, 3000]);
        // Once all came in time, the next late one costs little again, and teams grow fast.
        assert_eq!(size.at(now, 2), 2);
        size.learn(now, false);
        size.learn(now, true);
        assert_eq!((size.at(now + Duration::from_millis(99), 2), size.at(now + SHORTEST_HOLD, 2)), (1, 2));
        let mut size = suspicious();
        for _ in 0..6 {
            size.learn(now, true);
        }
        now += LONGEST_HOLD * 2;
        for expected in [2, 4, 8, 16, 32, 64] {
            assert_eq!(size.at(now, 64), expected);
            size.learn(now, false);
            now += SHORTEST_HOLD;
        }
    }
}
