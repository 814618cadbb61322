//! ModernBERT (`model_type` "modernbert"): rotary positions with one base for global and one for local layers, a window in
//! the local ones, LayerNorm before each block but the first attention, gated feed-forward, no biases.
//!
//! Reference: `ModernBertModel` of Hugging Face transformers. Older configurations say `global_attn_every_n_layers`,
//! `global_rope_theta` and `local_rope_theta`; newer ones `layer_types` and `rope_parameters`.

use serde::Deserialize;
use serde_json::Value;

use super::bert::MAX_LAYERS;
use super::{Family, RopeParameters, activation, gelu, heads, must_be, read, rotary, single, unsupported};
use crate::arch::ArchError;
use crate::arch::names::TensorNames;
use crate::arch::spec::{
    AttentionSpec, EncoderSpec, FeedForwardSpec, LayerSpec, NormKind, NormPlace, NormSpec, RotarySpec,
};

pub const FAMILY: Family = Family {
    spec,
    names: TensorNames {
        prefixes: &["model."],
        stems: &[
            ("embeddings.tok_embeddings", "embeddings.word"),
            ("embeddings.norm", "embeddings.norm"),
            ("layers.#.attn.Wqkv", "layers.#.attention.qkv"),
            ("layers.#.attn.Wo", "layers.#.attention.output"),
            ("layers.#.attn_norm", "layers.#.attention.norm"),
            ("layers.#.mlp.Wi", "layers.#.feed_forward.gate_up"),
            ("layers.#.mlp.Wo", "layers.#.feed_forward.down"),
            ("layers.#.mlp_norm", "layers.#.feed_forward.norm"),
            ("final_norm", "norm"),
        ],
        roots: &["embeddings.", "layers.", "final_norm."],
        surplus: &[],
    },
    stand_in: None,
    remote_classes: &[],
};

#[derive(Debug, Deserialize)]
struct ModernBertConfig {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default = "gelu")]
    hidden_activation: String,
    #[serde(default = "epsilon")]
    norm_eps: f64,
    #[serde(default)]
    norm_bias: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default = "three")]
    global_attn_every_n_layers: usize,
    #[serde(default = "window")]
    local_attention: usize,
    global_rope_theta: Option<f64>,
    local_rope_theta: Option<f64>,
    layer_types: Option<Vec<String>>,
    rope_parameters: Option<LayerRopes>,
    rope_scaling: Option<Value>,
}

/// One description for each kind of layer.
#[derive(Debug, Default, Deserialize)]
struct LayerRopes {
    full_attention: Option<RopeParameters>,
    sliding_attention: Option<RopeParameters>,
}

const fn epsilon() -> f64 {
    1e-5
}

const fn three() -> usize {
    3
}

const fn window() -> usize {
    128
}

fn spec(config: &Value) -> Result<EncoderSpec, ArchError> {
    // Null says something else than nothing.
    let local_is_global = config.get("local_rope_theta").is_some_and(Value::is_null);
    let config: ModernBertConfig = read(config)?;
    must_be("norm_bias", config.norm_bias, false)?;
    if let Some(scaling) = config.rope_scaling.as_ref().filter(|scaling| !scaling.is_null()) {
        return Err(unsupported("rope_scaling", scaling));
    }
    let (head_size, scale) = heads(config.hidden_size, config.num_attention_heads);
    Ok(EncoderSpec {
        hidden_size: config.hidden_size,
        embedding_size: config.hidden_size,
        embedding_projection: false,
        n_heads: config.num_attention_heads,
        head_size,
        intermediate_size: config.intermediate_size,
        vocab_size: config.vocab_size,
        max_tokens: config.max_position_embeddings,
        usual_tokens: config.max_position_embeddings,
        position_table: None,
        distance_bias: None,
        token_types: 0,
        task_types: 0,
        norm: NormSpec { kind: NormKind::LayerWithoutBias, epsilon: single(config.norm_eps) },
        norm_place: NormPlace::Before { first_attention: false },
        embedding_norm: true,
        attention: AttentionSpec { input_bias: config.attention_bias, output_bias: config.attention_bias, scale },
        feed_forward: FeedForwardSpec {
            activation: activation("hidden_activation", &config.hidden_activation)?,
            gated: true,
            up_bias: config.mlp_bias,
            down_bias: config.mlp_bias,
        },
        layers: layers(&config, local_is_global)?,
        layer_groups: None,
    })
}

/// Global or local, layer by layer. The window is half of `local_attention` to each side.
fn layers(config: &ModernBertConfig, local_is_global: bool) -> Result<Vec<LayerSpec>, ArchError> {
    let parameters = config.rope_parameters.as_ref();
    let global = base(parameters.and_then(|p| p.full_attention.as_ref()), config.global_rope_theta, 160_000.0)?;
    let default = if local_is_global { global.base.into() } else { 10_000.0 };
    let local = base(parameters.and_then(|p| p.sliding_attention.as_ref()), config.local_rope_theta, default)?;
    let n_layers = config.num_hidden_layers.min(MAX_LAYERS + 1);
    let is_local: Vec<bool> = match &config.layer_types {
        None => (0..n_layers).map(|layer| !layer.is_multiple_of(config.global_attn_every_n_layers)).collect(),
        Some(types) if types.len() != n_layers => {
            let reason = "it does not name every layer";
            return Err(ArchError::Impossible { field: "layer_types", value: types.len().to_string(), reason });
        }
        Some(types) => types
            .iter()
            .map(|kind| match kind.as_str() {
                "full_attention" => Ok(false),
                "sliding_attention" => Ok(true),
                other => Err(unsupported("layer_types", other)),
            })
            .collect::<Result<_, _>>()?,
    };
    let layer = |is_local| {
        if is_local {
            LayerSpec { window: Some(config.local_attention / 2), rotary: Some(local) }
        } else {
            LayerSpec { window: None, rotary: Some(global) }
        }
    };
    Ok(is_local.into_iter().map(layer).collect())
}

/// The newer field, else the older, else the default of the reference.
fn base(rope: Option<&RopeParameters>, older: Option<f64>, default: f64) -> Result<RotarySpec, ArchError> {
    let newer = rope.map(RopeParameters::base).transpose()?.flatten();
    rotary("rope_theta", newer.or(older).unwrap_or(default))
}
