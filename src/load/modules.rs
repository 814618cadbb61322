//! What a model folder says about itself besides the encoder: sentence-transformers' `modules.json` and the files it
//! names.
//!
//! The chain is honoured, not assumed: Transformer, then Pooling, then any Dense layers, then Normalize if and only
//! if it is listed. A module, pooling mode or activation that is not implemented is an error naming it.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::catalog::id::RelPath;
use crate::kernel::Activation;
use crate::pool::PoolingMode;

/// Configuration files are small; a larger one is not a configuration.
const MAX_CONFIG_BYTES: u64 = 4 * 1024 * 1024;

/// Why a model folder cannot be understood.
#[derive(Debug, Error)]
pub enum ModulesError {
    #[error("cannot read {path}: {reason}")]
    Read { path: PathBuf, reason: String },
    #[error("{path}: {reason}")]
    Format { path: PathBuf, reason: String },
    #[error("{path}: {field} = {value} is not implemented")]
    Unsupported { path: PathBuf, field: &'static str, value: String },
}

/// The chain after the encoder, and the limits before it.
#[derive(Debug, Clone, PartialEq)]
pub struct Modules {
    pub pooling: PoolingMode,
    pub dense: Vec<DenseModule>,
    pub normalize: bool,
    /// `max_seq_length`, special tokens included; `None` = the positions decide.
    pub max_tokens: Option<usize>,
    pub lower_case: bool,
    /// What is put before every text: the prompt that `default_prompt_name` names. Empty for most models.
    pub prompt: String,
    /// Whether pooling sees the prompt's tokens.
    pub include_prompt: bool,
}

/// One Dense module: where its weights lie and what follows the product.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseModule {
    pub weights: PathBuf,
    pub in_features: usize,
    pub out_features: usize,
    pub bias: bool,
    pub activation: Activation,
}

#[derive(Debug, Deserialize)]
struct ModuleEntry {
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

#[derive(Debug, Deserialize)]
struct DenseConfig {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    activation_function: String,
    #[serde(default)]
    use_residual: bool,
}

const fn yes() -> bool {
    true
}

impl Modules {
    /// Reads the chain of `folder`. Without a `modules.json`, `pooling` must be given: guessing it would give vectors
    /// that are silently wrong.
    ///
    /// # Errors
    /// See [`ModulesError`].
    pub fn read(folder: &Path, pooling: Option<PoolingMode>, normalize: Option<bool>) -> Result<Self, ModulesError> {
        let path = folder.join("modules.json");
        let mut modules = if let Some(value) = read_json(&path)? {
            Self::from_chain(folder, &path, value)?
        } else {
            let Some(pooling) = pooling else {
                let reason = "there is none, so the pooling is unknown; choose it with --pooling".to_owned();
                return Err(ModulesError::Format { path, reason });
            };
            Self::plain(pooling)
        };
        modules.pooling = pooling.unwrap_or(modules.pooling);
        modules.normalize = normalize.unwrap_or(modules.normalize);
        modules.read_limits(folder)?;
        modules.read_prompt(folder)?;
        Ok(modules)
    }

    /// Pooling and nothing else.
    const fn plain(pooling: PoolingMode) -> Self {
        Self {
            pooling,
            dense: Vec::new(),
            normalize: false,
            max_tokens: None,
            lower_case: false,
            prompt: String::new(),
            include_prompt: true,
        }
    }

    fn from_chain(folder: &Path, path: &Path, value: Value) -> Result<Self, ModulesError> {
        let format = |reason: String| ModulesError::Format { path: path.to_owned(), reason };
        let entries: Vec<ModuleEntry> = serde_json::from_value(value).map_err(|error| format(error.to_string()))?;
        let mut chain = Self::plain(PoolingMode::Mean);
        let mut stage = Stage::Start;
        for entry in entries {
            // The class moved between packages over the years; its own name did not change.
            let kind = entry.kind.rsplit('.').next().unwrap_or_default().to_owned();
            let unsupported = |value: String| ModulesError::Unsupported { path: path.to_owned(), field: "type", value };
            stage = match (stage, kind.as_str()) {
                (Stage::Start, "Transformer") if entry.path.is_empty() || entry.path == "." => Stage::Encoded,
                (Stage::Encoded, "Pooling") => {
                    (chain.pooling, chain.include_prompt) = read_pooling(&module_folder(folder, path, &entry.path)?)?;
                    Stage::Pooled
                }
                (Stage::Pooled, "Dense") => {
                    chain.dense.push(read_dense(&module_folder(folder, path, &entry.path)?)?);
                    Stage::Pooled
                }
                (Stage::Pooled, "Normalize") => {
                    chain.normalize = true;
                    Stage::Normalized
                }
                (_, _) => return Err(unsupported(format!("{} (in this place)", entry.kind))),
            };
        }
        if stage == Stage::Start || stage == Stage::Encoded {
            return Err(format("the chain has no Transformer followed by a Pooling".to_owned()));
        }
        Ok(chain)
    }

    /// sentence-transformers puts the default prompt before every text, and so do we.
    fn read_prompt(&mut self, folder: &Path) -> Result<(), ModulesError> {
        let path = folder.join("config_sentence_transformers.json");
        let Some(config) = read_json(&path)? else { return Ok(()) };
        let Some(name) = config.get("default_prompt_name").and_then(Value::as_str) else { return Ok(()) };
        let prompt = config.get("prompts").and_then(|prompts| prompts.get(name)).and_then(Value::as_str);
        let missing = || ModulesError::Format { path, reason: format!("prompts has no {name}") };
        prompt.ok_or_else(missing)?.clone_into(&mut self.prompt);
        if !self.prompt.is_empty() && !self.include_prompt {
            let path = folder.join("1_Pooling/config.json");
            return Err(ModulesError::Unsupported { path, field: "include_prompt", value: "false".to_owned() });
        }
        Ok(())
    }

    fn read_limits(&mut self, folder: &Path) -> Result<(), ModulesError> {
        let path = folder.join("sentence_bert_config.json");
        if let Some(config) = read_json(&path)? {
            self.lower_case = config.get("do_lower_case").and_then(Value::as_bool).unwrap_or(false);
            self.max_tokens = positive(&path, &config, "max_seq_length")?;
        }
        if self.max_tokens.is_none() {
            let path = folder.join("tokenizer_config.json");
            if let Some(config) = read_json(&path)? {
                // Tokenizers without a limit store 10³⁰ here, which is no number of tokens.
                self.max_tokens = config
                    .get("model_max_length")
                    .and_then(Value::as_u64)
                    .filter(|tokens| *tokens < 1 << 24)
                    .and_then(|tokens| usize::try_from(tokens).ok())
                    .filter(|tokens| *tokens > 0);
            }
        }
        Ok(())
    }
}

/// How far along the chain we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Start,
    Encoded,
    Pooled,
    Normalized,
}

fn module_folder(folder: &Path, path: &Path, name: &str) -> Result<PathBuf, ModulesError> {
    let name = name.strip_suffix('/').unwrap_or(name);
    let name = RelPath::parse(name)
        .map_err(|error| ModulesError::Format { path: path.to_owned(), reason: error.to_string() })?;
    Ok(folder.join(name.as_str()))
}

/// The pooling mode, and whether the prompt takes part in it.
fn read_pooling(folder: &Path) -> Result<(PoolingMode, bool), ModulesError> {
    const LEGACY: [(&str, &str); 6] = [
        ("pooling_mode_cls_token", "cls"),
        ("pooling_mode_max_tokens", "max"),
        ("pooling_mode_mean_tokens", "mean"),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        ("pooling_mode_weightedmean_tokens", "weightedmean"),
        ("pooling_mode_lasttoken", "lasttoken"),
    ];
    let path = folder.join("config.json");
    let config = required_json(&path)?;
    let modes: Vec<String> = match config.get("pooling_mode") {
        Some(Value::String(mode)) => vec![mode.clone()],
        Some(Value::Array(modes)) => modes.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        _ => {
            let on = |(field, _): &&(&str, &str)| config.get(*field).and_then(Value::as_bool) == Some(true);
            LEGACY.iter().filter(on).map(|(_, mode)| (*mode).to_owned()).collect()
        }
    };
    let unsupported = |value: String| ModulesError::Unsupported { path: path.clone(), field: "pooling_mode", value };
    let include_prompt = config.get("include_prompt").and_then(Value::as_bool).unwrap_or(true);
    let mode = match modes.as_slice() {
        [mode] => match mode.as_str() {
            "cls" => PoolingMode::Cls,
            "max" => PoolingMode::Max,
            "mean" => PoolingMode::Mean,
            "mean_sqrt_len_tokens" => PoolingMode::MeanSqrtLen,
            "lasttoken" => PoolingMode::Last,
            other => return Err(unsupported(other.to_owned())),
        },
        // sentence-transformers takes the mean when no mode is switched on.
        [] => PoolingMode::Mean,
        several => return Err(unsupported(several.join(" + "))),
    };
    Ok((mode, include_prompt))
}

fn read_dense(folder: &Path) -> Result<DenseModule, ModulesError> {
    let path = folder.join("config.json");
    let value = required_json(&path)?;
    let config = DenseConfig::deserialize(&value)
        .map_err(|error| ModulesError::Format { path: path.clone(), reason: error.to_string() })?;
    let unsupported = |field, value: String| ModulesError::Unsupported { path: path.clone(), field, value };
    if config.use_residual {
        return Err(unsupported("use_residual", "true".to_owned()));
    }
    let activation = match config.activation_function.as_str() {
        "torch.nn.modules.linear.Identity" => Activation::None,
        "torch.nn.modules.activation.Tanh" => Activation::Tanh,
        "torch.nn.modules.activation.ReLU" => Activation::Relu,
        "torch.nn.modules.activation.GELU" => Activation::Gelu,
        "torch.nn.modules.activation.SiLU" => Activation::Silu,
        other => return Err(unsupported("activation_function", other.to_owned())),
    };
    Ok(DenseModule {
        weights: folder.join("model.safetensors"),
        in_features: config.in_features,
        out_features: config.out_features,
        bias: config.bias,
        activation,
    })
}

fn positive(path: &Path, config: &Value, field: &'static str) -> Result<Option<usize>, ModulesError> {
    match config.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if n > 0 => Ok(Some(n)),
            _ => Err(ModulesError::Unsupported { path: path.to_owned(), field, value: value.to_string() }),
        },
    }
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
    let size = match std::fs::metadata(path) {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read(error)),
    };
    let format = |reason: String| ModulesError::Format { path: path.to_owned(), reason };
    if size > MAX_CONFIG_BYTES {
        return Err(format(format!("{size} bytes are too many for a configuration file")));
    }
    let bytes = std::fs::read(path).map_err(read)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| format(error.to_string()))
}
