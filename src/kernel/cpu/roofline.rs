//! How many f32 multiply-adds per second this machine does on registers alone: the roof of every f32 kernel.
//!
//! `steps` rounds of `s[c] = s[c]·a + b` over `CHAINS` independent registers: no memory, and enough chains to hide the
//! latency of any multiply-add unit. A rate counts two operations per multiply-add. Every thread times itself, from a
//! common start, and the rates are added up. What else runs on the machine lowers the result, never raises it: repeat,
//! and take the largest as the peak.

use std::sync::{PoisonError, RwLock};
use std::time::Instant;

use crate::kernel::cpu::{Isa, multiply_add};

/// Registers in flight: at least the four to ten that any unit's latency times width needs, and within AVX2's sixteen.
const CHAINS: usize = 12;

/// About 15 ms per measurement: long against the start of a thread, short enough to repeat it many times.
const STEPS: usize = 4_000_000;

/// Operations per second of `n_threads` threads at once, with the best instruction set of this processor: one
/// measurement.
pub fn multiply_adds(n_threads: usize) -> f64 {
    if n_threads <= 1 {
        return one_core();
    }
    // Nobody passes while the writer holds it. Unlike a barrier it opens by itself when a thread cannot be started.
    let gate = RwLock::new(());
    std::thread::scope(|scope| {
        let closed = gate.write().unwrap_or_else(PoisonError::into_inner);
        let measure = || {
            let _passed = gate.read().unwrap_or_else(PoisonError::into_inner);
            one_core()
        };
        let threads: Vec<_> = (0..n_threads).map(|_| scope.spawn(measure)).collect();
        drop(closed);
        let rates = threads.into_iter().map(|thread| match thread.join() {
            Ok(rate) => rate,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        rates.sum()
    })
}

/// The largest of `rounds` measurements of [`multiply_adds`].
pub fn peak(n_threads: usize, rounds: usize) -> f64 {
    (0..rounds.max(1)).map(|_| multiply_adds(n_threads)).fold(0.0, f64::max)
}

fn one_core() -> f64 {
    match Isa::detect() {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Amx => timed(16, |steps| {
            // SAFETY: `detect` names only what this processor has.
            unsafe { avx512(steps) }
        }),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => timed(8, |steps| {
            // SAFETY: as above.
            unsafe { avx2(steps) }
        }),
        #[expect(clippy::allow_attributes, reason = "which of these patterns is unreachable depends on the processor")]
        #[allow(unreachable_patterns, reason = "on x86-64 only the portable level is left")]
        _ => timed(LANES, portable),
    }
}

fn timed(lanes: usize, run: impl Fn(usize) -> f32) -> f64 {
    let start = Instant::now();
    std::hint::black_box(run(std::hint::black_box(STEPS)));
    (2 * lanes * CHAINS * STEPS) as f64 / start.elapsed().as_secs_f64()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(steps: usize) -> f32 {
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
fn avx2(steps: usize) -> f32 {
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

/// Lanes of the portable level: the 128 bits that every `x86-64` and every `ARMv8` has.
const LANES: usize = 4;

/// Multiply and add, fused where the compilation target has it: what a portable kernel can be compiled to.
fn portable(steps: usize) -> f32 {
    let (a, b) = (std::hint::black_box(0.999_f32), std::hint::black_box(1e-3_f32));
    let mut sums = [[1.0_f32; LANES]; CHAINS];
    for _ in 0..steps {
        for lane in sums.as_flattened_mut() {
            *lane = multiply_add::<FUSED>(*lane, a, b);
        }
    }
    sums.as_flattened().iter().sum()
}

/// Where a fused multiply-add is an instruction and not a library call.
const FUSED: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_plausible_and_every_level_computes_the_same_sum() {
        let rate = multiply_adds(1);
        assert!(rate > 1e8 && rate < 1e13, "{rate}");
        assert!(multiply_adds(2) > 0.5 * rate);
        // s -> 0.999·s + 0.001 has the fixed point 1: each lane stays there.
        let close = |sum: f32, lanes: usize| assert!((sum - (lanes * CHAINS) as f32).abs() < 1e-2, "{sum}");
        close(portable(1000), LANES);
        #[cfg(target_arch = "x86_64")]
        {
            if Isa::Avx2.is_supported() {
                // SAFETY: the level was just checked.
                // Only the first lane of each register is added up.
                close(unsafe { avx2(1000) }, 1);
            }
            if Isa::Avx512.is_supported() {
                // SAFETY: the level was just checked.
                close(unsafe { avx512(1000) }, 16);
            }
        }
    }
}
