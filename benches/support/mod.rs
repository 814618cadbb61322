//! What the benches share: the workload of the design, rounds in turn, medians, and the machine's own peak.

use std::time::{Duration, Instant};

#[path = "../../tests/it/support/random.rs"]
mod random;
pub mod texts;

pub use random::Random;

/// Uniform in (0, 1).
fn unit(random: &mut Random) -> f64 {
    ((random.next() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
}

/// Standard normal (Box and Muller).
fn normal(random: &mut Random) -> f64 {
    (-2.0 * unit(random).ln()).sqrt() * (std::f64::consts::TAU * unit(random)).cos()
}

/// 256 rows of token ids with lognormal lengths: median 40, sigma 0.8, clipped to 4..=512.
pub fn mixed256() -> Vec<Vec<u32>> {
    let mut random = Random::new(256);
    (0..256)
        .map(|_| {
            let length = (40.0 * (0.8 * normal(&mut random)).exp()).round().clamp(4.0, 512.0) as usize;
            row(&mut random, length)
        })
        .collect()
}

/// `n` rows of `length` tokens.
pub fn uniform(n: usize, length: usize) -> Vec<Vec<u32>> {
    let mut random = Random::new(length as u64);
    (0..n).map(|_| row(&mut random, length)).collect()
}

/// `[CLS]`, whole words of BERT's vocabulary, `[SEP]`.
fn row(random: &mut Random, length: usize) -> Vec<u32> {
    let words = (2..length).map(|_| 2000 + random.below(20_000) as u32);
    std::iter::once(101).chain(words).chain(std::iter::once(102)).collect()
}

/// Rounds that count, unless `EMBEDSERVE_BENCH_ROUNDS` says otherwise.
pub fn rounds() -> usize {
    std::env::var("EMBEDSERVE_BENCH_ROUNDS").map_or(9, |rounds| rounds.parse().expect("a number of rounds"))
}

/// Times each contender once per round, in turn, after a round that does not count; all times, per contender.
pub fn in_turn(rounds: usize, contenders: &mut [&mut dyn FnMut()]) -> Vec<Vec<Duration>> {
    let mut times = vec![Vec::new(); contenders.len()];
    for round in 0..=rounds {
        for (contender, times) in contenders.iter_mut().zip(&mut times) {
            let start = Instant::now();
            contender();
            if round > 0 {
                times.push(start.elapsed());
            }
        }
    }
    times
}

pub fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[sorted.len() / 2]
}

/// Multiply-adds per second that `n_threads` reach on registers alone, in FLOP/s: the roof of every f32 kernel here.
pub fn peak_flops(n_threads: usize) -> f64 {
    let best = |_| {
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..n_threads).map(|_| scope.spawn(one_core_flops)).collect();
            workers.into_iter().map(|worker| worker.join().expect("a worker panicked")).sum::<f64>()
        })
    };
    (0..5).map(best).fold(0.0, f64::max)
}

fn one_core_flops() -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        use embedserve::kernel::Isa;
        if Isa::Avx512.is_supported() {
            return timed_flops(16, |n| {
                // SAFETY: the level was just checked.
                unsafe { fma_avx512(n) }
            });
        }
        if Isa::Avx2.is_supported() {
            return timed_flops(8, |n| {
                // SAFETY: the level was just checked.
                unsafe { fma_avx2(n) }
            });
        }
    }
    f64::NAN
}

/// Registers in flight: enough to hide the latency of any multiply-add unit.
const CHAINS: usize = 12;

fn timed_flops(lanes: usize, run: impl Fn(usize) -> f32) -> f64 {
    const STEPS: usize = 4_000_000;
    let start = Instant::now();
    std::hint::black_box(run(STEPS));
    (2 * lanes * CHAINS * STEPS) as f64 / start.elapsed().as_secs_f64()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn fma_avx512(steps: usize) -> f32 {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let (a, b) = (_mm512_set1_ps(std::hint::black_box(0.999)), _mm512_set1_ps(std::hint::black_box(1e-3)));
    let mut sums = [_mm512_set1_ps(1.0); CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, a, b);
        }
    }
    sums.into_iter().map(|sum| _mm512_reduce_add_ps(sum)).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fma_avx2(steps: usize) -> f32 {
    use std::arch::x86_64::{_mm_cvtss_f32, _mm256_castps256_ps128, _mm256_fmadd_ps, _mm256_set1_ps};
    let (a, b) = (_mm256_set1_ps(std::hint::black_box(0.999)), _mm256_set1_ps(std::hint::black_box(1e-3)));
    let mut sums = [_mm256_set1_ps(1.0); CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, a, b);
        }
    }
    sums.into_iter().map(|sum| _mm_cvtss_f32(_mm256_castps256_ps128(sum))).sum()
}
