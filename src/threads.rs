//! The one CPU budget of the process: how many threads may compute, and whose turn it is.
//!
//! The size comes from the affinity mask and the cgroup quota (both are what
//! [`std::thread::available_parallelism`] reads), never from the number of physical cores. Every model's forward
//! pass takes its threads from the same pool, all but the device thread itself, in turns of one batch, so that three models
//! on two cores do not become six threads.
//!
//! Turns are taken in the order in which they were asked for. A device thread asks for one at a time, so this is
//! round-robin over the models that have work: a flooded model goes to the back of the line after each of its batches,
//! and any other waits for one batch of each at most. A GPU has turns of its own; there a turn may hold a second batch, begun
//! while nobody else waited, and goes on for as long as nobody does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use rayon::ThreadPool;
use thiserror::Error;

/// The compute pool, shared by every model.
#[derive(Debug)]
pub struct Threads {
    pool: Arc<ThreadPool>,
    loading: ThreadPool,
    size: usize,
    turns: Arc<Turns>,
}

/// Whose turn it is on one device, for all models: turns are taken in the order in which they were asked for.
#[derive(Debug, Default)]
pub struct Turns {
    tickets: Mutex<Tickets>,
    next: Condvar,
    computing: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Tickets {
    next: u64,
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
    /// Starts `n_threads` workers, named `compute-N`, and as many that sleep until a model is loaded, named `load-N`.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn new(n_threads: usize) -> Result<Self, ThreadsError> {
        let n_threads = n_threads.max(1);
        let start = |name: &'static str| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads);
            let pool = pool.thread_name(move |index| format!("{name}-{index}")).build();
            pool.map_err(|error| ThreadsError { n_threads, reason: error.to_string() })
        };
        Ok(Self { pool: Arc::new(start("compute")?), loading: start("load")?, size: n_threads, turns: Arc::default() })
    }

    pub const fn count(&self) -> usize {
        self.size
    }

    /// The pool, for whoever computes beside its threads.
    pub const fn pool(&self) -> &Arc<ThreadPool> {
        &self.pool
    }

    /// Threads that bring weights into their layout. Not those of the pool, which would begin a serving model's pass only
    /// when all of a loading model's weights are done.
    pub const fn loading(&self) -> &ThreadPool {
        &self.loading
    }

    /// Whose turn it is to compute with these threads.
    pub const fn turns(&self) -> &Arc<Turns> {
        &self.turns
    }

    /// Whether a batch computes; for those who would otherwise take its cores.
    pub fn computing(&self) -> &Arc<AtomicBool> {
        &self.turns.computing
    }
}

impl Turns {
    /// Waits until every batch that asked earlier is done.
    pub fn take(&self) -> Turn<'_> {
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = tickets.next;
        tickets.next += 1;
        while tickets.now_serving != ticket {
            tickets = self.next.wait(tickets).unwrap_or_else(PoisonError::into_inner);
        }
        self.computing.store(true, Ordering::Relaxed);
        Turn(self)
    }

    /// Whether anybody waits for the turn that is held now.
    pub fn is_wanted(&self) -> bool {
        let tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.now_serving + 1 < tickets.next
    }
}

/// Held while a batch computes; dropped even when the batch panics, so that a panic cannot stop the other models.
#[derive(Debug)]
#[must_use = "the turn ends when this is dropped"]
pub struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.computing.store(false, Ordering::Relaxed);
        let mut tickets = self.0.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.now_serving += 1;
        let waited_for = tickets.now_serving < tickets.next;
        drop(tickets);
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
        let turns = Turns::default();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _turn = turns.take();
            panic!("poisoned row");
        }));
        assert!(panicked.is_err());
        drop(turns.take());
    }

    /// Waits until `n` turns have been asked for since the start.
    fn asked(turns: &Turns, n: u64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while turns.tickets.lock().unwrap().next < n {
            assert!(Instant::now() < deadline, "nobody asked for turn {n}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_flooded_model_waits_behind_every_other_one_after_each_batch() {
        let turns = Turns::default();
        let order = Mutex::new(Vec::new());
        // A model with `batches` batches to compute asks again the moment one is done.
        let model = |name: char, batches: usize| {
            for _ in 0..batches {
                let _turn = turns.take();
                order.lock().unwrap().push(name);
            }
        };
        std::thread::scope(|scope| {
            let first = turns.take();
            scope.spawn(|| model('a', 3));
            asked(&turns, 2);
            scope.spawn(|| model('b', 1));
            asked(&turns, 3);
            scope.spawn(|| model('c', 1));
            asked(&turns, 4);
            drop(first);
        });
        assert_eq!(*order.lock().unwrap(), ['a', 'b', 'c', 'a', 'a']);
    }
}
