//! Jina's second generation (`model_type` "bert" with `position_embedding_type` "alibi"): BERT with ALiBi instead of a
//! position table, and a gated feed-forward whose halves are stored stacked, the activated one first.
//!
//! Reference: the description in Günther et al. 2023 and `JinaBertModel`, the Python code that these repositories name
//! in `auto_map`, read and not run. A reference of our own stands beside the golden vectors.

use serde::Deserialize;
use serde_json::Value;

use super::{Family, bert, read, unsupported};
use crate::arch::ArchError;
use crate::arch::names::TensorNames;
use crate::arch::spec::{DistanceBiasSpec, EncoderSpec, FeedForwardSpec, FirstPosition};
use crate::kernel::Activation;

pub const FAMILY: Family = Family {
    spec,
    names: TensorNames {
        prefixes: &["bert."],
        stems: &[
            ("embeddings.word_embeddings", "embeddings.word"),
            ("embeddings.token_type_embeddings", "embeddings.token_type"),
            ("embeddings.LayerNorm", "embeddings.norm"),
            ("encoder.layer.#.attention.self.query", "layers.#.attention.query"),
            ("encoder.layer.#.attention.self.key", "layers.#.attention.key"),
            ("encoder.layer.#.attention.self.value", "layers.#.attention.value"),
            ("encoder.layer.#.attention.output.dense", "layers.#.attention.output"),
            ("encoder.layer.#.attention.output.LayerNorm", "layers.#.attention.norm"),
            ("encoder.layer.#.mlp.gated_layers", "layers.#.feed_forward.gate_up"),
            ("encoder.layer.#.mlp.wo", "layers.#.feed_forward.down"),
            ("encoder.layer.#.mlp.layernorm", "layers.#.feed_forward.norm"),
        ],
        roots: &["embeddings.", "encoder."],
        surplus: &["embeddings.position_ids"],
    },
    stand_in: None,
    remote_classes: &["JinaBert"],
};

/// Part of the repository that jina-embeddings-v2-base-code takes its code from.
const OTHER_CODE: &str = "qk-post-norm";

#[derive(Debug, Deserialize)]
struct JinaConfig {
    #[serde(default = "original")]
    feed_forward_type: String,
}

fn original() -> String {
    "original".to_owned()
}

/// Whether a configuration of type "bert" describes this family.
pub fn is_meant(config: &Value) -> bool {
    config.get("position_embedding_type").and_then(Value::as_str) == Some("alibi")
}

fn spec(value: &Value) -> Result<EncoderSpec, ArchError> {
    // The same class names, and another network: norms on queries and keys, and weights under other names.
    if let Some(map) = value.get("auto_map").filter(|map| map.to_string().contains(OTHER_CODE)) {
        let code = map.get("AutoModel").unwrap_or(map);
        return Err(unsupported("auto_map", format!("{code} (another network than Jina's other models)")));
    }
    let JinaConfig { feed_forward_type } = read(value)?;
    let config: bert::BertConfig = read(value)?;
    let spec = config.spec(FirstPosition::Zero)?;
    let activation = match feed_forward_type.as_str() {
        "geglu" => Activation::Gelu,
        "reglu" => Activation::Relu,
        other => return Err(unsupported("feed_forward_type", other)),
    };
    Ok(EncoderSpec {
        position_table: None,
        distance_bias: Some(DistanceBiasSpec::Linear),
        feed_forward: FeedForwardSpec { activation, gated: true, up_bias: false, down_bias: true },
        ..spec
    })
}
