//! Activations, in place. Formulas and errors (against f64, over [-40, 40]):
//!
//! * `gelu` (erf form): `max(x, 0) − |x|·erfc(|x|/√2)/2`. The tail form has no cancellation for negative x. Measured
//!   error at most 3.1e-7 absolute.
//! * `gelu_new` (tanh form): `x·σ(2·√(2/π)·(x + 0.044715·x³))`, at most 1e-6 + 3e-7·|x|.
//! * `silu`: `x·σ(x)`; `tanh`: `1 − 2/(e^{2x} + 1)`; `relu`. At most 5e-7·(1 + |x|).
//!
//! The erf and tanh forms differ by up to 4.7e-4: a model's configuration decides, never speed.

use super::rows::Rows;
use super::{Isa, dispatch, multiply_add};

/// The activation applied to a linear layer's output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Activation {
    #[default]
    None,
    /// Exact, with the error function.
    Gelu,
    /// The tanh approximation, only for models trained with it.
    GeluTanh,
    Relu,
    Silu,
    Tanh,
}

/// Applies `activation` to every value.
pub fn activate(isa: Isa, activation: Activation, values: &mut [f32]) {
    match activation {
        Activation::None => {}
        Activation::Gelu => dispatch!(isa, gelu_all(values: &mut [f32])),
        Activation::GeluTanh => dispatch!(isa, gelu_tanh_all(values: &mut [f32])),
        // Not `f32::max`, which would turn a NaN into a harmless-looking 0.
        Activation::Relu => values.iter_mut().for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x }),
        Activation::Silu => dispatch!(isa, silu_all(values: &mut [f32])),
        Activation::Tanh => dispatch!(isa, tanh_all(values: &mut [f32])),
    }
}

/// Applies `activation` to the first `width` values of rows.
///
/// # Safety
/// The rows are there, and nobody else reads or writes these values meanwhile.
pub(super) unsafe fn activate_rows(isa: Isa, activation: Activation, rows: Rows, n_rows: usize, width: usize) {
    for row in 0..n_rows {
        // SAFETY: passed on from the caller.
        activate(isa, activation, unsafe { rows.row_mut(row, width) });
    }
}

/// The middle of a gated feed-forward network: rows `[a | b]` of `2·width` values become `activation(a)·b`, in place of a.
///
/// # Safety
/// As [`activate_rows`], for both halves.
pub(super) unsafe fn gate_rows(isa: Isa, activation: Activation, rows: Rows, n_rows: usize, width: usize) {
    for row in 0..n_rows {
        // SAFETY: passed on from the caller.
        let (activated, linear) = unsafe { rows.row_mut(row, 2 * width) }.split_at_mut(width);
        activate(isa, activation, activated);
        for (activated, linear) in activated.iter_mut().zip(linear) {
            *activated *= *linear;
        }
    }
}

#[inline(always)]
fn gelu_all<const FUSED: bool>(values: &mut [f32]) {
    for x in values {
        *x = gelu::<FUSED>(*x);
    }
}

#[inline(always)]
fn gelu_tanh_all<const FUSED: bool>(values: &mut [f32]) {
    const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
    for x in values {
        let inner = TWICE_SQRT_2_OVER_PI * multiply_add::<FUSED>(0.044_715 * *x * *x, *x, *x);
        *x /= 1.0 + exp::<FUSED>(-inner);
    }
}

#[inline(always)]
fn silu_all<const FUSED: bool>(values: &mut [f32]) {
    for x in values {
        *x /= 1.0 + exp::<FUSED>(-*x);
    }
}

#[inline(always)]
fn tanh_all<const FUSED: bool>(values: &mut [f32]) {
    for x in values {
        *x = 1.0 - 2.0 / (exp::<FUSED>(2.0 * *x) + 1.0);
    }
}

/// `max(x, 0) − |x|/2·q(|x|)^−16` with `q(a)^−16 ≈ erfc(a/√2)`: one division, and no exponential.
///
/// The power of a polynomial follows the tail of erfc, as in Abramowitz and Stegun's 7.1.28. This one has degree 7 instead
/// of 6, and coefficients that minimise the largest error of `a/2·erfc(a/√2)` over [0, 9], found by linear programming:
/// 4e-8 in exact arithmetic. Where the power overflows the quotient is 0, as it should be.
#[inline(always)]
fn gelu<const FUSED: bool>(x: f32) -> f32 {
    const Q: [f32; 8] = [
        0.999_999_76,
        0.049_871_37,
        0.021_120_042,
        0.003_324_891_7,
        -1.461_357_5e-5,
        7.894_6e-5,
        -2.999_457_8e-6,
        8.983_81e-7,
    ];
    let a = x.abs();
    let mut q = Q[7];
    for coefficient in Q[..7].iter().rev() {
        q = multiply_add::<FUSED>(q, a, *coefficient);
    }
    let (q2, half) = (q * q, 0.5 * a);
    let q4 = q2 * q2;
    let q8 = q4 * q4;
    x.max(0.0) - half / (q8 * q8)
}

/// `e^x`, relative error at most 2.5e-7 inside [-87, 88]; arguments outside are clamped there.
///
/// `x = n·ln 2 + r` with n rounded by the addition of 1.5·2²³, whose mantissa then holds n; `e^r` by Taylor's series to
/// degree 6 on |r| <= ln 2 / 2. Branch-free, so that loops around it vectorise.
#[inline(always)]
pub(crate) fn exp<const FUSED: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // `clamp` passes a NaN on, so that a poisoned row stays visible to the finite check.
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = multiply_add::<FUSED>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = multiply_add::<FUSED>(n, -LN_2_HIGH, clamped);
    let r = multiply_add::<FUSED>(n, -LN_2_LOW, r);
    let mut poly = 1.0 / 720.0;
    poly = multiply_add::<FUSED>(poly, r, 1.0 / 120.0);
    poly = multiply_add::<FUSED>(poly, r, 1.0 / 24.0);
    poly = multiply_add::<FUSED>(poly, r, 1.0 / 6.0);
    poly = multiply_add::<FUSED>(poly, r, 0.5);
    poly = multiply_add::<FUSED>(poly, r, 1.0);
    poly = multiply_add::<FUSED>(poly, r, 1.0);
    poly * f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f80_0000))
}
