//! The modules behind Pooling: Dense, LayerNorm, Normalize. Each reads and writes the sentence vector; one that would
//! work on token vectors is refused.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use crate::kernel::Activation;
use crate::load::modules::{ModulesError, read_json, required_json};

/// One module of the chain: what to compute, and where its weights lie.
#[derive(Debug, Clone, PartialEq)]
pub enum StepModule {
    Dense(DenseModule),
    LayerNorm(LayerNormModule),
    Normalize,
}

/// A matrix product and what follows it.
#[derive(Debug, Clone, PartialEq)]
pub struct DenseModule {
    pub weights: PathBuf,
    pub in_features: usize,
    pub out_features: usize,
    pub bias: bool,
    pub activation: Activation,
}

/// torch's LayerNorm with its default epsilon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerNormModule {
    pub weights: PathBuf,
    pub dimension: usize,
}

#[derive(Debug, Deserialize)]
struct DenseConfig {
    in_features: usize,
    out_features: usize,
    #[serde(default = "yes")]
    bias: bool,
    #[serde(default = "tanh")]
    activation_function: String,
    #[serde(default)]
    use_residual: bool,
}

#[derive(Debug, Deserialize)]
struct LayerNormConfig {
    dimension: usize,
}

const fn yes() -> bool {
    true
}

/// What sentence-transformers takes when nothing is written.
fn tanh() -> String {
    "torch.nn.modules.activation.Tanh".to_owned()
}

pub(super) fn dense(folder: &Path) -> Result<StepModule, ModulesError> {
    let path = folder.join("config.json");
    let value = required_json(&path)?;
    on_sentence_vectors(&path, &value)?;
    let config: DenseConfig = parsed(&path, &value)?;
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
    Ok(StepModule::Dense(DenseModule {
        weights: folder.join("model.safetensors"),
        in_features: config.in_features,
        out_features: config.out_features,
        bias: config.bias,
        activation,
    }))
}

pub(super) fn layer_norm(folder: &Path) -> Result<StepModule, ModulesError> {
    let path = folder.join("config.json");
    let LayerNormConfig { dimension } = parsed(&path, &required_json(&path)?)?;
    Ok(StepModule::LayerNorm(LayerNormModule { weights: folder.join("model.safetensors"), dimension }))
}

/// Most Normalize modules have no file at all.
pub(super) fn normalize(folder: &Path) -> Result<StepModule, ModulesError> {
    let path = folder.join("config.json");
    if let Some(config) = read_json(&path)? {
        on_sentence_vectors(&path, &config)?;
    }
    Ok(StepModule::Normalize)
}

fn on_sentence_vectors(path: &Path, config: &Value) -> Result<(), ModulesError> {
    for field in ["module_input_name", "module_output_name"] {
        match config.get(field) {
            None | Some(Value::Null) => {}
            Some(value) if value == "sentence_embedding" => {}
            Some(value) => {
                return Err(ModulesError::Unsupported { path: path.to_owned(), field, value: value.to_string() });
            }
        }
    }
    Ok(())
}

fn parsed<T: for<'de> Deserialize<'de>>(path: &Path, value: &Value) -> Result<T, ModulesError> {
    T::deserialize(value).map_err(|error| ModulesError::Format { path: path.to_owned(), reason: error.to_string() })
}
