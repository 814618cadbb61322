//! A bounded pool of tokenising threads, shared by every model. A panic inside one task costs the request that brought it
//! and nothing else.
//!
//! The pool has as many threads as there are cores, and so has the compute pool. While nothing is computed all of them
//! may run: whoever sends 2,048 texts waits for their ids, and nobody else wants the cores. While a forward pass is under
//! way a quarter of them may, at least one: tokenising costs a few per cent of what computing costs, so that many keep
//! up with it, and a batch ends with its slowest core, so a core taken from it for a moment makes all of them wait. What
//! takes less time than waking a thread up is done where it arises ([`Workers::run_here`]).

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, timeout_at};

use crate::observe::metrics::{Metrics, PanicThread};

/// Tasks waiting for a thread. A task is at most a few dozen texts, so the queue holds little; when it is full,
/// requests wait here, under their own deadline.
const WAITING_TASKS: usize = 256;
/// One thread in so many tokenises while a forward pass is under way.
const SHARE: usize = 4;

/// How long a thread that may not run beside a forward pass sleeps between looks at whether it has ended: a good deal less than
/// one takes that is worth waiting for, and nothing to a processor.
const PASS_POLL: Duration = Duration::from_millis(5);

/// The library keeps up to several hundred bytes for each byte of a text while it reads it. Tasks of more than this many
/// bytes, which hold texts far longer than any page, therefore share [`ALL_LARGE_BYTES`], whatever the number of threads.
const LARGE_BYTES: usize = 64 * 1024;
const ALL_LARGE_BYTES: usize = 1024 * 1024;
/// For the clock, which cannot add up to any time; requests have deadlines of their own.
const LONGEST_PATIENCE: Duration = Duration::from_hours(24);

fn large_units(size_bytes: usize) -> u32 {
    u32::try_from(size_bytes.min(ALL_LARGE_BYTES).div_ceil(1024)).unwrap_or(u32::MAX)
}

type Task = Box<dyn FnOnce() + Send>;

/// The pool. Its threads end when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Workers {
    pool: Arc<Pool>,
}

/// A task gave no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WorkerError {
    #[error("a tokenising task panicked or its thread ended")]
    Failed,
    #[error("no thread had time for it")]
    Busy,
}

/// What is held by those who bring tasks; dropping it ends the threads.
#[derive(Debug)]
struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
    /// A permit for every task that may wait.
    room: Arc<Semaphore>,
    /// A permit for every KiB of the large tasks that are waiting or under way.
    large: Arc<Semaphore>,
    n_threads: usize,
    /// A forward pass is under way.
    computing: Arc<AtomicBool>,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    tasks: VecDeque<(Task, OwnedSemaphorePermit)>,
    running: usize,
    /// A thread looks every now and then whether it may take what is queued.
    watched: bool,
    closed: bool,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("running", &self.running).field("closed", &self.closed).finish_non_exhaustive()
    }
}

impl Workers {
    /// Starts `n_threads` threads named `tokenize-N`, which have the machine for themselves.
    ///
    /// # Errors
    /// The operating system refused a thread.
    pub fn new(n_threads: usize, metrics: &Arc<Metrics>) -> std::io::Result<Self> {
        Self::beside(n_threads, Arc::default(), metrics)
    }

    /// As [`Self::new`], beside a compute pool that says when a forward pass is under way.
    ///
    /// # Errors
    /// The operating system refused a thread.
    pub fn beside(n_threads: usize, computing: Arc<AtomicBool>, metrics: &Arc<Metrics>) -> std::io::Result<Self> {
        let n_threads = n_threads.max(1);
        let pool = Pool(Arc::new(Shared {
            state: Mutex::default(),
            arrived: Condvar::new(),
            room: Arc::new(Semaphore::new(WAITING_TASKS)),
            large: Arc::new(Semaphore::new(ALL_LARGE_BYTES / 1024)),
            n_threads,
            computing,
            metrics: Arc::clone(metrics),
        }));
        for index in 0..n_threads {
            let shared = Arc::clone(&pool.0);
            std::thread::Builder::new().name(format!("tokenize-{index}")).spawn(move || shared.work())?;
        }
        Ok(Self { pool: Arc::new(pool) })
    }

    /// Threads in all.
    pub fn count(&self) -> usize {
        self.pool.0.n_threads
    }

    /// Runs `work`, which reads about `size_bytes` of text, on a worker, if one begins with it within `patience`. A task whose
    /// caller has gone is skipped; one that has begun can ask whether it is.
    ///
    /// # Errors
    /// The task panicked, or was not begun in time.
    pub async fn run<R: Send + 'static>(
        &self,
        patience: Duration,
        size_bytes: usize,
        work: impl FnOnce(&dyn Fn() -> bool) -> R + Send + 'static,
    ) -> Result<R, WorkerError> {
        let shared = &self.pool.0;
        let until = Instant::now() + patience.min(LONGEST_PATIENCE);
        let permits = async {
            let large = match size_bytes {
                0..=LARGE_BYTES => None,
                _ => Some(Arc::clone(&shared.large).acquire_many_owned(large_units(size_bytes)).await?),
            };
            Ok::<_, AcquireError>((Arc::clone(&shared.room).acquire_owned().await?, large))
        };
        let permits = timeout_at(until, permits).await.map_err(|_| WorkerError::Busy)?;
        let (permit, large) = permits.map_err(|_| WorkerError::Failed)?;
        let ((answer, mut answered), begun) = (oneshot::channel(), Arc::new(AtomicBool::new(false)));
        let task: Task = {
            let begun = Arc::clone(&begun);
            Box::new(move || {
                begun.store(true, Ordering::Relaxed);
                if !answer.is_closed() {
                    let result = work(&|| answer.is_closed());
                    // The caller may leave while we work; then nobody needs the result.
                    let _ = answer.send(result);
                }
                drop(large);
            })
        };
        shared.add(task, permit);
        let answer = match timeout_at(until, &mut answered).await {
            Ok(answer) => answer,
            Err(_) if begun.load(Ordering::Relaxed) => answered.await,
            Err(_) => return Err(WorkerError::Busy),
        };
        answer.map_err(|_| WorkerError::Failed)
    }

    /// Runs `work` on this thread: for what is done sooner than a worker is awake.
    ///
    /// # Errors
    /// It panicked.
    pub fn run_here<R>(&self, work: impl FnOnce() -> R) -> Result<R, WorkerError> {
        self.pool.0.guard(work)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        // Whoever brought them has gone.
        let tasks = std::mem::take(&mut state.tasks);
        drop(state);
        drop(tasks);
        self.0.arrived.notify_all();
    }
}

impl State {
    /// Whether a sleeping thread is wanted: to take a task, or, where as many as may do so are running, to look when more may.
    fn needs_another(&self, allowed: usize) -> bool {
        !self.tasks.is_empty() && (self.running < allowed || !self.watched)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Threads that may tokenise now.
    fn allowed(&self) -> usize {
        if self.computing.load(Ordering::Relaxed) { self.n_threads.div_ceil(SHARE) } else { self.n_threads }
    }

    fn add(&self, task: Task, permit: OwnedSemaphorePermit) {
        let mut state = self.lock();
        state.tasks.push_back((task, permit));
        let wake = state.needs_another(self.allowed());
        drop(state);
        if wake {
            self.arrived.notify_one();
        }
    }

    /// A worker's life.
    fn work(&self) {
        let mut state = self.lock();
        loop {
            if state.running < self.allowed()
                && let Some((task, permit)) = state.tasks.pop_front()
            {
                state.running += 1;
                let more = state.needs_another(self.allowed());
                drop(state);
                drop(permit);
                if more {
                    self.arrived.notify_one();
                }
                // The task's caller learns of a panic because its answer is dropped.
                let _ = self.guard(task);
                state = self.lock();
                state.running -= 1;
            } else if state.closed {
                return;
            } else if state.tasks.is_empty() {
                state = self.arrived.wait(state).unwrap_or_else(PoisonError::into_inner);
            } else {
                // Nobody rings when a forward pass ends.
                state.watched = true;
                let waited = self.arrived.wait_timeout(state, PASS_POLL);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                state.watched = false;
            }
        }
    }

    fn guard<R>(&self, work: impl FnOnce() -> R) -> Result<R, WorkerError> {
        catch_unwind(AssertUnwindSafe(work)).map_err(|_| {
            self.metrics.panicked(PanicThread::Tokenizer);
            tracing::error!("a tokenising task panicked; its request failed");
            WorkerError::Failed
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use futures_util::future::join_all;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    // V-10: a panicking task fails alone, and the pool keeps its size.
    #[tokio::test]
    async fn a_panicking_task_fails_alone() {
        let metrics = Metrics::new(&[]);
        let workers = Workers::new(1, &metrics).unwrap();
        assert_eq!(workers.run(MINUTE, 0, |_| panic!("crafted text")).await, Err::<(), _>(WorkerError::Failed));
        assert_eq!(workers.run(MINUTE, 0, |_| 7).await, Ok(7));
        assert_eq!(workers.run_here(|| panic!("crafted text")), Err::<(), _>(WorkerError::Failed));
        assert_eq!(workers.run_here(|| 8), Ok(8));
        assert!(metrics.encode().contains("embedserve_panics_total{thread=\"tokenizer\"} 2"));
    }

    // who is not begun with in time is told so, and not done afterwards; what has begun hears that its caller left.
    #[tokio::test]
    async fn a_task_that_is_not_begun_in_time_is_given_up() {
        let workers = Workers::new(1, &Metrics::new(&[])).unwrap();
        let (begun, until) = (Arc::new(tokio::sync::Notify::new()), Arc::new(AtomicBool::new(false)));
        let long = {
            let (begun, until) = (Arc::clone(&begun), Arc::clone(&until));
            workers.run(MINUTE, 0, move |has_left| {
                begun.notify_one();
                while !has_left() {
                    std::thread::yield_now();
                }
                until.store(true, Ordering::SeqCst);
            })
        };
        let mut long = Box::pin(long);
        tokio::select! {
            _ = &mut long => panic!("nobody has left"),
            () = begun.notified() => {}
        }
        let late = workers.run(Duration::from_millis(20), 0, |_| panic!("nobody waits for it"));
        assert_eq!(late.await, Err::<(), _>(WorkerError::Busy));
        drop(long);
        assert_eq!(workers.run(MINUTE, 0, |_| 7).await, Ok(7));
        assert!(until.load(Ordering::SeqCst));
    }

    // Every task says how many ran beside it; each waits until as many as may do so have come.
    #[tokio::test]
    async fn a_forward_pass_leaves_a_quarter_of_the_threads() {
        let computing = Arc::new(AtomicBool::new(true));
        let workers = Workers::beside(8, Arc::clone(&computing), &Metrics::new(&[])).unwrap();
        for (busy, expected) in [(true, 2), (false, 8)] {
            computing.store(busy, Ordering::Relaxed);
            let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
            let task = || {
                let (running, most) = (Arc::clone(&running), Arc::clone(&most));
                workers.run(MINUTE, 0, move |_| {
                    let now = running.fetch_add(1, Ordering::SeqCst) + 1;
                    most.fetch_max(now, Ordering::SeqCst);
                    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
                    while most.load(Ordering::SeqCst) < expected && std::time::Instant::now() < deadline {
                        std::thread::yield_now();
                    }
                    running.fetch_sub(1, Ordering::SeqCst);
                })
            };
            let done = join_all((0..64).map(|_| task())).await;
            assert!(done.iter().all(Result::is_ok));
            assert_eq!(most.load(Ordering::SeqCst), expected, "while computing: {busy}");
        }
    }

    // A task that came during a forward pass is begun when the pass has ended, although another one still runs.
    #[tokio::test]
    async fn no_thread_sleeps_behind_a_long_task_when_nothing_is_computed_any_more() {
        let computing = Arc::new(AtomicBool::new(true));
        let workers = Workers::beside(2, Arc::clone(&computing), &Metrics::new(&[])).unwrap();
        let (begun, second) = (Arc::new(tokio::sync::Notify::new()), Arc::new(AtomicBool::new(false)));
        let until_second = {
            let (begun, second) = (Arc::clone(&begun), Arc::clone(&second));
            workers.run(MINUTE, 0, move |_| {
                begun.notify_one();
                let deadline = std::time::Instant::now() + Duration::from_secs(20);
                while !second.load(Ordering::SeqCst) && std::time::Instant::now() < deadline {
                    std::thread::yield_now();
                }
                second.load(Ordering::SeqCst)
            })
        };
        let late = async {
            begun.notified().await;
            let task = {
                let second = Arc::clone(&second);
                workers.run(MINUTE, 0, move |_| second.store(true, Ordering::SeqCst))
            };
            let pass_ends = async {
                tokio::task::yield_now().await;
                computing.store(false, Ordering::Relaxed);
            };
            tokio::join!(task, pass_ends).0
        };
        assert_eq!(tokio::join!(until_second, late), (Ok(true), Ok(())));
    }

    // P9: what the library keeps of long texts is bounded, however many threads there are.
    #[tokio::test]
    async fn large_tasks_share_a_budget_and_small_ones_do_not_wait_for_it() {
        let workers = Workers::new(4, &Metrics::new(&[])).unwrap();
        let (running, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let task = |size_bytes: usize| {
            let (running, most) = (Arc::clone(&running), Arc::clone(&most));
            workers.run(MINUTE, size_bytes, move |_| {
                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                (0..1000).for_each(|_| std::thread::yield_now());
                running.fetch_sub(1, Ordering::SeqCst);
            })
        };
        assert!(join_all((0..16).map(|_| task(2 * ALL_LARGE_BYTES))).await.iter().all(Result::is_ok));
        assert_eq!(most.load(Ordering::SeqCst), 1, "each goes alone that is larger than all together may be");
        assert!(join_all((0..16).map(|_| task(ALL_LARGE_BYTES / 2))).await.iter().all(Result::is_ok));
        assert!(most.load(Ordering::SeqCst) <= 2);
        // All of the budget is taken, and a short text is read all the same.
        let held = Arc::clone(&workers.pool.0.large).acquire_many_owned(large_units(ALL_LARGE_BYTES)).await.unwrap();
        assert_eq!(workers.run(MINUTE, LARGE_BYTES, |_| 7).await, Ok(7));
        assert_eq!(workers.run(Duration::from_millis(20), LARGE_BYTES + 1, |_| 7).await, Err(WorkerError::Busy));
        drop(held);
    }

    #[tokio::test]
    async fn more_tasks_than_may_wait_are_all_done() {
        let workers = Workers::new(2, &Metrics::new(&[])).unwrap();
        let done = join_all((0..4 * WAITING_TASKS).map(|index| workers.run(MINUTE, 0, move |_| index))).await;
        assert!(done.into_iter().enumerate().all(|(index, result)| result == Ok(index)));
    }
}
