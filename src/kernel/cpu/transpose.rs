//! Sixteen rows to columns: keys become a panel.

use super::Isa;
use super::rows::Rows;
use super::tile::PANEL;

/// Writes the first columns of sixteen rows as rows of sixteen: `out[column][row]`. `out` holds a multiple of 256 values.
///
/// # Safety
/// Sixteen rows of `out.len()/16` values can be read, and nobody writes them meanwhile.
pub(super) unsafe fn transpose(isa: Isa, rows: Rows, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if isa >= Isa::Avx512 {
        for (index, out) in out.as_chunks_mut::<{ PANEL * PANEL }>().0.iter_mut().enumerate() {
            // SAFETY: passed on from the caller.
            unsafe { block_avx512(rows.at(0, index * PANEL), out) };
        }
        return;
    }
    let _ = isa;
    let width = out.len() / PANEL;
    for lane in 0..PANEL {
        // SAFETY: passed on from the caller.
        let row = unsafe { rows.row(lane, width) };
        for (slot, value) in out.iter_mut().skip(lane).step_by(PANEL).zip(row) {
            *slot = *value;
        }
    }
}

/// Pairs of rows, pairs of pairs, then quarters of registers: 64 shuffles for 256 values.
///
/// # Safety
/// As [`transpose`], for sixteen columns; AVX-512 F is there.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn block_avx512(rows: Rows, out: &mut [f32; PANEL * PANEL]) {
    use std::arch::x86_64::{
        _mm512_loadu_ps, _mm512_setzero_ps, _mm512_shuffle_f32x4, _mm512_shuffle_ps, _mm512_storeu_ps,
        _mm512_unpackhi_ps, _mm512_unpacklo_ps,
    };
    let mut x = [_mm512_setzero_ps(); PANEL];
    for (row, x) in x.iter_mut().enumerate() {
        // SAFETY: sixteen values of the row.
        *x = unsafe { _mm512_loadu_ps(rows.at(row, 0).as_ptr()) };
    }
    let mut y = x;
    for pair in 0..8 {
        y[2 * pair] = _mm512_unpacklo_ps(x[2 * pair], x[2 * pair + 1]);
        y[2 * pair + 1] = _mm512_unpackhi_ps(x[2 * pair], x[2 * pair + 1]);
    }
    // x[4q + c] holds, in its quarter l, column 4l + c of rows 4q to 4q + 3.
    for q in 0..4 {
        let [a, b, c, d] = [y[4 * q], y[4 * q + 1], y[4 * q + 2], y[4 * q + 3]];
        x[4 * q] = _mm512_shuffle_ps::<0b01_00_01_00>(a, c);
        x[4 * q + 1] = _mm512_shuffle_ps::<0b11_10_11_10>(a, c);
        x[4 * q + 2] = _mm512_shuffle_ps::<0b01_00_01_00>(b, d);
        x[4 * q + 3] = _mm512_shuffle_ps::<0b11_10_11_10>(b, d);
    }
    for c in 0..4 {
        // Quarters 0 and 2 of all four, then 1 and 3.
        let low = [
            _mm512_shuffle_f32x4::<0b10_00_10_00>(x[c], x[4 + c]),
            _mm512_shuffle_f32x4::<0b10_00_10_00>(x[8 + c], x[12 + c]),
        ];
        let high = [
            _mm512_shuffle_f32x4::<0b11_01_11_01>(x[c], x[4 + c]),
            _mm512_shuffle_f32x4::<0b11_01_11_01>(x[8 + c], x[12 + c]),
        ];
        y[c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(low[0], low[1]);
        y[8 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(low[0], low[1]);
        y[4 + c] = _mm512_shuffle_f32x4::<0b10_00_10_00>(high[0], high[1]);
        y[12 + c] = _mm512_shuffle_f32x4::<0b11_01_11_01>(high[0], high[1]);
    }
    for (y, out) in y.iter().zip(out.as_chunks_mut::<PANEL>().0) {
        // SAFETY: sixteen values.
        unsafe { _mm512_storeu_ps(out.as_mut_ptr(), *y) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_become_rows_on_every_level() {
        let (stride, width) = (50, 48);
        let values: Vec<f32> = (0..PANEL * stride).map(|i| i as f32).collect();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_supported()) {
            let mut out = vec![-1.0; PANEL * width];
            // SAFETY: the rows are in `values`, which nobody writes.
            unsafe { transpose(isa, Rows::read_only(&values, stride), &mut out) };
            for (index, x) in out.iter().enumerate() {
                let expected = values[index % PANEL * stride + index / PANEL];
                assert!((x - expected).abs() < 0.5, "{isa} {index}: {x}");
            }
        }
    }
}
