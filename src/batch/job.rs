//! The two ends of a queued row. The device thread holds a [`Job`], the request holds the [`Tickets`] of all its rows.
//!
//! Every job is answered exactly once: dropping one that was never answered answers [`RowFailure::Dropped`], and
//! dropping the tickets tells the jobs that nobody waits any more.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::Notify;

use crate::batch::plan::Planned;
use crate::observe::metrics::ModelMetrics;
use crate::pool::FiniteRow;
use crate::request::{Dimensions, RowShape, TokenRow};

/// Why one row has no vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowFailure {
    /// The model gave a NaN or an infinity for it.
    NonFinite,
    /// The forward pass returned an error for it, even alone.
    Failed,
    /// The forward pass panicked on it, even alone.
    Panicked,
    /// The device has no memory for it, even alone.
    OutOfMemory,
    /// The device thread ended before computing it.
    Dropped,
}

impl fmt::Display for RowFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NonFinite => "the vector is not finite",
            Self::Failed => "the forward pass failed",
            Self::Panicked => "the forward pass panicked",
            Self::OutOfMemory => "the device has no memory for it",
            Self::Dropped => "the device thread ended",
        })
    }
}

/// Why waiting for a request's rows ended early.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum JoinError {
    #[error("deadline passed while {stage}")]
    Deadline { stage: &'static str },
}

/// One computed row.
#[derive(Debug)]
pub struct Row {
    pub vector: FiniteRow,
    pub tokens: usize,
}

/// One row in the queue.
#[derive(Debug)]
pub struct Job {
    ids: Vec<u32>,
    shape: RowShape,
    index: usize,
    answered: bool,
    shared: Arc<Shared>,
}

/// What the jobs of one request and its tickets share.
#[derive(Debug)]
struct Shared {
    /// Nobody waits any more.
    gone: AtomicBool,
    /// Rows that a batch has taken.
    started: AtomicUsize,
    answers: Mutex<Answers>,
    changed: Notify,
    enqueued: Instant,
    metrics: Arc<ModelMetrics>,
}

#[derive(Debug)]
struct Answers {
    rows: Vec<Option<Result<Row, RowFailure>>>,
    missing: usize,
    queued: Duration,
    ran: Duration,
}

impl Job {
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub const fn shape(&self) -> RowShape {
        self.shape
    }

    /// A batch has taken this row: from now on only the request's own deadline ends it.
    pub fn start(&self) {
        self.shared.started.fetch_add(1, Ordering::AcqRel);
        let waited = self.shared.enqueued.elapsed();
        let mut answers = self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.queued = answers.queued.max(waited);
        drop(answers);
        self.shared.metrics.queued(waited);
    }

    /// Answers the row.
    pub fn answer(mut self, result: Result<FiniteRow, RowFailure>, ran: Duration) {
        let tokens = self.ids.len();
        self.put(result.map(|vector| Row { vector, tokens }), ran);
    }

    fn put(&mut self, result: Result<Row, RowFailure>, ran: Duration) {
        self.answered = true;
        let mut answers = self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.ran = answers.ran.max(ran);
        if let Some(slot) = answers.rows.get_mut(self.index)
            && slot.is_none()
        {
            *slot = Some(result);
            answers.missing -= 1;
        }
        if answers.missing == 0 {
            drop(answers);
            self.shared.changed.notify_one();
        }
    }
}

impl Planned for Job {
    fn n_tokens(&self) -> usize {
        self.ids.len()
    }

    fn is_wanted(&self) -> bool {
        !self.shared.gone.load(Ordering::Acquire)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.answered {
            self.put(Err(RowFailure::Dropped), Duration::ZERO);
        }
    }
}

/// The waiting side: all rows of one request.
#[derive(Debug)]
pub struct Tickets {
    shared: Arc<Shared>,
    n_rows: usize,
    queue_timeout: Duration,
    /// Called once when the tickets are dropped with rows still waiting, so that the queue forgets them.
    abandoned: Abandon,
}

/// How dropped tickets reach their queue.
pub(super) struct Abandon(pub(super) Box<dyn Fn() + Send + Sync>);

impl fmt::Debug for Abandon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Abandon")
    }
}

/// Every row answered.
#[derive(Debug)]
pub struct Answered {
    /// In input order.
    pub rows: Vec<Result<Row, RowFailure>>,
    /// Longest wait of a row.
    pub queued: Duration,
    /// Longest forward pass of a row.
    pub ran: Duration,
}

/// Makes the two ends of one request's rows.
pub(super) fn pair(
    rows: Vec<TokenRow>,
    dimensions: Dimensions,
    metrics: Arc<ModelMetrics>,
    queue_timeout: Duration,
    abandoned: Abandon,
) -> (Vec<Job>, Tickets) {
    let n_rows = rows.len();
    let answers = Answers {
        rows: std::iter::repeat_with(|| None).take(n_rows).collect(),
        missing: n_rows,
        queued: Duration::ZERO,
        ran: Duration::ZERO,
    };
    let shared = Arc::new(Shared {
        gone: AtomicBool::new(false),
        started: AtomicUsize::new(0),
        answers: Mutex::new(answers),
        changed: Notify::new(),
        enqueued: Instant::now(),
        metrics,
    });
    let job = |(index, TokenRow { ids, skip })| {
        let shape = RowShape { skip, dimensions };
        Job { ids, shape, index, answered: false, shared: Arc::clone(&shared) }
    };
    let jobs = rows.into_iter().enumerate().map(job).collect();
    (jobs, Tickets { shared, n_rows, queue_timeout, abandoned })
}

impl Tickets {
    /// Waits until every row is answered.
    ///
    /// # Errors
    /// [`JoinError::Deadline`] when no row was started within the queue's limit, or not all were answered by
    /// `deadline`; in either case the rows that have not started never will.
    pub async fn join(self, deadline: Instant) -> Result<Answered, JoinError> {
        let begun = tokio::time::Instant::now();
        let left = deadline.saturating_duration_since(Instant::now());
        // Whether a row has started is looked at when the queue's limit is reached: to be told would wake the request up
        // at the moment that its batch needs the core.
        let mut in_queue = self.queue_timeout < left;
        let timer = tokio::time::sleep_until(begun + left.min(self.queue_timeout));
        tokio::pin!(timer);
        loop {
            if let Some(answered) = self.take() {
                return Ok(answered);
            }
            tokio::select! {
                () = self.shared.changed.notified() => {}
                () = &mut timer => {
                    let started = self.shared.started.load(Ordering::Acquire) > 0;
                    if !(started && in_queue) {
                        self.expire();
                        return Err(JoinError::Deadline { stage: if started { "computing" } else { "queued" } });
                    }
                    in_queue = false;
                    timer.as_mut().reset(begun + left);
                }
            }
        }
    }

    fn take(&self) -> Option<Answered> {
        let mut answers = self.shared.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.missing > 0 {
            return None;
        }
        let rows = std::mem::take(&mut answers.rows);
        let rows = rows.into_iter().map(|row| row.unwrap_or(Err(RowFailure::Dropped))).collect();
        Some(Answered { rows, queued: answers.queued, ran: answers.ran })
    }

    fn expire(&self) {
        let waiting = self.n_rows - self.shared.started.load(Ordering::Acquire).min(self.n_rows);
        self.shared.metrics.expired(waiting);
    }
}

impl Drop for Tickets {
    fn drop(&mut self) {
        self.shared.gone.store(true, Ordering::Release);
        if self.shared.started.load(Ordering::Acquire) < self.n_rows {
            (self.abandoned.0)();
        }
    }
}
