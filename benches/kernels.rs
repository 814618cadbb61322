//! The matrix product at the shapes of real models, in percent of the machine's own multiply-add peak measured in the
//! same run, beside candle's matmul: `cargo bench --bench compute -- kernels`.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use embedserve::kernel::{Activation, Isa, Linear, PackedMatrix};
use embedserve::threads::{self, Threads};

use crate::support::{Random, in_turn, median, peak_flops};

const ROUNDS: usize = 7;

pub fn run() {
    let n_threads = threads::available();
    let threads = Threads::new(n_threads).expect("threads");
    let peak = peak_flops(n_threads);
    println!("{n_threads} threads, multiply-add peak {:.0} GFLOP/s", peak / 1e9);
    println!("{:>6} {:>6} {:>6} {:>10} {:>8} {:>10} {:>8}", "rows", "in", "out", "ours", "% peak", "candle", "ratio");
    let mut random = Random::new(1);
    for (k, n) in [(384, 1152), (384, 1536), (1536, 384), (768, 2304), (768, 3072), (3072, 768)] {
        let weight = random.floats(n * k, 1.0);
        let packed = Arc::new(PackedMatrix::pack(n, k, &weight, None));
        let linear = Linear { weight: packed, activation: Activation::None, isa: Isa::detect() };
        let transposed = Tensor::from_vec(weight, (n, k), &Device::Cpu).and_then(|w| w.t()).expect("weight");
        for m in [8, 32, 128, 512, 2048] {
            let x = Tensor::from_vec(random.floats(m * k, 1.0), (m, k), &Device::Cpu).expect("input");
            let repeats = (2048 / m).clamp(1, 64);
            let mut ours = || {
                for _ in 0..repeats {
                    std::hint::black_box(threads.turn(|| linear.forward(&x)).expect("ours"));
                }
            };
            let mut theirs = || {
                for _ in 0..repeats {
                    std::hint::black_box(x.matmul(&transposed).expect("candle"));
                }
            };
            let times = in_turn(ROUNDS, &mut [&mut ours, &mut theirs]);
            let flops = (2 * m * k * n * repeats) as f64;
            let rates: Vec<f64> = times.iter().map(|times| flops / median(times).as_secs_f64()).collect();
            println!(
                "{m:>6} {k:>6} {n:>6} {:>8.0} G {:>7.0}% {:>8.0} G {:>7.2}x",
                rates[0] / 1e9,
                100.0 * rates[0] / peak,
                rates[1] / 1e9,
                rates[0] / rates[1],
            );
        }
    }
}
