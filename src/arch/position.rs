//! Where a token stands, in the three ways that models learn it: rows of a table, rotations, biases by distance.

use std::sync::Arc;

use crate::arch::packed::PackedBatch;
use crate::arch::spec::{DistanceBiasSpec, EncoderSpec, FirstPosition, RotarySpec};
use crate::kernel::{DistanceBias, Rotary};
use crate::weights::{Weights, WeightsError};

/// The row of the position table of every token of a batch.
pub fn rows(first: FirstPosition, batch: &PackedBatch) -> Vec<u32> {
    let mut rows = Vec::with_capacity(batch.n_tokens());
    for sequence in batch.sequences() {
        match first {
            FirstPosition::Zero => rows.extend((0_u32..).take(sequence.len())),
            FirstPosition::AfterPadding { padding_id } => {
                let mut last = padding_id;
                rows.extend(sequence.iter().map(|id| {
                    if *id == padding_id {
                        return padding_id;
                    }
                    last += 1;
                    last
                }));
            }
        }
    }
    rows
}

/// The rotations of each layer; layers with the same rotation share a table.
pub fn rotations(spec: &EncoderSpec) -> Vec<Option<Arc<Rotary>>> {
    let mut tables: Vec<(RotarySpec, Arc<Rotary>)> = Vec::new();
    let mut table = |rotary: RotarySpec| {
        if let Some((_, table)) = tables.iter().find(|(known, _)| *known == rotary) {
            return Arc::clone(table);
        }
        let table = Arc::new(Rotary::new(rotary.base, rotary.divisor, spec.head_size, spec.max_tokens));
        tables.push((rotary, Arc::clone(&table)));
        table
    };
    spec.layers.iter().map(|layer| layer.rotary.map(&mut table)).collect()
}

/// The bias by distance that all layers share.
///
/// # Errors
/// A missing or misshapen tensor.
pub fn distance_bias(spec: &EncoderSpec, weights: &Weights) -> Result<Option<Arc<DistanceBias>>, WeightsError> {
    let n_heads = spec.n_heads;
    let bias = match spec.distance_bias {
        None => return Ok(None),
        Some(DistanceBiasSpec::Buckets { count, max_distance }) => {
            let table = weights.take("distance_bias.weight", &[count, n_heads])?;
            let value = |head, distance| table.get(bucket(distance, count, max_distance) * n_heads + head).copied();
            DistanceBias::new(n_heads, max_distance, |head, distance| value(head, distance).unwrap_or(0.0))
        }
        Some(DistanceBiasSpec::Linear) => {
            let slopes = slopes(n_heads);
            let reach = spec.max_tokens.saturating_sub(1);
            DistanceBias::new(n_heads, reach, |head, distance| {
                -slopes.get(head).copied().unwrap_or(0.0) * distance.unsigned_abs() as f32
            })
        }
    };
    Ok(Some(Arc::new(bias)))
}

/// T5's bucket of `distance = key − query`: half of the buckets look back, half ahead; of each half the first half is
/// exact and the rest logarithmic up to `max_distance` (Raffel et al. 2020; `_relative_position_bucket` of transformers,
/// whose f32 arithmetic decides which side of a boundary a distance falls on).
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small non-negative number")]
pub fn bucket(distance: isize, count: usize, max_distance: usize) -> usize {
    let half = count / 2;
    let exact = half / 2;
    let ahead = if distance > 0 { half } else { 0 };
    let far = distance.unsigned_abs();
    if far < exact {
        return ahead + far;
    }
    let steps = (far as f32 / exact as f32).ln() / ((max_distance as f64 / exact as f64).ln() as f32);
    ahead + (exact + (steps * (half - exact) as f32) as usize).min(half - 1)
}

/// ALiBi's slopes (Press et al. 2022): a geometric series for a power of two of heads; for other numbers the series of
/// the power below, then every other slope of the next power.
pub fn slopes(n_heads: usize) -> Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "the reference rounds to f32")]
    let series = |n: usize| (1..=n).map(move |i| (-8.0 * i as f64 / n as f64).exp2() as f32);
    if n_heads.is_power_of_two() {
        return series(n_heads).collect();
    }
    let below = (n_heads + 1).next_power_of_two() / 2;
    series(below).chain(series(2 * below).step_by(2)).take(n_heads).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roberta_counts_from_after_the_padding_and_skips_it() {
        let batch = PackedBatch::new([&[0, 9, 2][..], &[0, 1, 9, 1, 2]]);
        assert_eq!(rows(FirstPosition::AfterPadding { padding_id: 1 }, &batch), [2, 3, 4, 2, 1, 3, 1, 4]);
        assert_eq!(rows(FirstPosition::Zero, &batch), [0, 1, 2, 0, 1, 2, 3, 4]);
    }

    // Computed with transformers' `_relative_position_bucket` in torch float32.
    #[test]
    fn buckets_change_where_the_reference_changes() {
        let changes = |count, max| -> Vec<usize> {
            (1..600).filter(|d| bucket(-d, count, max) != bucket(1 - d, count, max)).map(isize::unsigned_abs).collect()
        };
        assert_eq!(changes(32, 128), BUCKETS_32_128);
        assert_eq!(changes(16, 40), BUCKETS_16_40);
        assert_eq!(bucket(3, 32, 128), 19);
        assert_eq!(bucket(-3, 32, 128), 3);
        assert_eq!((bucket(5000, 32, 128), bucket(-5000, 32, 128)), (31, 15));
    }

    #[test]
    fn slopes_of_twelve_heads_interleave_two_series() {
        let slopes = slopes(12);
        let expected = [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015_625, 0.007_812_5, 0.003_906_25];
        assert_eq!(slopes[..8], expected);
        assert_eq!(slopes[8..], [0.707_106_77, 0.353_553_38, 0.176_776_69, 0.088_388_346]);
    }

    const BUCKETS_32_128: [usize; 15] = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];
    const BUCKETS_16_40: [usize; 7] = [1, 2, 3, 4, 8, 13, 23];
}
