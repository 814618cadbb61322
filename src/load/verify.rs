//! A model's vectors against a second implementation: candle-transformers' own BERT, in float32, one text at a time.
//!
//! It shares nothing with our forward pass but the weight file, so it tells a broken kernel or a misread checkpoint
//! from a good one on the machine at hand, without Python and without a network.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::bert::{BertModel, Config};
use serde_json::{Value, json};
use thiserror::Error;

use crate::arch::packed::PackedBatch;
use crate::arch::{self, ArchError, EncoderError};
use crate::kernel::Isa;
use crate::load::modules::{Modules, ModulesError, required_json};
use crate::load::{LoadError, head, weight_files};
use crate::pool::{Head, NonFinite};
use crate::request::Dimensions;
use crate::threads::Threads;
use crate::tokenize::load::{TokenizerLoadError, ids, load as load_tokenizer};
use crate::weights::{Weights, WeightsError};

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

/// Largest accepted difference of one value.
pub const MAX_ERROR: f32 = 1e-5;

/// How far the two implementations are apart.
#[derive(Debug, Clone, Copy)]
pub struct Comparison {
    pub texts: usize,
    pub max_error: f32,
    pub min_cosine: f64,
}

/// Why the comparison could not be made.
#[derive(Debug, Error)]
pub enum VerifyError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Arch(#[from] ArchError),
    #[error(transparent)]
    Modules(#[from] ModulesError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerLoadError),
    #[error("the tokenizer failed: {0}")]
    Text(String),
    #[error(transparent)]
    Forward(#[from] EncoderError),
    #[error("candle-transformers cannot compute this model: {0}")]
    Oracle(#[from] candle_core::Error),
    #[error("candle-transformers does not know this configuration: {0}")]
    OracleConfig(#[from] serde_json::Error),
    #[error(transparent)]
    NonFinite(#[from] NonFinite),
}

/// Embeds the built-in texts with both implementations: ours in one packed batch, candle's one by one.
///
/// # Errors
/// The model cannot be loaded, or candle-transformers cannot compute it.
pub fn against_candle(folder: &Path, threads: &Threads, isa: Isa) -> Result<Comparison, VerifyError> {
    let modules = Modules::read(folder, None, None)?;
    let config = required_json(&folder.join("config.json"))?;
    let files = weight_files(folder)?;
    let mut ours = arch::load(&config, &files, &Device::Cpu, isa)?;
    let head = head(&modules, ours.spec.hidden_size, isa)?;
    let weights = Weights::open(&files, name_in_candle)?;
    let builder = VarBuilder::from_backend(Box::new(weights), DType::F32, Device::Cpu);
    let oracle = BertModel::load(builder, &oracle_config(config)?)?;

    let (tokenizer, frame) = load_tokenizer(&folder.join("tokenizer.json"), ours.spec.vocab_size)?;
    let room = ours.spec.max_tokens.saturating_sub(frame.len());
    let mut rows = Vec::with_capacity(TEXTS.len());
    for text in TEXTS {
        let mut content = ids(&tokenizer, text, false).map_err(VerifyError::Text)?;
        content.truncate(room);
        rows.push([frame.prefix.as_slice(), &content, &frame.suffix].concat());
    }

    let batch = PackedBatch::new(rows.iter().map(Vec::as_slice));
    let hidden = threads.beside(|| ours.encoder.forward(&batch))?;
    let found = vectors(&head, &hidden, &batch)?;
    let mut comparison = Comparison { texts: rows.len(), max_error: 0.0, min_cosine: 1.0 };
    for (row, found) in rows.iter().zip(&found) {
        let ids = Tensor::new(row.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        let hidden = oracle.forward(&ids, &ids.zeros_like()?, None)?.squeeze(0)?.contiguous()?;
        let expected = vectors(&head, &hidden, &PackedBatch::new([row.as_slice()]))?;
        for expected in expected {
            comparison.add(found, &expected);
        }
    }
    Ok(comparison)
}

/// Stored name to candle's: without the `bert.` prefix, LayerNorm parameters as `weight` and `bias`.
fn name_in_candle(stored: &str) -> String {
    let name = stored.strip_prefix("bert.").unwrap_or(stored);
    name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
}

/// candle's configuration wants fields that only training uses; some checkpoints leave them out.
fn oracle_config(mut config: Value) -> Result<Config, serde_json::Error> {
    if let Some(fields) = config.as_object_mut() {
        for (field, value) in
            [("hidden_dropout_prob", json!(0.0)), ("initializer_range", json!(0.02)), ("pad_token_id", json!(0))]
        {
            fields.entry(field).or_insert(value);
        }
    }
    serde_json::from_value(config)
}

fn vectors(head: &Head, hidden: &Tensor, batch: &PackedBatch) -> Result<Vec<Vec<f32>>, VerifyError> {
    let native = vec![Dimensions::unlimited(); batch.n_rows()];
    let rows = head.finish(hidden, batch, &native)?;
    rows.into_iter().map(|row| Ok(row?.as_slice().to_vec())).collect()
}

impl Comparison {
    fn add(&mut self, found: &[f32], expected: &[f32]) {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let error = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let cosine = dot(found, expected) / (dot(found, found) * dot(expected, expected)).sqrt();
        self.max_error = self.max_error.max(error);
        self.min_cosine = self.min_cosine.min(cosine);
    }

    /// Whether the difference is within what float32 arithmetic explains.
    pub fn is_good(&self) -> bool {
        self.max_error <= MAX_ERROR && self.texts > 0
    }
}
