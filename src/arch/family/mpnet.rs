//! MPNet (`model_type` "mpnet"): RoBERTa's positions without token types, and one relative attention bias of 32 buckets
//! that all layers share.
//!
//! Reference: `MPNetModel` of Hugging Face transformers. It computes with 32 buckets that reach 128 tokens, and counts
//! positions from padding id 1, whatever the configuration says.

use serde::Deserialize;
use serde_json::Value;

use super::{Family, bert, read, unsupported};
use crate::arch::ArchError;
use crate::arch::names::TensorNames;
use crate::arch::spec::{DistanceBiasSpec, EncoderSpec, FirstPosition};

pub const FAMILY: Family = Family {
    spec,
    names: TensorNames {
        prefixes: &["mpnet."],
        stems: &[
            ("embeddings.word_embeddings", "embeddings.word"),
            ("embeddings.position_embeddings", "embeddings.position"),
            ("embeddings.LayerNorm", "embeddings.norm"),
            ("encoder.relative_attention_bias", "distance_bias"),
            ("encoder.layer.#.attention.attn.q", "layers.#.attention.query"),
            ("encoder.layer.#.attention.attn.k", "layers.#.attention.key"),
            ("encoder.layer.#.attention.attn.v", "layers.#.attention.value"),
            ("encoder.layer.#.attention.attn.o", "layers.#.attention.output"),
            ("encoder.layer.#.attention.LayerNorm", "layers.#.attention.norm"),
            ("encoder.layer.#.intermediate.dense", "layers.#.feed_forward.up"),
            ("encoder.layer.#.output.dense", "layers.#.feed_forward.down"),
            ("encoder.layer.#.output.LayerNorm", "layers.#.feed_forward.norm"),
        ],
        roots: &["embeddings.", "encoder."],
        surplus: &["embeddings.position_ids"],
    },
    stand_in: None,
    remote_classes: &[],
};

const BUCKETS: usize = 32;
const MAX_DISTANCE: usize = 128;
const PADDING_ID: u32 = 1;

#[derive(Debug, Deserialize)]
struct BucketConfig {
    relative_attention_num_buckets: Option<usize>,
}

fn spec(config: &Value) -> Result<EncoderSpec, ArchError> {
    let BucketConfig { relative_attention_num_buckets } = read(config)?;
    if let Some(other) = relative_attention_num_buckets.filter(|count| *count != BUCKETS) {
        return Err(unsupported("relative_attention_num_buckets", other));
    }
    let config: bert::BertConfig = read(config)?;
    config.must_be_absolute()?;
    Ok(EncoderSpec {
        token_types: 0,
        task_types: 0,
        distance_bias: Some(DistanceBiasSpec::Buckets { count: BUCKETS, max_distance: MAX_DISTANCE }),
        ..config.spec(FirstPosition::AfterPadding { padding_id: PADDING_ID })?
    })
}
