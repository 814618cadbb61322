//! The models being served, and the path of one request through the one it names.
//!
//! The set of names is closed when the engine is built: a request selects a model, it never locates one. It may wait
//! for that model to come back into memory, from files that the start has verified.

mod doorbell;
pub mod residency;
mod slot;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::batch::{Client, JoinError, Queue, RowFailure, SubmitError};
use crate::catalog::Names;
use crate::observe::metrics::Metrics;
use crate::pool::FiniteRow;
use crate::request::{EmbedRequest, InputLocation, RequestError, RequestLimits};
use crate::runner::RunnerInfo;
use crate::tokenize::workers::WorkerError;
use crate::tokenize::{Cut, TokenizeError, Tokenizer};
use residency::{Limits, Step};

pub use doorbell::Doorbell;
pub use slot::{FailedAt, Failure, Lease, Memory, Slot, SlotState};

/// One loaded model: everything between a valid request and its vectors.
#[derive(Debug)]
pub struct Served {
    pub limits: RequestLimits,
    pub tokenizer: Tokenizer,
    pub queue: Queue,
    pub runner: RunnerInfo,
}

/// What a request got.
#[derive(Debug)]
pub struct Embedded {
    /// In input order, one per input.
    pub rows: Vec<EmbeddedRow>,
    pub timings: Timings,
}

/// One input's vector.
#[derive(Debug)]
pub struct EmbeddedRow {
    pub vector: FiniteRow,
    /// Tokens the model read, special tokens included, after truncation.
    pub tokens: usize,
    /// Set when the input was cut to fit.
    pub cut: Option<Cut>,
}

/// Where the time went, for headers and metrics. `queue` and `run` are those of the row that waited longest.
#[derive(Debug, Clone, Copy, Default)]
pub struct Timings {
    pub tokenize: Duration,
    pub queue: Duration,
    pub run: Duration,
}

/// Why a request got no vectors.
#[derive(Debug, Error)]
pub enum EngineError {
    #[error("unknown model")]
    UnknownModel,
    #[error("model is loading")]
    Loading { retry_after: Duration },
    #[error("server is draining")]
    Draining,
    #[error("model is not available: {reason}")]
    Unavailable { reason: String },
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("queue is full")]
    QueueFull { retry_after: Duration },
    #[error("deadline passed while {stage}")]
    Deadline { stage: &'static str },
    #[error("row failed at {place}: {failure}")]
    Row { place: InputLocation, failure: RowFailure },
    #[error("internal error: {0}")]
    Internal(&'static str),
}

/// What the operator wants of several models in one process.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    pub residency: Limits,
    /// Requests that may wait for one model to be loaded.
    pub max_waiting: usize,
    /// A failed model does not stop the others, nor the server from being ready.
    pub keep_going: bool,
}

/// Every model in memory for good, and all of them needed.
impl Default for Policy {
    fn default() -> Self {
        let residency = Limits { max_models: None, max_bytes: None, idle_unload: None, turn: Duration::from_secs(2) };
        Self { residency, max_waiting: 1024, keep_going: false }
    }
}

/// Every model of this process.
#[derive(Debug)]
pub struct Engine {
    names: Names,
    slots: Vec<Arc<Slot>>,
    policy: Policy,
    /// Rings when there may be something to load or unload.
    bell: Arc<Doorbell>,
    leaving: AtomicBool,
    draining: AtomicBool,
    pub metrics: Arc<Metrics>,
}

impl Engine {
    /// Builds the engine with every model still loading.
    pub fn new(names: Names, metrics: Arc<Metrics>) -> Self {
        Self::with(names, metrics, Policy::default())
    }

    /// As [`Self::new`], with what the operator wants.
    pub fn with(names: Names, metrics: Arc<Metrics>, policy: Policy) -> Self {
        let bell = Arc::new(Doorbell::default());
        let slot = |spec: &Arc<_>| Slot::new(Arc::clone(spec), Arc::clone(&bell), metrics.model(&spec.id));
        let slots = names.models().iter().map(slot).map(Arc::new).collect();
        let (leaving, draining) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { names, slots, policy, bell, leaving, draining, metrics }
    }

    pub fn slots(&self) -> &[Arc<Slot>] {
        &self.slots
    }

    pub fn names(&self) -> &Names {
        &self.names
    }

    /// From now on the server says that it is not ready, so that balancers look elsewhere; requests are still served.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::SeqCst);
    }

    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }

    /// From now on new requests are refused; accepted ones finish.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// The slot a requested name stands for; `None` = no name was sent.
    ///
    /// # Errors
    /// [`EngineError::UnknownModel`] alone.
    pub fn slot(&self, requested: Option<&str>) -> Result<&Arc<Slot>, EngineError> {
        self.names.find(requested).and_then(|index| self.slots.get(index)).ok_or(EngineError::UnknownModel)
    }

    /// The model behind a slot, held in memory until the lease is dropped. One that is not loaded is loaded first, and
    /// room is made for it; that ends at `deadline`.
    ///
    /// # Errors
    /// Loading, not available, or too many wait.
    pub async fn lease(&self, slot: &Arc<Slot>, deadline: Instant) -> Result<Lease, EngineError> {
        slot.lease(self.policy.max_waiting, deadline).await
    }

    pub const fn policy(&self) -> &Policy {
        &self.policy
    }

    pub fn bell(&self) -> &Arc<Doorbell> {
        &self.bell
    }

    /// What the loading thread does next. On the way out, only models that requests wait for are loaded.
    pub fn next_step(&self) -> Step {
        // Before the models are looked at: a request that ends after that rings.
        self.bell.need_room(true);
        let now = Instant::now();
        let mut places: Vec<_> = self.slots.iter().map(|slot| slot.candidate(now)).collect();
        if self.is_leaving() {
            places.iter_mut().for_each(residency::Candidate::forget_start);
        }
        let step = residency::next(&places, &self.policy.residency, now);
        self.bell.need_room(matches!(step, Step::Wait(waiting) if waiting.for_room));
        step
    }
}

impl From<TokenizeError> for EngineError {
    fn from(error: TokenizeError) -> Self {
        match error {
            TokenizeError::Request(error) => Self::Request(error),
            TokenizeError::Worker(WorkerError::Failed) => Self::Internal("a tokenising task panicked"),
            // When the threads will have caught up is not known.
            TokenizeError::Worker(WorkerError::Busy) => Self::QueueFull { retry_after: Duration::from_secs(1) },
            TokenizeError::Deadline => Self::Deadline { stage: "tokenizing" },
        }
    }
}

impl From<SubmitError> for EngineError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Full { retry_after } | SubmitError::Late { retry_after } => Self::QueueFull { retry_after },
            SubmitError::Closed => Self::Unavailable { reason: error.to_string() },
            SubmitError::NeverFits { tokens, limit } => RequestError::TooManyTokens { tokens, limit }.into(),
            SubmitError::NeverFitsRows { limit } => RequestError::TooManyInputs { limit }.into(),
        }
    }
}

impl From<JoinError> for EngineError {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Deadline { stage } => Self::Deadline { stage },
        }
    }
}

impl Served {
    /// Turns one valid request into vectors. The rest of the crate exists to make these lines safe and fast.
    ///
    /// # Errors
    /// See [`EngineError`]. Dropping the future cancels the rows that have not started.
    pub async fn embed(&self, request: EmbedRequest) -> Result<Embedded, EngineError> {
        let (deadline, single, dimensions) = (request.deadline, request.single, request.dimensions);
        let client = Client { flow: request.flow, deadline };
        self.queue.check(request.inputs.len(), client)?;
        let encoded = self.tokenizer.encode(request, self.queue.limits().timeout).await?;
        let tickets = self.queue.submit(encoded.rows, dimensions, client)?;
        let answers = tickets.join(deadline).await?;
        let rows = answers.rows.into_iter().zip(encoded.cuts);
        let rows = rows.enumerate().map(|(index, (row, cut))| match row {
            Ok(row) => Ok(EmbeddedRow { vector: row.vector, tokens: row.tokens, cut }),
            Err(failure) => Err(EngineError::Row { place: InputLocation::at(single, index), failure }),
        });
        let timings = Timings { tokenize: encoded.elapsed, queue: answers.queued, run: answers.ran };
        Ok(Embedded { rows: rows.collect::<Result<_, _>>()?, timings })
    }
}
