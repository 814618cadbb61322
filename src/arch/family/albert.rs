//! ALBERT (`model_type` "albert"): BERT with narrow embeddings, a product behind them, and layers that share their weights.
//!
//! Reference: Lan et al. 2019, and `AlbertModel` of Hugging Face transformers. A group of layers that holds several of its
//! own (`inner_group_num`) is refused: no published model has one.

use serde::Deserialize;
use serde_json::Value;

use super::{Family, bert, read, unsupported};
use crate::arch::ArchError;
use crate::arch::names::TensorNames;
use crate::arch::spec::{EncoderSpec, FirstPosition};

pub const FAMILY: Family =
    Family { spec, names: TensorNames { prefixes: &["albert."], stems: &STEMS, ..bert::FAMILY.names }, ..bert::FAMILY };

/// The first number is the group's.
const STEMS: [(&str, &str); 13] = [
    ("embeddings.word_embeddings", "embeddings.word"),
    ("embeddings.position_embeddings", "embeddings.position"),
    ("embeddings.token_type_embeddings", "embeddings.token_type"),
    ("embeddings.LayerNorm", "embeddings.norm"),
    ("encoder.embedding_hidden_mapping_in", "embeddings.projection"),
    ("encoder.albert_layer_groups.#.albert_layers.0.attention.query", "layers.#.attention.query"),
    ("encoder.albert_layer_groups.#.albert_layers.0.attention.key", "layers.#.attention.key"),
    ("encoder.albert_layer_groups.#.albert_layers.0.attention.value", "layers.#.attention.value"),
    ("encoder.albert_layer_groups.#.albert_layers.0.attention.dense", "layers.#.attention.output"),
    ("encoder.albert_layer_groups.#.albert_layers.0.attention.LayerNorm", "layers.#.attention.norm"),
    ("encoder.albert_layer_groups.#.albert_layers.0.ffn", "layers.#.feed_forward.up"),
    ("encoder.albert_layer_groups.#.albert_layers.0.ffn_output", "layers.#.feed_forward.down"),
    ("encoder.albert_layer_groups.#.albert_layers.0.full_layer_layer_norm", "layers.#.feed_forward.norm"),
];

#[derive(Debug, Deserialize)]
struct SharingConfig {
    #[serde(default = "narrow")]
    embedding_size: usize,
    #[serde(default = "one")]
    num_hidden_groups: usize,
    #[serde(default = "one")]
    inner_group_num: usize,
    #[serde(default = "gelu_new")]
    hidden_act: String,
}

// What transformers takes when nothing is written.

const fn narrow() -> usize {
    128
}

const fn one() -> usize {
    1
}

fn gelu_new() -> String {
    "gelu_new".to_owned()
}

fn spec(config: &Value) -> Result<EncoderSpec, ArchError> {
    let SharingConfig { embedding_size, num_hidden_groups, inner_group_num, hidden_act } = read(config)?;
    let config: bert::BertConfig = read(config)?;
    config.must_be_absolute()?;
    if inner_group_num != 1 {
        return Err(unsupported("inner_group_num", inner_group_num));
    }
    // Which layers are in which group would depend on how a quotient is rounded.
    if num_hidden_groups == 0 || !config.num_hidden_layers.is_multiple_of(num_hidden_groups) {
        return Err(unsupported("num_hidden_groups", num_hidden_groups));
    }
    let bert = bert::BertConfig { hidden_act, ..config }.spec(FirstPosition::Zero)?;
    if embedding_size > bert.hidden_size {
        return Err(unsupported("embedding_size", embedding_size));
    }
    let layer_groups = Some(num_hidden_groups);
    Ok(EncoderSpec { embedding_size, embedding_projection: true, layer_groups, ..bert })
}
