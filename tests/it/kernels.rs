//! Every kernel against its f64 reference: odd shapes, tails, every instruction set this processor has. The tolerances
//! are the errors that the kernels document.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use embedserve::kernel::cpu::activation::activate;
use embedserve::kernel::reference::AttentionOptions;
use embedserve::kernel::{
    Activation, Attention, DistanceBias, Gate, Isa, Linear, Norm, Normalise, PackedMatrix, Pool, Reduce, Rotary,
    reference,
};

use crate::support::random::Random;

const ACTIVATIONS: [Activation; 6] =
    [Activation::None, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::Silu, Activation::Tanh];

fn levels() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_supported())
}

fn tensor(values: &[f32], width: usize) -> Tensor {
    Tensor::from_vec(values.to_vec(), (values.len() / width, width), &Device::Cpu).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn worst(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let differences = found.iter().zip(expected).map(|(found, expected)| (f64::from(*found) - expected).abs());
    differences.fold(0.0, |worst, difference| if difference <= worst { worst } else { difference })
}

// N-05
#[test]
fn linear_matches_the_reference_over_odd_shapes() {
    let mut random = Random::new(1);
    for (m, k, n) in [(1, 1, 1), (1, 7, 5), (3, 16, 16), (5, 33, 47), (9, 64, 48), (17, 67, 100), (131, 20, 49)] {
        let (x, weight, bias) = (random.floats(m * k, 1.0), random.floats(n * k, 1.0), random.floats(n, 1.0));
        let packed = Arc::new(PackedMatrix::pack(n, k, &weight, Some(bias.clone())));
        for activation in ACTIVATIONS {
            let expected = reference::linear(&x, &weight, Some(&bias), k, activation);
            for isa in levels() {
                let op = Linear { weight: Arc::clone(&packed), activation, isa };
                let error = worst(&values(&op.forward(&tensor(&x, k)).unwrap()), &expected);
                assert!(error < 1e-5, "{isa} {activation:?} {m}x{k}x{n}: {error:e}");
            }
        }
    }
}

#[test]
fn linear_gives_a_row_the_same_bits_alone_and_in_company() {
    let mut random = Random::new(2);
    let (k, n) = (96, 83);
    let (x, weight) = (random.floats(200 * k, 1.0), random.floats(n * k, 1.0));
    let packed = Arc::new(PackedMatrix::pack(n, k, &weight, None));
    let run = |isa, x: &[f32]| {
        let op = Linear { weight: Arc::clone(&packed), activation: Activation::Gelu, isa };
        values(&op.forward(&tensor(x, k)).unwrap())
    };
    for isa in levels() {
        let together = run(isa, &x);
        for row in [0, 1, 7, 8, 127, 128, 199] {
            assert_eq!(run(isa, &x[row * k..][..k]), together[row * n..][..n], "{isa} row {row}");
        }
    }
    if Isa::Avx512.is_supported() {
        assert_eq!(run(Isa::Avx512, &x), run(Isa::Avx2, &x), "vector widths agree bit for bit");
    }
}

#[test]
fn activations_match_their_definitions_from_minus_40_to_40() {
    let grid: Vec<f32> = (-400_000..=400_000).map(|i| i as f32 * 1e-4).collect();
    for activation in ACTIVATIONS {
        let expected: Vec<f64> = grid.iter().map(|x| reference::activate(activation, f64::from(*x))).collect();
        for isa in levels() {
            let mut found = grid.clone();
            activate(isa, activation, &mut found);
            let relative = grid.iter().zip(found.iter().zip(&expected));
            let error = relative.fold(0.0_f64, |worst, (x, (found, expected))| {
                worst.max((f64::from(*found) - expected).abs() / (1.0 + f64::from(x.abs())))
            });
            assert!(error < 5e-7, "{isa} {activation:?}: {error:e}");
        }
    }
    // The two forms of GELU really are different functions.
    let (mut erf, mut tanh) = (grid.clone(), grid);
    activate(Isa::Portable, Activation::Gelu, &mut erf);
    activate(Isa::Portable, Activation::GeluTanh, &mut tanh);
    let difference = erf.iter().zip(&tanh).map(|(erf, tanh)| (erf - tanh).abs()).fold(0.0, f32::max);
    assert!(difference > 4e-4, "{difference:e}");
}

#[test]
fn activations_stay_finite_at_the_ends_and_pass_nan_on() {
    for activation in ACTIVATIONS {
        for isa in levels() {
            let mut x = [f32::MAX, f32::MIN, 1e30, -1e30, 0.0, -0.0];
            activate(isa, activation, &mut x);
            assert!(x.iter().all(|x| x.is_finite()), "{isa} {activation:?}: {x:?}");
            let mut poisoned = [f32::NAN; 17];
            activate(isa, activation, &mut poisoned);
            assert!(poisoned.iter().all(|x| x.is_nan()), "{isa} {activation:?}");
        }
    }
}

#[test]
fn layer_norm_matches_the_reference_also_where_one_pass_would_cancel() {
    let mut random = Random::new(3);
    for width in [1, 3, 16, 31, 33, 384] {
        let (gamma, beta) = (random.floats(width, 1.0), random.floats(width, 1.0));
        // N-04: mean 1e4, variance about 1e-2 in the last block.
        for (mean, spread, bound) in [(0.0, 1.0, 1e-5), (3.0, 0.1, 1e-4), (1e4, 0.1, 5e-2)] {
            let x: Vec<f32> = random.floats(5 * width, spread).into_iter().map(|x| x + mean).collect();
            let rows: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            for beta in [Some(beta.clone()), None] {
                let layer_norm = |row| reference::layer_norm(row, &gamma, beta.as_deref(), 1e-5);
                let expected: Vec<f64> = rows.chunks(width).flat_map(layer_norm).collect();
                for isa in levels() {
                    let op = Normalise { norm: Arc::new(Norm::layer(gamma.clone(), beta.clone(), 1e-5)), isa };
                    let error = worst(&values(&op.forward(&tensor(&x, width)).unwrap()), &expected);
                    assert!(error < bound, "{isa} width {width} mean {mean}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn root_mean_square_norm_matches_the_reference() {
    let mut random = Random::new(13);
    for width in [1, 3, 16, 33, 384] {
        let (gamma, x) = (random.floats(width, 1.0), random.floats(5 * width, 3.0));
        let rows: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let norm = |row| reference::root_mean_square_norm(row, &gamma, 1e-6);
        let expected: Vec<f64> = rows.chunks(width).flat_map(norm).collect();
        for isa in levels() {
            let op = Normalise { norm: Arc::new(Norm::root_mean_square(gamma.clone(), 1e-6)), isa };
            let error = worst(&values(&op.forward(&tensor(&x, width)).unwrap()), &expected);
            assert!(error < 1e-5, "{isa} width {width}: {error:e}");
        }
    }
}

#[test]
fn a_gate_is_the_activated_half_times_the_other() {
    let mut random = Random::new(14);
    for (rows, width) in [(1, 1), (3, 7), (5, 64)] {
        let x = random.floats(rows * 2 * width, 3.0);
        for activation in ACTIVATIONS {
            let row = |row: &[f32]| -> Vec<f64> {
                let (a, b) = row.split_at(width);
                a.iter().zip(b).map(|(a, b)| reference::activate(activation, f64::from(*a)) * f64::from(*b)).collect()
            };
            let expected: Vec<f64> = x.chunks(2 * width).flat_map(row).collect();
            for isa in levels() {
                let op = Gate { activation, isa };
                let error = worst(&values(&op.forward(&tensor(&x, 2 * width)).unwrap()), &expected);
                assert!(error < 1e-5, "{isa} {activation:?} {rows}x{width}: {error:e}");
            }
        }
    }
}

#[test]
fn a_residual_is_added_after_the_activation() {
    let mut random = Random::new(15);
    let (m, k, n) = (131, 20, 49);
    let (x, weight, residual) = (random.floats(m * k, 1.0), random.floats(n * k, 1.0), random.floats(m * n, 1.0));
    let packed = Arc::new(PackedMatrix::pack(n, k, &weight, None));
    let product = reference::linear(&x, &weight, None, k, Activation::Gelu);
    let expected: Vec<f64> = product.iter().zip(&residual).map(|(x, r)| x + f64::from(*r)).collect();
    for isa in levels() {
        let op = Linear { weight: Arc::clone(&packed), activation: Activation::Gelu, isa };
        let error = worst(&values(&op.forward_add(&tensor(&x, k), &tensor(&residual, n)).unwrap()), &expected);
        assert!(error < 1e-5, "{isa}: {error:e}");
        assert!(op.forward_add(&tensor(&x, k), &tensor(&residual[n..], n)).is_err());
    }
}

/// Offsets of sequences with these lengths.
fn offsets(lengths: &[usize]) -> Arc<[usize]> {
    let ends = lengths.iter().scan(0, |end, length| {
        *end += length;
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

fn plain(offsets: &Arc<[usize]>, n_heads: usize, scale: f32) -> Attention {
    let offsets = Arc::clone(offsets);
    Attention { offsets, n_heads, scale, bias: None, rotary: None, window: None, isa: Isa::Portable }
}

// Every combination of what attention may have, over sequences shorter and longer than windows, panels and blocks.
#[test]
fn attention_matches_the_reference_inside_each_sequence() {
    let mut random = Random::new(4);
    let lengths = [1, 17, 2, 40, 33, 64, 130];
    let offsets = offsets(&lengths);
    let total: usize = lengths.iter().sum();
    let bias = |head: usize, distance: isize| 0.1 * (head as f64 + 1.0) * (distance.clamp(-20, 20) as f64 * 0.7).sin();
    let none = |_: usize, _: isize| 0.0;
    for (n_heads, size) in [(1, 5), (4, 8), (3, 16), (2, 34)] {
        let inner = n_heads * size;
        let qkv = random.floats(total * 3 * inner, 2.0);
        let scale = 1.0 / (size as f32).sqrt();
        #[expect(clippy::cast_possible_truncation, reason = "the kernel's table holds f32")]
        let distances = Arc::new(DistanceBias::new(n_heads, 20, |head, distance| bias(head, distance) as f32));
        let rotary = Arc::new(Rotary::new((10_000.0, 1.0), size, 130));
        for case in 0..8 {
            let (biased, turned, windowed) = (case & 1 > 0, case & 2 > 0 && size % 2 == 0, case & 4 > 0);
            let options = AttentionOptions {
                n_heads,
                scale: f64::from(scale),
                bias: if biased { &bias } else { &none },
                rotary: turned.then_some(10_000.0),
                window: if windowed { 9 } else { usize::MAX },
            };
            let rows = |span: &[usize]| &qkv[span[0] * 3 * inner..span[1] * 3 * inner];
            let expected: Vec<f64> =
                offsets.windows(2).flat_map(|span| reference::attention(rows(span), inner, options)).collect();
            for isa in levels() {
                let op = Attention {
                    bias: biased.then(|| Arc::clone(&distances)),
                    rotary: turned.then(|| Arc::clone(&rotary)),
                    window: windowed.then_some(9),
                    isa,
                    ..plain(&offsets, n_heads, scale)
                };
                let error = worst(&values(&op.forward(&tensor(&qkv, 3 * inner)).unwrap()), &expected);
                assert!(error < 1e-5, "{isa} {options:?} biased {biased}: {error:e}");
            }
        }
    }
}

#[test]
fn attention_refuses_rows_beyond_its_positions() {
    let op = Attention { rotary: Some(Arc::new(Rotary::new((10.0, 1.0), 4, 19))), ..plain(&offsets(&[20]), 1, 1.0) };
    assert!(op.forward(&tensor(&[0.5; 20 * 12], 12)).is_err());
}

#[test]
fn attention_with_huge_scores_is_finite() {
    let qkv: Vec<f32> = (0..20 * 12).map(|i| if i % 2 == 0 { 1e4 } else { -1e4 }).collect();
    let op = Attention { isa: Isa::detect(), ..plain(&offsets(&[20]), 1, 1.0) };
    assert!(values(&op.forward(&tensor(&qkv, 12)).unwrap()).iter().all(|x| x.is_finite()));
}

#[test]
fn every_reduction_matches_the_reference() {
    let mut random = Random::new(5);
    let (width, offsets) = (19, [0_usize, 1, 8, 40]);
    let hidden = random.floats(40 * width, 1.0);
    let reduces = [Reduce::First, Reduce::Last, Reduce::Max, Reduce::Mean, Reduce::MeanSqrtLen, Reduce::WeightedMean];
    // Nothing left out, a part, all of the shorter sequences, more than there is.
    for skips in [[0, 0, 0], [0, 3, 1], [1, 7, 31], [5, 8, 99]] {
        for reduce in reduces {
            let expected: Vec<f64> = offsets
                .windows(2)
                .zip(skips)
                .flat_map(|(span, skip)| {
                    reference::reduce(reduce, &hidden[span[0] * width..span[1] * width], width, skip)
                })
                .collect();
            let op = Pool { reduce, offsets: Arc::from(offsets), skips: Arc::from(skips) };
            let found = values(&op.forward(&tensor(&hidden, width)).unwrap());
            let equal = |(found, expected): (&f32, &f64)| {
                f64::from(*found).total_cmp(expected).is_eq() || (f64::from(*found) - expected).abs() < 1e-6
            };
            assert!(found.iter().zip(&expected).all(equal), "{reduce:?} {skips:?}");
        }
    }
}

#[test]
fn a_strided_tensor_is_refused_not_copied() {
    let x = tensor(&[1.0; 12], 4).t().unwrap();
    let packed = Arc::new(PackedMatrix::pack(2, 3, &[1.0; 6], None));
    let op = Linear { weight: packed, activation: Activation::None, isa: Isa::Portable };
    assert!(op.forward(&x).is_err());
}
