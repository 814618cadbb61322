//! The encoder of T5 (`model_type` "t5"): RMSNorm before each block, no biases, no positions but a bucketed attention bias
//! that the first layer stores and all layers share, and scores that are not scaled.
//!
//! Reference: `T5EncoderModel` of Hugging Face transformers; sentence-t5, gtr-t5 and instructor are such encoders. Whole
//! T5 checkpoints carry a decoder, which is passed over. The word table is stored as `shared`, or only under the
//! encoder's name.

use serde::Deserialize;
use serde_json::Value;

use super::bert::MAX_LAYERS;
use super::{Family, activation, must_be, read, single, unsupported};
use crate::arch::ArchError;
use crate::arch::names::TensorNames;
use crate::arch::spec::{
    AttentionSpec, DistanceBiasSpec, EncoderSpec, FeedForwardSpec, LayerSpec, NormKind, NormPlace, NormSpec,
};
use crate::kernel::Activation;

pub const FAMILY: Family = Family {
    spec,
    names: TensorNames {
        prefixes: &[],
        stems: &[
            ("shared", "embeddings.word"),
            ("encoder.block.#.layer.0.SelfAttention.relative_attention_bias", "distance_bias"),
            ("encoder.block.#.layer.0.SelfAttention.q", "layers.#.attention.query"),
            ("encoder.block.#.layer.0.SelfAttention.k", "layers.#.attention.key"),
            ("encoder.block.#.layer.0.SelfAttention.v", "layers.#.attention.value"),
            ("encoder.block.#.layer.0.SelfAttention.o", "layers.#.attention.output"),
            ("encoder.block.#.layer.0.layer_norm", "layers.#.attention.norm"),
            ("encoder.block.#.layer.1.DenseReluDense.wi", "layers.#.feed_forward.up"),
            ("encoder.block.#.layer.1.DenseReluDense.wi_0", "layers.#.feed_forward.gate"),
            ("encoder.block.#.layer.1.DenseReluDense.wi_1", "layers.#.feed_forward.up"),
            ("encoder.block.#.layer.1.DenseReluDense.wo", "layers.#.feed_forward.down"),
            ("encoder.block.#.layer.1.layer_norm", "layers.#.feed_forward.norm"),
            ("encoder.final_layer_norm", "norm"),
        ],
        roots: &["encoder."],
        surplus: &[WORDS_OF_THE_ENCODER],
    },
    stand_in: Some(("embeddings.word.weight", WORDS_OF_THE_ENCODER)),
    remote_classes: &[],
};

/// The same table as `shared`, where both are stored.
const WORDS_OF_THE_ENCODER: &str = "encoder.embed_tokens.weight";
/// The relative bias sets no limit; this one keeps the work of a row, which grows with its square, in bounds.
const MAX_TOKENS: usize = 32_768;

#[derive(Debug, Deserialize)]
struct T5Config {
    d_model: usize,
    d_kv: usize,
    d_ff: usize,
    num_layers: usize,
    num_heads: usize,
    vocab_size: usize,
    #[serde(default = "relu")]
    feed_forward_proj: String,
    #[serde(default = "thirty_two")]
    relative_attention_num_buckets: usize,
    #[serde(default = "a_hundred_and_twenty_eight")]
    relative_attention_max_distance: usize,
    #[serde(default = "epsilon")]
    layer_norm_epsilon: f64,
    #[serde(default = "five_hundred_and_twelve")]
    n_positions: usize,
    #[serde(default)]
    is_decoder: bool,
}

fn relu() -> String {
    "relu".to_owned()
}

const fn thirty_two() -> usize {
    32
}

const fn a_hundred_and_twenty_eight() -> usize {
    128
}

const fn five_hundred_and_twelve() -> usize {
    512
}

const fn epsilon() -> f64 {
    1e-6
}

fn spec(config: &Value) -> Result<EncoderSpec, ArchError> {
    let config: T5Config = read(config)?;
    must_be("is_decoder", config.is_decoder, false)?;
    let (gated, activation) = feed_forward(&config.feed_forward_proj)?;
    Ok(EncoderSpec {
        hidden_size: config.d_model,
        embedding_size: config.d_model,
        embedding_projection: false,
        n_heads: config.num_heads,
        head_size: config.d_kv,
        intermediate_size: config.d_ff,
        vocab_size: config.vocab_size,
        max_tokens: MAX_TOKENS,
        usual_tokens: config.n_positions.min(MAX_TOKENS),
        position_table: None,
        distance_bias: Some(DistanceBiasSpec::Buckets {
            count: config.relative_attention_num_buckets,
            max_distance: config.relative_attention_max_distance,
        }),
        token_types: 0,
        task_types: 0,
        norm: NormSpec { kind: NormKind::RootMeanSquare, epsilon: single(config.layer_norm_epsilon) },
        norm_place: NormPlace::Before { first_attention: true },
        embedding_norm: false,
        attention: AttentionSpec { input_bias: false, output_bias: false, scale: 1.0 },
        feed_forward: FeedForwardSpec { activation, gated, up_bias: false, down_bias: false },
        layers: vec![LayerSpec::default(); config.num_layers.min(MAX_LAYERS + 1)],
        layer_groups: None,
    })
}

/// `relu` or `gated-gelu`. For "gated-gelu" alone the reference means the tanh form.
fn feed_forward(name: &str) -> Result<(bool, Activation), ArchError> {
    const FIELD: &str = "feed_forward_proj";
    match name.split_once('-') {
        None => Ok((false, activation(FIELD, name)?)),
        Some(("gated", "gelu")) => Ok((true, Activation::GeluTanh)),
        Some(("gated", inner)) => Ok((true, activation(FIELD, inner)?)),
        Some(_) => Err(unsupported(FIELD, name)),
    }
}
