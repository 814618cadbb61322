//! N-08: whatever a configuration asks for and the skeleton does not have is refused, naming field and value.

use serde_json::{Value, json};

use super::find;
use crate::arch::spec::{DistanceBiasSpec, EncoderSpec, FirstPosition};
use crate::arch::{ArchError, refuse_remote_code};

fn bert() -> Value {
    json!({"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
           "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 64})
}

/// The smallest configuration of each family.
fn plain(model_type: &str) -> Value {
    let mut config = match model_type {
        "distilbert" => json!({"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 100,
                               "max_position_embeddings": 64}),
        "t5" => json!({"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}),
        "electra" | "albert" => with(bert(), &json!({"embedding_size": 16})),
        "jina" => {
            return with(bert(), &json!({"position_embedding_type": "alibi", "feed_forward_type": "geglu"}));
        }
        _ => bert(),
    };
    config["model_type"] = json!(model_type);
    config
}

fn with(mut config: Value, changes: &Value) -> Value {
    for (field, value) in changes.as_object().unwrap() {
        config[field] = value.clone();
    }
    config
}

fn spec(config: &Value) -> Result<EncoderSpec, ArchError> {
    let family = find(config["model_type"].as_str().unwrap(), config).expect("a family");
    refuse_remote_code(config, family.remote_classes)?;
    (family.spec)(config)
}

// N-08
#[test]
fn every_unimplemented_option_is_refused_by_name_and_value() {
    let cases = [
        ("bert", json!({"hidden_act": "mish"}), "hidden_act = mish"),
        ("bert", json!({"position_embedding_type": "relative_key"}), "position_embedding_type = relative_key"),
        ("bert", json!({"is_decoder": true}), "is_decoder = true"),
        ("bert", json!({"add_cross_attention": true}), "add_cross_attention = true"),
        ("bert", json!({"auto_map": {"AutoModel": "modeling.NomicBertModel"}}), "auto_map = "),
        (
            "jina",
            json!({"auto_map": {"AutoModel": "jinaai/jina-bert-v2-qk-post-norm--modeling_bert.JinaBertModel"}}),
            "auto_map = ",
        ),
        ("roberta", json!({"hidden_act": "gelu_fast"}), "hidden_act = gelu_fast"),
        ("xlm-roberta", json!({"position_embedding_type": "relative_key_query"}), "position_embedding_type = "),
        ("camembert", json!({"is_decoder": true}), "is_decoder = true"),
        ("mpnet", json!({"relative_attention_num_buckets": 64}), "relative_attention_num_buckets = 64"),
        ("distilbert", json!({"activation": "gelu_fast"}), "json: activation = gelu_fast"),
        ("electra", json!({"is_decoder": true}), "is_decoder = true"),
        ("electra", json!({"embedding_size": 64}), "embedding_size = 64"),
        ("albert", json!({"embedding_size": 64}), "embedding_size = 64"),
        ("albert", json!({"inner_group_num": 2}), "inner_group_num = 2"),
        ("albert", json!({"num_hidden_groups": 3}), "num_hidden_groups = 3"),
        ("albert", json!({"num_hidden_groups": 0}), "num_hidden_groups = 0"),
        ("albert", json!({"hidden_act": "mish"}), "hidden_act = mish"),
        ("ernie", json!({"hidden_act": "mish"}), "hidden_act = mish"),
        ("t5", json!({"feed_forward_proj": "gated-mish"}), "feed_forward_proj = mish"),
        ("t5", json!({"feed_forward_proj": "twice-gelu"}), "feed_forward_proj = twice-gelu"),
        ("t5", json!({"is_decoder": true}), "is_decoder = true"),
        ("modernbert", json!({"norm_bias": true}), "norm_bias = true"),
        ("modernbert", json!({"hidden_activation": "mish"}), "hidden_activation = mish"),
        ("modernbert", json!({"rope_scaling": {"type": "yarn"}}), "rope_scaling = "),
        ("modernbert", json!({"layer_types": ["full_attention", "chunked_attention"]}), "layer_types = chunked"),
        ("modernbert", json!({"layer_types": ["full_attention"]}), "layer_types = 1"),
        ("modernbert", json!({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}), "rope_type = yarn"),
        ("modernbert", json!({"global_rope_theta": -1.0}), "rope_theta = -1"),
        ("nomic_bert", json!({"prenorm": true}), "prenorm = true"),
        ("nomic_bert", json!({"rotary_emb_interleaved": true}), "rotary_emb_interleaved = true"),
        ("nomic_bert", json!({"rotary_emb_fraction": 0.5}), "rotary_emb_fraction = 0.5"),
        ("nomic_bert", json!({"rotary_scaling_factor": 2.0}), "rotary_scaling_factor = 2"),
        ("nomic_bert", json!({"num_experts": 8}), "num_experts = 8"),
        ("nomic_bert", json!({"activation_function": "geglu"}), "activation_function = geglu"),
        ("nomic_bert", json!({"auto_map": {"AutoModel": "modeling.OtherModel"}}), "auto_map = "),
        ("gte", json!({"logn_attention_scale": true}), "logn_attention_scale = true"),
        ("gte", json!({"layer_norm_type": "rms_norm"}), "layer_norm_type = rms_norm"),
        ("new", json!({"position_embedding_type": "absolute"}), "position_embedding_type = absolute"),
        ("new", json!({"rope_scaling": {"type": "linear", "factor": 2.0}}), "rope_scaling.type = linear"),
        ("new", json!({"rope_scaling": {"type": "ntk", "factor": 2.0, "mixed_b": 0.5}}), "mixed_b = 0.5"),
        ("new", json!({"rope_scaling": {"type": "ntk", "factor": 0.0}}), "rope_scaling.factor = 0"),
        ("new", json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}), "rope_scaling.type = yarn"),
        ("gte", json!({"rope_parameters": {"rope_type": "yarn"}}), "rope_type = yarn"),
        ("gte", json!({"rope_parameters": {"rope_type": "linear"}}), "rope_parameters.factor = "),
        ("jina", json!({"feed_forward_type": "swiglu"}), "feed_forward_type = swiglu"),
    ];
    for (model_type, change, expected) in cases {
        let config = plain(model_type);
        assert!(spec(&config).is_ok(), "{model_type}");
        let error = spec(&with(config, &change)).expect_err(expected).to_string();
        assert!(error.contains(expected), "{model_type} {change}: {error}");
    }
    assert!(find("deberta-v2", &json!({})).is_err());
}

#[test]
fn a_missing_field_is_named() {
    for (model_type, field) in [("bert", "vocab_size"), ("distilbert", "dim"), ("t5", "d_kv"), ("gte", "hidden_size")] {
        let mut config = plain(model_type);
        config.as_object_mut().unwrap().remove(field);
        let error = spec(&config).unwrap_err().to_string();
        assert!(error.contains(field), "{error}");
    }
}

// U-08
#[test]
fn positions_and_limits_follow_the_family() {
    let limit = |model_type: &str| spec(&plain(model_type)).unwrap().max_tokens;
    assert_eq!((limit("bert"), limit("distilbert"), limit("modernbert")), (64, 64, 64));
    // The first two rows are the padding's and the one before the first token's.
    assert_eq!((limit("roberta"), limit("xlm-roberta"), limit("mpnet")), (62, 62, 62));
    let roberta = spec(&plain("roberta")).unwrap();
    let after_padding = FirstPosition::AfterPadding { padding_id: 1 };
    assert_eq!(roberta.position_table.map(|table| table.first), Some(after_padding));
    let t5 = spec(&plain("t5")).unwrap();
    assert_eq!((t5.usual_tokens, t5.inner_size(), t5.hidden_size), (512, 64, 32));
    assert_eq!(t5.distance_bias, Some(DistanceBiasSpec::Buckets { count: 32, max_distance: 128 }));
    // U-08: fewer positions than the first token's row leave no token at all, which `load` refuses.
    assert_eq!(spec(&with(plain("roberta"), &json!({"max_position_embeddings": 1}))).unwrap().max_tokens, 0);
}

// nomic-embed-text-v1.5 since April 2026: GPT-2's names, and some of transformers' own beside them.
#[test]
fn a_field_of_nomic_may_stand_there_under_both_of_its_names() {
    let old = json!({"model_type": "nomic_bert", "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 64, "n_positions": 96,
        "vocab_size": 100, "layer_norm_epsilon": 1e-5, "activation_function": "swiglu", "rotary_emb_base": 1000.0});
    let expected = spec(&old).unwrap();
    assert_eq!((expected.max_tokens, expected.intermediate_size, expected.norm.epsilon), (96, 64, 1e-5));
    let both = json!({"max_position_embeddings": 48, "max_trained_positions": 48, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": null, "layer_norm_eps": 1e-5,
        "rope_parameters": {"rope_theta": 1000.0, "rope_type": "default"}});
    assert_eq!(spec(&with(old, &both)).unwrap(), expected);
}

// As in transformers' own conversion.
#[test]
fn the_rotation_of_gte_may_be_written_as_linear() {
    let of = |changes: &Value| spec(&with(plain("gte"), changes)).unwrap().layers[0].rotary.unwrap();
    let rope = of(&json!({"rope_parameters": {"rope_type": "linear", "rope_theta": 50_000.0, "factor": 2.5}}));
    assert_eq!((rope.base, rope.divisor), (50_000.0, 2.5));
    let both = of(&json!({"rope_theta": 10_000.0, "rope_scaling": {"type": "ntk", "rope_type": "ntk", "factor": 2.0}}));
    assert_eq!(both.base.to_bits(), 20_000_f32.to_bits());
}

// As in the model's own code: absent is 10,000, null is what the global layers have.
#[test]
fn a_local_base_of_null_is_the_global_one() {
    let bases = |changes: &Value| -> Vec<f32> {
        let spec = spec(&with(plain("modernbert"), changes)).unwrap();
        spec.layers.iter().map(|layer| layer.rotary.unwrap().base).collect()
    };
    assert_eq!(bases(&json!({})), [160_000.0, 10_000.0]);
    assert_eq!(bases(&json!({"global_rope_theta": 50_000.0, "local_rope_theta": null})), [50_000.0, 50_000.0]);
    assert_eq!(bases(&json!({"local_rope_theta": 20_000.0})), [160_000.0, 20_000.0]);
}

#[test]
fn the_classes_that_a_family_implements_need_no_code() {
    let nomic = "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBert";
    for (model_type, class) in [
        ("nomic_bert", nomic),
        ("new", "Alibaba-NLP/new-impl--modeling.New"),
        // Snowflake's copy of the same code has the family's later name.
        ("gte", "modeling_hf_alibaba_nlp_gte.Gte"),
        ("jina", "jinaai/jina-bert-implementation--modeling_bert.JinaBert"),
    ] {
        let map = json!({"auto_map": {"AutoConfig": format!("{class}Config"), "AutoModel": format!("{class}Model")}});
        assert!(spec(&with(plain(model_type), &map)).is_ok(), "{class}");
    }
}
