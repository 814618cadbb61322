//! The kernels again, naive and obviously right, in f64: the oracle of every kernel test. Never optimised, never
//! deleted, never used to serve.

use super::cpu::activation::Activation;
use super::cpu::reduce::Reduce;

/// `act(x·Wᵀ + b)`: `x [m, k]`, `weight [n, k]`, result `[m, n]`.
pub fn linear(x: &[f32], weight: &[f32], bias: Option<&[f32]>, k: usize, activation: Activation) -> Vec<f64> {
    let mut out = Vec::new();
    for row in x.chunks_exact(k) {
        for (column, weight) in weight.chunks_exact(k).enumerate() {
            let dot: f64 = row.iter().zip(weight).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let bias = bias.map_or(0.0, |bias| f64::from(bias[column]));
            out.push(activate(activation, dot + bias));
        }
    }
    out
}

/// The activations by their definitions.
pub fn activate(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::None => x,
        Activation::Gelu => 0.5 * x * libm::erfc(-x / std::f64::consts::SQRT_2),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3))).tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
    }
}

/// `(x − mean)/√(variance + ε)·γ + β` of one row.
pub fn layer_norm(x: &[f64], gamma: &[f32], beta: &[f32], epsilon: f64) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let inverse = 1.0 / (variance + epsilon).sqrt();
    x.iter()
        .zip(gamma.iter().zip(beta))
        .map(|(x, (g, b))| (x - mean) * inverse * f64::from(*g) + f64::from(*b))
        .collect()
}

/// Attention of one sequence: `qkv [n, 3·hidden]` to `[n, hidden]`.
pub fn attention(qkv: &[f32], hidden: usize, n_heads: usize, scale: f64) -> Vec<f64> {
    let (n, size) = (qkv.len() / (3 * hidden), hidden / n_heads);
    let at = |row: usize, part: usize, column: usize| f64::from(qkv[row * 3 * hidden + part * hidden + column]);
    let mut out = vec![0.0; n * hidden];
    for head in 0..n_heads {
        let columns = head * size..(head + 1) * size;
        for query in 0..n {
            let score = |key| scale * columns.clone().map(|c| at(query, 0, c) * at(key, 1, c)).sum::<f64>();
            let scores: Vec<f64> = (0..n).map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            for column in columns.clone() {
                let mixed: f64 = weights.iter().enumerate().map(|(key, weight)| weight * at(key, 2, column)).sum();
                out[query * hidden + column] = mixed / total;
            }
        }
    }
    out
}

/// Pooling of one sequence `[n, width]` without its first `skip` rows.
pub fn reduce(reduce: Reduce, rows: &[f32], width: usize, skip: usize) -> Vec<f64> {
    let n = rows.len() / width;
    let column = |c: usize| rows.iter().skip(c).step_by(width).map(|x| f64::from(*x));
    let kept = |c: usize| column(c).skip(skip);
    let n_kept = n.saturating_sub(skip) as f64;
    let divided = |sum: f64, divisor: f64| if divisor > 0.0 { sum / divisor } else { 0.0 };
    let pooled = |c| match reduce {
        Reduce::First => kept(c).next().or_else(|| column(c).next()).unwrap_or(0.0),
        Reduce::Last => kept(c).next_back().unwrap_or(0.0),
        Reduce::Max => kept(c).fold(f64::NEG_INFINITY, f64::max),
        Reduce::Mean => divided(kept(c).sum(), n_kept),
        Reduce::MeanSqrtLen => divided(kept(c).sum(), n_kept.sqrt()),
        Reduce::WeightedMean => {
            let weights = || (1..=n).skip(skip).map(|place| place as f64);
            divided(kept(c).zip(weights()).map(|(x, weight)| x * weight).sum(), weights().sum())
        }
    };
    (0..width).map(pooled).collect()
}
