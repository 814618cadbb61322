//! What a model folder says of its model, without reading a weight: for listings, for people who choose, and before
//! gigabytes are fetched for nothing.

use std::path::Path;

use crate::arch::{self, Described};
use crate::catalog::ModelSpec;
use crate::config::RequestConfig;
use crate::kernel::{Compute, Isa, Precision};
use crate::load::modules::{Modules, StepModule, required_json};
use crate::load::{LoadError, check_architecture, limits, memory, weight_files};
use crate::pool::PoolingMode;
use crate::request::RequestLimits;
use crate::tokenize::load::TokenizerLoadError;
use crate::tokenize::settings::Settings;

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
    let (modules, described) = settings(spec, folder)?;
    let encoder = &described.spec;
    arch::check_sizes(encoder, &weight_files(folder)?)?;
    let dense = modules.steps.iter().rev().find_map(|step| match step {
        StepModule::Dense(module) => Some(module.out_features),
        StepModule::LayerNorm(_) | StepModule::Normalize => None,
    });
    let dimensions = dense.unwrap_or(encoder.hidden_size * modules.pooling.len());
    Ok(Description {
        limits: limits(spec, &modules, encoder, dimensions, requests)?,
        pooling: modules.pooling_name(),
        is_normalized: modules.is_normalized(),
        include_prompt: spec.include_prompt.unwrap_or(modules.include_prompt),
        precision,
        weight_bytes: memory::estimate(folder, precision)?,
        architecture: described.architecture,
    })
}

/// Whether the model whose small files lie in `folder` is of a kind that can be served: a
/// [`Judge`](crate::source::Judge) of what is worth fetching.
///
/// # Errors
/// Why it cannot.
pub fn judge(spec: &ModelSpec, folder: &Path) -> Result<(), String> {
    settings(spec, folder).map(|_| ()).map_err(|error| error.to_string())
}

/// As [`judge`], for who fetches a model that others will serve: they may know how it pools.
///
/// # Errors
/// Why it cannot be served, however it pools.
pub fn judge_to_keep(spec: &ModelSpec, folder: &Path) -> Result<(), String> {
    let pooling = spec.pooling.or(Some(PoolingMode::Mean));
    judge(&ModelSpec { pooling, ..spec.clone() }, folder)
}

fn settings(spec: &ModelSpec, folder: &Path) -> Result<(Modules, Described), LoadError> {
    let modules = Modules::read(folder, spec.pooling, spec.normalize)?;
    let config = required_json(&folder.join("config.json"))?;
    check_architecture(spec, &config)?;
    let tokenizer = |reason| TokenizerLoadError::Format { path: folder.join("tokenizer_config.json"), reason };
    Settings::read(folder).map_err(tokenizer)?;
    Ok((modules, Described::read(&config)?))
}
