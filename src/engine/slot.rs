//! A model's place in the process, from the first second of start-up on: its state, who uses it, who waits for it.
//!
//! A request holds a [`Lease`] from before its values are read until its vectors are there. A model is unloaded only
//! while there is no lease, decided under one lock, so no accepted request ever meets a closed queue.

use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::catalog::ModelSpec;
use crate::engine::doorbell::Doorbell;
use crate::engine::residency::{Candidate, Life, Occupied, Stay};
use crate::engine::{EngineError, Served};
use crate::observe::metrics::{ModelMetrics, ModelState, Refusal};
use crate::observe::progress::LoadProgress;
use crate::request::RequestLimits;
use crate::runner::Health;

/// One model.
#[derive(Debug)]
pub struct Slot {
    pub spec: Arc<ModelSpec>,
    /// How far loading has come, for `/readyz`.
    pub progress: Arc<LoadProgress>,
    inner: Mutex<Inner>,
    /// The state changed: whoever waits looks again.
    changed: Notify,
    bell: Arc<Doorbell>,
    metrics: Arc<ModelMetrics>,
}

/// What can be said of a model now.
#[derive(Debug, Clone)]
pub enum SlotState {
    /// Its files are being obtained, or its first load has not ended.
    Loading,
    /// Its files lie ready; the first request loads it.
    Unloaded,
    /// Being loaded because requests wait for it.
    Waking,
    Ready(Arc<Served>),
    Failed(Failure),
}

/// Why a model cannot be used.
#[derive(Debug, Clone)]
pub struct Failure {
    pub at: FailedAt,
    /// For the log: it may name paths.
    pub reason: String,
    /// When a request may make it be loaded again; `None` = no request may.
    pub retry_at: Option<Instant>,
}

/// What went wrong, in as many words as a public answer may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailedAt {
    Files,
    Load,
    /// Its device thread died.
    Device,
}

/// Memory that a loaded model needs, on each of its devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Packed weights, as measured; before that, as estimated.
    pub weight_bytes: u64,
    /// Its tokenizer, as estimated.
    pub tokenizer_bytes: u64,
    /// Intermediate values of one full batch, as estimated.
    pub scratch_bytes: u64,
}

#[derive(Debug)]
struct Inner {
    state: SlotState,
    /// What was enforced when it was last loaded, so that listings do not change with its state.
    limits: Option<RequestLimits>,
    memory: Option<Memory>,
    /// Weights before they were ever loaded.
    estimate: Memory,
    load_took: Option<Duration>,
    /// Since when its files have lain ready and the start wants it loaded.
    at_start: Option<Instant>,
    leases: usize,
    waiting: usize,
    /// Since when requests have waited without an end.
    wanted_since: Option<Instant>,
    /// Another model needs its place.
    leaving: bool,
    loaded_at: Instant,
    used_at: Instant,
}

/// A loaded model, held in memory by the request that uses it.
#[derive(Debug)]
pub struct Lease {
    served: Arc<Served>,
    slot: Arc<Slot>,
}

impl Deref for Lease {
    type Target = Served;

    fn deref(&self) -> &Served {
        &self.served
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut inner = self.slot.lock();
        inner.leases -= 1;
        inner.used_at = Instant::now();
        let last = inner.leases == 0;
        drop(inner);
        if last {
            self.slot.bell.ring_for_room();
        }
    }
}

/// A request that waits for its model to be loaded.
struct Waiter<'a>(&'a Slot);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut inner = self.0.lock();
        inner.waiting -= 1;
        self.0.metrics.waiting(inner.waiting);
        if inner.waiting == 0 {
            // Nobody is left to load it for.
            inner.wanted_since = None;
        }
        drop(inner);
        self.0.bell.ring_for_room();
    }
}

impl Slot {
    pub(super) fn new(spec: Arc<ModelSpec>, bell: Arc<Doorbell>, metrics: Arc<ModelMetrics>) -> Self {
        let now = Instant::now();
        let inner = Inner {
            state: SlotState::Loading,
            limits: None,
            memory: None,
            estimate: Memory::default(),
            load_took: None,
            at_start: None,
            leases: 0,
            waiting: 0,
            wanted_since: None,
            leaving: false,
            loaded_at: now,
            used_at: now,
        };
        let progress = Arc::default();
        Self { spec, progress, inner: Mutex::new(inner), changed: Notify::new(), bell, metrics }
    }

    pub fn state(&self) -> SlotState {
        self.lock().state.clone()
    }

    /// The limits that are enforced; `None` before the first load.
    pub fn limits(&self) -> Option<RequestLimits> {
        self.lock().limits.clone()
    }

    /// What it needs, or needed when it was last loaded.
    pub fn memory(&self) -> Option<Memory> {
        self.lock().memory
    }

    /// What it needs when loaded, as far as that is known.
    pub fn needed(&self) -> Memory {
        let inner = self.lock();
        inner.memory.unwrap_or(inner.estimate)
    }

    // What the loading thread reports.

    /// Its files lie ready, and the model will need about this much; it is loaded where there is room.
    pub fn set_files(&self, estimate: Memory) {
        let mut inner = self.lock();
        (inner.estimate, inner.at_start) = (estimate, Some(Instant::now()));
        if let SlotState::Failed(_) = inner.state {
            // The others have been serving without it: its return must not make the server unready.
            inner.state = SlotState::Waking;
        }
        self.change(inner, ModelState::Loading);
    }

    /// A load begins. A model that was there before is not called loading again: it only wakes up.
    pub fn set_loading(&self) {
        let mut inner = self.lock();
        inner.at_start = None;
        if !matches!(inner.state, SlotState::Loading) {
            inner.state = SlotState::Waking;
        }
        drop(inner);
        self.metrics.set_state(ModelState::Loading);
    }

    pub fn set_memory(&self, memory: Memory, took: Duration) {
        let mut inner = self.lock();
        (inner.memory, inner.load_took) = (Some(memory), Some(took));
    }

    pub fn set_ready(&self, served: Arc<Served>) {
        let now = Instant::now();
        let mut inner = self.lock();
        inner.limits = Some(served.limits.clone());
        (inner.loaded_at, inner.used_at, inner.leaving) = (now, now, false);
        inner.state = SlotState::Ready(served);
        self.change(inner, ModelState::Ready);
    }

    pub fn set_failed(&self, failure: Failure) {
        let mut inner = self.lock();
        inner.at_start = None;
        inner.state = SlotState::Failed(failure);
        self.change(inner, ModelState::Dead);
    }

    /// A model whose device thread died is to be loaded again, where there still is room. It is not ready before.
    pub fn revive(&self) {
        let mut inner = self.lock();
        (inner.state, inner.at_start) = (SlotState::Loading, Some(Instant::now()));
        self.change(inner, ModelState::Loading);
    }

    /// It stays out of memory until a request asks for it.
    pub fn shelve(&self) {
        let mut inner = self.lock();
        inner.at_start = None;
        inner.state = SlotState::Unloaded;
        self.change(inner, ModelState::Unloaded);
    }

    /// Takes the model out of service unless a request uses it.
    pub fn unload(&self) -> Option<Arc<Served>> {
        let mut inner = self.lock();
        if inner.occupied() != Occupied::Free {
            return None;
        }
        let SlotState::Ready(served) = std::mem::replace(&mut inner.state, SlotState::Unloaded) else { return None };
        inner.leaving = false;
        self.change(inner, ModelState::Unloaded);
        Some(served)
    }

    /// Whether new requests have to wait, because another model needs the place of this one.
    pub fn set_leaving(&self, leaving: bool) {
        self.lock().leaving = leaving;
        self.changed.notify_waiters();
    }

    /// What [`super::residency::next`] has to know.
    pub(super) fn candidate(&self, now: Instant) -> Candidate {
        let inner = self.lock();
        let wanted = inner.wanted_since.map_or(Life::Absent, |since| Life::Wanted { since });
        let life = match &inner.state {
            SlotState::Ready(_) => Life::Loaded(Stay {
                since: inner.loaded_at,
                used: inner.used_at,
                occupied: inner.occupied(),
                leaving: inner.leaving,
            }),
            SlotState::Loading | SlotState::Waking => match (inner.at_start, inner.wanted_since) {
                (None, _) => Life::Absent,
                (Some(since), None) => Life::WantedAtStart { since },
                (Some(_), Some(since)) => Life::Wanted { since },
            },
            SlotState::Unloaded => wanted,
            SlotState::Failed(failure) if failure.may_retry(now) => wanted,
            SlotState::Failed(_) => Life::Absent,
        };
        Candidate { bytes: inner.memory.unwrap_or(inner.estimate).weight_bytes, life }
    }

    /// The model, loaded first if need be.
    pub(super) async fn lease(self: &Arc<Self>, max_waiting: usize, deadline: Instant) -> Result<Lease, EngineError> {
        if let Some(lease) = self.try_lease()? {
            return Ok(lease);
        }
        let _waiter = self.wait(max_waiting)?;
        let late = tokio::time::sleep_until(deadline.into());
        tokio::pin!(late);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed, so the state can be looked at without a race.
            changed.as_mut().enable();
            if let Some(lease) = self.try_lease()? {
                return Ok(lease);
            }
            tokio::select! {
                () = changed => {}
                () = &mut late => return Err(EngineError::Loading { retry_after: self.expected_wait() }),
            }
        }
    }

    /// `None`: it has to be loaded first.
    fn try_lease(self: &Arc<Self>) -> Result<Option<Lease>, EngineError> {
        let mut inner = self.lock();
        match &inner.state {
            SlotState::Loading => Err(EngineError::Loading { retry_after: self.progress.expected_wait() }),
            SlotState::Failed(failure) if failure.may_retry(Instant::now()) => Ok(None),
            SlotState::Failed(failure) => Err(EngineError::Unavailable { reason: failure.reason.clone() }),
            SlotState::Ready(served) if matches!(served.runner.health(), Health::Dead | Health::Broken(_)) => {
                Err(EngineError::Unavailable { reason: FailedAt::Device.describe().to_owned() })
            }
            SlotState::Ready(served) if !inner.leaving => {
                let lease = Lease { served: Arc::clone(served), slot: Arc::clone(self) };
                inner.leases += 1;
                Ok(Some(lease))
            }
            SlotState::Ready(_) | SlotState::Unloaded | SlotState::Waking => Ok(None),
        }
    }

    /// Counts a request in, unless too many wait already.
    fn wait(&self, max_waiting: usize) -> Result<Waiter<'_>, EngineError> {
        let mut inner = self.lock();
        if inner.waiting >= max_waiting {
            drop(inner);
            self.metrics.refused(Refusal::Loading);
            return Err(EngineError::QueueFull { retry_after: self.expected_wait() });
        }
        inner.waiting += 1;
        self.metrics.waiting(inner.waiting);
        inner.wanted_since.get_or_insert_with(Instant::now);
        drop(inner);
        self.bell.ring();
        Ok(Waiter(self))
    }

    /// A load takes about as long as the last one did.
    fn expected_wait(&self) -> Duration {
        self.lock().load_took.unwrap_or_default().max(Duration::from_secs(1))
    }

    /// Publishes a new state: the metrics first, then whoever waits for it, then the loading thread.
    fn change(&self, inner: MutexGuard<'_, Inner>, state: ModelState) {
        drop(inner);
        self.metrics.set_state(state);
        self.changed.notify_waiters();
        self.bell.ring();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A poisoned lock holds a state that was complete when written: reading it is sound.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Who needs the model now. Requests that have waited for it and not yet begun need it too, unless it is leaving:
    /// then they wait for its return.
    fn occupied(&self) -> Occupied {
        let SlotState::Ready(served) = &self.state else { return Occupied::Free };
        match () {
            () if self.leases > 0 || (self.waiting > 0 && !self.leaving) => Occupied::Requests,
            () if served.queue.is_busy() => Occupied::Remains,
            () => Occupied::Free,
        }
    }
}

impl Failure {
    fn may_retry(&self, now: Instant) -> bool {
        self.retry_at.is_some_and(|at| at <= now)
    }
}

impl FailedAt {
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Files => "its files could not be obtained",
            Self::Load => "its files could not be loaded",
            Self::Device => "its device thread ended",
        }
    }
}
