//! AVX2 tiles for f32: up to 6 rows by one panel of two registers, 12 sums.
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "an address and the one access to it share their reason")]

use std::arch::x86_64::{
    __m256, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
};

use super::{LINE, STEP, Tile};

/// Values of one register.
const LANES: usize = 8;

/// # Safety
/// See [`super::run`].
pub(super) unsafe fn run(rows: usize, tile: &Tile) {
    macro_rules! choose {
        ($($rows:literal)*) => {
            match rows {
                // SAFETY: passed on from the caller.
                $($rows => unsafe { f32_tile::<$rows>(tile) },)*
                _ => unreachable!("at most 6 rows"),
            }
        };
    }
    choose!(1 2 3 4 5 6);
}

/// # Safety
/// See [`super::run`].
#[target_feature(enable = "avx2,fma")]
unsafe fn f32_tile<const ROWS: usize>(tile: &Tile) {
    let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
    for step in 0..tile.steps {
        // SAFETY: the caller promises one panel of all steps.
        let [low, high] = unsafe { both(tile.b.add(step * LINE).cast()) };
        for (row, sums) in sums.iter_mut().enumerate() {
            // SAFETY: the caller promises `ROWS` rows of all steps.
            let value = unsafe { tile.a.add(row * tile.a_stride + step * STEP).cast::<f32>().read_unaligned() };
            let value = _mm256_set1_ps(value);
            sums[0] = _mm256_fmadd_ps(value, low, sums[0]);
            sums[1] = _mm256_fmadd_ps(value, high, sums[1]);
        }
    }
    let mut bias = [_mm256_setzero_ps(); 2];
    if !tile.bias.is_null() {
        // SAFETY: the caller promises one value per column.
        bias = unsafe { both(tile.bias) };
    }
    for (row, sums) in sums.iter().enumerate() {
        // SAFETY: the caller promises `ROWS` rows of one panel.
        let c = unsafe { tile.c.add(row * tile.c_stride) };
        let mut values = [_mm256_add_ps(sums[0], bias[0]), _mm256_add_ps(sums[1], bias[1])];
        if tile.add {
            // SAFETY: as above.
            let held = unsafe { both(c) };
            values = [_mm256_add_ps(values[0], held[0]), _mm256_add_ps(values[1], held[1])];
        }
        // SAFETY: as above.
        unsafe { _mm256_storeu_ps(c, values[0]) };
        // SAFETY: as above, the second eight of them.
        unsafe { _mm256_storeu_ps(c.add(LANES), values[1]) };
    }
}

/// Sixteen values.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn both(start: *const f32) -> [__m256; 2] {
    // SAFETY: the caller promises sixteen values.
    unsafe { [_mm256_loadu_ps(start), _mm256_loadu_ps(start.add(LANES))] }
}
