//! BERT (`model_type` "bert"): absolute positions from 0, token types, LayerNorm after each block.
//!
//! Reference: `BertModel` of Hugging Face transformers. Checkpoints saved from a larger head carry a `bert.` prefix, a
//! pooler and heads that embeddings do not use; very old ones call LayerNorm's parameters `gamma` and `beta`.

use serde::Deserialize;
use serde_json::Value;

use super::{Family, activation, gelu, heads, must_be, read, single, small_epsilon, unsupported};
use crate::arch::ArchError;
use crate::arch::names::TensorNames;
use crate::arch::spec::{
    AttentionSpec, EncoderSpec, FeedForwardSpec, FirstPosition, LayerSpec, NormKind, NormPlace, NormSpec, PositionTable,
};

pub const FAMILY: Family = Family {
    spec,
    names: TensorNames {
        prefixes: &["bert."],
        stems: &STEMS,
        roots: &["embeddings.", "encoder."],
        surplus: &["embeddings.position_ids", "embeddings.token_type_ids"],
    },
    stand_in: None,
    remote_classes: &[],
};

/// Also RoBERTa's, whose classes were copied from BERT's.
pub const STEMS: [(&str, &str); 13] = [
    ("embeddings.word_embeddings", "embeddings.word"),
    ("embeddings.position_embeddings", "embeddings.position"),
    ("embeddings.token_type_embeddings", "embeddings.token_type"),
    // ERNIE's; left unread, it is an error.
    ("embeddings.task_type_embeddings", "embeddings.task_type"),
    ("embeddings.LayerNorm", "embeddings.norm"),
    ("encoder.layer.#.attention.self.query", "layers.#.attention.query"),
    ("encoder.layer.#.attention.self.key", "layers.#.attention.key"),
    ("encoder.layer.#.attention.self.value", "layers.#.attention.value"),
    ("encoder.layer.#.attention.output.dense", "layers.#.attention.output"),
    ("encoder.layer.#.attention.output.LayerNorm", "layers.#.attention.norm"),
    ("encoder.layer.#.intermediate.dense", "layers.#.feed_forward.up"),
    ("encoder.layer.#.output.dense", "layers.#.feed_forward.down"),
    ("encoder.layer.#.output.LayerNorm", "layers.#.feed_forward.norm"),
];

/// The fields of `config.json` that decide vectors.
#[derive(Debug, Deserialize)]
pub struct BertConfig {
    pub hidden_size: usize,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub intermediate_size: usize,
    pub vocab_size: usize,
    pub max_position_embeddings: usize,
    #[serde(default = "two")]
    pub type_vocab_size: usize,
    #[serde(default = "gelu")]
    pub hidden_act: String,
    #[serde(default = "small_epsilon")]
    pub layer_norm_eps: f64,
    pub position_embedding_type: Option<String>,
    #[serde(default)]
    pub is_decoder: bool,
    #[serde(default)]
    pub add_cross_attention: bool,
}

const fn two() -> usize {
    2
}

/// Reads the configuration; anything that the skeleton does not implement is an error naming field and value.
fn spec(config: &Value) -> Result<EncoderSpec, ArchError> {
    let config: BertConfig = read(config)?;
    config.must_be_absolute()?;
    config.spec(FirstPosition::Zero)
}

impl BertConfig {
    /// # Errors
    /// Another kind of positions, named.
    pub fn must_be_absolute(&self) -> Result<(), ArchError> {
        match self.position_embedding_type.as_deref() {
            None | Some("absolute") => Ok(()),
            Some(other) => Err(unsupported("position_embedding_type", other)),
        }
    }

    /// # Errors
    /// A decoder, or an unimplemented activation.
    pub fn spec(&self, first: FirstPosition) -> Result<EncoderSpec, ArchError> {
        must_be("is_decoder", self.is_decoder, false)?;
        must_be("add_cross_attention", self.add_cross_attention, false)?;
        let (head_size, scale) = heads(self.hidden_size, self.num_attention_heads);
        let rows = self.max_position_embeddings;
        let max_tokens = match first {
            FirstPosition::Zero => rows,
            FirstPosition::AfterPadding { padding_id } => rows.saturating_sub(padding_id as usize + 1),
        };
        Ok(EncoderSpec {
            hidden_size: self.hidden_size,
            embedding_size: self.hidden_size,
            embedding_projection: false,
            n_heads: self.num_attention_heads,
            head_size,
            intermediate_size: self.intermediate_size,
            vocab_size: self.vocab_size,
            max_tokens,
            usual_tokens: max_tokens,
            position_table: Some(PositionTable { rows, first }),
            distance_bias: None,
            token_types: self.type_vocab_size,
            task_types: 0,
            norm: NormSpec { kind: NormKind::Layer, epsilon: single(self.layer_norm_eps) },
            norm_place: NormPlace::After,
            embedding_norm: true,
            attention: AttentionSpec { input_bias: true, output_bias: true, scale },
            feed_forward: FeedForwardSpec {
                activation: activation("hidden_act", &self.hidden_act)?,
                gated: false,
                up_bias: true,
                down_bias: true,
            },
            layers: vec![LayerSpec::default(); self.num_hidden_layers.min(MAX_LAYERS + 1)],
            layer_groups: None,
        })
    }
}

/// More layers than any encoder has; a number beyond it is refused by `arch` before anything is allocated from it.
pub const MAX_LAYERS: usize = 4096;
