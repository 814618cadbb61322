//! Pooling reductions: the token rows of each sequence to one row. Sums run in f64, so that 8,192 tokens lose nothing.
//!
//! The first rows of a sequence can be left out (a prompt's). Where nothing is left, sums are zero, the first row of
//! all stands for the first, and the largest value is −∞: what a fully masked sequence gives in sentence-transformers.
//!
//! On the calling thread: less than a hundredth of the work of a forward pass is not worth waking another one.

/// How the rows of one sequence become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    /// The first row, `[CLS]`.
    First,
    /// The last row.
    Last,
    /// The largest value of each column.
    Max,
    /// The sum over n rows divided by n.
    Mean,
    /// The sum over n rows divided by √n.
    MeanSqrtLen,
    /// The sum weighted by each row's place in the sequence, from 1, divided by the sum of the weights. Rows that are
    /// left out still count as places.
    WeightedMean,
}

/// `hidden [T, width]`, offsets of B sequences and the rows to leave out of each to `[B, width]`.
pub fn reduce(reduce: Reduce, hidden: &[f32], width: usize, offsets: &[usize], skips: &[usize]) -> Vec<f32> {
    let mut out = vec![0.0; skips.len() * width];
    for (out, (span, skip)) in out.chunks_exact_mut(width).zip(offsets.windows(2).zip(skips)) {
        let rows = &hidden[span[0] * width..span[1] * width];
        let skip = (*skip).min(rows.len() / width);
        let kept = &rows[skip * width..];
        let n_kept = kept.len() / width;
        match reduce {
            Reduce::Max => max(kept, out),
            _ if rows.is_empty() => {}
            Reduce::First if n_kept == 0 => out.copy_from_slice(&rows[..width]),
            _ if n_kept == 0 => {}
            Reduce::First => out.copy_from_slice(&kept[..width]),
            Reduce::Last => out.copy_from_slice(&kept[kept.len() - width..]),
            Reduce::Mean => sum(kept, |_| 1.0, n_kept as f64, out),
            Reduce::MeanSqrtLen => sum(kept, |_| 1.0, (n_kept as f64).sqrt(), out),
            Reduce::WeightedMean => {
                let weight = |index| (skip + index + 1) as f64;
                sum(kept, weight, (0..n_kept).map(weight).sum(), out);
            }
        }
    }
    out
}

fn max(rows: &[f32], out: &mut [f32]) {
    out.fill(f32::NEG_INFINITY);
    for row in rows.chunks_exact(out.len()) {
        for (out, x) in out.iter_mut().zip(row) {
            // Not `f32::max`, which would hide a NaN.
            *out = if *x <= *out { *out } else { *x };
        }
    }
}

/// Each row times its weight, added up and divided.
#[expect(clippy::cast_possible_truncation, reason = "the sum of f32 values is rounded to f32 once, at the end")]
fn sum(rows: &[f32], weight: impl Fn(usize) -> f64, divisor: f64, out: &mut [f32]) {
    let mut sums = vec![0.0_f64; out.len()];
    for (index, row) in rows.chunks_exact(out.len()).enumerate() {
        let weight = weight(index);
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += weight * f64::from(*x);
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = (sum / divisor) as f32;
    }
}
