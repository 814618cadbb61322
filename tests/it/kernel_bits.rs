//! The kernels give the same bits on every vector instruction set, AVX2, AVX-512 and NEON: matrix products are one chain
//! of fused multiply-adds in rising k, and element-wise functions evaluate one formula. Whoever changes a formula
//! changes its checksum here, which each architecture then confirms (`.ci/emulate-arm` for Arm). AMX multiplies parts of
//! values in blocks: its products have bits of their own, the same in any company (`blocks`).

use std::sync::Arc;

use candle_core::{Device, Tensor};
use embedserve::kernel::cpu::activation::activate;
use embedserve::kernel::{Activation, Isa, Linear, PackedMatrix};

use crate::support::random::Random;

/// The portable level has no fused multiply-add.
fn vector_levels() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_supported() && *isa != Isa::Portable)
}

// N-05
#[test]
fn a_product_is_one_chain_of_fused_multiply_adds() {
    let mut random = Random::new(21);
    for (m, k, n) in [(1, 1, 1), (5, 4, 16), (6, 67, 33), (17, 130, 50), (131, 20, 49)] {
        let (x, weight, bias) = (random.floats(m * k, 1.0), random.floats(n * k, 1.0), random.floats(n, 1.0));
        let chain = |row: &[f32], column: usize| {
            let pairs = row.iter().zip(&weight[column * k..][..k]);
            pairs.fold(0.0, |sum: f32, (x, weight)| x.mul_add(*weight, sum)) + bias[column]
        };
        let expected: Vec<u32> =
            x.chunks(k).flat_map(|row| (0..n).map(|column| chain(row, column).to_bits()).collect::<Vec<_>>()).collect();
        let packed = Arc::new(PackedMatrix::pack(n, k, &weight, Some(bias.clone())));
        for isa in vector_levels().filter(|isa| *isa != Isa::Amx) {
            let op = Linear { weight: Arc::clone(&packed), activation: Activation::None, isa };
            let x = Tensor::from_vec(x.clone(), (m, k), &Device::Cpu).unwrap();
            let found: Vec<f32> = op.forward(&x).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(found.iter().map(|x| x.to_bits()).collect::<Vec<_>>(), expected, "{isa} {m}x{k}x{n}");
        }
    }
}

/// FNV-1a over the bits.
fn checksum(values: &[f32]) -> u64 {
    let bytes = values.iter().flat_map(|x| x.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

// N-05
#[test]
fn activations_have_the_same_bits_everywhere() {
    // 1,003 values: whole vectors and a tail.
    let grid: Vec<f32> = (-501..=501).map(|i| i as f32 * 0.037).collect();
    let expected = [
        (Activation::Gelu, 0x6aee_4455_129b_a019),
        (Activation::GeluTanh, 0x88e2_10a2_66d1_0215),
        (Activation::Silu, 0xe902_e640_0915_e09b),
        (Activation::Tanh, 0xeace_218b_5cea_9cb6),
    ];
    for isa in vector_levels() {
        let found = expected.map(|(activation, _)| {
            let mut values = grid.clone();
            activate(isa, activation, &mut values);
            (activation, checksum(&values))
        });
        assert_eq!(found, expected, "{isa}");
    }
}
