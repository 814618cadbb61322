//! Activations, in place. Formulas and errors (against f64, over [-40, 40]):
//!
//! * `gelu` (erf form): `max(x, 0) − |x|·erfc(|x|/√2)/2`, with erfc by Abramowitz and Stegun 7.1.26. The tail form has
//!   no cancellation for negative x. Measured error at most 4e-7 absolute.
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
pub(super) unsafe fn activate_rows(isa: Isa, activation: Activation, (rows, n_rows): (Rows, usize), width: usize) {
    for row in 0..n_rows {
        // SAFETY: passed on from the caller.
        activate(isa, activation, unsafe { rows.row_mut(row, width) });
    }
}

/// The middle of a gated feed-forward network: rows `[a | b]` of `2·width` values become `activation(a)·b`, in place of a.
///
/// # Safety
/// As [`activate_rows`], for both halves.
pub(super) unsafe fn gate_rows(isa: Isa, activation: Activation, (rows, n_rows): (Rows, usize), width: usize) {
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

#[inline(always)]
fn gelu<const FUSED: bool>(x: f32) -> f32 {
    // Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26, |error| <= 1.5e-7.
    const P: f32 = 0.327_591_1;
    const A: [f32; 5] = [0.254_829_6, -0.284_496_72, 1.421_413_8, -1.453_152_1, 1.061_405_4];
    let magnitude = x.abs();
    let a = magnitude * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / multiply_add::<FUSED>(P, a, 1.0);
    let mut poly = A[4];
    poly = multiply_add::<FUSED>(poly, t, A[3]);
    poly = multiply_add::<FUSED>(poly, t, A[2]);
    poly = multiply_add::<FUSED>(poly, t, A[1]);
    poly = multiply_add::<FUSED>(poly, t, A[0]);
    let erfc = poly * t * exp::<FUSED>(-a * a);
    x.max(0.0) - 0.5 * magnitude * erfc
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
