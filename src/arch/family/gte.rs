//! GTE's own encoder (`model_type` "gte" or "new", often in repositories that name Python code in `auto_map`): rotary
//! positions, gated GELU feed-forward, LayerNorm after each block, biases everywhere but in the gate.
//!
//! Reference: `GteModel` of Hugging Face transformers 5. The code behind `auto_map` also slows rotations down for longer
//! texts ("ntk", <https://kexue.fm/archives/9706>), which the published models use; its other switches are refused by
//! name.

use serde::Deserialize;
use serde_json::Value;

use super::bert::MAX_LAYERS;
use super::{
    Family, RopeParameters, activation, gelu, heads, must_be, read, rotary, single, small_epsilon, unsupported,
};
use crate::arch::ArchError;
use crate::arch::names::TensorNames;
use crate::arch::spec::{
    AttentionSpec, EncoderSpec, FeedForwardSpec, LayerSpec, NormKind, NormPlace, NormSpec, RotarySpec,
};

pub const FAMILY: Family = Family {
    spec,
    names: TensorNames {
        prefixes: &["new.", "gte."],
        stems: &[
            ("embeddings.word_embeddings", "embeddings.word"),
            ("embeddings.token_type_embeddings", "embeddings.token_type"),
            ("embeddings.LayerNorm", "embeddings.norm"),
            ("encoder.layer.#.attention.qkv_proj", "layers.#.attention.qkv"),
            ("encoder.layer.#.attention.o_proj", "layers.#.attention.output"),
            ("encoder.layer.#.attn_ln", "layers.#.attention.norm"),
            ("encoder.layer.#.mlp.up_gate_proj", "layers.#.feed_forward.up_gate"),
            ("encoder.layer.#.mlp.down_proj", "layers.#.feed_forward.down"),
            ("encoder.layer.#.mlp_ln", "layers.#.feed_forward.norm"),
        ],
        roots: &["embeddings.", "encoder."],
        surplus: &["embeddings.position_ids"],
    },
    stand_in: None,
    remote_classes: &["New", "Gte"],
};

#[derive(Debug, Deserialize)]
struct GteConfig {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    #[serde(default)]
    type_vocab_size: usize,
    #[serde(default = "gelu")]
    hidden_act: String,
    #[serde(default = "small_epsilon")]
    layer_norm_eps: f64,
    layer_norm_type: Option<String>,
    position_embedding_type: Option<String>,
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeScaling>,
    rope_parameters: Option<RopeParameters>,
    #[serde(default)]
    logn_attention_scale: bool,
}

#[derive(Debug, Deserialize)]
struct RopeScaling {
    #[serde(rename = "type")]
    kind: Option<String>,
    /// The newer name, which may stand beside the older one.
    rope_type: Option<String>,
    factor: f64,
    mixed_b: Option<f64>,
}

fn spec(value: &Value) -> Result<EncoderSpec, ArchError> {
    let config: GteConfig = read(value)?;
    let expected = [
        ("position_embedding_type", &config.position_embedding_type, "rope"),
        ("layer_norm_type", &config.layer_norm_type, "layer_norm"),
    ];
    for (field, found, implemented) in expected {
        if let Some(other) = found.as_ref().filter(|found| *found != implemented) {
            return Err(unsupported(field, other));
        }
    }
    must_be("logn_attention_scale", config.logn_attention_scale, false)?;
    let (head_size, scale) = heads(config.hidden_size, config.num_attention_heads);
    let mut rotary = plain_or_linear(&config.rope_parameters.unwrap_or_default(), config.rope_theta)?;
    if let Some(scaling) = &config.rope_scaling {
        slow_down(&mut rotary, scaling, head_size)?;
    }
    let layer = LayerSpec { window: None, rotary: Some(rotary) };
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
        token_types: config.type_vocab_size,
        task_types: 0,
        norm: NormSpec { kind: NormKind::Layer, epsilon: single(config.layer_norm_eps) },
        norm_place: NormPlace::After,
        embedding_norm: true,
        attention: AttentionSpec { input_bias: true, output_bias: true, scale },
        feed_forward: FeedForwardSpec {
            activation: activation("hidden_act", &config.hidden_act)?,
            gated: true,
            up_bias: false,
            down_bias: true,
        },
        layers: vec![layer; config.num_hidden_layers.min(MAX_LAYERS + 1)],
        layer_groups: None,
    })
}

/// transformers' own layout has the rotation of "ntk" as "linear" scaling of a base that has grown already.
fn plain_or_linear(parameters: &RopeParameters, older_base: Option<f64>) -> Result<RotarySpec, ArchError> {
    let is_linear = parameters.rope_type.as_deref() == Some("linear");
    let base = if is_linear { parameters.rope_theta } else { parameters.base()? };
    let mut rotary = rotary("rope_theta", base.or(older_base).unwrap_or(160_000.0))?;
    if is_linear {
        let factor = parameters.factor.unwrap_or(f64::NAN);
        if !(factor.is_finite() && factor >= 1.0) {
            let (field, value) = ("rope_parameters.factor", factor.to_string());
            return Err(ArchError::Impossible { field, value, reason: "expected 1 or more" });
        }
        rotary.divisor = single(factor);
    }
    Ok(rotary)
}

/// Fixed "ntk" scaling: the base grows by the factor, and every frequency falls by its 2/d-th power.
fn slow_down(rotary: &mut RotarySpec, scaling: &RopeScaling, head_size: usize) -> Result<(), ArchError> {
    let kind = scaling.rope_type.as_deref().or(scaling.kind.as_deref()).unwrap_or("none");
    if kind != "ntk" {
        return Err(unsupported("rope_scaling.type", kind));
    }
    if let Some(exponent) = scaling.mixed_b {
        return Err(unsupported("rope_scaling.mixed_b", exponent));
    }
    if !(scaling.factor.is_finite() && scaling.factor >= 1.0) {
        let (field, value) = ("rope_scaling.factor", scaling.factor.to_string());
        return Err(ArchError::Impossible { field, value, reason: "expected 1 or more" });
    }
    rotary.base *= single(scaling.factor);
    rotary.divisor = single(scaling.factor.powf(2.0 / head_size as f64));
    Ok(())
}
