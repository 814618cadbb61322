//! Normalisation of each row: LayerNorm, `(x − mean)/√(variance + ε)·γ + β`, and RMSNorm, `x/√(mean(x²) + ε)·γ`.
//!
//! LayerNorm takes two passes: the mean, then the mean of squared differences from it. Never E(x²) − mean², which
//! cancels for rows whose mean is large against their spread. Sums run in sixteen fixed lanes, added up in a fixed
//! order, so a row's bits depend on nothing but the row.

use super::{Isa, dispatch, multiply_add};

const LANES: usize = 16;

/// Scale, shift and epsilon of one normalisation.
#[derive(Debug, Clone)]
pub struct Norm {
    gamma: Vec<f32>,
    beta: Option<Vec<f32>>,
    epsilon: f32,
    centred: bool,
}

impl Norm {
    /// LayerNorm: `gamma` and `beta` have one value per column; some models have no `beta`.
    pub const fn layer(gamma: Vec<f32>, beta: Option<Vec<f32>>, epsilon: f32) -> Self {
        Self { gamma, beta, epsilon, centred: true }
    }

    /// RMSNorm, which subtracts no mean and has no shift (`T5LayerNorm` of transformers).
    pub const fn root_mean_square(gamma: Vec<f32>, epsilon: f32) -> Self {
        Self { gamma, beta: None, epsilon, centred: false }
    }

    /// Scale, shift, epsilon, and whether the mean is subtracted.
    pub fn parts(&self) -> (&[f32], Option<&[f32]>, f32, bool) {
        (&self.gamma, self.beta.as_deref(), self.epsilon, self.centred)
    }

    /// Columns.
    pub const fn width(&self) -> usize {
        self.gamma.len()
    }
}

/// Normalises one row of [`Norm::width`] values in place.
pub fn normalise_row(isa: Isa, row: &mut [f32], norm: &Norm) {
    dispatch!(isa, normalise(row: &mut [f32], norm: &Norm));
}

#[inline(always)]
pub(super) fn normalise<const FUSED: bool>(row: &mut [f32], norm: &Norm) {
    let share = 1.0 / row.len() as f32;
    let mean = if norm.centred { lane_sum(row, |x| x) * share } else { 0.0 };
    let variance = lane_sum(row, |x| (x - mean) * (x - mean)) * share;
    let inverse = 1.0 / (variance + norm.epsilon).sqrt();
    match &norm.beta {
        Some(beta) => {
            for ((x, gamma), beta) in row.iter_mut().zip(&norm.gamma).zip(beta) {
                *x = multiply_add::<FUSED>((*x - mean) * inverse, *gamma, *beta);
            }
        }
        None => {
            for (x, gamma) in row.iter_mut().zip(&norm.gamma) {
                *x = (*x - mean) * inverse * *gamma;
            }
        }
    }
}

/// Sums `term(x)` in sixteen lanes, then the lanes, then the tail.
#[inline(always)]
pub(super) fn lane_sum(row: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, tail) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += term(*x);
        }
    }
    tail.iter().fold(fold_lanes(lanes, |a, b| a + b), |sum, x| sum + term(*x))
}

/// Sixteen lanes to one value, in four steps of halves: always the same order, and four instructions instead of fifteen.
#[inline(always)]
pub(super) fn fold_lanes(mut lanes: [f32; LANES], combine: impl Fn(f32, f32) -> f32) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        let (low, high) = lanes.split_at_mut(half);
        for (a, b) in low.iter_mut().zip(high) {
            *a = combine(*a, *b);
        }
        half /= 2;
    }
    lanes[0]
}
