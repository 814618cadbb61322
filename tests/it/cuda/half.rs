//! float16 on the device: its conversions, and that an overflow is always seen.

use embedserve::kernel::Precision;
use embedserve::kernel::cuda::Format;
use embedserve::kernel::cuda::launch::{DeviceAttention, Pass, Residual, Stream};
use half::f16;

use super::{gpu, loaded, narrow, numbers, widened};
use crate::support::random::Random;
use crate::support::tiny_model::TinyModel;

/// Heads of 32 values, which the matrix units have.
fn model() -> TinyModel {
    TinyModel { hidden: 128, ..TinyModel::default() }
}

// All numbers of the format become floats and come back; floats go to the nearest one, ties to even.
#[tokio::test]
async fn numbers_are_narrowed_and_widened_by_the_standard() {
    let Some((device, _turn)) = gpu("cuda::half::numbers_are_narrowed_and_widened_by_the_standard").await else {
        return;
    };
    let width = 1 << 10;
    let numbers = numbers(&device, &[64], &[0], Format::F16);
    let pass = Pass { device: &device, format: Format::F16, tokens: 64, places: numbers.places() };
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let (residual, out) = (device.upload(&vec![0.0_f32; all.len()]).unwrap(), device.allocate(2 * all.len()).unwrap());
    let sum = |buffer| Residual { buffer, width, becomes: Stream::Sum };
    pass.add_norm(sum(&residual), Some(&device.upload(&all).unwrap()), None, &out).unwrap();
    let wide = device.read(&residual, all.len()).unwrap();
    let back: Vec<u16> = narrow(&device, &out, all.len()).collect();
    for ((bits, wide), back) in all.iter().zip(&wide).zip(back) {
        let expected = f16::from_bits(*bits);
        if expected.is_nan() {
            assert!(wide.is_nan() && f16::from_bits(back).is_nan(), "{bits:#x}: {wide} {back:#x}");
        } else {
            // Minus zero plus zero is zero.
            let same = if *bits == 0x8000 { 0 } else { *bits };
            assert_eq!((*wide, back), (expected.to_f32(), same), "{bits:#x}");
        }
    }
    // Between every two neighbours: the middle, and a little to both sides of it; and numbers of every size.
    let mut random = Random::new(13);
    let middles = (0..0x7c00_u16).step_by(7).flat_map(|bits| {
        let [low, high] = [bits, bits + 1].map(|bits| f16::from_bits(bits).to_f32());
        // Infinity stands for what would follow the largest number.
        let middle = if high.is_finite() { f32::midpoint(low, high) } else { 65520.0 };
        [middle, middle.next_up(), middle.next_down(), -middle]
    });
    let sizes = random.floats(1 << 14, 1.0).into_iter().enumerate();
    let sizes = sizes.map(|(index, x)| x * 2.0_f32.powi(i32::try_from(index % 50).unwrap() - 30));
    let mut values: Vec<f32> = middles.chain(sizes).collect();
    values.resize(1 << 16, f32::INFINITY);
    let residual = device.upload(&values).unwrap();
    pass.add_norm(sum(&residual), None, None, &out).unwrap();
    for (value, found) in values.iter().zip(narrow(&device, &out, values.len())) {
        assert_eq!(found, f16::from_f32(*value).to_bits(), "{value:e}");
    }
}

// A product of minus infinity looks like a key that is not seen: its weight would be zero, and the vector finite and wrong.
#[tokio::test]
async fn an_overflow_does_not_hide_behind_the_softmax() {
    let Some((device, _turn)) = gpu("cuda::half::an_overflow_does_not_hide_behind_the_softmax").await else { return };
    let (n_heads, head_size, tokens) = (2, 32, 70);
    let inner = n_heads * head_size;
    for format in [Format::F32, Format::F16, Format::Bf16] {
        let mut values = Random::new(17).floats(tokens * 3 * inner, 1.0);
        for token in 0..tokens {
            // All queries of the first head are negative where one of its keys has overflowed.
            values[token * 3 * inner] = -0.5;
        }
        values[33 * 3 * inner + inner] = f32::INFINITY;
        let numbers = numbers(&device, &[tokens], &[0], format);
        let (qkv, out) = (format.upload(&device, &values).unwrap(), device.allocate(tokens * inner * 4).unwrap());
        let attention = DeviceAttention { n_heads, head_size, scale: 0.2, bias: None, rotary: None, window: None };
        let pass = Pass { device: &device, format, tokens, places: numbers.places() };
        pass.attend(&qkv, attention, &out).unwrap();
        let found = widened(&device, &out, tokens * inner, format);
        for (index, value) in found.iter().enumerate() {
            assert_eq!(value.is_nan(), index % inner < head_size, "{format:?} {index}: {value}");
        }
    }
}

// Nothing is replaced silently: the model is refused, and bf16 has to be asked for.
#[tokio::test]
async fn a_model_that_overflows_is_refused_with_the_way_out() {
    let Some((device, _turn)) = gpu("cuda::half::a_model_that_overflows_is_refused_with_the_way_out").await else {
        return;
    };
    let load = |up: f32, dtype| loaded(TinyModel { up, ..model() }.write().path(), &device, dtype).map(drop);
    assert_eq!(load(0.4, Precision::F16), Ok(()));
    // Weights that float16 has, and sums that it has not.
    let sums = load(3e4, Precision::F16).unwrap_err();
    assert!(sums.contains("44 of 44 known texts") && sums.contains("use dtype = bf16 or f32"), "{sums}");
    let weights = load(1e5, Precision::F16).unwrap_err();
    assert!(weights.contains("is beyond float16") && weights.contains("use dtype = bf16 or f32"), "{weights}");
    for dtype in [Precision::F32, Precision::Bf16] {
        assert_eq!(load(1e5, dtype), Ok(()), "{dtype}");
    }
}
