//! AVX-512 tiles: up to 8 rows by 48 columns, 24 sums, three lines of B and one broadcast of A in registers.
//!
//! One body for all formats, unrolled by constant row and panel counts; k advances in fours, with what comes next
//! fetched meanwhile.
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "an address and the one access to it share their reason")]

use std::arch::x86_64::{
    __m512, __m512bh, __m512i, _MM_HINT_T1, _mm_prefetch, _mm512_add_ps, _mm512_castsi512_ps, _mm512_cvtepi32_ps,
    _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mul_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::{LINE, PANEL, STEP, Tile, UNROLL};
use crate::kernel::Precision;

/// # Safety
/// See [`super::run`].
pub(super) unsafe fn run(precision: Precision, rows: usize, panels: usize, tile: &Tile) {
    macro_rules! choose {
        ($body:ident: $($rows:literal)*) => {
            match (rows, panels) {
                $(
                    // SAFETY: passed on from the caller.
                    ($rows, 3) => unsafe { $body::<$rows, 3>(tile) },
                    // SAFETY: as above.
                    ($rows, 2) => unsafe { $body::<$rows, 2>(tile) },
                    // SAFETY: as above.
                    ($rows, _) => unsafe { $body::<$rows, 1>(tile) },
                )*
                _ => unreachable!("at most 8 rows"),
            }
        };
    }
    match precision {
        Precision::F32 => choose!(f32_tile: 1 2 3 4 5 6 7 8),
        Precision::Bf16 => choose!(bf16_tile: 1 2 3 4 5 6 7 8),
        Precision::F16 => unreachable!("no matrix holds float16"),
        Precision::Int8 => choose!(int8_tile: 1 2 3 4 5 6 7 8),
    }
}

/// The loop over k: `$line` loads sixteen columns, `$value` broadcasts one group of a row, `$step` adds the products.
macro_rules! sum_over_k {
    ($tile:ident, $sums:ident, $line:ident, $value:ident, $step:ident) => {{
        let (mut a, mut b, mut next) = ($tile.a, $tile.b, $tile.prefetch.cast::<i8>());
        macro_rules! one {
            ($offset:expr) => {{
                let line = |panel: usize| b.wrapping_add(panel * $tile.panel_stride + $offset * LINE);
                // SAFETY: the caller promises `PANELS` panels of all steps.
                let lines: [_; PANELS] = std::array::from_fn(|panel| unsafe { $line(line(panel)) });
                for (row, sums) in $sums.iter_mut().enumerate() {
                    // SAFETY: the caller promises `ROWS` rows of all steps.
                    let value = unsafe { $value(a.add(row * $tile.a_stride + $offset * STEP)) };
                    for (sum, line) in sums.iter_mut().zip(lines) {
                        *sum = $step(*sum, value, line);
                    }
                }
            }};
        }
        for _ in 0..$tile.steps / UNROLL {
            one!(0);
            one!(1);
            one!(2);
            one!(3);
            for _ in 0..$tile.prefetch_lines {
                _mm_prefetch::<_MM_HINT_T1>(next);
                next = next.wrapping_add(LINE);
            }
            a = a.wrapping_add(UNROLL * STEP);
            b = b.wrapping_add(UNROLL * LINE);
        }
        for _ in 0..$tile.steps % UNROLL {
            one!(0);
            a = a.wrapping_add(STEP);
            b = b.wrapping_add(LINE);
        }
    }};
}

/// # Safety
/// See [`super::run`].
#[target_feature(enable = "avx512f")]
unsafe fn f32_tile<const ROWS: usize, const PANELS: usize>(tile: &Tile) {
    let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
    sum_over_k!(tile, sums, load, broadcast, multiply_add);
    // SAFETY: passed on from the caller.
    unsafe { store(tile, &sums) };
}

/// # Safety
/// See [`super::run`].
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn bf16_tile<const ROWS: usize, const PANELS: usize>(tile: &Tile) {
    let mut sums = [[_mm512_setzero_ps(); PANELS]; ROWS];
    sum_over_k!(tile, sums, load_integers, broadcast_integers, multiply_pairs);
    // SAFETY: passed on from the caller.
    unsafe { store(tile, &sums) };
}

/// # Safety
/// See [`super::run`].
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn int8_tile<const ROWS: usize, const PANELS: usize>(tile: &Tile) {
    let starts = |panel: usize| tile.scales.start.wrapping_add(panel * PANEL).cast();
    // SAFETY: the caller promises one value per column.
    let start: [_; PANELS] = std::array::from_fn(|panel| unsafe { load_integers(starts(panel)) });
    let mut sums = [start; ROWS];
    sum_over_k!(tile, sums, load_integers, broadcast_integers, multiply_fours);
    let factors = |panel: usize| tile.scales.columns.wrapping_add(panel * PANEL).cast();
    // SAFETY: as above.
    let columns: [_; PANELS] = std::array::from_fn(|panel| unsafe { load(factors(panel)) });
    let mut scaled = [[_mm512_setzero_ps(); PANELS]; ROWS];
    for (row, (scaled, sums)) in scaled.iter_mut().zip(sums).enumerate() {
        // SAFETY: the caller promises one value per row.
        let scale = unsafe { broadcast(tile.scales.rows.add(row).cast()) };
        for ((scaled, sum), column) in scaled.iter_mut().zip(sums).zip(columns) {
            *scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scale, column));
        }
    }
    // SAFETY: passed on from the caller.
    unsafe { store(tile, &scaled) };
}

/// Adds the bias and what C holds, as the tile asks, and writes C.
///
/// # Safety
/// See [`super::run`].
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store<const ROWS: usize, const PANELS: usize>(tile: &Tile, sums: &[[__m512; PANELS]; ROWS]) {
    let mut bias = [_mm512_setzero_ps(); PANELS];
    if !tile.bias.is_null() {
        for (panel, bias) in bias.iter_mut().enumerate() {
            // SAFETY: the caller promises one value per column.
            *bias = unsafe { load(tile.bias.add(panel * PANEL).cast()) };
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        for (panel, (sum, bias)) in sums.iter().zip(bias).enumerate() {
            // SAFETY: the caller promises `ROWS` rows of `PANELS` panels.
            let c = unsafe { tile.c.add(row * tile.c_stride + panel * PANEL) };
            let mut value = _mm512_add_ps(*sum, bias);
            if tile.add {
                // SAFETY: as above.
                value = _mm512_add_ps(value, unsafe { load(c.cast()) });
            }
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(c, value) };
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn load(line: *const u8) -> __m512 {
    // SAFETY: the caller promises sixteen values.
    unsafe { _mm512_loadu_ps(line.cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn load_integers(line: *const u8) -> __m512i {
    // SAFETY: the caller promises 64 bytes.
    unsafe { _mm512_loadu_si512(line.cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn broadcast(group: *const u8) -> __m512 {
    // SAFETY: the caller promises four bytes.
    _mm512_set1_ps(unsafe { group.cast::<f32>().read_unaligned() })
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn broadcast_integers(group: *const u8) -> __m512i {
    // SAFETY: the caller promises four bytes.
    _mm512_set1_epi32(unsafe { group.cast::<i32>().read_unaligned() })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn multiply_add(sum: __m512, value: __m512, line: __m512) -> __m512 {
    _mm512_fmadd_ps(value, line, sum)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) fn multiply_pairs(sum: __m512, value: __m512i, line: __m512i) -> __m512 {
    _mm512_dpbf16_ps(sum, pairs(value), pairs(line))
}

#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) fn multiply_fours(sum: __m512i, value: __m512i, line: __m512i) -> __m512i {
    _mm512_dpbusd_epi32(sum, value, line)
}

/// The same 64 bytes as 32 bf16 values.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn pairs(bytes: __m512i) -> __m512bh {
    // SAFETY: both are 64 bytes without invalid values.
    unsafe { std::mem::transmute::<__m512, __m512bh>(_mm512_castsi512_ps(bytes)) }
}
