//! What the benches share: the workload of the design, rounds in turn, medians, and the machine's own peak.

use std::time::{Duration, Instant};

use embedserve::kernel::cpu::roofline;

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

/// Times each contender once per round, in turn, after a round that does not count; all times, per contender. Short work
/// runs once uncounted before it is timed: else its time is that of filling caches which another contender has emptied.
pub fn in_turn(rounds: usize, contenders: &mut [&mut dyn FnMut()]) -> Vec<Vec<Duration>> {
    const SHORT: Duration = Duration::from_millis(50);
    let mut times = vec![Vec::new(); contenders.len()];
    for round in 0..=rounds {
        for (contender, times) in contenders.iter_mut().zip(&mut times) {
            if times.last().is_some_and(|time| *time < SHORT) {
                contender();
            }
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

/// Operations per second of f32 multiply-adds on registers alone: the roof of every f32 kernel here.
pub fn peak_flops(n_threads: usize) -> f64 {
    roofline::peak(n_threads, 5)
}
