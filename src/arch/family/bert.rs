//! BERT (`model_type` "bert"): absolute positions from 0, token types, LayerNorm after each block.
//!
//! Reference: `BertModel` of Hugging Face transformers. Checkpoints saved from a larger head carry a `bert.` prefix, a
//! pooler and heads that embeddings do not use; very old ones call LayerNorm's parameters `gamma` and `beta`.

use serde::Deserialize;
use serde_json::Value;

use crate::arch::ArchError;
use crate::arch::spec::{EncoderSpec, Positions};
use crate::kernel::Activation;

/// The fields of `config.json` that decide vectors. Others are training settings and are ignored.
#[derive(Debug, Deserialize)]
struct BertConfig {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "epsilon")]
    layer_norm_eps: f64,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
    #[serde(default)]
    add_cross_attention: bool,
}

const fn two() -> usize {
    2
}

fn gelu() -> String {
    "gelu".to_owned()
}

const fn epsilon() -> f64 {
    1e-12
}

/// Reads the configuration; anything that the skeleton does not implement is an error naming field and value.
///
/// # Errors
/// A missing or impossible field, or an unimplemented option.
pub fn spec(config: &Value) -> Result<EncoderSpec, ArchError> {
    let config = BertConfig::deserialize(config).map_err(|error| ArchError::Config { reason: error.to_string() })?;
    let unsupported = |field: &'static str, value: String| ArchError::Unsupported { field, value };
    match config.position_embedding_type.as_deref() {
        None | Some("absolute") => {}
        Some(other) => return Err(unsupported("position_embedding_type", other.to_owned())),
    }
    if config.is_decoder {
        return Err(unsupported("is_decoder", "true".to_owned()));
    }
    if config.add_cross_attention {
        return Err(unsupported("add_cross_attention", "true".to_owned()));
    }
    #[expect(clippy::cast_possible_truncation, reason = "an epsilon is a small float in either precision")]
    let norm_epsilon = config.layer_norm_eps as f32;
    Ok(EncoderSpec {
        hidden_size: config.hidden_size,
        n_layers: config.num_hidden_layers,
        n_heads: config.num_attention_heads,
        intermediate_size: config.intermediate_size,
        vocab_size: config.vocab_size,
        positions: Positions::Absolute { rows: config.max_position_embeddings },
        token_types: config.type_vocab_size,
        activation: activation(&config.hidden_act)?,
        norm_epsilon,
    })
}

/// Activation names as transformers defines them (`ACT2FN`).
///
/// # Errors
/// A name that is not implemented here: it would silently change every vector.
pub fn activation(name: &str) -> Result<Activation, ArchError> {
    match name {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        "silu" | "swish" => Ok(Activation::Silu),
        "tanh" => Ok(Activation::Tanh),
        other => Err(ArchError::Unsupported { field: "hidden_act", value: other.to_owned() }),
    }
}

/// Stored name to canonical name: without the `bert.` prefix, LayerNorm parameters as `weight` and `bias`.
pub fn canonical_name(stored: &str) -> String {
    let name = stored.strip_prefix("bert.").unwrap_or(stored);
    name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
}

/// Whether a canonical name belongs to the encoder proper. Position ids are a buffer, the pooler and the heads of
/// pre-training are not part of sentence embeddings.
pub fn is_encoder_tensor(name: &str) -> bool {
    (name.starts_with("embeddings.") && name != "embeddings.position_ids") || name.starts_with("encoder.")
}
