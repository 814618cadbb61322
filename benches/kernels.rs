//! The matrix product at the shapes of real models on one core, in percent of what the core's own registers do, beside
//! candle's matmul on all cores: `cargo bench --bench compute -- kernels`.

use candle_core::{Device, Tensor};
use embedserve::kernel::cpu::linear::linear_rows;
use embedserve::kernel::{Activation, Compute, Isa, PackedMatrix, Precision};

use crate::support::{Random, in_turn, median, peak_flops};

const ROUNDS: usize = 7;

pub fn run() {
    let isa = Isa::detect();
    let peak = peak_flops(1);
    let roof = |precision| peak * Compute { isa, precision }.roof_over_f32();
    let [f32_roof, bf16_roof, int8_roof] = Precision::ON_CPUS.map(|precision| roof(precision) / 1e9);
    println!("one core, {isa}, f32 on vector units {:.0} GFLOP/s", peak / 1e9);
    println!("percent of the roof: f32 {f32_roof:.0}, bf16 {bf16_roof:.0}, int8 {int8_roof:.0} GFLOP/s");
    println!("{:>6} {:>6} {:>6} {:>22} {:>22} {:>22} {:>10}", "rows", "in", "out", "f32", "bf16", "int8", "candle");
    let mut random = Random::new(1);
    for (k, n) in [(384, 1152), (384, 1536), (1536, 384), (768, 2304), (768, 3072), (3072, 768)] {
        let weight = random.floats(n * k, 1.0);
        let precisions = Compute::exact(isa).usable();
        let packed: Vec<PackedMatrix> =
            precisions.iter().map(|precision| PackedMatrix::pack_as(*precision, n, k, &weight, None)).collect();
        let transposed = Tensor::from_vec(weight, (n, k), &Device::Cpu).and_then(|w| w.t()).expect("weight");
        for m in [1, 8, 16, 32, 128, 512] {
            let values = random.floats(m * k, 1.0);
            let x = Tensor::from_vec(values.clone(), (m, k), &Device::Cpu).expect("input");
            let repeats = (1024 / m).clamp(1, 64);
            let repeated = |run: &dyn Fn()| (0..repeats).for_each(|_| run());
            let product = |weight: &PackedMatrix| {
                std::hint::black_box(linear_rows(isa, &values, weight, Activation::None));
            };
            let mut theirs = || {
                repeated(&|| {
                    std::hint::black_box(x.matmul(&transposed).expect("candle"));
                });
            };
            let mut ours: Vec<_> = packed.iter().map(|weight| || repeated(&|| product(weight))).collect();
            let mut contenders: Vec<&mut dyn FnMut()> = ours.iter_mut().map(|run| run as &mut dyn FnMut()).collect();
            contenders.push(&mut theirs);
            let times = in_turn(ROUNDS, &mut contenders);
            let flops = (2 * m * k * n * repeats) as f64;
            let rate = |index: usize| flops / median(&times[index]).as_secs_f64();
            print!("{m:>6} {k:>6} {n:>6}");
            for precision in Precision::ON_CPUS {
                let Some(index) = precisions.iter().position(|usable| *usable == precision) else {
                    print!(" {:>22}", "-");
                    continue;
                };
                // Some weights are kept wider than asked for.
                let held = packed[index].precision();
                let percent = 100.0 * rate(index) / roof(held);
                print!(" {:>8.0} G {percent:>4.0}% {:>5}", rate(index) / 1e9, held.name());
            }
            println!(" {:>8.0} G", rate(precisions.len()) / 1e9);
        }
    }
}
