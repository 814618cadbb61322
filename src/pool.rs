//! Token states to sentence vectors: pooling, dense layers, normalisation, cutting, and the finite check.
//!
//! What happens, and in which order, is what the model's `modules.json` says; nothing is assumed. No I/O and no
//! channels: the device thread calls [`Head::finish`] and hands on plain rows.

use candle_core::{Result, Tensor};
use thiserror::Error;

use crate::arch::packed::PackedBatch;
use crate::kernel::{Linear, Pool, Reduce};
use crate::request::Dimensions;

/// Pooling modes of sentence-transformers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolingMode {
    Cls,
    Mean,
    Max,
    Last,
    MeanSqrtLen,
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
        }
    }

    const fn reduce(self) -> Reduce {
        match self {
            Self::Cls => Reduce::First,
            Self::Mean => Reduce::Mean,
            Self::Max => Reduce::Max,
            Self::Last => Reduce::Last,
            Self::MeanSqrtLen => Reduce::MeanSqrtLen,
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
        if values.iter().all(|value| value.is_finite()) { Ok(Self(values)) } else { Err(NonFinite) }
    }

    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }
}

/// Everything after the encoder, for one model.
#[derive(Debug, Clone)]
pub struct Head {
    pub pooling: PoolingMode,
    /// Dense layers with their activations, in order.
    pub dense: Vec<Linear>,
    pub normalize: bool,
}

impl Head {
    /// The length of the vectors for an encoder of `hidden_size`.
    pub fn dimensions(&self, hidden_size: usize) -> usize {
        self.dense.last().map_or(hidden_size, |dense| dense.weight.n())
    }

    /// `hidden [n_tokens, hidden_size]` to one vector per row of the batch, each cut to its own `dimensions`.
    ///
    /// # Errors
    /// The device failed. A non-finite vector fails its own row alone.
    pub fn finish(
        &self,
        hidden: &Tensor,
        batch: &PackedBatch,
        dimensions: &[Dimensions],
    ) -> Result<Vec<std::result::Result<FiniteRow, NonFinite>>> {
        let pool = Pool { reduce: self.pooling.reduce(), offsets: batch.offsets().clone() };
        let mut vectors = pool.forward(hidden)?;
        for dense in &self.dense {
            vectors = dense.forward(&vectors)?;
        }
        let rows = vectors.to_vec2::<f32>()?;
        Ok(rows.into_iter().zip(dimensions).map(|(row, dimensions)| self.shape(row, dimensions.get())).collect())
    }

    fn shape(&self, mut row: Vec<f32>, dimensions: usize) -> std::result::Result<FiniteRow, NonFinite> {
        let is_cut = dimensions < row.len();
        if self.normalize {
            normalise(&mut row);
        }
        row.truncate(dimensions);
        if is_cut {
            normalise(&mut row);
        }
        FiniteRow::new(row)
    }
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

    #[test]
    fn a_zero_vector_stays_zero_and_a_nan_is_refused() {
        let mut zero = vec![0.0; 4];
        normalise(&mut zero);
        assert_eq!(FiniteRow::new(zero).unwrap().as_slice(), [0.0; 4]);
        assert_eq!(FiniteRow::new(vec![1.0, f32::NAN]), Err(NonFinite));
        assert_eq!(FiniteRow::new(vec![f32::INFINITY]), Err(NonFinite));
    }
}
