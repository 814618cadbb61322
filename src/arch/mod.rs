//! One encoder skeleton; architectures are data.
//!
//! [`Encoder`] is what the device thread drives. [`Described`] reads a model folder's `config.json`, finds the family by
//! `model_type`, and builds the skeleton from its [`EncoderSpec`]. Whatever is not implemented is an error that names
//! the field and the value: a vector that is subtly wrong is worse than no vector.

pub mod attention;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod embeddings;
pub mod encoder;
pub mod family;
pub mod feed_forward;
pub mod names;
pub mod norm;
pub mod packed;
pub mod position;
pub mod spec;

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::Tensor;
use rayon::ThreadPool;
use serde_json::Value;
use thiserror::Error;

use crate::arch::encoder::PackedEncoder;
use crate::arch::family::Family;
use crate::arch::packed::PackedBatch;
use crate::arch::spec::{DistanceBiasSpec, EncoderSpec};
use crate::excerpt::excerpt;
#[cfg(feature = "cuda")]
use crate::kernel::cuda::Format;
use crate::kernel::{Compute, Pool, Precision, Reduce, Target};
use crate::weights::{Weights, WeightsError};

/// A model's forward pass, owned by its device thread, and before that by the thread that loads and tests it.
pub trait Encoder: Send {
    /// The last hidden states, `[n_tokens, hidden_size]` f32, in the batch's token order.
    ///
    /// A row's states depend on that row alone, bit for bit on the CPU.
    ///
    /// # Errors
    /// The device failed, or an id lies outside the vocabulary.
    fn forward(&mut self, batch: &PackedBatch) -> Result<Tensor, EncoderError>;

    fn hidden_size(&self) -> usize;

    /// One row per sequence for each of `ways`, `[n_rows, ways·hidden_size]`; the first `skips` tokens of each sequence are
    /// left out.
    ///
    /// # Errors
    /// As [`Self::forward`].
    fn pooled(&mut self, batch: &PackedBatch, ways: &[Reduce], skips: &[usize]) -> Result<Vec<f32>, EncoderError> {
        let hidden = self.forward(batch)?;
        Ok(Pool::side_by_side(&hidden, batch.offsets(), ways, skips)?)
    }

    /// Begins what [`Self::pooled`] does; [`Self::collect`] has to be given what this returns. An encoder that computes on the
    /// thread that calls it has the result at once.
    ///
    /// # Errors
    /// As [`Self::forward`]; what else is under way is not touched by it.
    fn submit(&mut self, batch: &PackedBatch, ways: &[Reduce], skips: &[usize]) -> Result<Submitted, EncoderError> {
        Ok(Submitted::Done(self.pooled(batch, ways, skips)?))
    }

    /// The result of a pass, once it is there. Passes are computed in the order in which they were begun.
    ///
    /// # Errors
    /// As [`Self::forward`].
    fn collect(&mut self, submitted: Submitted) -> Result<Vec<f32>, EncoderError> {
        match submitted {
            Submitted::Done(pooled) => Ok(pooled),
            Submitted::UnderWay(_) => Err(never_begun()),
        }
    }

    /// Whether a second pass may be begun before the first one is collected, and is then computed behind it.
    fn overlaps(&self) -> bool {
        false
    }

    /// Takes all the memory that batches of so many tokens and rows need, so that none of them runs out of it later. On the
    /// CPU that is left to the batches.
    ///
    /// # Errors
    /// [`EncoderError::OutOfMemory`], after which nothing more is taken than before; or the device failed.
    fn reserve(&mut self, _tokens: usize, _rows: usize) -> Result<(), EncoderError> {
        Ok(())
    }

    /// How far a row's vector may move with its company, as a share of its largest value. 0: not by one bit.
    fn company_bound(&self) -> f32 {
        0.0
    }
}

/// A forward pass that was begun.
#[derive(Debug)]
#[must_use = "it takes the place of another pass until it is collected"]
pub enum Submitted {
    /// Computed already: the pooled rows.
    Done(Vec<f32>),
    /// Still computing, under this number of the encoder's.
    UnderWay(usize),
}

/// Why a forward pass failed.
#[derive(Debug, Error)]
pub enum EncoderError {
    /// The device cannot hold the batch; a smaller one may pass.
    #[error("out of device memory")]
    OutOfMemory,
    /// The device is unusable for the whole process from now on; nothing computed on it can be trusted.
    #[error("the device is lost: {reason}")]
    Lost { reason: String },
    /// Anything else.
    #[error("forward pass failed: {0}")]
    Compute(#[from] candle_core::Error),
}

/// Why a model cannot be built.
#[derive(Debug, Error)]
pub enum ArchError {
    #[error("config.json: {}", excerpt(.reason))]
    Config { reason: String },
    #[error("config.json: {field} = {} is not implemented", excerpt(.value))]
    Unsupported { field: &'static str, value: String },
    #[error("config.json: model_type = {} is not implemented; served are: {known}", excerpt(.found))]
    Family { found: String, known: String },
    #[error("config.json: {field} = {} is impossible: {reason}", excerpt(.value))]
    Impossible { field: &'static str, value: String, reason: &'static str },
    #[error("config.json: {field} = {value} has no kernel on GPUs: use --device cpu, or another --dtype")]
    NoKernel { field: &'static str, value: usize },
    #[error("int8 is computed on CPUs only: use dtype = bf16, f16 or f32, or --device cpu")]
    NoInt8,
    #[error("f16 is computed on GPUs only: use dtype = bf16 or f32, or --device cuda")]
    NoF16,
    #[error("a weight of {value:e} is beyond float16, which ends at 65504: use dtype = bf16 or f32")]
    WeightOverflow { value: f32 },
    #[error("{0}")]
    Gpu(String),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("cannot prepare the weights: {0}")]
    Device(#[from] candle_core::Error),
}

/// A built encoder and what is known about it.
pub struct Loaded {
    pub encoder: Box<dyn Encoder>,
    pub spec: EncoderSpec,
    /// `model_type` of the configuration.
    pub architecture: String,
    /// Memory of the packed weights, in bytes.
    pub weight_bytes: u64,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded")
            .field("spec", &self.spec)
            .field("architecture", &self.architecture)
            .finish_non_exhaustive()
    }
}

/// What a configuration describes, before any weight is read.
pub struct Described {
    pub spec: EncoderSpec,
    /// `model_type` of the configuration.
    pub architecture: String,
    family: Family,
}

impl std::fmt::Debug for Described {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Described")
            .field("spec", &self.spec)
            .field("architecture", &self.architecture)
            .finish_non_exhaustive()
    }
}

/// Builds the encoder described by `config` (a parsed `config.json`) from `weight_files`. It will compute with threads of
/// `pool` beside its caller.
///
/// # Errors
/// See [`ArchError`].
pub fn load(
    config: &Value,
    weight_files: &[PathBuf],
    target: &Target,
    compute: Compute,
    pool: &Arc<ThreadPool>,
) -> Result<Loaded, ArchError> {
    Described::read(config)?.load(weight_files, target, compute, pool)
}

impl Described {
    /// Reads a parsed `config.json`.
    ///
    /// # Errors
    /// [`ArchError`] for what is missing, impossible or not implemented.
    pub fn read(config: &Value) -> Result<Self, ArchError> {
        let architecture = config
            .get("model_type")
            .and_then(Value::as_str)
            .ok_or_else(|| ArchError::Config { reason: "model_type is missing".to_owned() })?;
        if let Some(value) = config.get("quantization_config").filter(|value| !value.is_null()) {
            return Err(ArchError::Unsupported { field: "quantization_config", value: value.to_string() });
        }
        let family = family::find(architecture, config)?;
        refuse_remote_code(config, family.remote_classes)?;
        let spec = (family.spec)(config)?;
        Ok(Self { spec, architecture: architecture.to_owned(), family })
    }

    /// Builds the encoder, as often as it is called: each time the weights are read anew.
    ///
    /// # Errors
    /// See [`ArchError`].
    pub fn load(
        &self,
        weight_files: &[PathBuf],
        target: &Target,
        compute: Compute,
        pool: &Arc<ThreadPool>,
    ) -> Result<Loaded, ArchError> {
        let Self { spec, architecture, family } = self;
        check_sizes(spec, weight_files)?;
        let mut weights = Weights::open(weight_files, |stored| family.names.role(stored))?;
        if let Some((role, stored)) = family.stand_in {
            weights.stand_in(role, stored);
        }
        let in_stored_words = |error: WeightsError| error.renamed(|role| family.names.stored(role));
        let (encoder, weight_bytes) = build(spec, &weights, target, compute, pool).map_err(|error| match error {
            ArchError::Weights(error) => ArchError::Weights(in_stored_words(error)),
            other @ (ArchError::Config { .. }
            | ArchError::Unsupported { .. }
            | ArchError::Family { .. }
            | ArchError::Impossible { .. }
            | ArchError::NoKernel { .. }
            | ArchError::NoInt8
            | ArchError::NoF16
            | ArchError::WeightOverflow { .. }
            | ArchError::Gpu(_)
            | ArchError::Device(_)) => other,
        })?;
        weights.refuse_unread(|role| family.names.matters(role)).map_err(in_stored_words)?;
        Ok(Loaded { encoder, spec: spec.clone(), architecture: architecture.clone(), weight_bytes })
    }
}

/// The skeleton on its target, and the memory of its weights there, in bytes.
fn build(
    spec: &EncoderSpec,
    weights: &Weights,
    target: &Target,
    compute: Compute,
    pool: &Arc<ThreadPool>,
) -> Result<(Box<dyn Encoder>, u64), ArchError> {
    match target {
        Target::Cpu if compute.precision == Precision::F16 => Err(ArchError::NoF16),
        Target::Cpu => {
            let encoder = PackedEncoder::load(spec, weights, compute, pool)?;
            let bytes = encoder.size_bytes();
            Ok((Box::new(encoder), bytes))
        }
        #[cfg(feature = "cuda")]
        Target::Cuda(device) => {
            let format = match compute.precision {
                Precision::F32 => Format::F32,
                Precision::F16 => Format::F16,
                Precision::Bf16 => Format::Bf16,
                Precision::Int8 => return Err(ArchError::NoInt8),
            };
            let encoder = cuda::CudaEncoder::load(spec, weights, device, format)?;
            let bytes = encoder.size_bytes();
            Ok((Box::new(encoder), bytes))
        }
    }
}

/// The answer to whoever collects what is not there: a fault of this program.
fn never_begun() -> EncoderError {
    EncoderError::Compute(candle_core::Error::Msg("no such pass is under way".to_owned()))
}

/// `auto_map` asks for Python code from the repository, which we never run. Where it names the very classes that a
/// family of ours implements (one of `known` begins their names), the code is not needed.
fn refuse_remote_code(config: &Value, known: &[&str]) -> Result<(), ArchError> {
    let map = match config.get("auto_map") {
        None | Some(Value::Null) => return Ok(()),
        Some(map) => map,
    };
    let class = |value: &Value| value.as_str().and_then(|path| path.rsplit('.').next()).map(str::to_owned);
    let is_known = |value: &Value| class(value).is_some_and(|class| known.iter().any(|known| class.starts_with(known)));
    if map.as_object().is_some_and(|classes| classes.values().all(is_known)) {
        return Ok(());
    }
    Err(ArchError::Unsupported { field: "auto_map", value: map.to_string() })
}

/// Refuses sizes that cannot be meant before anything is allocated from them.
///
/// # Errors
/// [`ArchError::Impossible`], with the field.
pub fn check_sizes(spec: &EncoderSpec, weight_files: &[PathBuf]) -> Result<(), ArchError> {
    const LIMIT: usize = 1 << 24;
    /// 131,072 positions with heads of 128 values: 64 MiB.
    const MAX_PLACES: usize = 1 << 24;
    let impossible = |field, value: String, reason| Err(ArchError::Impossible { field, value, reason });
    let fields = [
        ("hidden_size", spec.hidden_size, LIMIT),
        // The kernels have no room for wider ones; families refuse them.
        ("embedding_size", spec.embedding_size, spec.hidden_size),
        ("num_hidden_layers", spec.n_layers(), family::bert::MAX_LAYERS),
        ("num_hidden_groups", spec.n_stored_layers(), spec.n_layers()),
        ("num_attention_heads", spec.n_heads, LIMIT),
        ("head size", spec.head_size, LIMIT),
        ("intermediate_size", spec.intermediate_size, LIMIT),
        ("vocab_size", spec.vocab_size, LIMIT),
        ("max_position_embeddings", spec.max_tokens, LIMIT),
        ("n_positions", spec.usual_tokens, spec.max_tokens),
    ];
    for (field, value, limit) in fields {
        if value == 0 || value > limit {
            return impossible(field, value.to_string(), "out of range");
        }
    }
    if spec.position_table.is_some_and(|table| table.rows > LIMIT) || spec.token_types.max(spec.task_types) > LIMIT {
        return impossible("max_position_embeddings or type_vocab_size", "huge".to_owned(), "out of range");
    }
    // T5 alone names the head size itself; for all others it is a quotient.
    let is_quotient =
        !matches!(spec.distance_bias, Some(DistanceBiasSpec::Buckets { .. }) if spec.position_table.is_none());
    if is_quotient && spec.inner_size() != spec.hidden_size {
        let reason = "the hidden size is not a multiple of it";
        return impossible("num_attention_heads", spec.n_heads.to_string(), reason);
    }
    if !(spec.norm.epsilon.is_finite() && spec.norm.epsilon >= 0.0) {
        return impossible("layer_norm_eps", spec.norm.epsilon.to_string(), "expected a small positive number");
    }
    if let Some(DistanceBiasSpec::Buckets { count, max_distance }) = spec.distance_bias
        && !(count.is_multiple_of(4)
            && (4..=1 << 16).contains(&count)
            && (count / 4 + 1..=1 << 20).contains(&max_distance))
    {
        let reason = "expected a multiple of 4, and a distance beyond a quarter of it";
        return impossible("relative_attention_num_buckets", format!("{count} up to {max_distance}"), reason);
    }
    if spec.layers.iter().any(|layer| layer.rotary.is_some()) && !spec.head_size.is_multiple_of(2) {
        return impossible("head size", spec.head_size.to_string(), "rotary positions turn pairs of values");
    }
    // Rotations are computed for every position at load, biases for every head and distance. No file has to hold them,
    // so its size bounds neither.
    let turned = spec.layers.iter().any(|layer| layer.rotary.is_some());
    let rotations = if turned { spec.max_tokens.saturating_mul(spec.head_size) } else { 0 };
    let reach = match spec.distance_bias {
        None => 0,
        Some(DistanceBiasSpec::Buckets { max_distance, .. }) => max_distance,
        Some(DistanceBiasSpec::Linear) => spec.max_tokens,
    };
    let biases = spec.n_heads.saturating_mul(reach).saturating_mul(2);
    if rotations > MAX_PLACES || biases > MAX_PLACES {
        return impossible("max_position_embeddings", spec.max_tokens.to_string(), "out of range");
    }
    let stored: u64 = weight_files.iter().filter_map(|path| path.metadata().ok()).map(|file| file.len()).sum();
    // The narrowest stored float has two bytes.
    if spec.n_parameters().saturating_mul(2) > stored.saturating_add(1 << 20) {
        let reason = "the weight files are too small for the sizes in config.json";
        return impossible("num_hidden_layers", spec.n_layers().to_string(), reason);
    }
    Ok(())
}
