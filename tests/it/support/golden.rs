//! Golden vectors made with sentence-transformers (`tests/golden/make.py`), and how far ours may be from them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use embedserve::engine::{EmbeddedRow, EngineError, Served};
use embedserve::request::{RawRequest, TruncateField};
use futures_util::future::join_all;
use serde::Deserialize;

use super::random::Random;
use super::served::embed_raw;

#[derive(Deserialize)]
pub struct Golden {
    pub max_tokens: usize,
    pub dimensions: usize,
    /// Largest accepted [`Gap::judged`].
    pub tolerance: f32,
    pub items: Vec<Item>,
}

#[derive(Deserialize)]
pub struct Item {
    pub text: Text,
    #[serde(flatten)]
    pub options: Options,
    /// After truncation, special tokens included.
    pub tokens: usize,
    /// Before truncation.
    pub full_tokens: usize,
    /// Base64 of little-endian f32.
    vector: String,
}

/// A text, or a phrase and how often it stands there.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Text {
    Whole(String),
    Repeated { repeat: String, times: usize },
}

/// What a request says besides its texts; only items that agree in it can share one.
#[derive(Deserialize, Default, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Options {
    pub prompt: Option<String>,
    pub prompt_name: Option<String>,
    pub dimensions: Option<i64>,
}

/// How far one row is from its golden.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gap {
    /// Largest absolute difference of one value.
    pub absolute: f32,
    /// Largest absolute value of the golden.
    pub magnitude: f32,
}

impl Gap {
    /// What the bar is about: the absolute difference itself as long as no value of the row exceeds 1, in units of the
    /// row's largest magnitude beyond. An f32 is known to 1.2e-7 of itself, and the oracle is made of them too: at a
    /// magnitude of 100, a difference of 1e-5 is one step of the last bit.
    pub fn judged(self) -> f32 {
        self.absolute / self.magnitude.max(1.0)
    }
}

/// How far a model's vectors are from their goldens.
#[derive(Debug, Clone)]
pub struct Distance {
    /// The row with the largest absolute difference.
    pub widest: Gap,
    /// Largest [`Gap::absolute`] of the rows that the bar takes as it is: magnitude 1 at most. `None` = there are no such.
    pub max_within_one: Option<f32>,
    /// Largest [`Gap::judged`].
    pub max_judged: f32,
    pub min_cosine: f64,
    /// Largest difference between a row alone and in company; not a bit is allowed.
    pub alone_to_batch: f32,
    /// What is wrong, in words; empty = all is well.
    pub faults: Vec<String>,
}

impl Default for Distance {
    fn default() -> Self {
        let (widest, faults) = (Gap::default(), Vec::new());
        Self { widest, max_within_one: None, max_judged: 0.0, min_cosine: 1.0, alone_to_batch: 0.0, faults }
    }
}

impl Distance {
    fn add(&mut self, gap: Gap, cosine: f64) {
        if gap.absolute > self.widest.absolute {
            self.widest = gap;
        }
        if gap.magnitude <= 1.0 {
            self.max_within_one = larger(self.max_within_one, Some(gap.absolute));
        }
        self.max_judged = self.max_judged.max(gap.judged());
        self.min_cosine = self.min_cosine.min(cosine);
    }

    /// The worse of both in every respect.
    pub fn merge(&mut self, other: &Self) {
        self.add(other.widest, other.min_cosine);
        self.max_within_one = larger(self.max_within_one, other.max_within_one);
        self.max_judged = self.max_judged.max(other.max_judged);
        self.alone_to_batch = self.alone_to_batch.max(other.alone_to_batch);
    }
}

fn larger(a: Option<f32>, b: Option<f32>) -> Option<f32> {
    a.into_iter().chain(b).reduce(f32::max)
}

pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

impl Golden {
    pub fn read(name: &str) -> Self {
        let text = std::fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Whether some vectors are shorter than the model's own, which the operator has to allow.
    pub fn has_shorter_vectors(&self) -> bool {
        self.items.iter().any(|item| item.options.dimensions.is_some())
    }

    /// Embeds every text alone and holds vectors, token counts and truncation against the goldens; then all of them
    /// again in `rounds` of shuffled batches, which must give the same bits.
    pub async fn check(&self, served: &Served, rounds: u64) -> Distance {
        let mut distance = Distance::default();
        let (found, expected) =
            ((served.limits.max_tokens, served.limits.dimensions), (self.max_tokens, self.dimensions));
        if found != expected {
            distance.faults.push(format!("(max_tokens, dimensions) = {found:?}, expected {expected:?}"));
        }
        let mut alone = Vec::with_capacity(self.items.len());
        for item in &self.items {
            let row = match request(served, &item.options, &[item]).await {
                Ok(mut rows) => rows.remove(0),
                Err(error) => {
                    distance.faults.push(format!("{}: {error}", item.excerpt()));
                    return distance;
                }
            };
            self.compare(&row, item, &mut distance);
            alone.push(row.vector.as_slice().to_vec());
        }
        for round in 0..rounds {
            for (index, row) in self.in_company(served, round).await {
                let pairs = row.vector.as_slice().iter().zip(&alone[index]);
                let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                distance.alone_to_batch = distance.alone_to_batch.max(difference);
                if row.vector.as_slice() != alone[index] {
                    let text = self.items[index].excerpt();
                    distance.faults.push(format!("{text}: {difference:e} between alone and in company"));
                }
            }
        }
        distance
    }

    /// All items in shuffled order, in requests of several sizes that wait at the same time and so share batches.
    async fn in_company(&self, served: &Served, round: u64) -> Vec<(usize, EmbeddedRow)> {
        let mut random = Random::new(100 + round);
        let mut order: Vec<usize> = (0..self.items.len()).collect();
        for place in (1..order.len()).rev() {
            order.swap(place, random.below(place + 1));
        }
        let mut alike: BTreeMap<&Options, Vec<usize>> = BTreeMap::new();
        for index in order {
            alike.entry(&self.items[index].options).or_default().push(index);
        }
        let mut requests = Vec::new();
        for (options, mut indices) in alike {
            while !indices.is_empty() {
                let rest = indices.split_off(indices.len().min(1 + random.below(20)));
                requests.push((options, std::mem::replace(&mut indices, rest)));
            }
        }
        let answers = requests.into_iter().map(|(options, indices)| async move {
            let items: Vec<&Item> = indices.iter().map(|index| &self.items[*index]).collect();
            let rows = request(served, options, &items).await.unwrap();
            indices.into_iter().zip(rows).collect::<Vec<_>>()
        });
        join_all(answers).await.into_iter().flatten().collect()
    }

    fn compare(&self, row: &EmbeddedRow, item: &Item, distance: &mut Distance) {
        let (found, expected) = (row.vector.as_slice(), item.vector());
        let text = item.excerpt();
        if row.tokens != item.tokens {
            distance.faults.push(format!("{text}: {} tokens, expected {}", row.tokens, item.tokens));
        }
        let was_cut = item.full_tokens > item.tokens;
        let original = row.cut.and_then(|cut| cut.original_tokens);
        // A text far beyond the limit is not counted to its end.
        if row.cut.is_some() != was_cut || original.is_some_and(|tokens| tokens != item.full_tokens) {
            distance.faults.push(format!("{text}: cut {:?}, expected from {}", row.cut, item.full_tokens));
        }
        if found.len() != expected.len() {
            distance.faults.push(format!("{text}: {} values, expected {}", found.len(), expected.len()));
            return;
        }
        let (gap, cosine) = (item.gap(found), cosine(found, &expected));
        if gap.judged() > self.tolerance || cosine < 0.999_999 {
            distance.faults.push(format!("{text}: differs by {gap:?}, judged as {:e}, cosine {cosine}", gap.judged()));
        }
        distance.add(gap, cosine);
    }
}

/// One request: what the items have in common, and their texts.
async fn request(served: &Served, options: &Options, items: &[&Item]) -> Result<Vec<EmbeddedRow>, EngineError> {
    let texts: Vec<String> = items.iter().map(|item| item.text.whole()).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let raw = RawRequest {
        truncate: Some(TruncateField::Flag(true)),
        prompt: options.prompt.clone(),
        prompt_name: options.prompt_name.clone(),
        dimensions: options.dimensions,
        ..RawRequest::default()
    };
    Ok(embed_raw(served, &texts, raw).await?.rows)
}

impl Text {
    fn whole(&self) -> String {
        match self {
            Self::Whole(text) => text.clone(),
            Self::Repeated { repeat, times } => repeat.repeat(*times),
        }
    }
}

impl Item {
    pub fn text(&self) -> String {
        self.text.whole()
    }

    pub fn vector(&self) -> Vec<f32> {
        let bytes = STANDARD.decode(&self.vector).unwrap();
        bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
    }

    pub fn gap(&self, found: &[f32]) -> Gap {
        let expected = self.vector();
        assert_eq!(found.len(), expected.len());
        Gap {
            absolute: found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max),
            magnitude: expected.iter().fold(0.0, |largest, x| largest.max(x.abs())),
        }
    }

    /// Enough of the item to find it.
    fn excerpt(&self) -> String {
        let text: String = self.text().chars().take(40).collect();
        let Options { prompt, prompt_name, dimensions } = &self.options;
        format!("{text:?} ({} tokens, {prompt:?}, {prompt_name:?}, {dimensions:?})", self.tokens)
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
