//! NomicBERT (`model_type` `nomic_bert`): rotary positions, gated SiLU feed-forward, LayerNorm after each block, no biases
//! in the products.
//!
//! Two layouts are read. The repositories' own has GPT-2's field names and a stacked `Wqkv`, and names Python code in
//! `auto_map`; the other is written by Hugging Face transformers 5, whose `NomicBertModel` is the reference. There
//! `fc11` is the linear half and `fc12` the activated one.

use serde::Deserialize;
use serde_json::Value;

use super::bert::MAX_LAYERS;
use super::{Family, RopeParameters, activation, heads, must_be, read, rotary, single, small_epsilon, unsupported};
use crate::arch::ArchError;
use crate::arch::names::TensorNames;
use crate::arch::spec::{AttentionSpec, EncoderSpec, FeedForwardSpec, LayerSpec, NormKind, NormPlace, NormSpec};
use crate::kernel::Activation;

pub const FAMILY: Family = Family {
    spec,
    names: TensorNames {
        prefixes: &["bert.", "nomic_bert."],
        stems: &[
            ("embeddings.word_embeddings", "embeddings.word"),
            ("embeddings.token_type_embeddings", "embeddings.token_type"),
            ("emb_ln", "embeddings.norm"),
            ("encoder.layers.#.attn.Wqkv", "layers.#.attention.qkv"),
            ("encoder.layers.#.attn.out_proj", "layers.#.attention.output"),
            ("encoder.layers.#.norm1", "layers.#.attention.norm"),
            ("encoder.layers.#.mlp.fc12", "layers.#.feed_forward.gate"),
            ("encoder.layers.#.mlp.fc11", "layers.#.feed_forward.up"),
            ("encoder.layers.#.mlp.fc2", "layers.#.feed_forward.down"),
            ("encoder.layers.#.norm2", "layers.#.feed_forward.norm"),
            ("embeddings.LayerNorm", "embeddings.norm"),
            ("layers.#.self_attn.q_proj", "layers.#.attention.query"),
            ("layers.#.self_attn.k_proj", "layers.#.attention.key"),
            ("layers.#.self_attn.v_proj", "layers.#.attention.value"),
            ("layers.#.self_attn.o_proj", "layers.#.attention.output"),
            ("layers.#.post_attention_layernorm", "layers.#.attention.norm"),
            ("layers.#.mlp.gate_proj", "layers.#.feed_forward.gate"),
            ("layers.#.mlp.up_proj", "layers.#.feed_forward.up"),
            ("layers.#.mlp.down_proj", "layers.#.feed_forward.down"),
            ("layers.#.post_mlp_layernorm", "layers.#.feed_forward.norm"),
        ],
        roots: &["embeddings.", "emb_ln.", "encoder.", "layers."],
        surplus: &["embeddings.position_ids", "embeddings.token_type_ids"],
    },
    stand_in: None,
    remote_classes: &["NomicBert"],
};

/// GPT-2's names of fields, and transformers' own. Repositories have the former, some of both since transformers 5.
const OLD_NAMES: [(&str, &str); 5] = [
    ("n_embd", "hidden_size"),
    ("n_layer", "num_hidden_layers"),
    ("n_head", "num_attention_heads"),
    ("n_inner", "intermediate_size"),
    ("layer_norm_epsilon", "layer_norm_eps"),
];

/// Both layouts' fields, under transformers' names.
#[derive(Debug, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "they are the configuration's own switches")]
struct NomicConfig {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: Option<usize>,
    vocab_size: usize,
    /// Beside `n_positions`, this may be what the model was trained on.
    max_position_embeddings: Option<usize>,
    n_positions: Option<usize>,
    #[serde(default = "two")]
    type_vocab_size: usize,
    #[serde(default = "small_epsilon")]
    layer_norm_eps: f64,
    /// Of transformers' layout.
    hidden_act: Option<String>,
    rope_parameters: Option<RopeParameters>,
    head_dim: Option<usize>,
    /// Of the repositories' layout.
    activation_function: Option<String>,
    rotary_emb_base: Option<f64>,
    rotary_emb_fraction: Option<f64>,
    #[serde(default)]
    rotary_emb_interleaved: bool,
    rotary_emb_scale_base: Option<f64>,
    rotary_scaling_factor: Option<f64>,
    #[serde(default)]
    qkv_proj_bias: bool,
    #[serde(default)]
    mlp_fc1_bias: bool,
    #[serde(default)]
    mlp_fc2_bias: bool,
    #[serde(default)]
    prenorm: bool,
    #[serde(default)]
    parallel_block: bool,
    #[serde(default)]
    use_rms_norm: bool,
    #[serde(default)]
    causal: bool,
    #[serde(default)]
    num_experts: usize,
}

fn with_new_names(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(fields) = value.as_object_mut() {
        for (old, new) in OLD_NAMES {
            if let Some(found) = fields.remove(old)
                && fields.get(new).is_none_or(Value::is_null)
            {
                fields.insert(new.to_owned(), found);
            }
        }
    }
    value
}

const fn two() -> usize {
    2
}

fn spec(value: &Value) -> Result<EncoderSpec, ArchError> {
    let config: NomicConfig = read(&with_new_names(value))?;
    refuse_variants(&config)?;
    let (head_size, scale) = heads(config.hidden_size, config.num_attention_heads);
    if config.head_dim.is_some_and(|size| size != head_size) {
        return Err(unsupported("head_dim", config.head_dim.unwrap_or_default()));
    }
    let activation = match (&config.activation_function, &config.hidden_act) {
        (Some(name), _) if name == "swiglu" => Activation::Silu,
        (Some(other), _) => return Err(unsupported("activation_function", other)),
        (None, Some(name)) => activation("hidden_act", name)?,
        (None, None) => Activation::Silu,
    };
    let base = config.rope_parameters.unwrap_or_default().base()?.or(config.rotary_emb_base).unwrap_or(1000.0);
    let layer = LayerSpec { window: None, rotary: Some(rotary("rotary_emb_base", base)?) };
    let max_tokens = config.max_position_embeddings.max(config.n_positions).unwrap_or(2048);
    Ok(EncoderSpec {
        hidden_size: config.hidden_size,
        embedding_size: config.hidden_size,
        embedding_projection: false,
        n_heads: config.num_attention_heads,
        head_size,
        intermediate_size: config.intermediate_size.unwrap_or(4 * config.hidden_size),
        vocab_size: config.vocab_size,
        max_tokens,
        usual_tokens: max_tokens,
        position_table: None,
        distance_bias: None,
        token_types: config.type_vocab_size,
        task_types: 0,
        norm: NormSpec { kind: NormKind::Layer, epsilon: single(config.layer_norm_eps) },
        norm_place: NormPlace::After,
        embedding_norm: true,
        attention: AttentionSpec { input_bias: config.qkv_proj_bias, output_bias: config.qkv_proj_bias, scale },
        feed_forward: FeedForwardSpec {
            activation,
            gated: true,
            up_bias: config.mlp_fc1_bias,
            down_bias: config.mlp_fc2_bias,
        },
        layers: vec![layer; config.num_hidden_layers.min(MAX_LAYERS + 1)],
        layer_groups: None,
    })
}

/// The code behind `auto_map` has more switches than published models use.
fn refuse_variants(config: &NomicConfig) -> Result<(), ArchError> {
    must_be("rotary_emb_interleaved", config.rotary_emb_interleaved, false)?;
    must_be("prenorm", config.prenorm, false)?;
    must_be("parallel_block", config.parallel_block, false)?;
    must_be("use_rms_norm", config.use_rms_norm, false)?;
    must_be("causal", config.causal, false)?;
    if config.num_experts > 1 {
        return Err(unsupported("num_experts", config.num_experts));
    }
    for (field, value) in [
        ("rotary_emb_scale_base", config.rotary_emb_scale_base),
        ("rotary_scaling_factor", config.rotary_scaling_factor),
    ] {
        if let Some(value) = value {
            return Err(unsupported(field, value));
        }
    }
    match config.rotary_emb_fraction {
        Some(fraction) if (fraction - 1.0).abs() > f64::EPSILON => {
            return Err(unsupported("rotary_emb_fraction", fraction));
        }
        _ => {}
    }
    Ok(())
}
