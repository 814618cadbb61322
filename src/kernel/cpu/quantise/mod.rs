//! Inputs of low-precision products: f32 rows to bf16, or rotated and rounded to bytes with one scale per row.
//!
//! The rotation is a Walsh-Hadamard transform over blocks of a power of two values: it spreads what is large in one value
//! over its block, so that one scale fits the row. It is applied to weights and inputs alike and leaves their product as
//! it was. Computed without its factor `1/√block`; the weight's scale carries the factors of both sides.

#[cfg(target_arch = "x86_64")]
mod avx512;

use super::{Isa, dispatch};

/// Largest block: seven stages, four of them inside a register.
pub(super) const MAX_BLOCK: usize = 128;

/// Adding this, 1.5·2²³, rounds to an integer, ties to even, and leaves it in the low bits.
pub(super) const ROUND: f32 = 12_582_912.0;

/// The largest power of two up to [`MAX_BLOCK`] that divides `k`.
pub(super) const fn block_size(k: usize) -> usize {
    let divisor = 1 << k.trailing_zeros();
    if divisor < MAX_BLOCK { divisor } else { MAX_BLOCK }
}

/// Rotates blocks of `block` values in place, without the factor `1/√block`, and returns the largest magnitude; NaN if
/// any value is. Blocks of 32, 64 or 128.
pub(super) fn rotate(isa: Isa, block: usize, row: &mut [f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 {
        // SAFETY: the level was checked when it was chosen.
        return f32::from_bits(unsafe { avx512::rotate(block, row) });
    }
    // Every level computes the same sums and differences in the same order.
    row.chunks_exact_mut(block).for_each(butterflies);
    let row = &*row;
    f32::from_bits(dispatch!(isa, largest_bits(row: &[f32]) -> u32))
}

/// The fast transform: sums and differences of pairs half a span apart, spans from the whole block down to two.
fn butterflies(block: &mut [f32]) {
    let mut half = block.len() / 2;
    while half > 0 {
        for span in block.chunks_exact_mut(2 * half) {
            let (low, high) = span.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half /= 2;
    }
}

/// `round(x/s) + 128` with `s = largest/127`, which is returned; a row of zeros has scale 1.
///
/// A row with a NaN or an infinity gets a scale that is not finite, so that its result shows it.
pub(super) fn quantise(isa: Isa, row: &[f32], largest: f32, out: &mut [u8]) -> f32 {
    let scale = if largest == 0.0 { 1.0 } else { largest / 127.0 };
    let inverse = 1.0 / scale;
    dispatch!(isa, round_row(row: &[f32], inverse: f32, out: &mut [u8]));
    scale
}

/// Compared as integers: magnitudes of floats are in order, and a NaN is above infinity.
#[inline(always)]
fn largest_bits<const FUSED: bool>(row: &[f32]) -> u32 {
    const LANES: usize = 16;
    let bits = |x: f32| x.to_bits() & 0x7fff_ffff;
    let mut lanes = [0_u32; LANES];
    let (chunks, tail) = row.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = bits(*x).max(*lane);
        }
    }
    lanes.into_iter().chain(tail.iter().map(|x| bits(*x))).max().unwrap_or(0)
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "1 to 255 by the choice of the scale")]
fn round_row<const FUSED: bool>(row: &[f32], inverse: f32, out: &mut [u8]) {
    for (out, x) in out.iter_mut().zip(row) {
        *out = ((x * inverse + ROUND).to_bits() as u8).wrapping_add(128);
    }
}

/// Rounds a row to bf16, ties to even. The processor's own instruction takes what is below 1.2e-38 for zero.
pub(super) fn narrow(isa: Isa, row: &[f32], out: &mut [u16]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 && is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the features were checked.
        return unsafe { avx512::narrow(row, out) };
    }
    dispatch!(isa, narrow_row(row: &[f32], out: &mut [u16]));
}

#[inline(always)]
fn narrow_row<const FUSED: bool>(row: &[f32], out: &mut [u16]) {
    for (out, x) in out.iter_mut().zip(row) {
        *out = narrowed(*x);
    }
}

#[inline(always)]
const fn narrowed(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    // A NaN stays one: rounding could carry it into infinity.
    let kept = if x.is_nan() { bits | 0x0040_0000 } else { rounded };
    (kept >> 16) as u16
}

/// Rounds rows of sixteen to bf16 and lays every two of them in one, value beside value, the first one low. A last odd row
/// is paired with zeros.
pub(super) fn interleave(isa: Isa, rows: &[[f32; 16]], out: &mut [[u32; 16]]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 && is_x86_feature_detected!("avx512bf16") {
        // SAFETY: the features were checked.
        return unsafe { avx512::interleave(rows, out) };
    }
    dispatch!(isa, interleave_rows(rows: &[[f32; 16]], out: &mut [[u32; 16]]));
}

#[inline(always)]
fn interleave_rows<const FUSED: bool>(rows: &[[f32; 16]], out: &mut [[u32; 16]]) {
    for (pair, out) in rows.chunks(2).zip(out) {
        let second = pair.get(1).unwrap_or(&[0.0; 16]);
        for ((out, low), high) in out.iter_mut().zip(&pair[0]).zip(second) {
            *out = u32::from(narrowed(*low)) | u32::from(narrowed(*high)) << 16;
        }
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    #[test]
    fn rotating_twice_gives_the_block_times_its_size() {
        for block in [32, 64, 128] {
            let row: Vec<f32> = (0..3 * block).map(|i| (i * i % 17) as f32 - 8.0).collect();
            for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
                let mut twice = row.clone();
                rotate(isa, block, &mut twice);
                rotate(isa, block, &mut twice);
                let expected: Vec<f32> = row.iter().map(|x| x * block as f32).collect();
                assert_eq!(twice, expected, "{isa} {block}");
            }
        }
    }

    #[test]
    fn rows_are_rounded_to_within_half_a_step_and_poison_shows() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            let row: Vec<f32> = (0..77).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.037).collect();
            let mut out = vec![0; row.len()];
            let largest = row.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            let scale = quantise(isa, &row, largest, &mut out);
            for (x, byte) in row.iter().zip(&out) {
                assert!((x - scale * (f32::from(*byte) - 128.0)).abs() <= 0.5001 * scale, "{isa} {x}");
            }
            assert_eq!(out.iter().map(|byte| (i16::from(*byte) - 128).abs()).max(), Some(127));
            let scale = |x: f32| {
                let mut row = [1.0; 64];
                row[40] = x;
                let largest = rotate(isa, 32, &mut row);
                quantise(isa, &row, largest, &mut [0; 64])
            };
            assert!(scale(f32::NAN).is_nan());
            assert!(!scale(f32::INFINITY).is_finite());
            assert!((scale(1.0) - 32.0 / 127.0).abs() < 1e-6);
            assert_eq!(quantise(isa, &[0.0; 40], 0.0, &mut [0; 40]).to_bits(), 1.0_f32.to_bits());
        }
    }

    #[test]
    fn narrowing_is_that_of_the_half_crate() {
        let row = [0.0, -0.0, 1.0, 1.003_906_3, 1.011_718_8, -3.4e38, 1e-40, f32::INFINITY, f32::MAX, 0.1];
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            let mut out = [0; 10];
            narrow(isa, &row, &mut out);
            let expected = row.map(|x| bf16::from_f32(x).to_bits());
            // 1e-40 is zero to the instruction.
            out[6] = expected[6];
            assert_eq!(out, expected, "{isa}");
            narrow(isa, &[f32::NAN; 10], &mut out);
            assert!(out.iter().all(|bits| bf16::from_bits(*bits).is_nan()));
        }
    }

    #[test]
    fn pairs_of_rows_lie_value_beside_value_whatever_the_level() {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            for n_rows in [1, 2, 5, 6] {
                let rows: Vec<[f32; 16]> =
                    (0..n_rows).map(|row| std::array::from_fn(|i| 1.0 + (row * 16 + i) as f32 * 0.37)).collect();
                let mut out = vec![[7; 16]; usize::div_ceil(n_rows, 2)];
                interleave(isa, &rows, &mut out);
                for (row, i) in (0..n_rows.next_multiple_of(2)).flat_map(|row| (0..16).map(move |i| (row, i))) {
                    let half = out[row / 2][i] >> (16 * (row % 2)) & 0xffff;
                    let expected = rows.get(row).map_or(0.0, |row| row[i]);
                    assert_eq!(half, u32::from(bf16::from_f32(expected).to_bits()), "{isa} {n_rows} {row} {i}");
                }
            }
        }
    }
}
