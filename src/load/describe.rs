//! What a model folder says of its model, without reading a weight: for listings and for people who choose.

use std::path::Path;

use serde_json::Value;

use crate::arch::spec::EncoderSpec;
use crate::arch::{self, ArchError, family};
use crate::catalog::ModelSpec;
use crate::config::RequestConfig;
use crate::kernel::{Compute, Isa, Precision};
use crate::load::modules::{Modules, StepModule, required_json};
use crate::load::{LoadError, limits, memory, weight_files};
use crate::request::RequestLimits;

/// A model as it would be served.
#[derive(Debug, Clone)]
pub struct Description {
    /// `model_type` of its configuration.
    pub architecture: String,
    pub limits: RequestLimits,
    pub pooling: String,
    pub is_normalized: bool,
    pub include_prompt: bool,
    /// The number format that it would compute in.
    pub precision: Precision,
    /// What its weights take in memory, in that format.
    pub weight_bytes: u64,
}

/// Describes the model that lies in `folder`, as it would be served on this processor.
///
/// # Errors
/// Whatever would keep it from being served and can be seen without its weights.
pub fn describe(spec: &ModelSpec, folder: &Path, requests: &RequestConfig, isa: Isa) -> Result<Description, LoadError> {
    let precision = spec.precision();
    // What a GPU computes is known when one is asked for.
    if !(cfg!(feature = "cuda") && precision == Precision::F16) {
        Compute { isa, precision }.check()?;
    }
    let modules = Modules::read(folder, spec.pooling, spec.normalize)?;
    let config = required_json(&folder.join("config.json"))?;
    let encoder = encoder_spec(&config)?;
    arch::check_sizes(&encoder, &weight_files(folder)?)?;
    let dense = modules.steps.iter().rev().find_map(|step| match step {
        StepModule::Dense(module) => Some(module.out_features),
        StepModule::LayerNorm(_) | StepModule::Normalize => None,
    });
    let dimensions = dense.unwrap_or(encoder.hidden_size * modules.pooling.len());
    Ok(Description {
        limits: limits(spec, &modules, &encoder, dimensions, requests)?,
        pooling: modules.pooling_name(),
        is_normalized: modules.is_normalized(),
        include_prompt: spec.include_prompt.unwrap_or(modules.include_prompt),
        precision,
        weight_bytes: memory::estimate(folder, precision)?,
        architecture: model_type(&config).to_owned(),
    })
}

/// The shape of the encoder that a `config.json` describes.
pub(super) fn encoder_spec(config: &Value) -> Result<EncoderSpec, ArchError> {
    let architecture = model_type(config);
    let unknown = || ArchError::Unsupported { field: "model_type", value: architecture.to_owned() };
    (family::find(architecture, config).ok_or_else(unknown)?.spec)(config)
}

fn model_type(config: &Value) -> &str {
    config.get("model_type").and_then(Value::as_str).unwrap_or_default()
}
