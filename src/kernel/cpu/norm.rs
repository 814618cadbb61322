//! LayerNorm, `(x − mean)/√(variance + ε)·γ + β` over each row.
//!
//! Two passes: the mean, then the mean of squared differences from it. Never E(x²) − mean², which cancels for rows
//! whose mean is large against their spread. Sums run in sixteen fixed lanes, added up in a fixed order, so a row's
//! bits depend on nothing but the row.

use rayon::prelude::*;

use super::{Isa, dispatch, multiply_add};

const LANES: usize = 16;
/// Rows of one task: enough work to be worth handing to another thread.
const ROW_CHUNK: usize = 16;

/// Scale, shift and epsilon of one LayerNorm.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    gamma: Vec<f32>,
    beta: Vec<f32>,
    epsilon: f32,
}

impl LayerNorm {
    /// `gamma` and `beta` have one value per column.
    pub const fn new(gamma: Vec<f32>, beta: Vec<f32>, epsilon: f32) -> Self {
        Self { gamma, beta, epsilon }
    }

    /// Columns.
    pub const fn width(&self) -> usize {
        self.gamma.len()
    }
}

/// `layer_norm(x + residual)`, row by row; both are `[rows, width]`.
pub fn add_norm(isa: Isa, x: &[f32], residual: &[f32], norm: &LayerNorm) -> Vec<f32> {
    let mut out = x.to_vec();
    let chunk = ROW_CHUNK * norm.width();
    out.par_chunks_mut(chunk).zip(residual.par_chunks(chunk)).for_each(|(out, residual)| {
        dispatch!(isa, add_norm_rows(out: &mut [f32], residual: &[f32], norm: &LayerNorm));
    });
    out
}

#[inline(always)]
fn add_norm_rows<const FUSED: bool>(out: &mut [f32], residual: &[f32], norm: &LayerNorm) {
    let width = norm.width();
    for (out, residual) in out.chunks_exact_mut(width).zip(residual.chunks_exact(width)) {
        for (x, residual) in out.iter_mut().zip(residual) {
            *x += residual;
        }
        normalise::<FUSED>(out, norm);
    }
}

/// Normalises one row in place.
#[inline(always)]
pub(super) fn normalise<const FUSED: bool>(row: &mut [f32], norm: &LayerNorm) {
    let scale = 1.0 / row.len() as f32;
    let mean = lane_sum(row, |x| x) * scale;
    let variance = lane_sum(row, |x| (x - mean) * (x - mean)) * scale;
    let inverse = 1.0 / (variance + norm.epsilon).sqrt();
    for ((x, gamma), beta) in row.iter_mut().zip(&norm.gamma).zip(&norm.beta) {
        *x = multiply_add::<FUSED>((*x - mean) * inverse, *gamma, *beta);
    }
}

/// Sums `term(x)` in sixteen lanes, then the lanes from first to last, then the tail.
#[inline(always)]
pub(super) fn lane_sum(row: &[f32], term: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, tail) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += term(*x);
        }
    }
    let sum: f32 = lanes.iter().sum();
    tail.iter().fold(sum, |sum, x| sum + term(*x))
}
