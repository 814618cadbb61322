//! f32 products on AMX: every value as the sum of three bf16, and six products of parts instead of one.
//!
//! `x = x₀ + x₁ + x₂`, each part what bf16 keeps of what the parts before leave over: of a row rounded, of a weight cut
//! off, which takes fewer instructions, and the weights are the many. Three times eight bits hold the 24 of an f32, so
//! either sum is exact, short of what is below 1e-38. Of the nine products `a_i·b_j` those with `i + j > 2` are left out:
//! 2⁻²⁵·⁷ of `a·b` in the root mean square, about what rounding one f32 product costs, with either sign because a row's parts
//! have either. Products of parts are exact in the f32 they
//! are summed in, and sixteen of them are summed before the large sum is touched (see [`super`]), so the result is no
//! further from the true one than that of a chain of fused multiply-adds. Sixteen times the rate of AVX-512 over six
//! products leaves 2.7 times the f32 rate of AVX-512 (`BF16x3` of oneMKL is the same idea).
//!
//! Operands lie in blocks of 32 values of k, the three parts of each behind each other: `[row][k/32][3][32]` for A,
//! `[k/32][panel][3][16][16][2]` for B. What lies past k is zero.
//!
//! Weights stay f32 in memory. The first tile of rows splits each block of its panels while it multiplies the one before:
//! splitting takes the vector units, multiplying the tile registers, and the processor does both at once.
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "an address and the one access to it share their reason")]

use std::arch::asm;
use std::arch::x86_64::{
    __m256i, __m512, __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_and_si512, _mm512_castps_si512,
    _mm512_castsi512_ps, _mm512_castsi512_si256, _mm512_cvtepu16_epi32, _mm512_cvtne2ps_pbh, _mm512_extracti64x4_epi64,
    _mm512_loadu_ps, _mm512_or_si512, _mm512_set1_epi32, _mm512_setzero_ps, _mm512_slli_epi32, _mm512_srli_epi32,
    _mm512_storeu_si512, _mm512_sub_ps,
};

use super::super::avx512::load;
use super::{SIDE, Sums, finish, store_sums, zero_sums};
use crate::kernel::cpu::tile::{LINE, PANEL, STEP, Tile};

/// Parts of one value.
pub(in crate::kernel::cpu) const PARTS: usize = 3;
/// Values of k in one block: two of them to a step, sixteen steps to a tile register.
pub(in crate::kernel::cpu) const BLOCK: usize = 2 * SIDE;
/// Bytes of one part of a block of one row.
const ROW_BYTES: usize = SIDE * STEP;
/// Bytes of one part of a block of one panel.
const PANEL_BYTES: usize = SIDE * LINE;
/// Lines of a panel that are fetched before they are split.
const FETCH_AHEAD: usize = 2 * BLOCK;

/// bf16 halves of one block of a panel, all parts.
pub(in crate::kernel::cpu) const PANEL_BLOCK_LEN: usize = PARTS * PANEL_BYTES / size_of::<u16>();
/// bf16 halves of one block of a row, all parts.
pub(in crate::kernel::cpu) const ROW_BLOCK_LEN: usize = PARTS * BLOCK;

/// Panels of f32 that a tile splits as it goes.
#[derive(Debug, Clone, Copy)]
pub(in crate::kernel::cpu) struct Source {
    /// The first value of k of the first panel.
    pub(in crate::kernel::cpu) from: *const u8,
    /// Bytes from one panel to the next.
    pub(in crate::kernel::cpu) panel_stride: usize,
    /// Values of k.
    pub(in crate::kernel::cpu) k: usize,
    /// Whether the parts are kept for further rows; otherwise two blocks take turns in the same place.
    pub(in crate::kernel::cpu) keep: bool,
}

/// Sixteen columns at 32 values of k, or at fewer where the block is not `WHOLE`.
///
/// # Safety
/// The lines can be read, and [`PANEL_BLOCK_LEN`] halves written.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn split_panel_block<const WHOLE: bool>(from: *const u8, lines: usize, to: *mut u16) {
    let high_halves = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
    for step in 0..SIDE {
        let line = |index: usize| {
            if !WHOLE && index >= lines {
                return _mm512_setzero_ps();
            }
            // SAFETY: the caller promises these lines.
            unsafe { load(from.add(index * LINE)) }
        };
        let (mut even, mut odd) = (line(2 * step), line(2 * step + 1));
        let next = from.wrapping_add((2 * step + FETCH_AHEAD) * LINE).cast::<i8>();
        _mm_prefetch::<_MM_HINT_T0>(next);
        _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(LINE));
        for part in 0..PARTS {
            let (even_bits, odd_bits) = (_mm512_castps_si512(even), _mm512_castps_si512(odd));
            // The upper half of either: the even line's goes down.
            let odd_part = _mm512_and_si512(odd_bits, high_halves);
            let pairs = _mm512_or_si512(_mm512_srli_epi32::<16>(even_bits), odd_part);
            // SAFETY: the caller promises all parts.
            unsafe { _mm512_storeu_si512(to.byte_add(part * PANEL_BYTES + step * LINE).cast(), pairs) };
            even = _mm512_sub_ps(even, _mm512_castsi512_ps(_mm512_and_si512(even_bits, high_halves)));
            odd = _mm512_sub_ps(odd, _mm512_castsi512_ps(odd_part));
        }
    }
}

/// Splits a row into `[k/32]` blocks of [`ROW_BLOCK_LEN`].
///
/// # Safety
/// AMX is there.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(in crate::kernel::cpu) unsafe fn split_row(row: &[f32], out: &mut [u16]) {
    let (blocks, tail) = row.as_chunks::<BLOCK>();
    let (parts, rest) = out.split_at_mut(blocks.len() * ROW_BLOCK_LEN);
    for (block, parts) in blocks.iter().zip(parts.as_chunks_mut::<ROW_BLOCK_LEN>().0) {
        split_row_block(block, parts);
    }
    if let (false, Some(parts)) = (tail.is_empty(), rest.first_chunk_mut()) {
        let mut block = [0.0; BLOCK];
        block[..tail.len()].copy_from_slice(tail);
        split_row_block(&block, parts);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn split_row_block(block: &[f32; BLOCK], parts: &mut [u16; ROW_BLOCK_LEN]) {
    // SAFETY: 32 values.
    let (mut low, mut high) = unsafe { (_mm512_loadu_ps(block.as_ptr()), _mm512_loadu_ps(block.as_ptr().add(PANEL))) };
    for part in parts.as_chunks_mut::<BLOCK>().0 {
        let halves = narrow(high, low);
        // SAFETY: 32 halves.
        unsafe { _mm512_storeu_si512(part.as_mut_ptr().cast(), halves) };
        low = _mm512_sub_ps(low, widen(_mm512_castsi512_si256(halves)));
        high = _mm512_sub_ps(high, widen(_mm512_extracti64x4_epi64::<1>(halves)));
    }
}

/// 32 values in bf16, the first argument's in the upper half.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn narrow(high: __m512, low: __m512) -> __m512i {
    // SAFETY: both are 64 bytes without invalid values.
    unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn widen(halves: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
}

/// Computes a tile of up to 32 rows and two panels, `steps` being blocks of k: of panels that are split, or of those of
/// `source`, whose parts go where B lies.
///
/// # Safety
/// As [`crate::kernel::cpu::tile::run`], for operands in the form above. With a source, its panels can be read, and nobody
/// else reads or writes B.
pub(in crate::kernel::cpu) unsafe fn run(rows: usize, panels: usize, tile: &Tile, source: Option<&Source>) {
    match (rows > SIDE, panels) {
        // SAFETY: passed on from the caller, here and below.
        (false, 1) => unsafe { tile_of::<false, 1>(rows, tile, source) },
        // SAFETY: as above.
        (false, _) => unsafe { tile_of::<false, 2>(rows, tile, source) },
        // SAFETY: as above.
        (true, 1) => unsafe { tile_of::<true, 1>(rows, tile, source) },
        // SAFETY: as above.
        (true, _) => unsafe { tile_of::<true, 2>(rows, tile, source) },
    }
}

/// # Safety
/// See [`run`].
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
unsafe fn tile_of<const TALL: bool, const PANELS: usize>(rows: usize, tile: &Tile, source: Option<&Source>) {
    let mut sums = Sums::new();
    let sums = sums.as_mut_ptr();
    let second_row = if TALL { rows - SIDE } else { 0 };
    let mut a = tile.a;
    let place = |block: usize| {
        let index = if source.is_none_or(|source| source.keep) { block } else { block % 2 };
        tile.b.wrapping_add(index * PANELS * PARTS * PANEL_BYTES)
    };
    let split = |block: usize| {
        if let Some(source) = source {
            let lines = BLOCK.min(source.k - block * BLOCK);
            for panel in 0..PANELS {
                let from = source.from.wrapping_add(panel * source.panel_stride + block * BLOCK * LINE);
                let to = place(block).wrapping_add(panel * PARTS * PANEL_BYTES).cast_mut().cast();
                // SAFETY: the caller promises the panels of the source, and the place of B.
                unsafe {
                    if lines == BLOCK {
                        split_panel_block::<true>(from, lines, to);
                    } else {
                        split_panel_block::<false>(from, lines, to);
                    }
                }
            }
        }
    };
    zero_sums();
    split(0);
    for block in 0..tile.steps {
        // SAFETY: the caller promises this block of sixteen rows from both starts, and of all panels.
        unsafe { multiply_block::<TALL, PANELS>(a, tile.a_stride, second_row, place(block)) };
        if block + 1 < tile.steps {
            split(block + 1);
        }
        a = a.wrapping_add(PARTS * ROW_BYTES);
    }
    // SAFETY: the buffer holds 32 rows of two panels.
    unsafe { store_sums::<TALL, PANELS>(second_row, sums) };
    // SAFETY: passed on from the caller.
    unsafe { finish::<false, PANELS>(rows, tile, sums) };
}

/// Adds the products of one block of k to the sums.
///
/// # Safety
/// Sixteen rows of A from both starts, and both panels, have this block.
#[inline]
unsafe fn multiply_block<const TALL: bool, const PANELS: usize>(
    a: *const u8,
    a_stride: usize,
    second_row: usize,
    b: *const u8,
) {
    let below = a.wrapping_add(second_row * a_stride);
    let second_panel = b.wrapping_add(PARTS * PANEL_BYTES);
    // Part `a_part` of A with the parts of B that belong to it.
    macro_rules! multiply_part {
        ($a_part:literal: $($b_part:literal)*) => {
            load!(4, a.wrapping_add($a_part * ROW_BYTES), a_stride);
            if TALL {
                load!(5, below.wrapping_add($a_part * ROW_BYTES), a_stride);
            }
            $(
                load!(6, b.wrapping_add($b_part * PANEL_BYTES), LINE);
                multiply!(false: 0 += 4, 6);
                if TALL {
                    multiply!(false: 2 += 5, 6);
                }
                if PANELS > 1 {
                    load!(7, second_panel.wrapping_add($b_part * PANEL_BYTES), LINE);
                    multiply!(false: 1 += 4, 7);
                    if TALL {
                        multiply!(false: 3 += 5, 7);
                    }
                }
            )*
        };
    }
    // SAFETY: passed on from the caller.
    unsafe {
        multiply_part!(2: 0);
        multiply_part!(1: 1 0);
        multiply_part!(0: 2 1 0);
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::kernel::cpu::Isa;

    fn value(bits: u16) -> f64 {
        f64::from(bf16::from_bits(bits).to_f32())
    }

    /// Zeros have no sign in a sum.
    fn bits(x: f32) -> u64 {
        (f64::from(x) + 0.0).to_bits()
    }

    /// Mantissas of all kinds and exponents from 1e-30 to 1e30.
    fn values(n: usize) -> Vec<f32> {
        let exponents = [-100, -37, -12, -3, -1, 0, 1, 2, 9, 40, 99].into_iter().cycle();
        let mantissa = |i: usize| 1.0 + (i * 7_919_993 % 8_388_608) as f32 / 8_388_608.0;
        let sign = |i: usize| if i.is_multiple_of(3) { -1.0 } else { 1.0 };
        (0..n).zip(exponents).map(|(i, exponent)| sign(i) * mantissa(i) * f32::powi(2.0, exponent)).collect()
    }

    #[test]
    fn the_parts_of_a_value_sum_up_to_it_exactly() {
        if !Isa::Amx.is_supported() {
            return;
        }
        let row: Vec<f32> = values(5000).into_iter().chain([0.0, -0.0, 1.0, f32::MAX / 2.0]).collect();
        let mut parts = vec![7; row.len().div_ceil(BLOCK) * ROW_BLOCK_LEN];
        // SAFETY: the level was just checked.
        unsafe { split_row(&row, &mut parts) };
        for (block, parts) in row.chunks(BLOCK).zip(parts.as_chunks::<ROW_BLOCK_LEN>().0) {
            for i in 0..BLOCK {
                let sum: f64 = (0..PARTS).map(|part| value(parts[part * BLOCK + i])).sum();
                assert_eq!(sum.to_bits(), bits(*block.get(i).unwrap_or(&0.0)));
            }
        }
    }

    #[test]
    fn panels_are_split_like_rows_and_padded_with_zeros() {
        if !Isa::Amx.is_supported() {
            return;
        }
        for lines in [1, 2, 17, 31, 32] {
            let panel = values(lines * PANEL);
            let mut parts = vec![7; PANEL_BLOCK_LEN];
            // SAFETY: the level was just checked; a block that is not whole reads no further than its lines.
            unsafe { split_panel_block::<false>(panel.as_ptr().cast(), lines, parts.as_mut_ptr()) };
            for (k, column) in (0..BLOCK).flat_map(|k| (0..PANEL).map(move |column| (k, column))) {
                let place = |part: usize| ((part * SIDE + k / 2) * PANEL + column) * 2 + k % 2;
                let sum: f64 = (0..PARTS).map(|part| value(parts[place(part)])).sum();
                let expected = if k < lines { panel[k * PANEL + column] } else { 0.0 };
                assert_eq!(sum.to_bits(), bits(expected), "{lines} lines, {k}, {column}");
            }
        }
    }
}
