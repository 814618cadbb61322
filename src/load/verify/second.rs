//! A second implementation: candle-transformers' own model, in float32, one text at a time.
//!
//! It shares the weight file, the tokens and the pooling with ours, and no line of the forward pass. DistilBERT (its GELU
//! is the tanh form) and MPNet (there is none) have no second implementation; other families only where candle reads
//! the configuration as it is meant. What it cannot compute is said, never approximated.

use std::path::Path;
use std::time::Duration;

use candle_core::{DType, Device, Module as _, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::{bert, jina_bert, modernbert, nomic_bert, t5, xlm_roberta};
use serde_json::{Map, Value, json};

use crate::arch::packed::PackedBatch;
use crate::catalog::ModelSpec;
use crate::engine::Served;
use crate::kernel::{Isa, Pool};
use crate::load::modules::{Modules, required_json};
use crate::load::verify::{Bar, Comparison, Probe, VerifyError, cosine, embed, largest_error};
use crate::load::{head, weight_files};
use crate::pool::Head;
use crate::request::{Dimensions, RowShape, TokenRow};
use crate::weights::Weights;

/// Texts that differ in length, script, case, punctuation and vocabulary.
const TEXTS: [&str; 12] = [
    "hello world",
    "Laura is a DJ.",
    "The quick brown fox jumps over the lazy dog.",
    "for (i, x) in xs.iter().enumerate() { total += i * x; }",
    "¿Dónde está la biblioteca?",
    "日本語の文章を埋め込みます。",
    "не спеши, а то успеешь",
    "🙂🙃 😀",
    "1234567890 3.14159 1e-5 0x2A",
    "a",
    "antidisestablishmentarianism pneumonoultramicroscopicsilicovolcanoconiosis",
    "Embeddings map texts to vectors so that similar meanings lie close together. They are used for search, for \
     clustering, for recommendations and for finding duplicates, and a small error in one of them is invisible to the \
     eye: that is why this text, which is longer than the others, exists.",
];

/// Largest accepted difference of candle's float32: sums in another order.
const TOLERANCE: f32 = 1e-5;

/// What came of looking for a second implementation.
#[derive(Debug)]
pub enum Second {
    Compared(Comparison),
    /// There is none, and why.
    None(String),
}

/// candle's model of one family.
enum Oracle {
    Bert(bert::BertModel),
    Roberta(xlm_roberta::XLMRobertaModel),
    Jina(jina_bert::BertModel),
    ModernBert(modernbert::ModernBert),
    Nomic(nomic_bert::NomicBertModel),
    T5(Box<t5::T5EncoderModel>),
}

/// Embeds the built-in texts with both implementations: ours as it serves, candle's one by one.
///
/// # Errors
/// The files cannot be read a second time, or candle fails on them.
pub async fn against_candle(served: &Served, spec: &ModelSpec, folder: &Path, isa: Isa) -> Result<Second, VerifyError> {
    let probes = TEXTS.map(Probe::plain);
    let mut rows = Vec::with_capacity(TEXTS.len());
    for probe in &probes {
        rows.extend(served.tokenizer.encode(probe.request(served)?, Duration::MAX).await?.rows);
    }
    let longest = rows.iter().map(|row| row.ids.len()).max().unwrap_or_default();
    let config = required_json(&folder.join("config.json"))?;
    let mut oracle = match Oracle::load(folder, config, longest) {
        Ok(Ok(oracle)) => oracle,
        Ok(Err(reason)) => return Ok(Second::None(reason)),
        // A configuration that candle cannot read says nothing against the model.
        Err(error @ VerifyError::OracleConfig(_)) => return Ok(Second::None(error.to_string())),
        Err(error) => return Err(error),
    };
    let modules = Modules::read(folder, spec.pooling, spec.normalize)?;
    let bar = Bar::of(spec.precision(), TOLERANCE);
    let found = embed(served, &probes).await?;
    let mut comparison = Comparison::new("candle-transformers".to_owned(), bar);
    let mut after: Option<Head> = None;
    for ((text, row), found) in TEXTS.iter().zip(&rows).zip(&found) {
        let hidden = oracle.hidden(&row.ids)?;
        let after = match &mut after {
            Some(after) => after,
            None => after.insert(head::load(&modules, hidden.dim(1)?, isa)?),
        };
        let expected = vector(after, &hidden, row)?;
        let found = found.vector.as_slice();
        comparison.add(text, largest_error(found, &expected), Some(cosine(found, &expected)));
    }
    Ok(Second::Compared(comparison))
}

/// Pools one text's hidden states.
fn vector(head: &Head, hidden: &Tensor, row: &TokenRow) -> Result<Vec<f32>, VerifyError> {
    let shape = RowShape { skip: row.skip, ..RowShape::whole(Dimensions::unlimited()) };
    let mut vectors = Vec::new();
    let batch = PackedBatch::new([row.ids.as_slice()]);
    let pooled = Pool::side_by_side(hidden, batch.offsets(), &head.ways(), &[shape.skip])?;
    for row in head.finish(pooled, &[shape])? {
        vectors.extend_from_slice(row?.as_slice());
    }
    Ok(vectors)
}

impl Oracle {
    /// candle's model for this configuration, or why there is none. No text is longer than `longest` tokens.
    fn load(folder: &Path, mut config: Value, longest: usize) -> Result<Result<Self, String>, VerifyError> {
        let none = |reason: &str| Ok(Err(reason.to_owned()));
        let word =
            |config: &Value, field: &str| config.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let family = word(&config, "model_type");
        let is_alibi = word(&config, "position_embedding_type") == "alibi";
        let files = weight_files(folder)?;
        let weights = |rename: fn(&str) -> String| -> Result<VarBuilder<'static>, VerifyError> {
            let weights = Weights::open(&files, rename)?;
            Ok(VarBuilder::from_backend(Box::new(weights), DType::F32, Device::Cpu))
        };
        let Some(fields) = config.as_object_mut() else { return none("config.json is no table") };
        Ok(Ok(match family.as_str() {
            "bert" if is_alibi => {
                // candle lays out the bias of every pair of positions at once: gigabytes at the model's own limit.
                fields.insert("max_position_embeddings".to_owned(), json!(longest));
                complete(fields);
                if fields.get("feed_forward_type") != Some(&json!("geglu")) {
                    return none("candle-transformers computes Jina v2 with geglu only");
                }
                let config = serde_json::from_value(config)?;
                Self::Jina(jina_bert::BertModel::new(weights(without_prefix)?, &config)?)
            }
            "bert" => {
                complete(fields);
                if matches!(fields.get("hidden_act").and_then(Value::as_str), Some("gelu_new" | "gelu_pytorch_tanh")) {
                    fields.insert("hidden_act".to_owned(), json!("geluapproximate"));
                }
                Self::Bert(bert::BertModel::load(weights(without_prefix)?, &serde_json::from_value(config)?)?)
            }
            "roberta" | "xlm-roberta" | "camembert" => {
                fields.entry("pad_token_id").or_insert(json!(1));
                complete(fields);
                let config = serde_json::from_value(config)?;
                Self::Roberta(xlm_roberta::XLMRobertaModel::new(&config, weights(without_prefix)?)?)
            }
            "modernbert" => {
                if let Err(reason) = older_modernbert(fields, longest) {
                    return none(reason);
                }
                let config = serde_json::from_value(config)?;
                Self::ModernBert(modernbert::ModernBert::load(weights(with_model_prefix)?, &config)?)
            }
            "t5" => {
                complete_t5(fields);
                let config = serde_json::from_value(config)?;
                Self::T5(Box::new(t5::T5EncoderModel::load(weights(str::to_owned)?, &config)?))
            }
            "nomic_bert" => {
                if !fields.contains_key("n_embd") || fields.get("activation_function") != Some(&json!("swiglu")) {
                    return none("candle-transformers reads nomic_bert in the hub's own layout with swiglu only");
                }
                fields.insert("n_positions".to_owned(), json!(longest));
                let config = serde_json::from_value(config)?;
                Self::Nomic(nomic_bert::NomicBertModel::load(weights(str::to_owned)?, &config)?)
            }
            "mpnet" => return none("candle-transformers has no MPNet"),
            "distilbert" => return none("candle-transformers computes another GELU for DistilBERT than the model's"),
            other => return none(&format!("candle-transformers has no encoder for {other}")),
        }))
    }

    /// The last hidden states of one text, `[n_tokens, hidden_size]`.
    fn hidden(&mut self, ids: &[u32]) -> candle_core::Result<Tensor> {
        let ids = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        let (zeros, ones) = (ids.zeros_like()?, ids.ones_like()?);
        let hidden = match self {
            Self::Bert(model) => model.forward(&ids, &zeros, None),
            Self::Roberta(model) => model.forward(&ids, &ones, &zeros, None, None, None),
            Self::Jina(model) => model.forward(&ids),
            Self::ModernBert(model) => model.forward(&ids, &ones),
            Self::Nomic(model) => model.forward(&ids, None, None),
            Self::T5(model) => model.forward(&ids),
        };
        hidden?.squeeze(0)?.contiguous()
    }
}

/// candle's configurations want fields that only training uses, or that newer libraries leave out.
fn complete(fields: &mut Map<String, Value>) {
    for (field, value) in [
        ("hidden_dropout_prob", json!(0.0)),
        ("attention_probs_dropout_prob", json!(0.0)),
        ("initializer_range", json!(0.02)),
        ("pad_token_id", json!(0)),
        ("position_embedding_type", json!("absolute")),
        ("type_vocab_size", json!(2)),
        ("hidden_act", json!("gelu")),
    ] {
        let entry = fields.entry(field).or_insert(Value::Null);
        if entry.is_null() {
            *entry = value;
        }
    }
}

fn complete_t5(fields: &mut Map<String, Value>) {
    for (field, value) in [
        ("dropout_rate", json!(0.0)),
        ("initializer_factor", json!(1.0)),
        ("layer_norm_epsilon", json!(1e-6)),
        ("is_encoder_decoder", json!(false)),
        ("pad_token_id", json!(0)),
        ("eos_token_id", json!(1)),
        ("relative_attention_num_buckets", json!(32)),
    ] {
        fields.entry(field).or_insert(value);
    }
}

/// Newer ModernBERT configurations name each layer's kind and each kind's rotation; candle reads the older fields.
fn older_modernbert(fields: &mut Map<String, Value>, longest: usize) -> Result<(), &'static str> {
    for field in ["attention_bias", "mlp_bias", "norm_bias"] {
        if fields.get(field).and_then(Value::as_bool) == Some(true) {
            return Err("candle-transformers computes ModernBERT without biases only");
        }
    }
    if fields.get("hidden_activation").is_some_and(|activation| *activation != json!("gelu")) {
        return Err("candle-transformers computes ModernBERT with gelu only");
    }
    fields.insert("max_position_embeddings".to_owned(), json!(longest));
    if let Some(epsilon) = fields.get("norm_eps").cloned() {
        fields.insert("layer_norm_eps".to_owned(), epsilon);
    }
    if let Some(Value::Array(kinds)) = fields.get("layer_types") {
        let is_global: Vec<bool> = kinds.iter().map(|kind| *kind == json!("full_attention")).collect();
        let every = is_global.iter().skip(1).position(|global| *global).map_or(is_global.len(), |at| at + 1);
        if is_global.iter().enumerate().any(|(layer, global)| *global != (layer % every.max(1) == 0)) {
            return Err(
                "candle-transformers computes ModernBERT with evenly spaced global layers from the first on only",
            );
        }
        fields.insert("global_attn_every_n_layers".to_owned(), json!(every));
    }
    for (kind, field) in [("full_attention", "global_rope_theta"), ("sliding_attention", "local_rope_theta")] {
        let theta =
            fields.get("rope_parameters").and_then(|rope| rope.get(kind)).and_then(|rope| rope.get("rope_theta"));
        if let Some(theta) = theta.cloned() {
            fields.insert(field.to_owned(), theta);
        }
    }
    // Left in, candle takes them for a classifier that it then finds incomplete.
    for field in ["id2label", "label2id", "classifier_pooling"] {
        fields.remove(field);
    }
    Ok(())
}

/// Stored name to candle's: without the model's prefix, LayerNorm parameters as `weight` and `bias`.
fn without_prefix(stored: &str) -> String {
    let name = stored.strip_prefix("bert.").or_else(|| stored.strip_prefix("roberta.")).unwrap_or(stored);
    name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
}

/// candle reads ModernBERT under `model.` alone, which many checkpoints lack.
fn with_model_prefix(stored: &str) -> String {
    if stored.starts_with("model.") { stored.to_owned() } else { format!("model.{stored}") }
}
