//! One encoder skeleton; architectures are data.
//!
//! [`Encoder`] is what the device thread drives. [`load`] reads a model folder's `config.json`, finds the family by
//! `model_type`, and builds the skeleton from its [`EncoderSpec`]. Whatever is not implemented is an error that names
//! the field and the value: a vector that is subtly wrong is worse than no vector.

pub mod attention;
pub mod embeddings;
pub mod encoder;
pub mod family;
pub mod feed_forward;
pub mod packed;
pub mod spec;

use std::path::PathBuf;

use candle_core::{Device, Tensor};
use serde_json::Value;
use thiserror::Error;

use crate::arch::encoder::BertEncoder;
use crate::arch::packed::PackedBatch;
use crate::arch::spec::EncoderSpec;
use crate::kernel::Isa;
use crate::weights::{Weights, WeightsError};

/// A model's forward pass, owned and called by its device thread alone.
pub trait Encoder: Send {
    /// The last hidden states, `[n_tokens, hidden_size]` f32, in the batch's token order.
    ///
    /// A row's states depend on that row alone, bit for bit on the CPU.
    ///
    /// # Errors
    /// The device failed, or an id lies outside the vocabulary.
    fn forward(&mut self, batch: &PackedBatch) -> Result<Tensor, EncoderError>;

    fn hidden_size(&self) -> usize;
}

/// Why a forward pass failed.
#[derive(Debug, Error)]
pub enum EncoderError {
    /// The device cannot hold the batch; a smaller one may pass.
    #[error("out of device memory")]
    OutOfMemory,
    /// Anything else.
    #[error("forward pass failed: {0}")]
    Compute(#[from] candle_core::Error),
}

/// Why a model cannot be built.
#[derive(Debug, Error)]
pub enum ArchError {
    #[error("config.json: {reason}")]
    Config { reason: String },
    #[error("config.json: {field} = {value} is not implemented")]
    Unsupported { field: &'static str, value: String },
    #[error("config.json: {field} = {value} is impossible: {reason}")]
    Impossible { field: &'static str, value: String, reason: &'static str },
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

/// Builds the encoder described by `config` (a parsed `config.json`) from `weight_files`.
///
/// # Errors
/// See [`ArchError`].
pub fn load(config: &Value, weight_files: &[PathBuf], device: &Device, isa: Isa) -> Result<Loaded, ArchError> {
    refuse_remote_code(config)?;
    let architecture = config
        .get("model_type")
        .and_then(Value::as_str)
        .ok_or_else(|| ArchError::Config { reason: "model_type is missing".to_owned() })?;
    let spec = match architecture {
        "bert" => family::bert::spec(config)?,
        other => return Err(ArchError::Unsupported { field: "model_type", value: other.to_owned() }),
    };
    check_sizes(&spec, weight_files)?;
    let weights = Weights::open(weight_files, family::bert::canonical_name)?;
    let encoder = BertEncoder::load(&spec, &weights, device, isa)?;
    weights.refuse_unread(family::bert::is_encoder_tensor)?;
    let weight_bytes = encoder.size_bytes();
    Ok(Loaded { encoder: Box::new(encoder), spec, architecture: architecture.to_owned(), weight_bytes })
}

/// `auto_map` asks for Python code from the repository, which we neither run nor imitate.
fn refuse_remote_code(config: &Value) -> Result<(), ArchError> {
    match config.get("auto_map") {
        None | Some(Value::Null) => Ok(()),
        Some(map) => Err(ArchError::Unsupported { field: "auto_map", value: map.to_string() }),
    }
}

/// Refuses sizes that cannot be meant before anything is allocated from them.
fn check_sizes(spec: &EncoderSpec, weight_files: &[PathBuf]) -> Result<(), ArchError> {
    const LIMIT: usize = 1 << 24;
    let fields = [
        ("hidden_size", spec.hidden_size),
        ("num_hidden_layers", spec.n_layers),
        ("num_attention_heads", spec.n_heads),
        ("intermediate_size", spec.intermediate_size),
        ("vocab_size", spec.vocab_size),
        ("max_position_embeddings", spec.max_tokens()),
    ];
    for (field, value) in fields {
        if value == 0 || value > LIMIT {
            let reason = "expected 1 to 16777216";
            return Err(ArchError::Impossible { field, value: value.to_string(), reason });
        }
    }
    if !spec.hidden_size.is_multiple_of(spec.n_heads) {
        let reason = "the hidden size is not a multiple of it";
        return Err(ArchError::Impossible { field: "num_attention_heads", value: spec.n_heads.to_string(), reason });
    }
    if !(spec.norm_epsilon.is_finite() && spec.norm_epsilon >= 0.0) {
        let (field, value) = ("layer_norm_eps", spec.norm_epsilon.to_string());
        return Err(ArchError::Impossible { field, value, reason: "expected a small positive number" });
    }
    let stored: u64 = weight_files.iter().filter_map(|path| path.metadata().ok()).map(|file| file.len()).sum();
    // The narrowest stored float has two bytes.
    if spec.n_parameters().saturating_mul(2) > stored.saturating_add(1 << 20) {
        let reason = "the weight files are too small for the sizes in config.json";
        return Err(ArchError::Impossible { field: "num_hidden_layers", value: spec.n_layers.to_string(), reason });
    }
    Ok(())
}
