//! The one CPU budget of the process: how many threads may compute, and whose turn it is.
//!
//! The size comes from the affinity mask and the cgroup quota (both are what
//! [`std::thread::available_parallelism`] reads), never from the number of physical cores. Every model's forward
//! pass takes its threads from the same pool, all but the device thread itself, in turns of one batch, so that three models
//! on two cores do not become six threads.
//!
//! Turns are taken in the order in which they were asked for. A device thread asks for one at a time, so this is
//! round-robin over the models that have work: a flooded model goes to the back of the line after each of its batches,
//! and any other waits for one batch of each at most.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rayon::ThreadPool;
use thiserror::Error;

/// The compute pool, shared by every model.
#[derive(Debug)]
pub struct Threads {
    pool: Arc<ThreadPool>,
    size: usize,
    turns: Mutex<Turns>,
    next: Condvar,
    computing: Arc<AtomicBool>,
}

/// A ticket counter: turns are taken in the order in which they were asked for.
#[derive(Debug, Default)]
struct Turns {
    next_ticket: u64,
    now_serving: u64,
}

/// The operating system refused to start the threads.
#[derive(Debug, Error)]
#[error("cannot start {n_threads} compute threads: {reason}")]
pub struct ThreadsError {
    n_threads: usize,
    reason: String,
}

/// The budget this machine gives us: affinity mask and cgroup quota together, at least one.
pub fn available() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

impl Threads {
    /// Starts `n_threads` workers, named `compute-N`.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn new(n_threads: usize) -> Result<Self, ThreadsError> {
        let n_threads = n_threads.max(1);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(n_threads)
            .thread_name(|index| format!("compute-{index}"))
            .build()
            .map_err(|error| ThreadsError { n_threads, reason: error.to_string() })?;
        Ok(Self {
            pool: Arc::new(pool),
            size: n_threads,
            turns: Mutex::default(),
            next: Condvar::new(),
            computing: Arc::default(),
        })
    }

    pub const fn count(&self) -> usize {
        self.size
    }

    /// The pool, for whoever computes beside its threads.
    pub const fn pool(&self) -> &Arc<ThreadPool> {
        &self.pool
    }

    /// Whether a batch computes; for those who would otherwise take its cores.
    pub const fn computing(&self) -> &Arc<AtomicBool> {
        &self.computing
    }

    /// Waits until every batch that asked earlier is done.
    pub fn take_turn(&self) -> Turn<'_> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = turns.next_ticket;
        turns.next_ticket += 1;
        while turns.now_serving != ticket {
            turns = self.next.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        self.computing.store(true, Ordering::Relaxed);
        Turn(self)
    }
}

/// Held while a batch computes; dropped even when the batch panics, so that a panic cannot stop the other models.
#[derive(Debug)]
#[must_use = "the turn ends when this is dropped"]
pub struct Turn<'a>(&'a Threads);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.computing.store(false, Ordering::Relaxed);
        let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.now_serving += 1;
        let waited_for = turns.now_serving < turns.next_ticket;
        drop(turns);
        if waited_for {
            self.0.next.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_panicking_turn_lets_the_next_one_run() {
        let threads = Threads::new(2).unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _turn = threads.take_turn();
            panic!("poisoned row");
        }));
        assert!(panicked.is_err());
        drop(threads.take_turn());
    }

    /// Waits until `n` turns have been asked for since the start.
    fn asked(threads: &Threads, n: u64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while threads.turns.lock().unwrap().next_ticket < n {
            assert!(Instant::now() < deadline, "nobody asked for turn {n}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_flooded_model_waits_behind_every_other_one_after_each_batch() {
        let threads = Threads::new(1).unwrap();
        let order = Mutex::new(Vec::new());
        // A model with `batches` batches to compute asks again the moment one is done.
        let model = |name: char, batches: usize| {
            for _ in 0..batches {
                let _turn = threads.take_turn();
                order.lock().unwrap().push(name);
            }
        };
        std::thread::scope(|scope| {
            let first = threads.take_turn();
            scope.spawn(|| model('a', 3));
            asked(&threads, 2);
            scope.spawn(|| model('b', 1));
            asked(&threads, 3);
            scope.spawn(|| model('c', 1));
            asked(&threads, 4);
            drop(first);
        });
        assert_eq!(*order.lock().unwrap(), ['a', 'b', 'c', 'a', 'a']);
    }
}
