//! The gate before an int8 model: a fixed list of texts goes through the f32 and the int8 encoder of the same weights, and
//! a model whose vectors move too far is refused with the figures.
//!
//! One encoder after the other: the two never lie in memory together. It costs some seconds of work and, before the
//! int8 weights are built, the memory of the f32 ones, so the verdict is noted: later starts with the same weights,
//! settings, texts and kernels read it. A note that is unreadable, of something else, or not in itself consistent is no
//! verdict. Runs on the loading thread, before the computation moves to its device thread.

mod texts;

use std::fs::File;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};
use thiserror::Error;

use crate::kernel::{Compute, KERNEL_VERSION, Precision};
use crate::load::modules::{Modules, StepModule};
use crate::pool::FiniteRow;
use crate::request::{Dimensions, RowShape};
use crate::runner::Computation;
use crate::source::notes::Notes;

pub use texts::TEXTS;

/// The least cosine to f32 that any text may have.
pub const MIN_COSINE: f64 = 0.999;
/// The mean that is expected; a model below it is served, and that is said.
pub const MEAN_COSINE: f64 = 0.9995;

/// Why a model does not pass.
#[derive(Debug, Error)]
pub enum GateError {
    #[error(
        "int8 is not accurate enough for this model: over {} texts, the least cosine to f32 is {:.6} (mean {:.6}) and {MIN_COSINE} \
         is needed; use dtype = {alternatives}", .figures.texts, .figures.min_cosine, .figures.mean_cosine
    )]
    Refused { figures: Figures, alternatives: String },
    #[error("the {precision} encoder failed on one of the texts that int8 is judged by: {reason}")]
    Failed { precision: &'static str, reason: String },
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
}

/// How far the vectors of two encoders are from each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figures {
    pub texts: usize,
    pub min_cosine: f64,
    pub mean_cosine: f64,
}

/// What a verdict is about, and where it is kept. It holds for exactly these bytes, rows and kernels.
#[derive(Debug)]
pub struct Case<'a> {
    /// Its name in the log.
    pub model: &'a str,
    pub compute: Compute,
    /// Of [`TEXTS`], by the model's own tokenizer.
    pub rows: Vec<Vec<u32>>,
    pub dimensions: Dimensions,
    /// From [`digest`].
    pub weights: String,
    pub notes: &'a Notes,
}

/// A digest of everything that decides about vectors and is no row: the configuration, the modules, every weight.
///
/// # Errors
/// A file that cannot be read.
pub fn digest(config: &Value, modules: &Modules, weight_files: &[PathBuf]) -> Result<String, GateError> {
    let mut state = blake3::Hasher::new();
    let (pooling, normalized) = (modules.pooling_name(), modules.is_normalized());
    state.update(format!("{config}\n{pooling}\n{normalized}\n").as_bytes());
    let of_steps = modules.steps.iter().filter_map(|step| match step {
        StepModule::Dense(module) => Some(&module.weights),
        StepModule::LayerNorm(module) => Some(&module.weights),
        StepModule::Normalize => None,
    });
    for path in weight_files.iter().chain(of_steps) {
        let read = |source| GateError::Read { path: path.clone(), source };
        let file = File::open(path).map_err(read)?;
        // Where one file ends and the next begins is part of what is hashed.
        state.update(&file.metadata().map_err(read)?.len().to_le_bytes());
        state.update_reader(file).map_err(read)?;
    }
    Ok(state.finalize().to_hex().to_string())
}

/// The int8 model and how far it is from f32, if it passes. `build` builds the model from the same weights each time: in
/// f32 first, only where there is no verdict yet, then in int8; a model that is known to be refused is not built at all.
///
/// # Errors
/// [`GateError::Refused`], a failed forward pass, or whatever `build` fails with.
pub fn admit<E: From<GateError>>(
    case: &Case<'_>,
    mut build: impl FnMut(Compute) -> Result<Computation, E>,
) -> Result<(Computation, Figures), E> {
    let (figures, judged) = match case.noted() {
        Some(figures) => (figures, None),
        None => case.measure(&mut build).map(|(figures, judged)| (figures, Some(judged)))?,
    };
    let noted = judged.is_none();
    let Figures { texts, min_cosine, mean_cosine } = figures;
    tracing::info!(model = case.model, texts, min_cosine, mean_cosine, noted, "int8 held against f32");
    // Written so that a NaN, which compares with nothing, is refused.
    if figures.passes() {
        if mean_cosine < MEAN_COSINE {
            tracing::warn!(model = case.model, mean_cosine, expected = MEAN_COSINE, "int8 is less accurate than usual");
        }
        let computation = judged.map_or_else(|| build(case.compute), Ok)?;
        return Ok((computation, figures));
    }
    let usable = case.compute.usable().into_iter().rev().filter(|other| *other != case.compute.precision);
    let alternatives = usable.map(Precision::name).collect::<Vec<_>>().join(" or ");
    Err(GateError::Refused { figures, alternatives }.into())
}

// === impl Figures ===

impl Figures {
    /// Compares vectors of the same texts, pair by pair.
    pub fn of(exact: &[FiniteRow], other: &[FiniteRow]) -> Self {
        let cosines: Vec<f64> = exact.iter().zip(other).map(|(a, b)| cosine(a.as_slice(), b.as_slice())).collect();
        let texts = cosines.len();
        // A NaN must not be passed over, as `f64::min` would.
        let least = |least: f64, cosine: &f64| if *cosine >= least || least.is_nan() { least } else { *cosine };
        Self {
            texts,
            min_cosine: rounded(cosines.iter().fold(1.0, least)),
            mean_cosine: rounded(cosines.iter().sum::<f64>() / texts.max(1) as f64),
        }
    }

    fn passes(&self) -> bool {
        self.texts > 0 && self.min_cosine >= MIN_COSINE
    }
}

/// The cosine of two vectors; of two zero vectors, which say the same, 1.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let product = dot(a, a) * dot(b, b);
    if product == 0.0 && a == b { 1.0 } else { dot(a, b) / product.sqrt() }
}

/// To nine digits, so that a figure that was noted decides as it did when it was measured.
fn rounded(figure: f64) -> f64 {
    (figure * 1e9).round() / 1e9
}

// === impl Case ===

/// A note, as it lies in the cache.
#[derive(Debug, Deserialize)]
struct Note {
    weights: String,
    kernels: u32,
    isa: String,
    rows: String,
    texts: usize,
    min_cosine: f64,
    mean_cosine: f64,
    /// Over all the rest: whoever edits a figure makes it unreadable.
    check: String,
}

impl Case<'_> {
    /// Both encoders' vectors of all texts, one text at a time: memory stays small, and company changes nothing. Also the
    /// int8 model, which has been built for it.
    fn measure<E: From<GateError>>(
        &self,
        build: &mut impl FnMut(Compute) -> Result<Computation, E>,
    ) -> Result<(Figures, Computation), E> {
        let mut exact = build(Compute::exact(self.compute.isa))?;
        let expected = self.vectors(&mut exact, "f32")?;
        // Before the other is built: the two together would be the most that the process ever holds.
        drop(exact);
        let mut judged = build(self.compute)?;
        let found = self.vectors(&mut judged, self.compute.precision.name())?;
        let figures = Figures::of(&expected, &found);
        self.note(&figures);
        Ok((figures, judged))
    }

    fn vectors(&self, computation: &mut Computation, precision: &'static str) -> Result<Vec<FiniteRow>, GateError> {
        let failed = |reason: String| GateError::Failed { precision, reason };
        let mut vectors = Vec::with_capacity(self.rows.len());
        for row in &self.rows {
            let found = computation.run_in_turn(&[row], &[RowShape::whole(self.dimensions)]);
            let (found, _) = found.map_err(|error| failed(error.into_reason()))?;
            for vector in found {
                vectors.push(vector.map_err(|error| failed(error.to_string()))?);
            }
        }
        Ok(vectors)
    }

    fn noted(&self) -> Option<Figures> {
        let note: Note = serde_json::from_slice(&self.notes.read(&self.name())?).ok()?;
        let Note { weights, kernels, isa, rows, texts, min_cosine, mean_cosine, check } = note;
        let figures = Figures { texts, min_cosine, mean_cosine };
        let same = weights == self.weights
            && kernels == KERNEL_VERSION
            && isa == self.compute.isa.name()
            && rows == self.rows_digest()
            && texts == self.rows.len()
            && check == self.check(&figures);
        let possible = (-1.0..=1.0).contains(&min_cosine) && (min_cosine..=1.0 + 1e-9).contains(&mean_cosine);
        (same && possible).then_some(figures)
    }

    fn note(&self, figures: &Figures) {
        let Figures { texts, min_cosine, mean_cosine } = *figures;
        let (isa, rows, check) = (self.compute.isa.name(), self.rows_digest(), self.check(figures));
        let note = json!({
            "weights": self.weights,
            "kernels": KERNEL_VERSION,
            "isa": isa,
            "rows": rows,
            "texts": texts,
            "min_cosine": min_cosine,
            "mean_cosine": mean_cosine,
            "check": check,
        });
        self.notes.write(&self.name(), format!("{note:#}\n").as_bytes());
    }

    /// One note for each combination, so that two models, or two machines with one cache, keep out of each other's way.
    fn name(&self) -> String {
        let key = format!("{}-{}-{}-{KERNEL_VERSION}", self.weights, self.rows_digest(), self.compute.isa);
        format!("int8-{}", blake3::hash(key.as_bytes()).to_hex().get(..32).unwrap_or_default())
    }

    fn check(&self, figures: &Figures) -> String {
        let Figures { texts, min_cosine, mean_cosine } = figures;
        let text = format!("{} {texts} {min_cosine:.9} {mean_cosine:.9}", self.name());
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }

    fn rows_digest(&self) -> String {
        let mut state = blake3::Hasher::new();
        for row in &self.rows {
            state.update(&row.len().to_le_bytes());
            for id in row {
                state.update(&id.to_le_bytes());
            }
        }
        state.finalize().to_hex().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_of_the_worst_text_and_of_all() {
        let row = |values: &[f32]| FiniteRow::new(values.to_vec()).unwrap();
        let exact = [row(&[1.0, 0.0]), row(&[0.0, 2.0]), row(&[0.0, 0.0])];
        let same = Figures::of(&exact, &exact);
        assert_eq!(same, Figures { texts: 3, min_cosine: 1.0, mean_cosine: 1.0 });
        let turned = Figures::of(&exact, &[row(&[3.0, 4.0]), row(&[0.0, 5.0]), row(&[0.0, 0.0])]);
        assert_eq!(turned, Figures { texts: 3, min_cosine: 0.6, mean_cosine: 0.866_666_667 });
        assert!(same.passes() && !turned.passes());
        // A vector that vanished is no vector at all.
        let vanished = Figures::of(&exact, &[row(&[0.0, 0.0]), row(&[0.0, 2.0]), row(&[0.0, 0.0])]);
        assert!(vanished.min_cosine.is_nan() && !vanished.passes());
        assert!(!Figures::of(&[], &[]).passes());
    }
}
