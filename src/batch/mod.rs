//! The queue between requests and one model's device threads: one thread for each device that the model computes on.
//!
//! [`Queue::submit`] accepts all rows of a request or refuses all of them, at once: it never waits and never panics. What
//! could not be computed in time is refused as well, as the measured pace of the device predicts it: a queue that takes
//! more than that would keep everybody waiting and then answer nobody.
//! [`Queue::next_batch`] is the device thread's side: it sleeps while nothing waits, as long as it is told to, and starts a
//! batch the moment something does. There is no artificial delay; rows that arrive while a batch computes form the next. A
//! device that computes beside its thread has a second one at hand while there is enough for it ([`Queue::next_ahead`]).

mod admission;
mod ahead;
mod job;
mod pace;
pub mod plan;

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use admission::SubmitError;
pub use job::{Answered, Job, JoinError, Row, RowFailure, Tickets};

use crate::observe::metrics::ModelMetrics;
use crate::request::{Dimensions, Flow, TokenRow};
use admission::Demand;
use job::{Abandon, pair};
use pace::Pace;
use plan::{Backlog, Budget};

/// Bounds of one model's queue.
#[derive(Debug, Clone, Copy)]
pub struct QueueLimits {
    pub rows: usize,
    pub tokens: usize,
    /// A request none of whose rows would start within this time is refused, and given up if none did.
    pub timeout: Duration,
    pub batch: Budget,
}

/// Who waits for rows, and until when.
#[derive(Debug, Clone, Copy)]
pub struct Client {
    pub flow: Flow,
    pub deadline: Instant,
}

/// One model's queue, as one of its device threads sees it. Clones share it.
#[derive(Debug, Clone)]
pub struct Queue {
    shared: Arc<Shared>,
    /// Which device thread; requests do not care.
    device: usize,
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
    /// Of one device.
    pace: Pace,
    /// By device thread, at least one.
    devices: Vec<Side>,
    /// When an interactive request came last.
    interactive: Option<Instant>,
}

/// What is known of one device thread.
#[derive(Debug, Clone, Copy, Default)]
struct Side {
    /// The batch that is not done.
    running: Option<Running>,
    /// The one that was begun behind it.
    ahead: Option<Running>,
    /// Tokens of one batch, where the device turned out to hold fewer than the limits say.
    ceiling: Option<usize>,
}

/// What the device thread computes now.
#[derive(Debug, Clone, Copy)]
struct Running {
    n_tokens: usize,
    /// Rows were left for the next one.
    full: bool,
}

/// How long a batch takes while interactive requests and bulk work share the device: two of these are a delay that a
/// person at a search box does not notice.
const SHORT_BATCH: Duration = Duration::from_millis(50);
/// But no fewer tokens than this, two tiles of the CPU's kernels: below, the delay would be bought with throughput.
const SHORT_BATCH_TOKENS: usize = 512;
/// After the last interactive request, batches are whole again once this has passed.
const INTERACTIVE_LATELY: Duration = Duration::from_secs(1);

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
        Self { shared: Arc::new(shared), device: 0 }
    }

    /// The same queue for the model's device thread of this number, counted from 0.
    #[must_use]
    pub fn for_device(&self, device: usize) -> Self {
        let mut state = self.shared.lock();
        let n_devices = state.devices.len().max(device + 1);
        state.devices.resize(n_devices, Side::default());
        drop(state);
        Self { shared: Arc::clone(&self.shared), device }
    }

    /// The number of the device thread that this is for.
    pub const fn device(&self) -> usize {
        self.device
    }

    /// Tokens of one batch at most: as the limits say, or what the smallest device turned out to hold.
    pub fn batch_tokens(&self) -> usize {
        self.shared.lock().batch_tokens(self.shared.limits.batch.tokens)
    }

    pub fn limits(&self) -> QueueLimits {
        self.shared.limits
    }

    /// What the device computed per second before it had any batch.
    pub fn expect_pace(&self, n_tokens: usize, took: Duration) {
        self.shared.lock().pace.observe(n_tokens, took, false);
    }

    /// Accepts every row or none. Flows share the batches by tokens.
    ///
    /// # Errors
    /// Full, closed, or more than could ever fit; or nobody would have an answer by the deadline.
    pub fn submit(&self, rows: Vec<TokenRow>, dimensions: Dimensions, client: Client) -> Result<Tickets, SubmitError> {
        let demand = Demand::of(&rows);
        let weak = Arc::downgrade(&self.shared);
        let abandon = Abandon(Box::new(move || {
            if let Some(shared) = weak.upgrade() {
                shared.lock().abandoned = true;
            }
        }));
        let mut state = self.shared.lock();
        self.shared.forget_abandoned(&mut state);
        self.shared.counted(state.verdict(demand, client, self.shared.limits))?;
        if state.backlog.is_interactive(demand.n_rows, demand.n_tokens) {
            state.interactive = Some(Instant::now());
        }
        let timeout = self.shared.limits.timeout;
        let (jobs, tickets) = pair(rows, dimensions, Arc::clone(&self.shared.metrics), timeout, abandon);
        state.backlog.push_for(client.flow, VecDeque::from(jobs));
        self.shared.report(&state);
        drop(state);
        self.shared.arrived.notify_one();
        Ok(tickets)
    }

    /// Takes the next batch, all others of this device being done; waits for work until then.
    pub fn next_batch(&self, until: Instant) -> Next {
        let mut state = self.shared.lock();
        let side = &mut state.devices[self.device];
        (side.running, side.ahead) = (None, None);
        loop {
            self.shared.forget_abandoned(&mut state);
            let budget = self.shared.limits.batch;
            let tokens = state.devices[self.device].tokens(budget.tokens);
            let enough = state.enough();
            let batch = self.plan(&mut state, Budget { tokens, ..budget }, enough);
            if !batch.is_empty() {
                drop(state);
                batch.iter().for_each(Job::start);
                return Next::Batch(batch);
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

    /// Plans a batch for this device, behind the one that it has.
    fn plan(&self, state: &mut State, budget: Budget, enough: usize) -> Vec<Job> {
        let plan = state.backlog.plan_enough(budget, enough);
        self.shared.cancelled(plan.unwanted);
        self.shared.report(state);
        if !plan.batch.is_empty() {
            let n_tokens = plan.batch.iter().map(|job| job.ids().len()).sum();
            let full = !state.backlog.is_empty();
            let side = &mut state.devices[self.device];
            let place = if side.running.is_none() { &mut side.running } else { &mut side.ahead };
            *place = Some(Running { n_tokens, full });
            if full {
                // Another device may have nothing to do; one ring of the request woke one of them.
                self.shared.arrived.notify_one();
            }
        }
        plan.batch
    }

    /// Notes a finished batch: what waits is predicted from it.
    pub fn batch_done(&self, n_tokens: usize, took: Duration) {
        let mut state = self.shared.lock();
        let full = state.devices[self.device].running.is_some_and(|running| running.full);
        state.devices[self.device].move_on();
        state.pace.observe(n_tokens, took, full);
    }

    /// From now on batches of this device hold no more tokens than this: it ran out of memory with more. A row of more
    /// would wait for ever, so this must not be less than the longest one.
    pub fn lower_batch_tokens(&self, tokens: usize) {
        let limit = self.shared.limits.batch.tokens;
        let mut state = self.shared.lock();
        let side = &mut state.devices[self.device];
        side.ceiling = Some(tokens.min(side.tokens(limit)));
        self.shared.metrics.batch_limit(state.batch_tokens(limit));
    }

    /// Whether rows wait, or a device thread has a batch that is not done.
    pub fn is_busy(&self) -> bool {
        let state = self.shared.lock();
        state.devices.iter().any(|side| side.running.is_some()) || !state.backlog.is_empty()
    }

    /// Accepts nothing more; what is queued is still computed.
    pub fn close(&self) {
        self.shared.lock().closed = true;
        self.shared.arrived.notify_all();
    }

    /// Accepts nothing more and answers what is queued with a failure: this device thread is gone. The others end after
    /// their present batch.
    pub fn abort(&self) {
        let mut state = self.shared.lock();
        state.closed = true;
        let side = &mut state.devices[self.device];
        (side.running, side.ahead) = (None, None);
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
            pace: Pace::default(),
            devices: vec![Side::default()],
            interactive: None,
        }
    }

    /// With how many tokens a batch has enough. While interactive requests come and go beside bulk work, batches are
    /// short: whoever comes waits for the one that runs and for its own.
    fn enough(&self) -> usize {
        let lately = self.interactive.is_some_and(|at| at.elapsed() < INTERACTIVE_LATELY);
        if lately && self.backlog.has_bulk() {
            self.pace.tokens(SHORT_BATCH).max(SHORT_BATCH_TOKENS)
        } else {
            usize::MAX
        }
    }

    /// Time until the backlog is expected to be done.
    fn expected_wait(&self) -> Duration {
        self.time(self.backlog.tokens() + self.running_tokens()).unwrap_or(Duration::from_secs(1))
    }

    /// How long all devices together take for so many tokens; `None` before anything was computed.
    fn time(&self, n_tokens: usize) -> Option<Duration> {
        self.pace.time(n_tokens.div_ceil(self.devices.len()))
    }

    fn batch_tokens(&self, limit: usize) -> usize {
        self.devices.iter().map(|side| side.tokens(limit)).min().unwrap_or(limit)
    }

    fn running_tokens(&self) -> usize {
        let batches = self.devices.iter().flat_map(|side| [side.running, side.ahead]);
        batches.flatten().map(|running| running.n_tokens).sum()
    }
}

impl Side {
    fn tokens(self, limit: usize) -> usize {
        self.ceiling.map_or(limit, |ceiling| ceiling.min(limit))
    }
}
