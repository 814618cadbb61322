//! The models being served, and the path of one request through the one it names.
//!
//! The set of names is closed when the engine is built: a request selects a model, it never locates one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use thiserror::Error;

use crate::batch::{JoinError, Queue, RowFailure, SubmitError};
use crate::catalog::{ModelSpec, Names};
use crate::observe::metrics::Metrics;
use crate::observe::progress::LoadProgress;
use crate::pool::FiniteRow;
use crate::request::{EmbedRequest, Place, RequestError, RequestLimits};
use crate::runner::{Health, RunnerInfo};
use crate::tokenize::{Cut, TokenizeError, Tokenizer};

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
    Row { place: Place, failure: RowFailure },
    #[error("internal error: {0}")]
    Internal(&'static str),
}

/// A model's place in the process, from the first second of start-up on.
#[derive(Debug)]
pub struct Slot {
    pub spec: Arc<ModelSpec>,
    /// How far loading has come, for `/readyz`.
    pub progress: Arc<LoadProgress>,
    state: RwLock<SlotState>,
}

/// What can be said of a model now.
#[derive(Debug, Clone)]
pub enum SlotState {
    Loading,
    Ready(Arc<Served>),
    Failed { reason: String },
}

impl Slot {
    fn new(spec: Arc<ModelSpec>) -> Self {
        Self { spec, progress: Arc::new(LoadProgress::default()), state: RwLock::new(SlotState::Loading) }
    }

    pub fn state(&self) -> SlotState {
        // A poisoned lock holds a state that was complete when written: reading it is sound.
        self.state.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    fn set(&self, state: SlotState) {
        *self.state.write().unwrap_or_else(std::sync::PoisonError::into_inner) = state;
    }

    pub fn set_ready(&self, served: Arc<Served>) {
        self.set(SlotState::Ready(served));
    }

    pub fn set_failed(&self, reason: String) {
        self.set(SlotState::Failed { reason });
    }

    /// Whether requests to this model would be computed now; the reason when not.
    pub fn ready(&self) -> Result<Arc<Served>, String> {
        match self.state() {
            SlotState::Loading => Err(format!("loading: {}", self.progress.describe())),
            SlotState::Failed { reason } => Err(format!("failed: {reason}")),
            SlotState::Ready(served) => match served.runner.health() {
                Health::Ready => Ok(served),
                Health::Stalled { since } => Err(format!("stalled: no forward pass for {} s", since.as_secs())),
                Health::Dead => Err("dead".to_owned()),
            },
        }
    }
}

/// Every model of this process.
#[derive(Debug)]
pub struct Engine {
    names: Names,
    slots: Vec<Arc<Slot>>,
    leaving: AtomicBool,
    draining: AtomicBool,
    pub metrics: Arc<Metrics>,
}

impl Engine {
    /// Builds the engine with every model still loading.
    pub fn new(names: Names, metrics: Arc<Metrics>) -> Self {
        let slots = names.models().iter().map(|spec| Arc::new(Slot::new(Arc::clone(spec)))).collect();
        Self { names, slots, leaving: AtomicBool::new(false), draining: AtomicBool::new(false), metrics }
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

    /// The loaded model behind a slot, or why it cannot be used now.
    ///
    /// # Errors
    /// Loading, draining, or not available.
    pub fn served(&self, slot: &Slot) -> Result<Arc<Served>, EngineError> {
        if self.is_draining() {
            return Err(EngineError::Draining);
        }
        match slot.state() {
            SlotState::Loading => Err(EngineError::Loading { retry_after: slot.progress.expected_wait() }),
            SlotState::Failed { reason } => Err(EngineError::Unavailable { reason }),
            SlotState::Ready(served) if served.runner.health() == Health::Dead => {
                Err(EngineError::Unavailable { reason: "the device thread has ended".to_owned() })
            }
            SlotState::Ready(served) => Ok(served),
        }
    }
}

impl From<TokenizeError> for EngineError {
    fn from(error: TokenizeError) -> Self {
        match error {
            TokenizeError::Request(error) => Self::Request(error),
            TokenizeError::Worker(_) => Self::Internal("a tokenising task panicked"),
            TokenizeError::Deadline => Self::Deadline { stage: "tokenizing" },
        }
    }
}

impl From<SubmitError> for EngineError {
    fn from(error: SubmitError) -> Self {
        match error {
            SubmitError::Full { retry_after } => Self::QueueFull { retry_after },
            SubmitError::Closed => Self::Unavailable { reason: error.to_string() },
            SubmitError::NeverFits { tokens, limit } => RequestError::TooManyTokens { tokens, limit }.into(),
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
        let encoded = self.tokenizer.encode(request).await?;
        let tickets = self.queue.submit(encoded.rows, dimensions)?;
        let answers = tickets.join(deadline).await?;
        let rows = answers.rows.into_iter().zip(encoded.cuts);
        let rows = rows.enumerate().map(|(index, (row, cut))| match row {
            Ok(row) => Ok(EmbeddedRow { vector: row.vector, tokens: row.tokens, cut }),
            Err(failure) => Err(EngineError::Row { place: Place::input(single, index), failure }),
        });
        let timings = Timings { tokenize: encoded.elapsed, queue: answers.queued, run: answers.ran };
        Ok(Embedded { rows: rows.collect::<Result<_, _>>()?, timings })
    }
}
