//! The blocks of an encoder against their f64 references: every option, shapes with tails, every instruction set, number
//! format and number of threads. A block runs as in a model: in tiles, alone or in a team.

use std::sync::Arc;

use embedserve::kernel::cpu::Isa;
use embedserve::kernel::reference::{self, AttentionOptions};
use embedserve::kernel::{
    Activation, Attention, Batch, Compute, Cores, DistanceBias, Embed, FeedForward, Linear, Memory, Norm, Norms,
    PackedMatrix, Precision, Rotary, SelfAttention, Widths, Worker, forward,
};

use crate::support::random::Random;

fn levels() -> impl Iterator<Item = Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_supported())
}

/// Largest absolute difference; a NaN is infinitely far.
fn worst(found: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let differences = found.iter().zip(expected).map(|(found, expected)| (f64::from(*found) - expected).abs());
    differences.fold(0.0, |worst, difference| if difference <= worst { worst } else { f64::max(difference, worst) })
}

/// Offsets of sequences with these lengths.
fn offsets(lengths: &[usize]) -> Vec<usize> {
    let ends = lengths.iter().scan(0, |end, length| {
        *end += length;
        Some(*end)
    });
    std::iter::once(0).chain(ends).collect()
}

/// Runs a block over given hidden states `[n_tokens, hidden]`.
fn run(
    (isa, n_threads): (Isa, usize),
    widths: Widths,
    (x, offsets): (&[f32], &[usize]),
    block: impl Fn(&mut Worker<'_>) + Sync,
) -> Vec<f32> {
    let n_tokens = x.len() / widths.hidden;
    let ids: Vec<u32> = (0..).take(n_tokens).collect();
    // Token i has row i of the table.
    let embed = Embed { width: widths.hidden, word: x.to_vec(), position: None, token_type: None, norm: None };
    let batch = Batch { ids: &ids, positions: &ids, offsets };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(n_threads).build().unwrap();
    let mut memory = Memory::default();
    let mut pass = || {
        forward(Cores { isa, pool: &pool }, widths, &mut memory, batch, |worker| {
            worker.embed(&embed.tables(), None);
            block(worker);
        })
    };
    let first = pass();
    assert_eq!(pass(), first, "what a pass leaves behind changes nothing");
    first
}

struct Layer {
    weight: Vec<f32>,
    bias: Vec<f32>,
    k: usize,
}

impl Layer {
    fn new(random: &mut Random, n: usize, k: usize) -> Self {
        let scale = 1.7 / (k as f32).sqrt();
        Self { weight: random.floats(n * k, scale), bias: random.floats(n, 0.5), k }
    }

    fn packed(&self, precision: Precision, activation: Activation) -> Linear {
        let weight = PackedMatrix::pack_as(precision, self.bias.len(), self.k, &self.weight, Some(self.bias.clone()));
        Linear { weight: Arc::new(weight), activation, isa: Isa::Portable }
    }

    /// The first `n` outputs, and the others.
    fn split_at(&self, n: usize) -> [Self; 2] {
        let part = |rows: std::ops::Range<usize>| Self {
            weight: self.weight[rows.start * self.k..rows.end * self.k].to_vec(),
            bias: self.bias[rows].to_vec(),
            k: self.k,
        };
        [part(0..n), part(n..self.bias.len())]
    }

    fn reference(&self, x: &[f64], activation: Activation) -> Vec<f64> {
        reference::linear(&narrow(x), &self.weight, Some(&self.bias), self.k, activation)
    }
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

#[expect(clippy::cast_possible_truncation, reason = "rounded once, as the kernels do")]
fn narrow(x: &[f64]) -> Vec<f32> {
    x.iter().map(|x| *x as f32).collect()
}

fn sum(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

/// Lengths that make tiles for single threads, outsized sequences for teams, and tails everywhere.
const LENGTHS: [&[usize]; 5] = [&[1], &[3, 17], &[1, 17, 2, 40, 33, 64, 130], &[300, 5, 1, 20], &[50, 21]];

// N-04: the largest score is taken off first, so that no finite score makes the softmax overflow.
#[test]
fn attention_over_scores_of_many_thousands_stays_finite_and_close() {
    const HIDDEN: usize = 32;
    let mut random = Random::new(11);
    let offsets = offsets(&[1, 40, 17]);
    let x = random.floats(offsets.last().unwrap() * HIDDEN, 1.0);
    let mut qkv = Layer::new(&mut random, 3 * HIDDEN, HIDDEN);
    let output = Layer::new(&mut random, HIDDEN, HIDDEN);
    qkv.weight[..2 * HIDDEN * HIDDEN].iter_mut().for_each(|weight| *weight *= 100.0);
    let projected = narrow(&qkv.reference(&widen(&x), Activation::None));
    let none = |_: usize, _: isize| 0.0;
    let options = AttentionOptions { n_heads: 1, scale: 1.0, bias: &none, rotary: None, window: usize::MAX };
    let rows = |span: &[usize]| &projected[span[0] * 3 * HIDDEN..span[1] * 3 * HIDDEN];
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    let own = |row: &[f32]| dot(&row[..HIDDEN], &row[HIDDEN..2 * HIDDEN]).abs();
    let largest = projected.chunks_exact(3 * HIDDEN).map(own).fold(0.0, f64::max);
    assert!(largest > 20_000.0, "{largest} is too small");
    let context: Vec<f64> =
        offsets.windows(2).flat_map(|span| reference::attention(rows(span), HIDDEN, options)).collect();
    let expected = sum(&widen(&x), &output.reference(&context, Activation::None));
    let block = SelfAttention {
        qkv: vec![qkv.packed(Precision::F32, Activation::None)],
        attention: Attention {
            n_heads: 1,
            scale: 1.0,
            bias: None,
            rotary: None,
            window: None,
            precision: Precision::F32,
        },
        output: output.packed(Precision::F32, Activation::None),
    };
    let widths = Widths { hidden: HIDDEN, inner: HIDDEN, middle: 1 };
    for isa in levels() {
        let found = run((isa, 1), widths, (&x, &offsets), |worker| worker.attend(&block, Norms::default()));
        assert!(found.iter().all(|x| x.is_finite()), "{isa}");
        // A score of 10⁵ is known to 0.01 in f32.
        let error = worst(&found, &expected);
        assert!(error < 0.05, "{isa}: {error:e}");
    }
}

// N-05: every option of attention with every other, over sequences shorter and longer than windows, panels and blocks.
#[test]
fn self_attention_matches_the_reference() {
    let mut random = Random::new(4);
    let bias = |head: usize, distance: isize| 0.1 * (head as f64 + 1.0) * (distance.clamp(-20, 20) as f64 * 0.7).sin();
    let none = |_: usize, _: isize| 0.0;
    for ((hidden, n_heads, size), lengths) in
        [(12, 1, 5), (32, 4, 8), (48, 3, 16), (64, 2, 32), (64, 4, 16)].into_iter().zip(LENGTHS)
    {
        let (inner, offsets) = (n_heads * size, offsets(lengths));
        let x = random.floats(offsets.last().unwrap() * hidden, 1.0);
        let (qkv, output) = (Layer::new(&mut random, 3 * inner, hidden), Layer::new(&mut random, hidden, inner));
        let scale = 1.0 / (size as f32).sqrt();
        #[expect(clippy::cast_possible_truncation, reason = "the kernel's table holds f32")]
        let distances = Arc::new(DistanceBias::new(n_heads, 20, |head, distance| bias(head, distance) as f32));
        let rotary = Arc::new(Rotary::new(10_000.0, 1.0, size, 300));
        let projected = narrow(&qkv.reference(&widen(&x), Activation::None));
        for case in 0..8 {
            let (biased, turned, windowed) = (case & 1 > 0, case & 2 > 0 && size % 2 == 0, case & 4 > 0);
            let options = AttentionOptions {
                n_heads,
                scale: f64::from(scale),
                bias: if biased { &bias } else { &none },
                rotary: turned.then_some(10_000.0),
                window: if windowed { 9 } else { usize::MAX },
            };
            let rows = |span: &[usize]| &projected[span[0] * 3 * inner..span[1] * 3 * inner];
            let context: Vec<f64> =
                offsets.windows(2).flat_map(|span| reference::attention(rows(span), inner, options)).collect();
            let expected = sum(&widen(&x), &output.reference(&context, Activation::None));
            let block = |precision| SelfAttention {
                qkv: if case % 2 == 0 {
                    vec![qkv.packed(Precision::F32, Activation::None)]
                } else {
                    qkv.split_at(2 * inner).map(|part| part.packed(Precision::F32, Activation::None)).into()
                },
                attention: Attention {
                    n_heads,
                    scale,
                    bias: biased.then(|| Arc::clone(&distances)),
                    rotary: turned.then(|| Arc::clone(&rotary)),
                    window: windowed.then_some(9),
                    precision,
                },
                output: output.packed(Precision::F32, Activation::None),
            };
            let widths = Widths { hidden, inner, middle: 1 };
            // The products of attention in bf16 are off by what rounding scores and shares to eight bits makes of them.
            for (precision, bar) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.03)] {
                let block = block(precision);
                for isa in levels().filter(|isa| Compute { isa: *isa, precision }.check().is_ok()) {
                    let runs: Vec<_> = [1, 2, 5]
                        .map(|n| {
                            run((isa, n), widths, (&x, &offsets), |worker| worker.attend(&block, Norms::default()))
                        })
                        .into();
                    let error = worst(&runs[0], &expected);
                    assert!(error < bar, "{isa} {precision} {n_heads}x{size} case {case}: {error:e}");
                    assert!(precision == Precision::F32 || error > 1e-5, "{isa}: this is not bf16");
                    assert!(runs.iter().all(|run| *run == runs[0]), "{isa}: the number of threads changes bits");
                }
            }
        }
    }
}

// N-05
#[test]
fn feed_forward_with_any_norms_matches_the_reference() {
    let mut random = Random::new(14);
    for ((hidden, middle), lengths) in [(5, 7), (33, 50), (48, 100), (64, 192), (64, 130)].into_iter().zip(LENGTHS) {
        let offsets = offsets(lengths);
        let x = random.floats(offsets.last().unwrap() * hidden, 1.0);
        let (gamma, beta) = (random.floats(hidden, 1.0), random.floats(hidden, 1.0));
        let norm = Norm::layer(gamma.clone(), Some(beta.clone()), 1e-5);
        let normed = |x: &[f64]| -> Vec<f64> {
            x.chunks(hidden).flat_map(|row| reference::layer_norm(row, &gamma, Some(&beta), 1e-5)).collect()
        };
        for (gated, before, activation) in [
            (false, false, Activation::Gelu),
            (false, true, Activation::Relu),
            (true, true, Activation::GeluTanh),
            (true, false, Activation::Silu),
        ] {
            let up = Layer::new(&mut random, if gated { 2 * middle } else { middle }, hidden);
            let down = Layer::new(&mut random, hidden, middle);
            let input = if before { normed(&widen(&x)) } else { widen(&x) };
            let inside = if gated {
                let gate = |row: &[f64]| -> Vec<f64> {
                    let (a, b) = row.split_at(middle);
                    a.iter().zip(b).map(|(a, b)| reference::activate(activation, *a) * b).collect()
                };
                up.reference(&input, Activation::None).chunks(2 * middle).flat_map(gate).collect()
            } else {
                up.reference(&input, activation)
            };
            let result = sum(&widen(&x), &down.reference(&inside, Activation::None));
            let expected = if before { result } else { normed(&result) };
            let block = FeedForward {
                up: up.packed(Precision::F32, if gated { Activation::None } else { activation }),
                gate: gated.then_some(activation),
                down: down.packed(Precision::F32, Activation::None),
            };
            let norms = Norms { before: before.then_some(&norm), after: (!before).then_some(&norm) };
            let widths = Widths { hidden, inner: 1, middle: up.bias.len() };
            for isa in levels() {
                let runs = [1, 2, 5]
                    .map(|n| run((isa, n), widths, (&x, &offsets), |worker| worker.feed_forward(&block, norms)));
                let error = worst(&runs[0], &expected);
                assert!(error < 1e-4, "{isa} {hidden}x{middle} gated {gated}: {error:e}");
                assert!(runs.iter().all(|run| *run == runs[0]), "{isa}: the number of threads changes bits");
            }
        }
    }
}

/// Which levels multiply in a format themselves; the others take the portable tiles.
fn has_instructions(precision: Precision) -> bool {
    #[cfg(target_arch = "x86_64")]
    return match precision {
        Precision::F32 => true,
        Precision::F16 => false,
        Precision::Bf16 => is_x86_feature_detected!("avx512bf16"),
        Precision::Int8 => is_x86_feature_detected!("avx512vnni"),
    };
    #[cfg(not(target_arch = "x86_64"))]
    return precision == Precision::F32;
}

// N-05: errors relative to outputs of about 1: bf16 has 8 bits of mantissa, int8 a step of 1/127 of the largest.
#[test]
fn every_number_format_is_as_exact_as_it_promises_over_odd_shapes() {
    let mut random = Random::new(21);
    for (m, k, n) in [(1, 64, 64), (3, 96, 65), (9, 160, 100), (17, 128, 128), (40, 384, 80), (131, 33, 70), (5, 1, 64)]
    {
        let layer = Layer::new(&mut random, n, k);
        let x = random.floats(m * k, 1.0);
        let expected = layer.reference(&widen(&x), Activation::Gelu);
        for precision in Precision::ON_CPUS {
            let bound = match precision {
                Precision::F32 => 1e-5,
                Precision::F16 | Precision::Bf16 => 1.5e-2,
                Precision::Int8 => 4e-2,
            };
            let found: Vec<Vec<f32>> = levels()
                .filter(|isa| *isa != Isa::Avx512 || has_instructions(precision))
                .map(|isa| {
                    let op = Linear { isa, ..layer.packed(precision, Activation::Gelu) };
                    embedserve::kernel::cpu::linear::linear_rows(isa, &x, &op.weight, op.activation)
                })
                .collect();
            for found in &found {
                let error = worst(found, &expected);
                assert!(error < bound, "{precision} {m}x{k}x{n}: {error:e}");
                // Not exact by accident: the format is really used.
                assert!(precision == Precision::F32 || k < 32 || k % 32 != 0 || error > 1e-5, "{precision} {error:e}");
            }
            // Integers are exact on every level, and bf16 products are summed in one order.
            let differences = found.iter().flat_map(|other| other.iter().zip(&found[0]));
            let apart = differences.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 5e-6, "{precision} {m}x{k}x{n}: levels are {apart:e} apart");
        }
    }
}

// N-06 in every format.
#[test]
fn a_row_has_the_same_bits_in_any_company_in_every_format() {
    let mut random = Random::new(22);
    // The second shape is cut at every border there is: chunks of rows and of k, blocks, tails.
    for (m, k, n, rows) in
        [(150, 160, 112, &[0, 1, 7, 8, 127, 128, 149][..]), (650, 1_700, 37, &[0, 15, 16, 31, 216, 217, 320, 433, 649])]
    {
        let layer = Layer::new(&mut random, n, k);
        let x = random.floats(m * k, 1.0);
        for precision in Precision::ON_CPUS {
            for isa in levels().filter(|isa| *isa != Isa::Avx512 || has_instructions(precision)) {
                if isa == Isa::Portable && m > 150 {
                    continue;
                }
                let packed = layer.packed(precision, Activation::Gelu).weight;
                let product =
                    |x: &[f32]| embedserve::kernel::cpu::linear::linear_rows(isa, x, &packed, Activation::Gelu);
                let together = product(&x);
                for row in rows {
                    assert_eq!(product(&x[row * k..][..k]), together[row * n..][..n], "{precision} {isa} row {row}");
                }
            }
        }
    }
}

// N-02: a poisoned row is seen in every format, and harms nobody else.
#[test]
fn a_nan_stays_in_its_row_and_visible() {
    let mut random = Random::new(23);
    let (k, n) = (128, 64);
    let layer = Layer::new(&mut random, n, k);
    let clean = random.floats(9 * k, 1.0);
    for poison in [f32::NAN, f32::INFINITY] {
        let mut x = clean.clone();
        x[4 * k + 77] = poison;
        for precision in Precision::ON_CPUS {
            for isa in levels().filter(|isa| *isa != Isa::Avx512 || has_instructions(precision)) {
                let packed = layer.packed(precision, Activation::None).weight;
                let product =
                    |x: &[f32]| embedserve::kernel::cpu::linear::linear_rows(isa, x, &packed, Activation::None);
                let (found, expected) = (product(&x), product(&clean));
                for row in (0..9).filter(|row| *row != 4) {
                    assert_eq!(found[row * n..][..n], expected[row * n..][..n], "{precision} {isa}");
                }
                assert!(found[4 * n..5 * n].iter().all(|x| !x.is_finite()), "{precision} {isa}");
            }
        }
    }
}
