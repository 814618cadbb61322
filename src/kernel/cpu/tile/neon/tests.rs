//! Every NEON tile against the order of sums it promises, one value after the other and bit for bit. The emulated
//! processor of the run decides which extensions are there.

use super::super::{PANEL, largest};
use super::*;
use crate::kernel::Isa;

const ROWS: usize = largest(Isa::Neon, Precision::F32).0;
const COLUMNS_OF_C: usize = 20;

/// Inputs of one tile, as bytes.
struct Case {
    precision: Precision,
    rows: usize,
    steps: usize,
    a: Vec<u8>,
    b: Vec<u8>,
    row_scales: Vec<f32>,
    column_scales: Vec<f32>,
    bias: Vec<f32>,
    c: Vec<f32>,
}

/// SplitMix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Uniform in [-1, 1).
fn float(state: &mut u64) -> f32 {
    (next(state) >> 40) as f32 / (1 << 23) as f32 - 1.0
}

fn floats(state: &mut u64, n: usize) -> Vec<f32> {
    (0..n).map(|_| float(state)).collect()
}

/// Four bytes of one step; the weights of an integer product have no −128.
fn group(precision: Precision, weight: bool, state: &mut u64) -> [u8; STEP] {
    let high = |x: f32| [x.to_le_bytes()[2], x.to_le_bytes()[3]];
    match precision {
        Precision::F32 => float(state).to_le_bytes(),
        Precision::F16 => unreachable!("no matrix holds float16"),
        Precision::Bf16 => {
            let (first, second) = (high(float(state)), high(float(state)));
            [first[0], first[1], second[0], second[1]]
        }
        Precision::Int8 => {
            let [a, b, c, d, ..] = next(state).to_le_bytes();
            [a, b, c, d].map(|byte| if weight && byte == 0x80 { 0x81 } else { byte })
        }
    }
}

impl Case {
    fn new(precision: Precision, rows: usize, steps: usize) -> Self {
        let mut state = (rows * 1000 + steps) as u64;
        let mut groups =
            |n: usize, weight| -> Vec<u8> { (0..n).flat_map(|_| group(precision, weight, &mut state)).collect() };
        let (a, b) = (groups(rows * (steps + 3), false), groups(steps * PANEL, true));
        Self {
            precision,
            rows,
            steps,
            a,
            b,
            row_scales: floats(&mut state, rows),
            column_scales: floats(&mut state, PANEL),
            bias: floats(&mut state, PANEL),
            c: floats(&mut state, rows * COLUMNS_OF_C),
        }
    }

    fn a_stride(&self) -> usize {
        (self.steps + 3) * STEP
    }

    /// What C holds after the tile ran.
    fn run(&self, add: bool, biased: bool) -> Vec<f32> {
        let mut c = self.c.clone();
        let tile = Tile {
            a: self.a.as_ptr(),
            a_stride: self.a_stride(),
            b: self.b.as_ptr(),
            panel_stride: 0,
            steps: self.steps,
            c: c.as_mut_ptr(),
            c_stride: COLUMNS_OF_C,
            bias: if biased { self.bias.as_ptr() } else { std::ptr::null() },
            add,
            scales: Scales {
                rows: self.row_scales.as_ptr(),
                columns: self.column_scales.as_ptr(),
                start: std::ptr::null(),
            },
            prefetch: std::ptr::null(),
            prefetch_lines: 2,
        };
        // SAFETY: the vectors have the sizes that the tile says.
        unsafe { run(self.precision, self.rows, &tile) };
        c
    }

    /// The value by definition, and the most that a result may be away from it.
    fn expected(&self, row: usize, column: usize) -> (f32, f32) {
        let bytes = |from: &[u8], at: usize| [from[at], from[at + 1], from[at + 2], from[at + 3]];
        let half = |bytes: [u8; STEP], index: usize| f32::from_le_bytes([0, 0, bytes[2 * index], bytes[2 * index + 1]]);
        let (mut sum, mut integer, mut magnitude) = (0.0_f32, 0_i32, 0.0_f32);
        for step in 0..self.steps {
            let a = bytes(&self.a, row * self.a_stride() + step * STEP);
            let b = bytes(&self.b, step * LINE + column * STEP);
            match self.precision {
                Precision::F32 => sum = f32::from_le_bytes(a).mul_add(f32::from_le_bytes(b), sum),
                Precision::F16 => unreachable!("no matrix holds float16"),
                Precision::Bf16 => {
                    let products = [half(a, 0) * half(b, 0), half(a, 1) * half(b, 1)];
                    sum = (sum + products[1]) + products[0];
                    magnitude += products[0].abs() + products[1].abs();
                }
                Precision::Int8 => {
                    let products = a.iter().zip(b).map(|(a, b)| (i32::from(*a) - 128) * i32::from(b.cast_signed()));
                    integer += products.sum::<i32>();
                }
            }
        }
        match self.precision {
            Precision::Int8 => (integer as f32 * (self.row_scales[row] * self.column_scales[column]), 0.0),
            // One unit in the last place for each of two sums a step, of at most the sum of magnitudes.
            Precision::Bf16 if is_aarch64_feature_detected!("bf16") => {
                (sum, 2.0 * self.steps as f32 * f32::EPSILON * magnitude)
            }
            Precision::F16 | Precision::Bf16 | Precision::F32 => (sum, 0.0),
        }
    }
}

#[test]
fn tiles_are_the_promised_chains_over_every_number_of_rows_and_steps() {
    for precision in Precision::ON_CPUS {
        for rows in 1..=ROWS {
            for steps in [0, 1, 2, 3, 4, 5, 7, 8, 33] {
                let case = Case::new(precision, rows, steps);
                for (add, biased) in [(false, false), (true, false), (false, true), (true, true)] {
                    let found = case.run(add, biased);
                    for (index, (found, before)) in found.iter().zip(&case.c).enumerate() {
                        let (row, column) = (index / COLUMNS_OF_C, index % COLUMNS_OF_C);
                        if column >= PANEL {
                            assert_eq!(found.to_bits(), before.to_bits(), "{precision} writes beside the tile");
                            continue;
                        }
                        let (sum, bound) = case.expected(row, column);
                        let value = if biased { sum + case.bias[column] } else { sum };
                        let value = if add { value + before } else { value };
                        // The two last additions round too.
                        let bound = if bound > 0.0 { bound + 4.0 * f32::EPSILON } else { 0.0 };
                        assert!(
                            (found - value).abs() <= bound,
                            "{precision} {rows}x{steps} at {row}, {column}: {found:e}, not {value:e}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn the_largest_integers_do_not_overflow() {
    let (rows, steps) = (ROWS, 260);
    for (a, b) in [(255, 127), (255, 129), (1, 127), (1, 129)] {
        let mut case = Case::new(Precision::Int8, rows, steps);
        (case.a, case.b) = (vec![a; rows * case.a_stride()], vec![b; steps * LINE]);
        (case.row_scales, case.column_scales) = (vec![1.0; rows], vec![1.0; PANEL]);
        let value = (f32::from(a) - 128.0) * f32::from(b.cast_signed()) * (steps * STEP) as f32;
        let found = case.run(false, false);
        assert!(found.chunks(COLUMNS_OF_C).all(|row| row[..PANEL].iter().all(|x| x.to_bits() == value.to_bits())));
    }
}
