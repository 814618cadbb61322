//! The queue between requests and one model's device thread.
//!
//! [`Queue::submit`] accepts all rows of a request or refuses all of them, at once: it never waits and never panics.
//! [`Queue::next_batch`] is the device thread's side: it sleeps while nothing waits, as long as it is told to, and starts a
//! batch the moment something does. There is no artificial delay; rows that arrive while a batch computes form the next.

mod job;
pub mod plan;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;

pub use job::{Answered, Job, JoinError, Row, RowFailure, Tickets};

use crate::observe::metrics::{ModelMetrics, Refusal};
use crate::request::{Dimensions, Flow, TokenRow};
use job::{Abandon, pair};
use plan::{Backlog, Budget};

/// Bounds of one model's queue.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    pub rows: usize,
    pub tokens: usize,
    /// A request none of whose rows has started after this long is refused.
    pub timeout: Duration,
    pub batch: Budget,
}

/// Why rows were not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SubmitError {
    #[error("the queue is full")]
    Full { retry_after: Duration },
    #[error("the device thread has ended")]
    Closed,
    /// More than the queue holds when it is empty: refusing it for now would be refusing it for ever.
    #[error("{tokens} tokens never fit a queue of {limit}")]
    NeverFits { tokens: usize, limit: usize },
}

/// One model's queue. Clones share it.
#[derive(Debug, Clone)]
pub struct Queue {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    arrived: Condvar,
    limits: QueueLimits,
    metrics: Arc<ModelMetrics>,
}

#[derive(Debug)]
struct State {
    backlog: Backlog<Job>,
    /// Tickets were dropped since the last sweep.
    abandoned: bool,
    closed: bool,
    /// Tokens computed per second, smoothed; 0 until the first batch.
    tokens_per_second: f64,
    /// The device thread has a batch that is not done.
    busy: bool,
    /// Tokens of one batch, where the device turned out to hold fewer than the limits say.
    ceiling: Option<usize>,
}

/// What the device thread does next.
#[derive(Debug)]
pub enum Next {
    Batch(Vec<Job>),
    /// Nothing came until the time it was told.
    Idle,
    /// Closed and empty.
    Closed,
}

impl Queue {
    pub fn new(limits: QueueLimits, metrics: Arc<ModelMetrics>) -> Self {
        metrics.queue_limits(limits.rows, limits.tokens);
        metrics.batch_limit(limits.batch.tokens);
        let state = Mutex::new(State::new(limits.batch));
        let shared = Shared { state, arrived: Condvar::new(), limits, metrics };
        Self { shared: Arc::new(shared) }
    }

    pub fn limits(&self) -> QueueLimits {
        self.shared.limits
    }

    /// As [`Self::submit_for`], for nobody in particular.
    ///
    /// # Errors
    /// Full, closed, or more than could ever fit.
    pub fn submit(&self, rows: Vec<TokenRow>, dimensions: Dimensions) -> Result<Tickets, SubmitError> {
        self.submit_for(Flow::default(), rows, dimensions)
    }

    /// Accepts every row or none. Flows share the batches by tokens.
    ///
    /// # Errors
    /// Full, closed, or more than could ever fit.
    pub fn submit_for(&self, flow: Flow, rows: Vec<TokenRow>, dimensions: Dimensions) -> Result<Tickets, SubmitError> {
        let limits = self.shared.limits;
        let (n_rows, n_tokens) = (rows.len(), rows.iter().map(|row| row.ids.len()).sum::<usize>());
        if n_rows > limits.rows || n_tokens > limits.tokens {
            return Err(SubmitError::NeverFits { tokens: n_tokens, limit: limits.tokens });
        }
        if let Some(longest) =
            rows.iter().map(|row| row.ids.len()).max().filter(|longest| *longest > limits.batch.tokens)
        {
            return Err(SubmitError::NeverFits { tokens: longest, limit: limits.batch.tokens });
        }
        let weak = Arc::downgrade(&self.shared);
        let abandon = Abandon(Box::new(move || {
            if let Some(shared) = weak.upgrade() {
                shared.lock().abandoned = true;
            }
        }));
        let mut state = self.shared.lock();
        if state.closed {
            self.shared.metrics.refused(Refusal::Dead);
            return Err(SubmitError::Closed);
        }
        self.shared.forget_abandoned(&mut state);
        if state.backlog.rows() + n_rows > limits.rows || state.backlog.tokens() + n_tokens > limits.tokens {
            let retry_after = state.expected_wait();
            self.shared.metrics.refused(Refusal::Full);
            return Err(SubmitError::Full { retry_after });
        }
        let (jobs, tickets) = pair(rows, dimensions, Arc::clone(&self.shared.metrics), limits.timeout, abandon);
        state.backlog.push_for(flow, VecDeque::from(jobs));
        self.shared.report(&state);
        drop(state);
        self.shared.arrived.notify_one();
        Ok(tickets)
    }

    /// Takes the next batch; waits for work until then.
    pub fn next_batch(&self, until: Instant) -> Next {
        let mut state = self.shared.lock();
        state.busy = false;
        loop {
            self.shared.forget_abandoned(&mut state);
            let budget = self.shared.limits.batch;
            let tokens = state.ceiling.map_or(budget.tokens, |ceiling| ceiling.min(budget.tokens));
            let plan = state.backlog.plan(Budget { tokens, ..budget });
            self.shared.cancelled(plan.unwanted);
            self.shared.report(&state);
            if !plan.batch.is_empty() {
                state.busy = true;
                drop(state);
                plan.batch.iter().for_each(Job::start);
                return Next::Batch(plan.batch);
            }
            if state.closed {
                return Next::Closed;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Next::Idle;
            }
            state = self.shared.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Notes a finished batch, for `Retry-After`.
    pub fn batch_done(&self, n_tokens: usize, took: Duration) {
        let rate = n_tokens as f64 / took.as_secs_f64().max(1e-6);
        let mut state = self.shared.lock();
        let old = state.tokens_per_second;
        state.tokens_per_second = if old == 0.0 { rate } else { 0.8 * old + 0.2 * rate };
    }

    /// From now on batches hold no more tokens than this: the device ran out of memory with more. A row of more would
    /// wait for ever, so this must not be less than the longest one.
    pub fn lower_batch_tokens(&self, tokens: usize) {
        let mut state = self.shared.lock();
        let now = state.ceiling.unwrap_or(self.shared.limits.batch.tokens);
        state.ceiling = Some(tokens.min(now));
        self.shared.metrics.batch_limit(tokens.min(now));
    }

    /// Whether rows wait, or the device thread has a batch that is not done.
    pub fn is_busy(&self) -> bool {
        let state = self.shared.lock();
        state.busy || state.backlog.rows() > 0
    }

    /// Accepts nothing more; what is queued is still computed.
    pub fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.arrived.notify_all();
    }

    /// Accepts nothing more and answers what is queued with a failure: the device thread is gone.
    pub fn abort(&self) {
        let mut state = self.shared.lock();
        state.closed = true;
        state.busy = false;
        let jobs = state.backlog.drain();
        self.shared.report(&state);
        drop(state);
        drop(jobs);
        self.shared.arrived.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self, state: &State) {
        self.metrics.queue_now(state.backlog.loads().map(|load| (load.rows, load.tokens)));
    }

    fn forget_abandoned(&self, state: &mut State) {
        if std::mem::take(&mut state.abandoned) {
            let unwanted = state.backlog.sweep();
            self.cancelled(unwanted);
        }
    }

    /// Dropping the jobs answers them; nobody listens.
    fn cancelled(&self, unwanted: Vec<Job>) {
        if !unwanted.is_empty() {
            self.metrics.cancelled(unwanted.len());
        }
        drop(unwanted);
    }
}

impl State {
    fn new(batch: Budget) -> Self {
        Self {
            backlog: Backlog::new(batch),
            abandoned: false,
            closed: false,
            tokens_per_second: 0.0,
            busy: false,
            ceiling: None,
        }
    }

    /// Time until the backlog is expected to be done.
    fn expected_wait(&self) -> Duration {
        if self.tokens_per_second <= 0.0 {
            return Duration::from_secs(1);
        }
        // Bounded before the conversion, which panics on values that no clock holds.
        Duration::from_secs_f64((self.backlog.tokens() as f64 / self.tokens_per_second).clamp(0.0, 3600.0))
    }
}
