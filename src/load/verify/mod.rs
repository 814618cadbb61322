//! Whether a loaded model gives the right vectors, on the machine at hand, without Python and without a network.
//!
//! Two judges. [`published`]: vectors that somebody published, from models.toml or from a file of the operator's.
//! [`second`]: candle-transformers' own implementation of the architecture, where it has a correct one; it shares nothing
//! with ours but the weight file and the pooling, so it tells a broken kernel or a misread checkpoint from a good one.
//! Our side is what serves: requests go through the tokenizer, the queue, packed batches and the head.

pub mod bar;
pub mod golden;
pub mod published;
pub mod second;

use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use thiserror::Error;

use crate::arch::ArchError;
use crate::catalog::reference::ReferencePrompt;
use crate::engine::{EmbeddedRow, EngineError, Served};
use crate::excerpt::quoted;
use crate::load::LoadError;
use crate::load::modules::ModulesError;
use crate::pool::NonFinite;
use crate::request::{EmbedRequest, RawInputs, RawRequest, RequestError, TruncateField};
use crate::tokenize::TokenizeError;
use crate::weights::WeightsError;

pub use bar::Bar;

/// A comparison is no client: it waits for as long as the machine needs.
const PATIENCE: Duration = Duration::from_hours(1);

/// What one judge says of a model.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// The document, the file or the implementation.
    pub against: String,
    pub texts: usize,
    /// Largest difference of one value, per unit of the vector's largest magnitude (at least 1).
    pub max_error: f32,
    /// `None` where only products were published.
    pub min_cosine: Option<f64>,
    /// The sum of all cosines, and how many there are.
    cosines: (f64, usize),
    pub bar: Bar,
    /// What is beyond the bar, a line each.
    pub differences: Vec<String>,
    /// What a reader should know besides.
    pub notes: Vec<String>,
}

/// Why a comparison could not be made.
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
    #[error("a reference text is refused: {0}")]
    Request(#[from] RequestError),
    #[error("a reference text cannot be tokenised: {0}")]
    Tokenize(#[from] TokenizeError),
    #[error("a reference text got no vector: {0}")]
    Engine(#[from] EngineError),
    #[error("candle-transformers cannot compute this model: {0}")]
    Oracle(#[from] candle_core::Error),
    #[error("candle-transformers does not know this configuration: {0}")]
    OracleConfig(#[from] serde_json::Error),
    #[error("candle-transformers gives a {0}")]
    NonFinite(#[from] NonFinite),
}

/// A text to embed for a comparison.
#[derive(Debug, Clone, Copy)]
struct Probe<'a> {
    text: &'a str,
    prompt: Option<&'a ReferencePrompt>,
    dimensions: Option<usize>,
}

impl<'a> Probe<'a> {
    const fn plain(text: &'a str) -> Self {
        Self { text, prompt: None, dimensions: None }
    }

    /// The request a client would send. Over-long texts are cut, as the reference implementations do without being asked.
    fn request(&self, served: &Served) -> Result<EmbedRequest, RequestError> {
        let (prompt, prompt_name) = match self.prompt {
            None => (None, None),
            Some(ReferencePrompt::Text(text)) => (Some(text.clone()), None),
            Some(ReferencePrompt::Named(name)) => (None, Some(name.clone())),
        };
        let raw = RawRequest {
            inputs: RawInputs::Texts { single: true, texts: vec![self.text.to_owned()] },
            dimensions: self.dimensions.and_then(|dimensions| i64::try_from(dimensions).ok()),
            truncate: Some(TruncateField::Flag(true)),
            prompt,
            prompt_name,
            ..RawRequest::default()
        };
        EmbedRequest::parse(String::new(), raw, &served.limits, Instant::now() + PATIENCE)
    }
}

/// Embeds the texts as one request each, all at once, so that they share batches as clients' requests do.
async fn embed(served: &Served, probes: &[Probe<'_>]) -> Result<Vec<EmbeddedRow>, VerifyError> {
    let requests: Vec<EmbedRequest> = probes.iter().map(|probe| probe.request(served)).collect::<Result<_, _>>()?;
    let answers = try_join_all(requests.into_iter().map(|request| served.embed(request))).await?;
    Ok(answers.into_iter().flat_map(|answer| answer.rows).collect())
}

impl Comparison {
    fn new(against: String, bar: Bar) -> Self {
        let (differences, notes, cosines) = (Vec::new(), Vec::new(), (0.0, 0));
        Self { against, texts: 0, max_error: 0.0, min_cosine: None, cosines, bar, differences, notes }
    }

    /// Adds the result of one text: `error` and, where there is one, the cosine.
    fn add(&mut self, text: &str, error: f32, cosine: Option<f64>) {
        self.texts += 1;
        self.max_error = self.max_error.max(error);
        if let Some(cosine) = cosine {
            self.min_cosine = Some(self.min_cosine.map_or(cosine, |least| least.min(cosine)));
            self.cosines = (self.cosines.0 + cosine, self.cosines.1 + 1);
        }
        if !self.bar.fits(error, cosine) {
            let cosine = cosine.map_or_else(String::new, |cosine| format!(", cosine {cosine:.9}"));
            self.differences.push(format!("{}: error {error:.1e}{cosine}", quoted(text)));
        }
    }

    fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// The mean cosine; `None` where only products were published.
    pub fn mean_cosine(&self) -> Option<f64> {
        let (sum, count) = self.cosines;
        (count > 0).then(|| sum / count as f64)
    }

    /// Whether everything is within the bar, and there was something to compare.
    pub fn is_good(&self) -> bool {
        self.texts > 0 && self.differences.is_empty() && self.bar.fits_mean(self.mean_cosine())
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// The cosine of two vectors. Two zero vectors are the same: what is left where pooling saw nothing but a prompt.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let is_zero = |vector: &[f32]| vector.iter().all(|x| *x == 0.0);
    if is_zero(a) && is_zero(b) {
        return 1.0;
    }
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

/// Largest difference of one value, per unit of the largest magnitude expected (at least 1).
fn largest_error(found: &[f32], expected: &[f32]) -> f32 {
    let scale = expected.iter().fold(1.0_f32, |scale, x| scale.max(x.abs()));
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / scale
}
