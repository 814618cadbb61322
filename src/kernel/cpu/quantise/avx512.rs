//! The rotation in AVX-512 registers: spans of 32 and more between registers, shorter ones inside them; and rounding to
//! bf16 with the instruction for it.

use std::arch::x86_64::{
    __m256bh, __m512, __m512bh, __m512i, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512, _mm512_cvtne2ps_pbh,
    _mm512_cvtneps_pbh, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_blend_ps, _mm512_max_epu32,
    _mm512_permute_ps, _mm512_permutexvar_epi16, _mm512_reduce_max_epu32, _mm512_set1_epi32, _mm512_set1_ps,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_f32x4, _mm512_storeu_ps, _mm512_storeu_si512,
    _mm512_sub_ps,
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
            *x = load(values);
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
            // SAFETY: sixteen values.
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

/// # Safety
/// AVX-512 F and BF16 are there.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn narrow(row: &[f32], out: &mut [u16]) {
    let (chunks, tail) = row.as_chunks::<LANES>();
    let (narrow_chunks, narrow_tail) = out.split_at_mut(chunks.len() * LANES);
    for (values, out) in chunks.iter().zip(narrow_chunks.as_chunks_mut::<LANES>().0) {
        let narrowed = _mm512_cvtneps_pbh(load(values));
        // SAFETY: sixteen halves.
        unsafe { out.as_mut_ptr().cast::<__m256bh>().write_unaligned(narrowed) };
    }
    for (x, out) in tail.iter().zip(narrow_tail) {
        *out = super::narrowed(*x);
    }
}

/// # Safety
/// AVX-512 F, BW and BF16 are there.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn interleave(rows: &[[f32; LANES]], out: &mut [[u32; LANES]]) {
    // Halves 0 to 15 are the first row's, 16 to 31 the second's.
    let mut order = [0; 2 * LANES];
    for (i, places) in (0_u16..).zip(order.as_chunks_mut::<2>().0) {
        *places = [i, i + 16];
    }
    // SAFETY: 64 bytes.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    let (pairs, last) = rows.as_chunks::<2>();
    let mut store = |index: usize, low: __m512, high: __m512| {
        let both = _mm512_cvtne2ps_pbh(high, low);
        // SAFETY: both are 64 bytes without invalid values.
        let both = unsafe { std::mem::transmute::<__m512bh, __m512i>(both) };
        let pairs = _mm512_permutexvar_epi16(order, both);
        // SAFETY: sixteen pairs.
        unsafe { _mm512_storeu_si512(out[index].as_mut_ptr().cast(), pairs) };
    };
    for (index, [low, high]) in pairs.iter().enumerate() {
        store(index, load(low), load(high));
    }
    if let [low] = last {
        store(pairs.len(), load(low), _mm512_setzero_ps());
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(values: &[f32; LANES]) -> __m512 {
    // SAFETY: sixteen values.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}
