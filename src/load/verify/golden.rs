//! References from a JSON file, so that operators can verify models of their own.
//!
//! The form of `tests/golden`: `{"tolerance": 1e-5, "items": [{"text", "vector", "tokens"?, "prompt"?, "prompt_name"?,
//! "dimensions"?}]}`. A vector is base64 of little-endian f32, or numbers; a long text may be
//! `{"repeat": "...", "times": n}`. Other keys say where the numbers come from and are ignored.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use thiserror::Error;

use crate::catalog::reference::{Expected, Reference, ReferencePrompt, TOLERANCE};
use crate::small_file;

/// 256 MB: tens of thousands of long vectors.
const MAX_FILE_BYTES: u64 = 256_000_000;
/// A repeated text may have as many bytes: far beyond every model's longest input.
const MAX_TEXT_BYTES: usize = 16_000_000;

/// Why a file of references cannot be used.
#[derive(Debug, Error)]
pub enum GoldenError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {reason}")]
    Format { path: PathBuf, reason: String },
}

#[derive(Debug, Deserialize)]
struct File {
    tolerance: Option<f32>,
    items: Vec<Item>,
}

#[derive(Debug, Deserialize)]
struct Item {
    text: Text,
    vector: Vector,
    tokens: Option<usize>,
    prompt: Option<String>,
    prompt_name: Option<String>,
    dimensions: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Text {
    Whole(String),
    Repeated { repeat: String, times: usize },
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Vector {
    Base64(String),
    Numbers(Vec<f32>),
}

/// Reads the references of one model.
///
/// # Errors
/// Unreadable, not of this form, or without items.
pub fn read(path: &Path) -> Result<Vec<Reference>, GoldenError> {
    let unreadable = |source| GoldenError::Read { path: path.to_owned(), source };
    let format = |reason: String| GoldenError::Format { path: path.to_owned(), reason };
    let bytes = small_file::read(path, MAX_FILE_BYTES).map_err(unreadable)?;
    let file: File = serde_json::from_slice(&bytes).map_err(|error| format(error.to_string()))?;
    if file.items.is_empty() {
        return Err(format("it has no items".to_owned()));
    }
    let tolerance = file.tolerance.unwrap_or(TOLERANCE);
    if !(tolerance > 0.0 && tolerance <= 0.01) {
        return Err(format(format!("tolerance = {tolerance} is not above 0 and at most 0.01")));
    }
    let published = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let reference = |(index, item): (usize, Item)| {
        item.reference(&published, tolerance).map_err(|reason| format(format!("items[{index}]: {reason}")))
    };
    file.items.into_iter().enumerate().map(reference).collect()
}

impl Item {
    fn reference(self, published: &str, tolerance: f32) -> Result<Reference, &'static str> {
        let values = match self.vector {
            Vector::Numbers(values) => values,
            Vector::Base64(text) => {
                let bytes = STANDARD.decode(text).map_err(|_| "vector is not base64")?;
                let (values, rest) = bytes.as_chunks::<4>();
                if !rest.is_empty() {
                    return Err("vector is cut inside a value");
                }
                values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
            }
        };
        if values.is_empty() || !values.iter().all(|value| value.is_finite()) {
            return Err("vector has no values, or one that is not finite");
        }
        let text = match self.text {
            Text::Whole(text) => text,
            Text::Repeated { repeat, times } if repeat.len().saturating_mul(times) <= MAX_TEXT_BYTES => {
                repeat.repeat(times)
            }
            Text::Repeated { .. } => return Err("text is too long"),
        };
        if self.prompt.is_some() && self.prompt_name.is_some() {
            return Err("prompt and prompt_name exclude each other");
        }
        let prompt = self.prompt.map(ReferencePrompt::Text).or(self.prompt_name.map(ReferencePrompt::Named));
        Ok(Reference {
            text,
            prompt,
            dimensions: self.dimensions,
            expected: Expected::Vector(values),
            tokens: self.tokens,
            // Whatever the reference gave is what we must give: nothing is scaled to make it fit.
            normalized: Some(false),
            tolerance,
            tolerance_reason: None,
            published: published.to_owned(),
        })
    }
}
