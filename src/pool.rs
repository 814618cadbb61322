//! Token states to sentence vectors: pooling, dense layers, norms, cutting, and the finite check.
//!
//! What happens, and in which order, is what the model's `modules.json` says; nothing is assumed. No I/O and no
//! channels: the device thread calls [`Head::finish`] and hands on plain rows.

use candle_core::{Device, Result, Tensor};
use thiserror::Error;

use crate::kernel::{Linear, Reduce};
use crate::request::{Dimensions, RowShape};

/// Pooling modes of sentence-transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolingMode {
    Cls,
    Mean,
    Max,
    Last,
    MeanSqrtLen,
    /// Later tokens weigh more.
    WeightedMean,
}

impl PoolingMode {
    /// The name used in models.toml, `--pooling` and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cls => "cls",
            Self::Mean => "mean",
            Self::Max => "max",
            Self::Last => "last",
            Self::MeanSqrtLen => "mean-sqrt-len",
            Self::WeightedMean => "weighted-mean",
        }
    }

    const fn reduce(self) -> Reduce {
        match self {
            Self::Cls => Reduce::First,
            Self::Mean => Reduce::Mean,
            Self::Max => Reduce::Max,
            Self::Last => Reduce::Last,
            Self::MeanSqrtLen => Reduce::MeanSqrtLen,
            Self::WeightedMean => Reduce::WeightedMean,
        }
    }
}

/// A vector all of whose values are finite. There is no other way to make one.
#[derive(Debug, Clone, PartialEq)]
pub struct FiniteRow(Vec<f32>);

/// A vector held a NaN or an infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("non-finite vector")]
pub struct NonFinite;

impl FiniteRow {
    /// # Errors
    /// [`NonFinite`] when any value is not finite.
    pub fn new(values: Vec<f32>) -> std::result::Result<Self, NonFinite> {
        if are_finite(&values) { Ok(Self(values)) } else { Err(NonFinite) }
    }

    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }
}

/// Looks at every value, however the first ones are, so that several are looked at in one step.
fn are_finite(values: &[f32]) -> bool {
    values.iter().fold(true, |finite, value| finite & value.is_finite())
}

/// Everything after the encoder, for one model.
#[derive(Debug, Clone)]
pub struct Head {
    /// One or more; the vectors of several are put end to end.
    pub pooling: Vec<PoolingMode>,
    pub steps: Vec<Step>,
}

/// What happens to a pooled vector, in the order of `modules.json`.
#[derive(Debug, Clone)]
pub enum Step {
    Dense(Linear),
    LayerNorm(Norm),
    /// To unit length.
    Normalize,
}

/// `(x − mean)/√(variance + ε)·γ + β` of one vector.
#[derive(Debug, Clone)]
pub struct Norm {
    pub gamma: Vec<f32>,
    pub beta: Vec<f32>,
    pub epsilon: f64,
}

impl Head {
    /// The length of the vectors for an encoder of `hidden_size`.
    pub fn dimensions(&self, hidden_size: usize) -> usize {
        let dense = self.steps.iter().rev().find_map(|step| match step {
            Step::Dense(dense) => Some(dense.weight.n()),
            Step::LayerNorm(_) | Step::Normalize => None,
        });
        dense.unwrap_or(hidden_size * self.pooling.len())
    }

    /// How the encoder's states become one row per sequence, in the order in which the rows lie side by side.
    pub fn ways(&self) -> Vec<Reduce> {
        self.pooling.iter().map(|mode| mode.reduce()).collect()
    }

    /// `pooled`, as the encoder gives it for [`Self::ways`], to one vector per row of the batch, each cut to its own length.
    ///
    /// # Errors
    /// The device failed. A non-finite vector fails its own row alone.
    pub fn finish(
        &self,
        pooled: Vec<f32>,
        shapes: &[RowShape],
    ) -> Result<Vec<std::result::Result<FiniteRow, NonFinite>>> {
        let width = pooled.len() / shapes.len().max(1);
        let mut vectors = Vectors { values: pooled, width };
        // Checked here too: a Tanh behind it would turn an infinity into a plausible 1, and a ReLU one into 0.
        let finite: Vec<bool> = vectors.rows().map(are_finite).collect();
        for step in &self.steps {
            match step {
                Step::Dense(dense) => vectors = vectors.through(dense)?,
                Step::LayerNorm(norm) => vectors.rows_mut().for_each(|row| norm.apply(row)),
                Step::Normalize => vectors.rows_mut().for_each(normalise),
            }
        }
        let rows = vectors.rows().zip(finite).zip(shapes);
        Ok(rows
            .map(|((row, finite), shape)| if finite { cut(row, shape.dimensions) } else { Err(NonFinite) })
            .collect())
    }
}

/// The vectors of a batch, end to end, on the host: they are few beside its tokens.
struct Vectors {
    values: Vec<f32>,
    width: usize,
}

impl Vectors {
    fn read(tensor: &Tensor) -> Result<Self> {
        let (_, width) = tensor.dims2()?;
        Ok(Self { values: tensor.flatten_all()?.to_vec1()?, width })
    }

    fn rows(&self) -> impl Iterator<Item = &[f32]> {
        self.values.chunks_exact(self.width)
    }

    fn rows_mut(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.values.chunks_exact_mut(self.width)
    }

    fn through(self, dense: &Linear) -> Result<Self> {
        let n_rows = self.values.len() / self.width;
        Self::read(&dense.forward(&Tensor::from_vec(self.values, (n_rows, self.width), &Device::Cpu)?)?)
    }
}

impl Norm {
    /// Sums run in f64; the result is rounded once.
    #[expect(clippy::cast_possible_truncation, reason = "rounded to f32 once, at the end")]
    fn apply(&self, row: &mut [f32]) {
        let n = row.len() as f64;
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let variance = row.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
        let inverse = 1.0 / (variance + self.epsilon).sqrt();
        for ((x, gamma), beta) in row.iter_mut().zip(&self.gamma).zip(&self.beta) {
            *x = ((f64::from(*x) - mean) * inverse * f64::from(*gamma) + f64::from(*beta)) as f32;
        }
    }
}

/// The first values; a vector that lost some is brought back to unit length.
fn cut(row: &[f32], dimensions: Dimensions) -> std::result::Result<FiniteRow, NonFinite> {
    let mut kept = row[..dimensions.get().min(row.len())].to_vec();
    if kept.len() < row.len() {
        normalise(&mut kept);
    }
    FiniteRow::new(kept)
}

/// Scales to unit length; a zero vector stays zero (torch's `normalize` divides by at least 1e-12).
#[expect(clippy::cast_possible_truncation, reason = "the length is summed in f64 and rounded once")]
pub fn normalise(row: &mut [f32]) {
    let length = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt().max(1e-12) as f32;
    for x in row {
        *x /= length;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // N-02, N-03
    #[test]
    fn a_zero_vector_stays_zero_and_a_nan_is_refused() {
        let mut zero = vec![0.0; 4];
        normalise(&mut zero);
        assert_eq!(FiniteRow::new(zero).unwrap().as_slice(), [0.0; 4]);
        assert_eq!(FiniteRow::new(vec![1.0, f32::NAN]), Err(NonFinite));
        assert_eq!(FiniteRow::new(vec![f32::INFINITY]), Err(NonFinite));
    }
}
