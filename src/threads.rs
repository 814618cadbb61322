//! The one CPU budget of the process: how many threads may compute, and whose turn it is.
//!
//! The size comes from the affinity mask and the cgroup quota (both are what
//! [`std::thread::available_parallelism`] reads), never from the number of physical cores. Every model's forward
//! pass runs inside the same pool, in turns of one batch, first come first served, so that three models on two cores
//! do not become six threads.

use std::sync::{Condvar, Mutex, PoisonError};

use rayon::ThreadPool;
use thiserror::Error;

/// The compute pool, shared by every model.
#[derive(Debug)]
pub struct Threads {
    pool: ThreadPool,
    size: usize,
    turns: Mutex<Turns>,
    next: Condvar,
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
        Ok(Self { pool, size: n_threads, turns: Mutex::default(), next: Condvar::new() })
    }

    pub const fn count(&self) -> usize {
        self.size
    }

    /// Runs work inside the pool beside whatever else runs there: loading a model must not stop the others.
    pub fn beside<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        self.pool.install(work)
    }

    /// Runs one batch's work inside the pool, after every batch that asked earlier.
    pub fn turn<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let _turn = Turn::wait(self);
        self.pool.install(work)
    }
}

/// Held while a batch computes; dropped even when the batch panics, so that a panic cannot stop the other models.
struct Turn<'a>(&'a Threads);

impl<'a> Turn<'a> {
    fn wait(threads: &'a Threads) -> Self {
        let mut turns = threads.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = turns.next_ticket;
        turns.next_ticket += 1;
        while turns.now_serving != ticket {
            turns = threads.next.wait(turns).unwrap_or_else(PoisonError::into_inner);
        }
        Turn(threads)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.turns.lock().unwrap_or_else(PoisonError::into_inner).now_serving += 1;
        self.0.next.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panicking_turn_lets_the_next_one_run() {
        let threads = Threads::new(2).unwrap();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            threads.turn(|| panic!("poisoned row"));
        }));
        assert!(panicked.is_err());
        assert_eq!(threads.turn(rayon::current_num_threads), 2);
    }
}
