//! What is read of a model before its weights: what its small files say, its head and its tokenizer.

use std::path::PathBuf;

use serde_json::Value;

use crate::arch::Described;
use crate::catalog::ModelSpec;
use crate::config::RequestConfig;
use crate::kernel::Compute;
use crate::load::modules::{Modules, required_json};
use crate::load::{LoadError, Shared, check_architecture, compute, head, limits, weight_files};
use crate::observe::metrics::ModelInfo;
use crate::pool::Head;
use crate::request::{Dimensions, RequestLimits};
use crate::source::ModelFolder;
use crate::tokenize::{Tokenizer, TokenizerSource};

/// A model but for its encoder.
pub(super) struct Parts<'a> {
    pub(super) spec: &'a ModelSpec,
    pub(super) config: Value,
    pub(super) modules: Modules,
    pub(super) described: Described,
    pub(super) weight_files: Vec<PathBuf>,
    pub(super) compute: Compute,
    pub(super) head: Head,
    pub(super) limits: RequestLimits,
    pub(super) tokenizer: Tokenizer,
}

impl<'a> Parts<'a> {
    /// # Errors
    /// Files that are missing, not understood or do not go together, and a catalogue entry that does not fit them.
    pub(super) fn read(
        spec: &'a ModelSpec,
        folder: &ModelFolder,
        requests: &RequestConfig,
        shared: &Shared,
    ) -> Result<Self, LoadError> {
        let folder = &folder.path;
        let modules = Modules::read(folder, spec.pooling, spec.normalize)?;
        let config = required_json(&folder.join("config.json"))?;
        check_architecture(spec, &config)?;
        let weight_files = weight_files(folder)?;
        let compute = compute(spec, shared)?;
        let described = Described::read(&config)?;
        let hidden_size = described.spec.hidden_size;
        let head = shared.threads.loading().install(|| head::load(&modules, hidden_size, shared.isa))?;
        let limits = limits(spec, &modules, &described.spec, head.dimensions(hidden_size), requests)?;
        let source = TokenizerSource {
            name: &spec.id,
            path: &folder.join("tokenizer.json"),
            vocab_rows: described.spec.vocab_size,
            lower_case: modules.lower_case,
            include_prompt: spec.include_prompt.unwrap_or(modules.include_prompt),
            limits: limits.clone(),
        };
        let tokenizer = Tokenizer::load(source, shared.workers.clone(), shared.metrics.model(&spec.id))?;
        Ok(Self { spec, config, modules, described, weight_files, compute, head, limits, tokenizer })
    }

    pub(super) const fn dimensions(&self) -> Dimensions {
        Dimensions::native(&self.limits)
    }

    /// What the metrics say of the model on these devices.
    pub(super) fn info(&self, revision: Option<&str>, devices: &[String]) -> ModelInfo {
        ModelInfo {
            revision: revision.unwrap_or("none").to_owned(),
            architecture: self.described.architecture.clone(),
            dtype: self.compute.precision.to_string(),
            devices: devices.to_vec(),
            pooling: self.modules.pooling_name(),
            dimensions: self.limits.dimensions,
        }
    }
}
