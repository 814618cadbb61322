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
pub fn layer_norm(x: &[f64], gamma: &[f32], beta: Option<&[f32]>, epsilon: f64) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = x.iter().sum::<f64>() / n;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let inverse = 1.0 / (variance + epsilon).sqrt();
    let shift = |column: usize| beta.map_or(0.0, |beta| f64::from(beta[column]));
    x.iter().zip(gamma).enumerate().map(|(i, (x, g))| (x - mean) * inverse * f64::from(*g) + shift(i)).collect()
}

/// `x/√(mean(x²) + ε)·γ` of one row.
pub fn root_mean_square_norm(x: &[f64], gamma: &[f32], epsilon: f64) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(gamma).map(|(x, g)| x / (mean + epsilon).sqrt() * f64::from(*g)).collect()
}

/// What attention may have besides queries, keys and values.
#[derive(Clone, Copy)]
pub struct AttentionOptions<'a> {
    pub n_heads: usize,
    pub scale: f64,
    /// Added to the score of a head at a distance `key − query`.
    pub bias: &'a dyn Fn(usize, isize) -> f64,
    /// Base of the rotary positions.
    pub rotary: Option<f64>,
    /// Farthest key that a query sees.
    pub window: usize,
}

impl std::fmt::Debug for AttentionOptions<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} heads, rotary {:?}, window {}", self.n_heads, self.rotary, self.window)
    }
}

/// Attention of one sequence: `qkv [n, 3·inner]` to `[n, inner]`.
pub fn attention(qkv: &[f32], inner: usize, options: AttentionOptions<'_>) -> Vec<f64> {
    let (n, size) = (qkv.len() / (3 * inner), inner / options.n_heads);
    let mut out = vec![0.0; n * inner];
    for head in 0..options.n_heads {
        let part = |row: usize, part: usize| -> Vec<f64> {
            let start = row * 3 * inner + part * inner + head * size;
            qkv[start..start + size].iter().map(|x| f64::from(*x)).collect()
        };
        let turned = |row: usize, which: usize| match options.rotary {
            Some(base) => turn(&part(row, which), row, base),
            None => part(row, which),
        };
        for query in 0..n {
            let q = turned(query, 0);
            let seen: Vec<usize> = (0..n).filter(|key| key.abs_diff(query) <= options.window).collect();
            let scores: Vec<f64> = seen
                .iter()
                .map(|&key| {
                    let dot: f64 = q.iter().zip(turned(key, 1)).map(|(q, k)| q * k).sum();
                    options.scale * dot + (options.bias)(head, key.cast_signed() - query.cast_signed())
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|score| (score - max).exp()).sum();
            for (key, score) in seen.iter().zip(scores) {
                for (column, value) in part(*key, 2).into_iter().enumerate() {
                    out[query * inner + head * size + column] += (score - max).exp() / total * value;
                }
            }
        }
    }
    out
}

/// One head of one token, its pairs `(x[i], x[i + d/2])` turned by `position·base^(−2i/d)`.
fn turn(x: &[f64], position: usize, base: f64) -> Vec<f64> {
    let half = x.len() / 2;
    let angle = |i: usize| position as f64 * base.powf(-2.0 * i as f64 / x.len() as f64);
    let low = (0..half).map(|i| x[i] * angle(i).cos() - x[i + half] * angle(i).sin());
    let high = (0..half).map(|i| x[i + half] * angle(i).cos() + x[i] * angle(i).sin());
    low.chain(high).collect()
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
