//! Golden vectors made with sentence-transformers (`tests/golden/make.py`), and how far ours may be from them.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use embedserve::engine::Served;
use embedserve::request::{RawRequest, TruncateField};
use serde::Deserialize;

use super::served::embed_raw;

#[derive(Deserialize)]
pub struct Golden {
    pub max_tokens: usize,
    pub dimensions: usize,
    /// Largest accepted difference of one value, per unit of the row's largest magnitude (at least 1).
    pub tolerance: f32,
    pub items: Vec<Item>,
}

#[derive(Deserialize)]
pub struct Item {
    pub text: String,
    /// After truncation, special tokens included.
    pub tokens: usize,
    /// Before truncation.
    pub full_tokens: usize,
    /// Base64 of little-endian f32.
    vector: String,
}

/// How far a model's vectors are from their goldens.
#[derive(Debug, Clone, Copy)]
pub struct Distance {
    pub max_error: f32,
    pub min_cosine: f64,
}

pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

impl Golden {
    pub fn read(name: &str) -> Self {
        let text = std::fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Embeds every text and holds vectors, token counts and truncation against the goldens.
    pub async fn check(&self, served: &Served) -> Distance {
        assert_eq!((served.limits.max_tokens, served.limits.dimensions), (self.max_tokens, self.dimensions));
        let mut distance = Distance { max_error: 0.0, min_cosine: 1.0 };
        // In requests of several sizes: alone, in company, and all that is left at once.
        let mut items = self.items.as_slice();
        for size in [1, 1, 7, 20, usize::MAX] {
            let (batch, rest) = items.split_at(size.min(items.len()));
            items = rest;
            if batch.is_empty() {
                break;
            }
            let texts: Vec<&str> = batch.iter().map(|item| item.text.as_str()).collect();
            let raw = RawRequest { truncate: Some(TruncateField::Flag(true)), ..RawRequest::default() };
            let embedded = embed_raw(served, &texts, raw).await.unwrap();
            for (row, item) in embedded.rows.iter().zip(batch) {
                assert_eq!(row.tokens, item.tokens, "tokens of {:?}", item.text);
                let original = row.cut.and_then(|cut| cut.original_tokens);
                let expected = (item.full_tokens > item.tokens).then_some(item.full_tokens);
                assert!(
                    original == expected || row.cut.is_some_and(|cut| cut.original_tokens.is_none()),
                    "{:?}",
                    item.text
                );
                self.compare(row.vector.as_slice(), item, &mut distance);
            }
        }
        distance
    }

    fn compare(&self, found: &[f32], item: &Item, distance: &mut Distance) {
        let expected = item.vector();
        assert_eq!(found.len(), expected.len());
        let scale = expected.iter().fold(1.0_f32, |scale, x| scale.max(x.abs()));
        let error = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / scale;
        assert!(error <= self.tolerance, "{:?} differs by {error:e}", item.text);
        distance.max_error = distance.max_error.max(error);
        distance.min_cosine = distance.min_cosine.min(cosine(found, &expected));
    }
}

impl Item {
    pub fn vector(&self) -> Vec<f32> {
        let bytes = STANDARD.decode(&self.vector).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
