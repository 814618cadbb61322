//! Every kernel against its f64 reference: odd shapes, tails, every instruction set this processor has. The tolerances
//! are the errors that the kernels document.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use embedserve::kernel::cpu::activation::activate;
use embedserve::kernel::cpu::norm::normalise_row;
use embedserve::kernel::{Activation, Isa, Linear, Norm, PackedMatrix, Pool, Reduce, reference};

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

// N-06
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

// N-05
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
            if activation == Activation::Gelu {
                let errors = found.iter().zip(&expected).map(|(found, expected)| (f64::from(*found) - expected).abs());
                let near = grid.iter().zip(errors).filter(|(x, _)| x.abs() < 8.0).map(|(_, error)| error);
                let error = near.fold(0.0, f64::max);
                assert!(error < 3.1e-7, "{isa}, absolute: {error:e}");
            }
        }
    }
    // The two forms of GELU really are different functions.
    let (mut erf, mut tanh) = (grid.clone(), grid);
    activate(Isa::Portable, Activation::Gelu, &mut erf);
    activate(Isa::Portable, Activation::GeluTanh, &mut tanh);
    let difference = erf.iter().zip(&tanh).map(|(erf, tanh)| (erf - tanh).abs()).fold(0.0, f32::max);
    assert!(difference > 4e-4, "{difference:e}");
}

// N-04
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

fn normalised(isa: Isa, x: &[f32], norm: &Norm) -> Vec<f32> {
    let mut out = x.to_vec();
    out.chunks_exact_mut(norm.width()).for_each(|row| normalise_row(isa, row, norm));
    out
}

// N-04, N-05
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
                    let norm = Norm::layer(gamma.clone(), beta.clone(), 1e-5);
                    let error = worst(&normalised(isa, &x, &norm), &expected);
                    assert!(error < bound, "{isa} width {width} mean {mean}: {error:e}");
                }
            }
        }
    }
}

// N-05
#[test]
fn root_mean_square_norm_matches_the_reference() {
    let mut random = Random::new(13);
    for width in [1, 3, 16, 33, 384] {
        let (gamma, x) = (random.floats(width, 1.0), random.floats(5 * width, 3.0));
        let rows: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let norm = |row| reference::root_mean_square_norm(row, &gamma, 1e-6);
        let expected: Vec<f64> = rows.chunks(width).flat_map(norm).collect();
        for isa in levels() {
            let error = worst(&normalised(isa, &x, &Norm::root_mean_square(gamma.clone(), 1e-6)), &expected);
            assert!(error < 1e-5, "{isa} width {width}: {error:e}");
        }
    }
}

// N-05
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

// N-05
#[test]
fn a_strided_tensor_is_refused_not_copied() {
    let x = tensor(&[1.0; 12], 4).t().unwrap();
    let packed = Arc::new(PackedMatrix::pack(2, 3, &[1.0; 6], None));
    let op = Linear { weight: packed, activation: Activation::None, isa: Isa::Portable };
    assert!(op.forward(&x).is_err());
}
