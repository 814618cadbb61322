//! The devices that a model is loaded onto: the same weights on each of them, tested there, with a device thread of its own
//! behind the model's one queue.

use std::sync::Arc;
use std::time::Duration;

use crate::batch::Queue;
use crate::batch::plan::Budget;
use crate::kernel::{Compute, Precision, Target};
use crate::load::gate::{self, Case};
use crate::load::parts::Parts;
use crate::load::{LoadError, Shared, memory, overflow};
use crate::observe::progress::LoadProgress;
use crate::runner::{self, Canary, Computation, Device, Runner, warmup};
use crate::threads::{Threads, Turns};

/// A probe with words, digits, punctuation and a second script; any tokenizer makes several tokens of it.
const PROBE: &str = "The quick brown fox jumps over 13 lazy dogs; не спеши.";

/// A device, and whose turn it is there.
#[derive(Debug, Clone)]
pub struct Seat {
    pub target: Target,
    pub turns: Arc<Turns>,
}

impl Seat {
    /// The CPU's turns are those of `threads`; every GPU has its own, so that they compute at the same time.
    pub fn all(targets: &[Target], threads: &Threads) -> Vec<Self> {
        let turns = |target: &Target| match target {
            Target::Cpu => Arc::clone(threads.turns()),
            #[cfg(feature = "cuda")]
            Target::Cuda(_) => Arc::default(),
        };
        targets.iter().map(|target| Self { target: target.clone(), turns: turns(target) }).collect()
    }
}

/// A model on its devices: the same on each of them.
pub(super) struct Replicas {
    /// By seat.
    replicas: Vec<Replica>,
    /// On each device.
    pub(super) weight_bytes: u64,
}

/// A model on one device.
struct Replica {
    /// The device's own name.
    device: String,
    computation: Computation,
    canary: Canary,
}

/// A forward pass with the probe.
#[derive(Clone, Copy)]
pub(super) struct ProbePass {
    pub(super) n_tokens: usize,
    pub(super) took: Duration,
}

impl ProbePass {
    fn of(canary: &Canary) -> Self {
        Self { n_tokens: canary.n_tokens(), took: canary.took() }
    }

    pub(super) fn tokens_per_second(self) -> f64 {
        self.n_tokens as f64 / self.took.as_secs_f64().max(1e-6)
    }
}

impl Replicas {
    /// Builds the model on every seat, one after the other, and tests it there.
    ///
    /// # Errors
    /// A model that cannot be built there, or fails a test; devices that do not agree.
    pub(super) fn load(parts: &Parts<'_>, shared: &Shared, progress: &LoadProgress) -> Result<Self, LoadError> {
        let probe = parts.tokenizer.encode_probe(PROBE).map_err(LoadError::Probe)?;
        let mut loaded = Self { replicas: Vec::with_capacity(shared.seats.len()), weight_bytes: 0 };
        for seat in &shared.seats {
            let (mut computation, weight_bytes) = parts.build(seat, shared, progress)?;
            loaded.weight_bytes = weight_bytes;
            progress.enter("warming up".to_owned(), 0);
            let canary = warmup::self_test(&mut computation, &probe, parts.dimensions())?;
            if let Some(first) = loaded.replicas.first() {
                warmup::compare(&first.canary, &canary, computation.encoder.company_bound())?;
            }
            loaded.replicas.push(Replica { device: seat.target.label(), computation, canary });
        }
        Ok(loaded)
    }

    /// The probe, as the slowest device computes it.
    pub(super) fn slowest_probe(&self) -> ProbePass {
        let passes = self.replicas.iter().map(|replica| ProbePass::of(&replica.canary));
        passes.max_by_key(|pass| pass.took).unwrap_or(ProbePass { n_tokens: 1, took: Duration::from_secs(1) })
    }

    /// The batches that fit every device, no larger than wanted, with their memory taken.
    ///
    /// # Errors
    /// A device without room for the longest row.
    pub(super) fn fit(&mut self, wanted: Budget, longest_row: usize) -> Result<Budget, LoadError> {
        let mut budget = wanted;
        for replica in &mut self.replicas {
            budget = warmup::fit(&mut replica.computation, budget, longest_row)?;
        }
        Ok(budget)
    }

    /// A thread for each device, all of them behind `queue`.
    ///
    /// # Errors
    /// The operating system refused a thread.
    pub(super) fn spawn(
        self,
        model: &str,
        queue: &Queue,
        limits: runner::Limits,
        shared: &Shared,
    ) -> Result<Vec<Runner>, LoadError> {
        let mut runners = Vec::with_capacity(self.replicas.len());
        for (number, Replica { device, computation, canary }) in self.replicas.into_iter().enumerate() {
            let (model, own) = (model.to_owned(), queue.for_device(number));
            let device = Device { model, device, computation, canary, queue: own, limits };
            match runner::spawn(device, &shared.metrics) {
                Ok(runner) => runners.push(runner),
                Err(error) => {
                    // Those that have begun end, as nobody will ever send them anything.
                    queue.close();
                    return Err(error.into());
                }
            }
        }
        Ok(runners)
    }
}

impl Parts<'_> {
    /// The model on one seat, and the memory of its weights there.
    fn build(&self, seat: &Seat, shared: &Shared, progress: &LoadProgress) -> Result<(Computation, u64), LoadError> {
        let (compute, pool, loading) = (self.compute, shared.threads.pool(), shared.threads.loading());
        let mut weight_bytes = 0;
        let mut build = |compute: Compute| -> Result<Computation, LoadError> {
            if compute != self.compute {
                memory::check_room_for_f32(&self.weight_files, shared.memory_limit)?;
            }
            let loaded = loading.install(|| self.described.load(&self.weight_files, &seat.target, compute, pool))?;
            weight_bytes = loaded.weight_bytes;
            let (head, turns) = (self.head.clone(), Arc::clone(&seat.turns));
            Ok(Computation { encoder: loaded.encoder, head, turns })
        };
        let mut computation = if compute.precision == Precision::Int8 && matches!(seat.target, Target::Cpu) {
            progress.enter("comparing int8 with f32".to_owned(), 0);
            let case = Case {
                model: &self.spec.id,
                compute,
                rows: self.known_rows()?,
                dimensions: self.dimensions(),
                weights: gate::digest(&self.config, &self.modules, &self.weight_files)?,
                notes: &shared.notes,
            };
            gate::admit(&case, build)?.0
        } else {
            build(compute)?
        };
        if compute.precision == Precision::F16 {
            progress.enter("looking for overflows of f16".to_owned(), 0);
            overflow::check(&mut computation, &self.known_rows()?, self.dimensions())?;
        }
        Ok((computation, weight_bytes))
    }

    /// The texts that reduced formats are tested with, in the model's own tokens.
    fn known_rows(&self) -> Result<Vec<Vec<u32>>, LoadError> {
        gate::TEXTS.iter().map(|text| self.tokenizer.encode_probe(text).map_err(LoadError::Probe)).collect()
    }
}
