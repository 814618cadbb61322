//! DistilBERT (`model_type` "distilbert"): BERT without token types, under other names.
//!
//! Reference: `DistilBertModel` of Hugging Face transformers. Its "gelu" is the exact form, its LayerNorm's epsilon is
//! fixed, and sinusoidal positions are stored as a table like learned ones.

use serde::Deserialize;
use serde_json::Value;

use super::{Family, activation, bert, gelu, read};
use crate::arch::ArchError;
use crate::arch::names::TensorNames;
use crate::arch::spec::{EncoderSpec, FirstPosition};

pub const FAMILY: Family = Family {
    spec,
    names: TensorNames {
        prefixes: &["distilbert."],
        stems: &[
            ("embeddings.word_embeddings", "embeddings.word"),
            ("embeddings.position_embeddings", "embeddings.position"),
            ("embeddings.LayerNorm", "embeddings.norm"),
            ("transformer.layer.#.attention.q_lin", "layers.#.attention.query"),
            ("transformer.layer.#.attention.k_lin", "layers.#.attention.key"),
            ("transformer.layer.#.attention.v_lin", "layers.#.attention.value"),
            ("transformer.layer.#.attention.out_lin", "layers.#.attention.output"),
            ("transformer.layer.#.sa_layer_norm", "layers.#.attention.norm"),
            ("transformer.layer.#.ffn.lin1", "layers.#.feed_forward.up"),
            ("transformer.layer.#.ffn.lin2", "layers.#.feed_forward.down"),
            ("transformer.layer.#.output_layer_norm", "layers.#.feed_forward.norm"),
        ],
        roots: &["embeddings.", "transformer."],
        surplus: &["embeddings.position_ids"],
    },
    stand_in: None,
    remote_classes: &[],
};

#[derive(Debug, Deserialize)]
struct DistilBertConfig {
    dim: usize,
    n_layers: usize,
    n_heads: usize,
    hidden_dim: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "gelu")]
    activation: String,
}

fn spec(config: &Value) -> Result<EncoderSpec, ArchError> {
    let config: DistilBertConfig = read(config)?;
    activation("activation", &config.activation)?;
    let config = bert::BertConfig {
        hidden_size: config.dim,
        num_hidden_layers: config.n_layers,
        num_attention_heads: config.n_heads,
        intermediate_size: config.hidden_dim,
        vocab_size: config.vocab_size,
        max_position_embeddings: config.max_position_embeddings,
        type_vocab_size: 0,
        hidden_act: config.activation,
        layer_norm_eps: 1e-12,
        position_embedding_type: None,
        is_decoder: false,
        add_cross_attention: false,
    };
    config.spec(FirstPosition::Zero)
}
