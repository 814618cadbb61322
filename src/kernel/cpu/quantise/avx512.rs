//! The rotation in AVX-512 registers: spans of 32 and more between registers, shorter ones inside them.

use std::arch::x86_64::{
    __m512, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_mask_blend_ps, _mm512_max_epu32, _mm512_permute_ps, _mm512_reduce_max_epu32, _mm512_set1_epi32,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_f32x4, _mm512_storeu_ps, _mm512_sub_ps,
};

/// Values of one register.
const LANES: usize = 16;

/// Returns the bits of the largest magnitude, in whose order a NaN is above infinity.
///
/// # Safety
/// AVX-512 F is there.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn rotate(block: usize, row: &mut [f32]) -> u32 {
    match block {
        128 => rotate_blocks::<8>(row),
        64 => rotate_blocks::<4>(row),
        _ => rotate_blocks::<2>(row),
    }
}

#[target_feature(enable = "avx512f")]
fn rotate_blocks<const REGISTERS: usize>(row: &mut [f32]) -> u32 {
    let (one, minus_one) = (_mm512_set1_ps(1.0), _mm512_set1_ps(-1.0));
    // −1 where the second of a pair stands.
    let signs = [0xaaaa, 0xcccc, 0xf0f0, 0xff00].map(|second| _mm512_mask_blend_ps(second, one, minus_one));
    let magnitude = _mm512_set1_epi32(i32::MAX);
    let mut largest = _mm512_setzero_si512();
    for block in row.chunks_exact_mut(REGISTERS * LANES) {
        let mut x = [_mm512_setzero_ps(); REGISTERS];
        for (x, values) in x.iter_mut().zip(block.as_chunks::<LANES>().0) {
            // SAFETY: sixteen values.
            *x = unsafe { _mm512_loadu_ps(values.as_ptr()) };
        }
        let mut half = REGISTERS / 2;
        while half > 0 {
            for first in 0..REGISTERS {
                if first & half == 0 {
                    let (a, b) = (x[first], x[first + half]);
                    (x[first], x[first + half]) = (_mm512_add_ps(a, b), _mm512_sub_ps(a, b));
                }
            }
            half /= 2;
        }
        for x in &mut x {
            *x = pair(*x, _mm512_shuffle_f32x4::<0b01_00_11_10>(*x, *x), signs[3]);
            *x = pair(*x, _mm512_shuffle_f32x4::<0b10_11_00_01>(*x, *x), signs[2]);
            *x = pair(*x, _mm512_permute_ps::<0b01_00_11_10>(*x), signs[1]);
            *x = pair(*x, _mm512_permute_ps::<0b10_11_00_01>(*x), signs[0]);
        }
        for (x, values) in x.iter().zip(block.as_chunks_mut::<LANES>().0) {
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(values.as_mut_ptr(), *x) };
            largest = _mm512_max_epu32(largest, _mm512_and_si512(_mm512_castps_si512(*x), magnitude));
        }
    }
    _mm512_reduce_max_epu32(largest)
}

/// The first of a pair becomes `first + second`, the second `first − second`; `partner` holds each value's other one.
#[inline]
#[target_feature(enable = "avx512f")]
fn pair(x: __m512, partner: __m512, sign: __m512) -> __m512 {
    _mm512_fmadd_ps(x, sign, partner)
}
