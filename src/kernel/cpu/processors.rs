//! Keeps the threads of one pass on processors of their own.
//!
//! Whoever is woken may be put in the queue of the processor that woke it, although another one is idle: a kernel does that
//! to keep few processors awake, above all in virtual machines. Two members of a team then take turns, at each of the dozens
//! of waits of a pass, and nothing is gained by two. The kernel's own balancing comes after milliseconds, when a
//! query is over.

use std::sync::atomic::AtomicU64;
#[cfg(target_os = "linux")]
use std::sync::atomic::Ordering;

/// Processors that the kernel's usual set has room for. Beyond them nobody is moved.
const MAX_PROCESSORS: usize = 1024;
/// Two members may be moved to the same processor at once.
#[cfg(target_os = "linux")]
const ATTEMPTS: usize = 3;

/// Those that have a member of the pass.
#[derive(Debug)]
pub(super) struct Processors {
    taken: [AtomicU64; MAX_PROCESSORS / 64],
}

impl Default for Processors {
    fn default() -> Self {
        Self { taken: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl Processors {
    /// Takes the processor the caller runs on. Where another member has that one, the caller is moved to a free one that
    /// it may use; from there on the kernel may move it as before.
    #[cfg(target_os = "linux")]
    pub(super) fn take_own(&self) {
        for _ in 0..ATTEMPTS {
            if self.take(rustix::thread::sched_getcpu()) || self.leave().is_none() {
                return;
            }
        }
    }

    /// Other systems place threads as they please.
    #[cfg(not(target_os = "linux"))]
    #[expect(clippy::unused_self, reason = "as on Linux")]
    pub(super) fn take_own(&self) {}
}

#[cfg(target_os = "linux")]
impl Processors {
    /// Whether nobody had it.
    fn take(&self, processor: usize) -> bool {
        let Some(word) = self.taken.get(processor / 64) else {
            return true;
        };
        let bit = 1 << (processor % 64);
        word.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    fn is_taken(&self, processor: usize) -> bool {
        self.taken.get(processor / 64).is_some_and(|word| word.load(Ordering::Relaxed) >> (processor % 64) & 1 == 1)
    }

    /// Moves the calling thread to a processor without a member; `None` if there is none for it.
    fn leave(&self) -> Option<()> {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let allowed = sched_getaffinity(None).ok()?;
        let mut free = CpuSet::new();
        let is_free = |processor: &usize| allowed.is_set(*processor) && !self.is_taken(*processor);
        (0..MAX_PROCESSORS.min(CpuSet::MAX_CPU)).filter(is_free).for_each(|processor| free.set(processor));
        if free.count() == 0 {
            return None;
        }
        sched_setaffinity(None, &free).ok()?;
        // Refused only where the operator took processors away meanwhile: the kernel has chosen among the others then.
        sched_setaffinity(None, &allowed).ok()
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_taken_once() {
        let processors = Processors::default();
        for processor in [0, 1, 63, 64, MAX_PROCESSORS - 1] {
            assert!(!processors.is_taken(processor));
            assert!(processors.take(processor));
            assert!(processors.is_taken(processor));
            assert!(!processors.take(processor));
        }
        assert!(processors.take(MAX_PROCESSORS), "nobody is moved because of one we cannot name");
    }

    #[test]
    fn whoever_finds_another_member_there_leaves_and_may_come_back() {
        use rustix::thread::{sched_getaffinity, sched_getcpu};
        let allowed = sched_getaffinity(None).unwrap();
        let processors = Processors::default();
        let here = sched_getcpu();
        processors.take(here);
        let is_alone = allowed.count() == 1;
        assert_eq!(processors.leave().is_none(), is_alone);
        // The kernel may move this thread back at once, but not every time, and nothing is forbidden to it.
        let leaves = || processors.leave().is_some() && sched_getcpu() != here;
        assert!(is_alone || (0..100).any(|_| leaves()), "it never left {here}");
        assert_eq!(sched_getaffinity(None).unwrap(), allowed);
        // With all of them taken, everybody stays.
        (0..MAX_PROCESSORS).for_each(|processor| _ = processors.take(processor));
        assert!(processors.leave().is_none());
        processors.take_own();
        assert_eq!(sched_getaffinity(None).unwrap(), allowed);
    }
}
