//! Pooling reductions: the token rows of each sequence to one row. Sums run in f64, so that 8,192 tokens lose nothing.

use rayon::prelude::*;

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
}

/// `hidden [T, width]` and offsets of B sequences to `[B, width]`. An empty sequence gives zeros.
pub fn reduce(reduce: Reduce, hidden: &[f32], width: usize, offsets: &[usize]) -> Vec<f32> {
    let n_sequences = offsets.len().saturating_sub(1);
    let mut out = vec![0.0; n_sequences * width];
    out.par_chunks_mut(width).zip(offsets.par_windows(2)).for_each(|(out, span)| {
        let rows = &hidden[span[0] * width..span[1] * width];
        let n_rows = rows.len() / width;
        let source = match reduce {
            _ if n_rows == 0 => return,
            Reduce::First => &rows[..width],
            Reduce::Last => &rows[rows.len() - width..],
            Reduce::Max => return max(rows, out),
            Reduce::Mean => return sum(rows, 1.0 / n_rows as f64, out),
            Reduce::MeanSqrtLen => return sum(rows, 1.0 / (n_rows as f64).sqrt(), out),
        };
        out.copy_from_slice(source);
    });
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

#[expect(clippy::cast_possible_truncation, reason = "the sum of f32 values is rounded to f32 once, at the end")]
fn sum(rows: &[f32], scale: f64, out: &mut [f32]) {
    let mut sums = vec![0.0_f64; out.len()];
    for row in rows.chunks_exact(out.len()) {
        for (sum, x) in sums.iter_mut().zip(row) {
            *sum += f64::from(*x);
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        *out = (sum * scale) as f32;
    }
}
