//! A verified model folder becomes a serving model: configuration read, weights packed, tokenizer framed, self-test
//! passed, device threads started.
//!
//! Runs on the loading thread. Everything that could make a vector silently wrong is an error here, before the model
//! is called ready.

pub mod describe;
mod devices;
pub mod gate;
mod head;
pub mod memory;
pub mod modules;
pub mod overflow;
mod parts;
pub mod verify;
pub mod work;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use thiserror::Error;

use crate::arch::ArchError;
use crate::arch::spec::EncoderSpec;
use crate::batch::plan::Budget;
use crate::batch::{Queue, QueueLimits};
use crate::catalog::ModelSpec;
use crate::catalog::id::RelPath;
use crate::config::{BatchConfig, DeviceConfig, RequestConfig};
use crate::engine::{Memory, Served};
use crate::excerpt::excerpt;
use crate::kernel::{Compute, Isa, Precision, Target, UnsupportedPrecision};
use crate::observe::metrics::Metrics;
use crate::observe::progress::LoadProgress;
use crate::request::RequestLimits;
use crate::runner::warmup::WarmupError;
use crate::runner::{self, RunnerInfo};
use crate::source::ModelFolder;
use crate::source::notes::Notes;
use crate::threads::Threads;
use crate::tokenize::load::TokenizerLoadError;
use crate::tokenize::workers::Workers;
use crate::weights::WeightsError;
use devices::Replicas;
use gate::GateError;
use modules::prompts::NoSuchPrompt;
use modules::{Modules, ModulesError, required_json};
use overflow::OverflowError;
use parts::Parts;

pub use devices::Seat;

/// Why a model folder cannot be served.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error(transparent)]
    Modules(#[from] ModulesError),
    #[error(transparent)]
    Arch(#[from] ArchError),
    #[error(transparent)]
    Precision(#[from] UnsupportedPrecision),
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error(transparent)]
    Overflow(#[from] OverflowError),
    #[error(transparent)]
    Prompt(#[from] NoSuchPrompt),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerLoadError),
    #[error("the tokenizer failed on a probe: {}", excerpt(.0))]
    Probe(String),
    #[error(transparent)]
    Warmup(#[from] WarmupError),
    #[error("a row of {row} tokens does not fit a batch of {batch}: raise --max-batch-tokens or lower --max-model-len")]
    BatchTooSmall { row: usize, batch: usize },
    #[error("{field} = {value} does not fit the model: {}", excerpt(.reason))]
    Setting { field: &'static str, value: String, reason: String },
    #[error(
        "before int8 is served from here for the first time it is compared with f32, whose weights need {needed} MiB beside the \
         {resident} MiB in use, and {limit} MiB may be used: run `embedserve models verify` with --dtype int8 once on such a \
         processor with more memory and keep its cache, which holds the verdict; or use dtype = bf16 or f32"
    )]
    NoRoomToCompare { needed: u64, resident: u64, limit: u64 },
    #[error("cannot start the device thread: {0}")]
    Thread(#[from] std::io::Error),
    #[error("there is no device to compute on")]
    NoDevice,
}

/// What every model of the process shares.
#[derive(Debug, Clone)]
pub struct Shared {
    pub threads: Arc<Threads>,
    pub workers: Workers,
    pub metrics: Arc<Metrics>,
    pub isa: Isa,
    /// Where encoders compute, at least one device; what is before and behind them stays on the CPU.
    pub seats: Vec<Seat>,
    /// Where verdicts on the accuracy of int8 are kept.
    pub notes: Notes,
    /// Memory that the process may use, if that is bounded.
    pub memory_limit: Option<u64>,
}

/// How models are served: what a request may ask for, and what becomes one batch.
#[derive(Debug, Clone, Copy)]
pub struct Settings<'a> {
    pub requests: &'a RequestConfig,
    pub batch: &'a BatchConfig,
}

/// A model ready to serve, and the threads to join when it is closed.
#[derive(Debug)]
pub struct Loaded {
    pub served: Served,
    pub memory: Memory,
    pub threads: Vec<std::thread::JoinHandle<()>>,
}

/// Builds the model that lies in `folder`.
///
/// # Errors
/// See [`LoadError`].
pub fn load(
    spec: &ModelSpec,
    folder: &ModelFolder,
    settings: Settings<'_>,
    shared: &Shared,
    progress: &LoadProgress,
) -> Result<Loaded, LoadError> {
    let start = Instant::now();
    let Settings { requests, batch } = settings;
    progress.enter("reading weights".to_owned(), 0);
    let parts = Parts::read(spec, folder, requests, shared)?;
    let mut replicas = Replicas::load(&parts, shared, progress)?;
    let probe = replicas.slowest_probe();
    let wanted = batch_budget(batch, &shared.seats, parts.limits.max_tokens, probe.tokens_per_second())?;
    let budget = reserve(&mut replicas, &parts, wanted)?;

    let metrics = shared.metrics.model(&spec.id);
    let devices: Vec<String> = shared.seats.iter().map(|seat| seat.target.label()).collect();
    metrics.set_info(&parts.info(folder.revision.as_deref(), &devices));
    let tokenizer_bytes = memory::tokenizer(&folder.path);
    let memory = memory::measure(replicas.weight_bytes, tokenizer_bytes, &parts.described.spec, budget.tokens);
    metrics.loaded(start.elapsed(), memory.weight_bytes);
    metrics.scratch(memory.scratch_bytes);
    let batch_tokens = budget.tokens;
    Report { parts: &parts, devices: &devices, memory, batch_tokens, forward: probe.took, took: start.elapsed() }.log();

    let queue_limits =
        QueueLimits { rows: batch.queue_rows, tokens: batch.queue_tokens, timeout: batch.queue_timeout, batch: budget };
    let queue = Queue::new(queue_limits, metrics);
    queue.expect_pace(probe.n_tokens, probe.took);
    let runners = replicas.spawn(&spec.id, &queue, runner_limits(batch.device, parts.limits.max_tokens), shared)?;
    let (runners, threads): (Vec<_>, Vec<_>) = runners.into_iter().map(|runner| (runner.info, runner.thread)).unzip();
    let Some(runner) = runners.into_iter().reduce(RunnerInfo::beside) else { return Err(LoadError::NoDevice) };
    let Parts { limits, tokenizer, .. } = parts;
    Ok(Loaded { served: Served { limits, tokenizer, queue, runner }, memory, threads })
}

/// The batches that every device has memory for, no larger than wanted.
fn reserve(replicas: &mut Replicas, parts: &Parts<'_>, wanted: Budget) -> Result<Budget, LoadError> {
    let budget = replicas.fit(wanted, parts.limits.max_tokens)?;
    if budget.tokens < wanted.tokens {
        let (tokens, wanted) = (budget.tokens, wanted.tokens);
        tracing::warn!(
            model = parts.spec.id,
            tokens,
            wanted,
            "batches are smaller than wanted: the device has no memory for more"
        );
    }
    Ok(budget)
}

/// What the log says of a model that has been loaded.
struct Report<'a> {
    parts: &'a Parts<'a>,
    devices: &'a [String],
    memory: Memory,
    batch_tokens: usize,
    /// A forward pass with the probe, on the slowest device.
    forward: Duration,
    took: Duration,
}

impl Report<'_> {
    fn log(&self) {
        let Self { parts, devices, memory, batch_tokens, forward, took } = self;
        let Parts { spec, modules, described, compute, limits, .. } = parts;
        tracing::info!(
            model = spec.id,
            architecture = described.architecture,
            dimensions = limits.dimensions,
            max_tokens = limits.max_tokens,
            pooling = modules.pooling_name(),
            normalize = modules.is_normalized(),
            prompts = limits.prompts.named.len(),
            weight_mib = memory.weight_bytes >> 20,
            scratch_mib = memory.scratch_bytes >> 20,
            device = devices.join(", "),
            kernels = %compute.isa,
            dtype = %compute.precision,
            batch_tokens,
            forward_ms = forward.as_secs_f64() * 1e3,
            load_ms = took.as_secs_f64() * 1e3,
            "model loaded"
        );
    }
}

/// What bounds each of the model's device threads.
const fn runner_limits(device: DeviceConfig, longest_row: usize) -> runner::Limits {
    let DeviceConfig { canary_interval, heartbeat, isolation_passes_per_second, .. } = device;
    runner::Limits { canary_interval, heartbeat, longest_row, isolation_passes_per_second }
}

/// What the model is built for: a format that this processor cannot compute is refused, never replaced.
fn compute(spec: &ModelSpec, shared: &Shared) -> Result<Compute, UnsupportedPrecision> {
    let isa = shared.isa;
    let compute = Compute { isa, precision: spec.precision() };
    if !shared.seats.iter().any(|seat| matches!(seat.target, Target::Cpu)) {
        // What a GPU computes is known when its encoder is built.
        return Ok(compute);
    }
    compute.check()?;
    if isa == Isa::Portable && compute.precision != Precision::F32 {
        let dtype = compute.precision.name();
        tracing::warn!(model = spec.id, dtype, "the portable kernels compute this format slowly: f32 is faster here");
    }
    Ok(compute)
}

/// A catalogue entry that speaks of another kind of model than the folder holds was meant for other files.
fn check_architecture(spec: &ModelSpec, config: &Value) -> Result<(), LoadError> {
    let Some(expected) = &spec.architecture else { return Ok(()) };
    let found = config.get("model_type").and_then(Value::as_str).unwrap_or("none");
    // Repositories have the type of their own code or, since transformers knows the network, its name there.
    let same_network = [expected.as_str(), found].iter().all(|name| ["gte", "new"].contains(name));
    if found == expected || same_network {
        return Ok(());
    }
    let reason = format!("config.json says model_type = {found}");
    Err(LoadError::Setting { field: "architecture", value: expected.clone(), reason })
}

/// The weight files of a folder: one, or the shards that the index names. As in transformers, an index beside whole
/// weights is left over from others.
fn weight_files(folder: &Path) -> Result<Vec<PathBuf>, LoadError> {
    let (whole, index) = (folder.join("model.safetensors"), folder.join("model.safetensors.index.json"));
    if whole.exists() || !index.exists() {
        return Ok(vec![whole]);
    }
    let value = required_json(&index)?;
    let format = |reason: String| ModulesError::Format { path: index.clone(), reason };
    let map = value.get("weight_map").and_then(Value::as_object);
    let map = map.ok_or_else(|| format("weight_map is missing".to_owned()))?;
    let mut names: Vec<&str> = map.values().filter_map(Value::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let shards = names.into_iter().map(|name| match RelPath::parse(name) {
        Ok(name) => Ok(folder.join(name.as_str())),
        Err(error) => Err(format(error.to_string()).into()),
    });
    shards.collect()
}

fn limits(
    spec: &ModelSpec,
    modules: &Modules,
    encoder: &EncoderSpec,
    dimensions: usize,
    requests: &RequestConfig,
) -> Result<RequestLimits, LoadError> {
    let positions = encoder.max_tokens;
    let own = modules.max_tokens.map_or(encoder.usual_tokens, |tokens| tokens.min(positions));
    let max_tokens = match spec.max_tokens {
        Some(value) if value == 0 || value > positions => {
            let reason = format!("expected 1 to {positions}");
            return Err(LoadError::Setting { field: "--max-model-len (max_tokens)", value: value.to_string(), reason });
        }
        // A catalogue may lower what the model's own files say, never raise it.
        Some(value) => value.min(own),
        None => own,
    };
    if let Some(value) = spec.dimensions
        && value != dimensions
    {
        let reason = format!("its weights give {dimensions}");
        return Err(LoadError::Setting { field: "dimensions", value: value.to_string(), reason });
    }
    let listed = modules.matryoshka || !spec.matryoshka_dimensions.is_empty();
    Ok(RequestLimits {
        max_tokens,
        dimensions,
        matryoshka: requests.allow_dimensions || spec.matryoshka.unwrap_or(listed),
        max_inputs: requests.max_inputs,
        max_request_tokens: requests.max_request_tokens,
        max_input_bytes: max_tokens.saturating_mul(requests.max_input_bytes_per_token),
        allow_empty_input: requests.allow_empty_input,
        token_arrays: spec.token_arrays.unwrap_or(requests.token_arrays),
        truncate: spec.truncate.unwrap_or(requests.truncate),
        prompts: modules.prompts.resolve(spec, requests.default_prompt.as_ref())?,
        max_prompt_bytes: requests.max_prompt_bytes,
    })
}

/// The batch budget: as configured, or about a second of work, so that a newcomer never waits long for the
/// batch before its own, and never more than the kernels need to run at full speed: without padding, larger batches gain
/// nothing. One row of the longest kind always fits.
fn batch_budget(
    batch: &BatchConfig,
    seats: &[Seat],
    max_tokens: usize,
    tokens_per_second: f64,
) -> Result<Budget, LoadError> {
    let full_speed = seats.iter().map(|seat| seat.target.full_speed_tokens()).max().unwrap_or(1);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a small positive number")]
    let a_second = tokens_per_second.clamp(1.0, full_speed as f64) as usize;
    let tokens = batch.max_batch_tokens.unwrap_or(a_second.max(max_tokens));
    if tokens < max_tokens {
        return Err(LoadError::BatchTooSmall { row: max_tokens, batch: tokens });
    }
    Ok(Budget { rows: batch.max_batch_rows, tokens })
}
