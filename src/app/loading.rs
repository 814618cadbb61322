//! Models into memory and out of it, on two plain threads.
//!
//! *fetch* obtains and verifies the files of every model, the default one first; what failed is tried again after a
//! back-off, where the others go on without it. *load* does what [`residency::next`](crate::engine::residency::next)
//! says: one load or unload at a time, so that memory never holds more than was planned. No request reaches *fetch*.
//! A model whose device thread died is loaded again, once; if that does not help, the [`Alarm`] is raised.

mod restart;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::watch;

use crate::app::memory as own_memory;
use crate::app::watch::Alarm;
use crate::config::Config;
use crate::engine::residency::{Step, Why};
use crate::engine::{Doorbell, Engine, FailedAt, Failure, Memory, Slot, SlotState};
use crate::load::{self, Loaded, Settings, Shared, describe, memory};
use crate::observe::metrics::UnloadReason;
use crate::runner::Health;
use crate::source::{self, Cause, ModelFolder, SourceError};
use restart::{Fate, Restarts};

/// The back-off of a failed model grows up to this many times its first value.
const LONGEST_BACKOFF: u32 = 20;

/// How far the start has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum StartOutcome {
    Working,
    Done,
    Failed(String),
}

/// The two threads.
#[derive(Debug)]
pub(super) struct Loading {
    loader: Arc<Loader>,
    fetch: JoinHandle<()>,
    load: JoinHandle<Vec<JoinHandle<()>>>,
    pub(super) outcome: watch::Receiver<StartOutcome>,
}

/// What both threads share.
#[derive(Debug)]
struct Loader {
    engine: Arc<Engine>,
    config: Config,
    shared: Shared,
    /// Ends transfers.
    stop: AtomicBool,
    /// Wakes the fetching thread out of a back-off.
    fetch_bell: Doorbell,
    models: Vec<Model>,
    alarm: Arc<Alarm>,
    /// What the process may use, if that is bounded.
    memory_limit: Option<u64>,
    outcome: watch::Sender<StartOutcome>,
}

/// What is known of one model beside its slot.
#[derive(Debug, Default)]
struct Model {
    folder: OnceLock<ModelFolder>,
    failures: Mutex<u32>,
}

/// Starts both threads.
///
/// # Errors
/// The operating system refused a thread.
pub(super) fn start(
    engine: &Arc<Engine>,
    config: Config,
    shared: Shared,
    alarm: &Arc<Alarm>,
) -> std::io::Result<Loading> {
    let (sender, outcome) = watch::channel(StartOutcome::Working);
    let memory_limit = shared.memory_limit;
    let loader = Arc::new(Loader {
        engine: Arc::clone(engine),
        config,
        shared,
        stop: AtomicBool::new(false),
        fetch_bell: Doorbell::default(),
        models: engine.slots().iter().map(|_| Model::default()).collect(),
        alarm: Arc::clone(alarm),
        memory_limit,
        outcome: sender,
    });
    let (fetching, working) = (Arc::clone(&loader), Arc::clone(&loader));
    let fetch = std::thread::Builder::new().name("fetch".to_owned()).spawn(move || fetching.fetch_all())?;
    let load = std::thread::Builder::new().name("load".to_owned()).spawn(move || working.load_all())?;
    Ok(Loading { loader, fetch, load, outcome })
}

impl Loading {
    /// Ends transfers; models that requests wait for are still loaded.
    pub(super) fn stop_fetching(&self) {
        self.loader.stop.store(true, Ordering::Relaxed);
        self.loader.fetch_bell.stop();
    }

    /// Ends both threads once their present work is done, and then every device thread. Blocks.
    pub(super) fn join(self) {
        self.stop_fetching();
        self.loader.engine.bell().stop();
        // A thread that panicked has said so already.
        let _ = self.fetch.join();
        for thread in self.load.join().unwrap_or_default() {
            let _ = thread.join();
        }
    }
}

// === impl Loader ===

impl Loader {
    /// Every model's files, once; then those that failed, again and again, until all are there.
    fn fetch_all(&self) {
        let slots = self.engine.slots();
        let default = self.engine.names().default_index();
        let others = (0..slots.len()).filter(|index| *index != default);
        let mut failed: Vec<(Instant, usize)> = Vec::new();
        for index in std::iter::once(default).chain(others) {
            if self.stop.load(Ordering::Relaxed) || self.has_failed() {
                return;
            }
            failed.extend(self.fetch(index).map(|due| (due, index)));
        }
        while let Some((due, index)) = failed.iter().min().copied() {
            self.fetch_bell.wait(Some(due));
            if self.stop.load(Ordering::Relaxed) || self.has_failed() {
                return;
            }
            if due <= Instant::now() {
                failed.retain(|(_, other)| *other != index);
                failed.extend(self.fetch(index).map(|due| (due, index)));
            }
        }
    }

    /// One model's files; returns when to try again.
    fn fetch(&self, index: usize) -> Option<Instant> {
        let slot = &self.engine.slots()[index];
        let obtained = source::obtain(&slot.spec, describe::judge, &self.config.source, &slot.progress, &self.stop);
        let folder = match obtained {
            Ok(folder) => folder,
            Err(error) => {
                let SourceError::Unavailable { attempts, .. } = &error else { return None };
                for attempt in attempts {
                    self.engine.metrics.source_failed(&slot.spec.id, attempt.source);
                }
                let changes = attempts.iter().any(|attempt| !matches!(attempt.cause, Cause::Useless { .. }));
                let due = self.failed(index, FailedAt::Files, &chain(error));
                return changes.then_some(due);
            }
        };
        let limit = self.config.residency.max_bytes.unwrap_or(u64::MAX);
        match memory::estimate(&folder.path, slot.spec.precision()) {
            Ok(needed) if needed > limit => {
                let reason = format!("its weights need {needed} bytes, more than --max-model-memory = {limit}");
                self.failed(index, FailedAt::Load, &reason);
            }
            Ok(needed) => {
                let tokenizer_bytes = memory::tokenizer(&folder.path);
                // The only place that sets it, once.
                let _ = self.models[index].folder.set(folder);
                slot.progress.enter("waiting".to_owned(), 0);
                slot.set_files(Memory { weight_bytes: needed, tokenizer_bytes, scratch_bytes: 0 });
                self.check_memory();
            }
            Err(error) => {
                self.failed(index, FailedAt::Load, &chain(error));
            }
        }
        // What is wrong with the files themselves does not change by waiting.
        None
    }

    /// Loads and unloads until told to stop; returns the device threads that are left.
    fn load_all(&self) -> Vec<JoinHandle<()>> {
        let slots = self.engine.slots();
        let mut threads: Vec<Vec<JoinHandle<()>>> = slots.iter().map(|_| Vec::new()).collect();
        let device = self.config.batch.device;
        let mut restarts = Restarts::new(slots.len(), device.restart_delay, device.restart_window);
        while !self.engine.bell().is_stopped() {
            self.bury_the_dead(&mut threads, &mut restarts);
            while let Some(index) = restarts.take(Instant::now()) {
                tracing::info!(model = slots[index].spec.id, "loading the model again");
                slots[index].revive();
            }
            match self.engine.next_step() {
                Step::Load(index) => {
                    threads[index] = self.load(index);
                    if threads[index].is_empty() && restarts.has_had_its_chance(index, Instant::now()) {
                        self.give_up(index, "it died, and could not be loaded again");
                    }
                }
                Step::Shelve(index) => {
                    tracing::info!(model = slots[index].spec.id, "left to be loaded when a request names it");
                    slots[index].shelve();
                    self.settle();
                }
                Step::Unload(index, why) => unload(&slots[index], &mut threads[index], &self.shared, why),
                Step::Empty(index) => {
                    tracing::info!(model = slots[index].spec.id, "its turn is over: others wait for its place");
                    slots[index].set_leaving(true);
                }
                Step::Keep(index) => slots[index].set_leaving(false),
                Step::Wait(waiting) => self.engine.bell().wait(waiting.until.into_iter().chain(restarts.next()).min()),
            }
        }
        for slot in slots {
            if let SlotState::Ready(served) = slot.state() {
                served.queue.close();
            }
        }
        threads.into_iter().flatten().collect()
    }

    /// Models whose device thread ended although nobody closed their queue.
    fn bury_the_dead(&self, threads: &mut [Vec<JoinHandle<()>>], restarts: &mut Restarts) {
        for (index, slot) in self.engine.slots().iter().enumerate() {
            let SlotState::Ready(served) = slot.state() else { continue };
            if served.runner.health() != Health::Dead {
                continue;
            }
            if threads[index].len() > 1 && threads[index].iter().any(|thread| !thread.is_finished()) {
                // Where one has died, the others end after their batch; the watchdog rings again.
                continue;
            }
            for thread in threads[index].drain(..) {
                // It owns the weights: they are out of memory before they are loaded again.
                let _ = thread.join();
            }
            let metrics = self.engine.metrics.model(&slot.spec.id);
            metrics.unloaded(UnloadReason::Died);
            let reason = "its device thread died";
            match restarts.died(index, Instant::now()) {
                Fate::Again => {
                    metrics.restarted();
                    tracing::error!(model = slot.spec.id, reason, "the model will be loaded again");
                    slot.set_failed(Failure { at: FailedAt::Device, reason: reason.to_owned(), retry_at: None });
                }
                Fate::GivenUp => {
                    self.failed(index, FailedAt::Device, "its device thread died again");
                    self.give_up(index, "its device thread died again");
                }
            }
        }
    }

    /// A model that was to be served cannot be: without `--keep-going`, that is the end.
    fn give_up(&self, index: usize, reason: &str) {
        if !self.config.residency.keep_going {
            self.alarm.raise(format!("{}: {reason}", self.engine.slots()[index].spec.id));
        }
    }

    /// The device threads of the model; none if it could not be loaded.
    fn load(&self, index: usize) -> Vec<JoinHandle<()>> {
        let slot = &self.engine.slots()[index];
        let Some(folder) = self.models[index].folder.get() else {
            self.failed(index, FailedAt::Files, "its files were never obtained");
            return Vec::new();
        };
        slot.set_loading();
        let start = Instant::now();
        let settings = Settings { requests: &self.config.requests, batch: &self.config.batch };
        let load = || load::load(&slot.spec, folder, settings, &self.shared, &slot.progress);
        // Whatever is wrong with one model must not end the thread that loads the others.
        match catch_unwind(AssertUnwindSafe(load)) {
            Ok(Ok(Loaded { served, memory, threads })) => {
                *self.failures(index) = 0;
                slot.set_memory(memory, start.elapsed());
                self.check_memory();
                slot.set_ready(Arc::new(served));
                self.settle();
                threads
            }
            Ok(Err(error)) => {
                self.failed(index, FailedAt::Load, &chain(error));
                Vec::new()
            }
            Err(_) => {
                self.failed(index, FailedAt::Load, "loading it panicked");
                Vec::new()
            }
        }
    }

    /// Notes and logs a failure; returns when the model may be tried again.
    fn failed(&self, index: usize, at: FailedAt, reason: &str) -> Instant {
        let slot = &self.engine.slots()[index];
        let mut failures = self.failures(index);
        let factor = 2_u32.saturating_pow(*failures).min(LONGEST_BACKOFF);
        *failures = failures.saturating_add(1);
        drop(failures);
        let due = Instant::now() + self.config.residency.retry_failed.saturating_mul(factor);
        tracing::error!(model = slot.spec.id, reason, "a model cannot be served");
        self.engine.metrics.model(&slot.spec.id).not_loaded();
        // Files are fetched again by the clock alone: no request may cause a transfer.
        let retry_at = self.models[index].folder.get().map(|_| due);
        slot.set_failed(Failure { at, reason: reason.to_owned(), retry_at });
        if !self.config.residency.keep_going {
            let _ = self.conclude(StartOutcome::Failed(format!("cannot serve {}: {reason}", slot.spec.id)));
        }
        self.settle();
        due
    }

    /// Ends the start when no model is loading any more.
    fn settle(&self) {
        let states: Vec<SlotState> = self.engine.slots().iter().map(|slot| slot.state()).collect();
        if states.iter().any(|state| matches!(state, SlotState::Loading)) {
            return;
        }
        let failed =
            |state: &SlotState| if let SlotState::Failed(failure) = state { Some(failure.clone()) } else { None };
        let failures: Vec<Failure> = states.iter().filter_map(failed).collect();
        if let (true, Some(first)) = (failures.len() == states.len(), failures.first()) {
            let reason = format!("none of the {} models can be served; the first: {}", states.len(), first.reason);
            let _ = self.conclude(StartOutcome::Failed(reason));
        } else if self.conclude(StartOutcome::Done) {
            own_memory::report(&self.engine, &self.config, self.memory_limit);
        }
    }

    /// The start's outcome is decided once; what happens to a model later ends nothing. Whether this was it.
    fn conclude(&self, outcome: StartOutcome) -> bool {
        self.outcome.send_if_modified(|now| {
            let open = *now == StartOutcome::Working;
            if open {
                *now = outcome;
            }
            open
        })
    }

    fn has_failed(&self) -> bool {
        matches!(*self.outcome.borrow(), StartOutcome::Failed(_))
    }

    /// Ends the start when the models cannot be in memory as planned.
    fn check_memory(&self) {
        if let Err(reason) = own_memory::check(&self.engine, &self.config, self.memory_limit) {
            let _ = self.conclude(StartOutcome::Failed(reason));
        }
    }

    fn failures(&self, index: usize) -> std::sync::MutexGuard<'_, u32> {
        self.models[index].failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a model out of memory. A request that came first keeps it there.
fn unload(slot: &Slot, threads: &mut Vec<JoinHandle<()>>, shared: &Shared, why: Why) {
    let Some(served) = slot.unload() else { return };
    let start = Instant::now();
    served.queue.close();
    for thread in threads.drain(..) {
        // It owns the weights; nothing is queued, so it ends at once. One that panicked has said so already.
        let _ = thread.join();
    }
    drop(served);
    let (reason, why) = match why {
        Why::Idle => (UnloadReason::Idle, "idle"),
        Why::Room => (UnloadReason::Room, "another needs the room"),
    };
    shared.metrics.model(&slot.spec.id).unloaded(reason);
    tracing::info!(model = slot.spec.id, why, unload_ms = start.elapsed().as_secs_f64() * 1e3, "model unloaded");
}

/// An error with its causes after colons.
fn chain(error: impl Into<anyhow::Error>) -> String {
    format!("{:#}", error.into())
}
