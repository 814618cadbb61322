//! What a model folder says about itself besides the encoder: sentence-transformers' `modules.json` and the files it
//! names.
//!
//! The chain is honoured, not assumed: Transformer, then Pooling, then any Dense, LayerNorm and Normalize in the order
//! listed. A module, pooling mode or activation that is not implemented is an error naming it.

mod pooling;
pub mod prompts;
mod steps;
mod transformer;

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::catalog::id::RelPath;
use crate::excerpt::{excerpt, path_excerpt};
use crate::pool::PoolingMode;
use crate::small_file;
use prompts::OwnPrompts;
pub use steps::{DenseModule, LayerNormModule, StepModule};

/// Configuration files are small; a larger one is not a configuration.
const MAX_CONFIG_BYTES: u64 = 4 * 1024 * 1024;

/// Why a model folder cannot be understood.
#[derive(Debug, Error)]
pub enum ModulesError {
    #[error("cannot read {}: {reason}", path_excerpt(.path))]
    Read { path: PathBuf, reason: String },
    #[error("{}: {}", path_excerpt(.path), excerpt(.reason))]
    Format { path: PathBuf, reason: String },
    #[error("{}: {field} = {} is not implemented", path_excerpt(.path), excerpt(.value))]
    Unsupported { path: PathBuf, field: &'static str, value: String },
}

/// The chain after the encoder, and the limits before it.
#[derive(Debug, Clone, PartialEq)]
pub struct Modules {
    /// One or more; the vectors of several are put end to end.
    pub pooling: Vec<PoolingMode>,
    /// What follows, in order.
    pub steps: Vec<StepModule>,
    /// `max_seq_length`, special tokens included; `None` = the positions decide.
    pub max_tokens: Option<usize>,
    pub lower_case: bool,
    pub prompts: OwnPrompts,
    /// Whether pooling sees the prompt's tokens.
    pub include_prompt: bool,
    /// Whether the files list lengths that vectors may be cut to.
    pub matryoshka: bool,
}

#[derive(Debug, Deserialize)]
struct ModuleEntry {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

impl Modules {
    /// Reads the chain of `folder`. Without a `modules.json`, `pooling` must be given: guessing it would give vectors
    /// that are silently wrong.
    ///
    /// # Errors
    /// See [`ModulesError`].
    pub fn read(folder: &Path, pooling: Option<PoolingMode>, normalize: Option<bool>) -> Result<Self, ModulesError> {
        refuse_cross_encoder(folder)?;
        let path = folder.join("modules.json");
        let mut modules = if let Some(value) = read_json(&path)? {
            Self::from_chain(folder, &path, value)?
        } else {
            let Some(pooling) = pooling else {
                refuse_classifier(folder)?;
                let reason = "there is none, so the pooling is unknown; choose it with --pooling".to_owned();
                return Err(ModulesError::Format { path, reason });
            };
            Self::plain(pooling)
        };
        if let Some(pooling) = pooling {
            modules.pooling = vec![pooling];
        }
        match normalize {
            Some(true) if !modules.is_normalized() => modules.steps.push(StepModule::Normalize),
            Some(false) => {
                while modules.is_normalized() {
                    modules.steps.pop();
                }
            }
            Some(true) | None => {}
        }
        let settings = transformer::read(folder)?;
        (modules.lower_case, modules.max_tokens) = (settings.lower_case, settings.max_tokens);
        modules.prompts = OwnPrompts::read(folder)?;
        modules.matryoshka = prompts::declares_matryoshka(folder)?;
        Ok(modules)
    }

    /// Whether vectors come out with unit length.
    pub fn is_normalized(&self) -> bool {
        self.steps.last() == Some(&StepModule::Normalize)
    }

    /// The names of the pooling modes, for logs and metrics.
    pub fn pooling_name(&self) -> String {
        let names: Vec<&str> = self.pooling.iter().map(|mode| mode.name()).collect();
        names.join("+")
    }

    /// Pooling and nothing else.
    fn plain(pooling: PoolingMode) -> Self {
        Self {
            pooling: vec![pooling],
            steps: Vec::new(),
            max_tokens: None,
            lower_case: false,
            prompts: OwnPrompts::default(),
            include_prompt: true,
            matryoshka: false,
        }
    }

    fn from_chain(folder: &Path, path: &Path, value: Value) -> Result<Self, ModulesError> {
        let format = |reason: String| ModulesError::Format { path: path.to_owned(), reason };
        let entries: Vec<ModuleEntry> = serde_json::from_value(value).map_err(|error| format(error.to_string()))?;
        let mut chain = Self::plain(PoolingMode::Mean);
        let mut stage = Stage::Start;
        for entry in entries {
            // The class moved between packages over the years; its own name did not change. Of the same name elsewhere, it
            // may do anything.
            let kind = entry.kind.strip_prefix("sentence_transformers.").and_then(|path| path.rsplit('.').next());
            let kind = kind.unwrap_or_default();
            let own_folder = || module_folder(folder, path, &entry.path);
            match (stage, kind) {
                (Stage::Start, "Transformer") if matches!(entry.path.as_str(), "" | "." | "./") => {
                    stage = Stage::Encoded;
                }
                (Stage::Encoded, "Pooling") => {
                    (chain.pooling, chain.include_prompt) = pooling::read(&own_folder()?)?;
                    stage = Stage::Pooled;
                }
                (Stage::Pooled, "Dense") => chain.steps.push(steps::dense(&own_folder()?)?),
                (Stage::Pooled, "LayerNorm") => chain.steps.push(steps::layer_norm(&own_folder()?)?),
                (Stage::Pooled, "Normalize") => chain.steps.push(steps::normalize(&own_folder()?)?),
                // It drops values in training only.
                (Stage::Pooled, "Dropout") => {}
                (Stage::Start, "Transformer") => {
                    let value = format!("{} (the encoder is expected at the root)", entry.path);
                    return Err(ModulesError::Unsupported { path: path.to_owned(), field: "path", value });
                }
                (_, _) => {
                    let value = format!("{} (in this place)", entry.kind);
                    return Err(ModulesError::Unsupported { path: path.to_owned(), field: "type", value });
                }
            }
        }
        if stage != Stage::Pooled {
            return Err(format("the chain has no Transformer followed by a Pooling".to_owned()));
        }
        Ok(chain)
    }
}

/// How far along the chain we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Start,
    Encoded,
    Pooled,
}

/// What newer versions of sentence-transformers say of the model: rerankers and sparse encoders have module lists, too.
fn refuse_cross_encoder(folder: &Path) -> Result<(), ModulesError> {
    let path = folder.join("config_sentence_transformers.json");
    let settings = read_json(&path)?.unwrap_or_default();
    match settings.get("model_type").and_then(Value::as_str) {
        None | Some("SentenceTransformer") => Ok(()),
        Some(other) => {
            let value = format!("{other} (only SentenceTransformer gives one dense vector per text)");
            Err(ModulesError::Unsupported { path, field: "model_type", value })
        }
    }
}

/// Rerankers lie on the same shelf as embedding models: they give a score for two texts, and no vectors. Generators have no
/// pooling either.
fn refuse_classifier(folder: &Path) -> Result<(), ModulesError> {
    let path = folder.join("config.json");
    let config = read_json(&path)?.unwrap_or_default();
    let architecture = config.pointer("/architectures/0").and_then(Value::as_str).unwrap_or_default();
    let kinds = [
        ("ForSequenceClassification", "a classifier or reranker"),
        ("ForCausalLM", "a decoder"),
        ("ColBERT", "late interaction: a vector for every token"),
    ];
    let kind = kinds.into_iter().find(|(ending, _)| architecture.ends_with(ending));
    if let Some((_, kind)) = kind {
        let value = format!("{architecture} ({kind})");
        return Err(ModulesError::Unsupported { path, field: "architectures", value });
    }
    Ok(())
}

fn module_folder(folder: &Path, path: &Path, name: &str) -> Result<PathBuf, ModulesError> {
    let name = name.strip_suffix('/').unwrap_or(name);
    let name = RelPath::parse(name)
        .map_err(|error| ModulesError::Format { path: path.to_owned(), reason: error.to_string() })?;
    Ok(folder.join(name.as_str()))
}

/// A JSON file that must be there.
///
/// # Errors
/// Missing, unreadable, or not JSON.
pub fn required_json(path: &Path) -> Result<Value, ModulesError> {
    read_json(path)?
        .ok_or_else(|| ModulesError::Read { path: path.to_owned(), reason: "the file is missing".to_owned() })
}

fn read_json(path: &Path) -> Result<Option<Value>, ModulesError> {
    let read = |error: std::io::Error| ModulesError::Read { path: path.to_owned(), reason: error.to_string() };
    let bytes = match small_file::read(path, MAX_CONFIG_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read(error)),
    };
    let format = |reason: String| ModulesError::Format { path: path.to_owned(), reason };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| format(error.to_string()))
}
