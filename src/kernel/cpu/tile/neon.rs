//! NEON tiles: up to 5 rows by one panel of four registers, 20 sums beside 5 registers of A and 4 of B.
//!
//! A is read sixteen bytes per row at a time, four steps of k, and multiplied by lane: on Arm cores a broadcasting load
//! takes a slot of the arithmetic units, a plain one does not.
//!
//! NEON is part of every 64-bit Arm processor. Two extensions are used where the processor has them:
//!
//! | format | everywhere | with the extension |
//! |---|---|---|
//! | f32 | `fmla`; the bits of AVX2 and AVX-512 | |
//! | bf16 | widened in registers, two `fmla`; the bits of the portable tile | `bfdot` (FEAT_BF16): half the instructions, sums rounded to odd |
//! | int8 | `smull`, `addp`, `sadalp`; exact | `sdot` (FEAT_DotProd); exact |
//!
//! Rounding to odd is part of the instruction: a sum is off by up to one unit in the last place of f32 where the other
//! paths are off by half of one. `bfdot` and `sdot` have no stable intrinsics in Rust 1.95 and are written as assembly.
//!
//! The instruction set has a product of signed bytes, so 128 is taken off A again in registers and sums start at zero:
//! the same integers as a start at `−128·Σ b`.
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "an address and the one access to it share their reason")]

use std::arch::aarch64::{
    float32x4_t, int8x16_t, int32x4_t, uint8x16_t, uint32x4_t, vaddq_f32, vandq_u32, vcvtq_f32_s32, vdupq_laneq_s32,
    vdupq_n_f32, vdupq_n_s32, vdupq_n_u8, vdupq_n_u32, veorq_u8, vfmaq_laneq_f32, vget_low_s8, vld1q_f32, vld1q_u8,
    vmull_high_s8, vmull_s8, vmulq_f32, vmulq_n_f32, vpadalq_s16, vpaddq_s16, vreinterpretq_f32_u8,
    vreinterpretq_f32_u32, vreinterpretq_s8_s32, vreinterpretq_s8_u8, vreinterpretq_s32_s8, vreinterpretq_u8_u32,
    vreinterpretq_u32_u8, vshlq_n_u32, vst1q_f32,
};
use std::arch::{asm, is_aarch64_feature_detected};

use super::{LINE, STEP, Scales, Tile, UNROLL};
use crate::kernel::Precision;

#[cfg(test)]
mod tests;

/// The largest tile of a format without an instruction of its own.
const ROWS_WITHOUT: usize = 3;
/// Bytes of one register.
const REGISTER: usize = 16;
/// Registers of one line of B: four columns each.
const QUADS: usize = LINE / REGISTER;
/// Columns of one register.
const COLUMNS: usize = REGISTER / STEP;
// One register of A holds the steps of one turn of the unrolled loop.
const _: () = assert!(UNROLL == REGISTER / STEP);

/// # Safety
/// See [`super::run`].
pub(super) unsafe fn run(precision: Precision, rows: usize, tile: &Tile) {
    macro_rules! choose {
        ($body:ident: $($rows:literal)*) => {
            match rows {
                // SAFETY: passed on from the caller; the extension was just looked for.
                $($rows => unsafe { $body::<$rows>(tile) },)*
                _ => unreachable!("at most 5 rows"),
            }
        };
    }
    match precision {
        Precision::F32 => choose!(f32_tile: 1 2 3 4 5),
        Precision::Bf16 if is_aarch64_feature_detected!("bf16") => choose!(bf16_pairs_tile: 1 2 3 4 5),
        Precision::Int8 if is_aarch64_feature_detected!("dotprod") => choose!(int8_fours_tile: 1 2 3 4 5),
        Precision::F16 => unreachable!("no matrix holds float16"),
        Precision::Bf16 | Precision::Int8 => {
            // What stands in for an extension needs registers of its own.
            for first in (0..rows).step_by(ROWS_WITHOUT) {
                // SAFETY: the rows from `first` on are rows of the tile.
                unsafe { run_without(precision, ROWS_WITHOUT.min(rows - first), &below(tile, first)) };
            }
        }
    }
}

/// One format without an instruction of its own.
///
/// # Safety
/// See [`super::run`]; at most [`ROWS_WITHOUT`] rows.
unsafe fn run_without(precision: Precision, rows: usize, tile: &Tile) {
    match (precision, rows) {
        // SAFETY: passed on from the caller.
        (Precision::Int8, 1) => unsafe { int8_tile::<1>(tile) },
        // SAFETY: as above.
        (Precision::Int8, 2) => unsafe { int8_tile::<2>(tile) },
        // SAFETY: as above.
        (Precision::Int8, _) => unsafe { int8_tile::<3>(tile) },
        // SAFETY: as above.
        (_, 1) => unsafe { bf16_tile::<1>(tile) },
        // SAFETY: as above.
        (_, 2) => unsafe { bf16_tile::<2>(tile) },
        // SAFETY: as above.
        (_, _) => unsafe { bf16_tile::<3>(tile) },
    }
}

/// The same tile from row `first` on.
const fn below(tile: &Tile, first: usize) -> Tile {
    Tile {
        a: tile.a.wrapping_add(first * tile.a_stride),
        c: tile.c.wrapping_add(first * tile.c_stride),
        scales: Scales { rows: tile.scales.rows.wrapping_add(first), ..tile.scales },
        ..*tile
    }
}

/// The loop over k: `$value` brings sixteen bytes of a row into the form that `$step` multiplies with one register of B.
macro_rules! sum_over_k {
    ($tile:ident, $sums:ident, $value:ident, $step:ident) => {{
        let (mut a, mut b, mut next) = ($tile.a, $tile.b, $tile.prefetch);
        macro_rules! one {
            ($lane:literal, $values:ident) => {{
                // SAFETY: the caller promises a panel of all steps.
                let line = unsafe { load_line(b.add($lane * LINE)) };
                for (sums, value) in $sums.iter_mut().zip($values) {
                    for (sum, quad) in sums.iter_mut().zip(line) {
                        *sum = $step::<$lane>(*sum, quad, value);
                    }
                }
            }};
        }
        for _ in 0..$tile.steps / UNROLL {
            let mut values = [$value(vdupq_n_u8(0)); ROWS];
            for (row, value) in values.iter_mut().enumerate() {
                // SAFETY: the caller promises `ROWS` rows of all steps.
                *value = $value(unsafe { vld1q_u8(a.add(row * $tile.a_stride)) });
            }
            one!(0, values);
            one!(1, values);
            one!(2, values);
            one!(3, values);
            for _ in 0..$tile.prefetch_lines {
                fetch(next);
                next = next.wrapping_add(LINE);
            }
            a = a.wrapping_add(UNROLL * STEP);
            b = b.wrapping_add(UNROLL * LINE);
        }
        for _ in 0..$tile.steps % UNROLL {
            let mut values = [$value(vdupq_n_u8(0)); ROWS];
            for (row, value) in values.iter_mut().enumerate() {
                // SAFETY: as above, the four bytes of one step.
                let group = unsafe { a.add(row * $tile.a_stride).cast::<u32>().read_unaligned() };
                *value = $value(vreinterpretq_u8_u32(vdupq_n_u32(group)));
            }
            one!(0, values);
            a = a.wrapping_add(STEP);
            b = b.wrapping_add(LINE);
        }
    }};
}

/// # Safety
/// See [`super::run`].
#[target_feature(enable = "neon")]
unsafe fn f32_tile<const ROWS: usize>(tile: &Tile) {
    let mut sums = [[vdupq_n_f32(0.0); QUADS]; ROWS];
    sum_over_k!(tile, sums, floats, multiply_add);
    // SAFETY: passed on from the caller.
    unsafe { store(tile, sums) };
}

/// # Safety
/// See [`super::run`].
#[target_feature(enable = "neon")]
unsafe fn bf16_tile<const ROWS: usize>(tile: &Tile) {
    let mut sums = [[vdupq_n_f32(0.0); QUADS]; ROWS];
    sum_over_k!(tile, sums, widen, multiply_both);
    // SAFETY: passed on from the caller.
    unsafe { store(tile, sums) };
}

/// # Safety
/// See [`super::run`]; FEAT_BF16 is there.
#[target_feature(enable = "neon,bf16")]
unsafe fn bf16_pairs_tile<const ROWS: usize>(tile: &Tile) {
    let mut sums = [[vdupq_n_f32(0.0); QUADS]; ROWS];
    sum_over_k!(tile, sums, bytes, multiply_pairs);
    // SAFETY: passed on from the caller.
    unsafe { store(tile, sums) };
}

/// # Safety
/// See [`super::run`].
#[target_feature(enable = "neon")]
unsafe fn int8_tile<const ROWS: usize>(tile: &Tile) {
    let mut sums = [[vdupq_n_s32(0); QUADS]; ROWS];
    sum_over_k!(tile, sums, signed, multiply_in_halves);
    // SAFETY: passed on from the caller.
    unsafe { scale_and_store(tile, sums) };
}

/// # Safety
/// See [`super::run`]; FEAT_DotProd is there.
#[target_feature(enable = "neon,dotprod")]
unsafe fn int8_fours_tile<const ROWS: usize>(tile: &Tile) {
    let mut sums = [[vdupq_n_s32(0); QUADS]; ROWS];
    sum_over_k!(tile, sums, signed, multiply_fours);
    // SAFETY: passed on from the caller.
    unsafe { scale_and_store(tile, sums) };
}

/// `sum·(row scale·column scale)`, then as [`store`].
///
/// # Safety
/// See [`super::run`].
#[inline]
#[target_feature(enable = "neon")]
unsafe fn scale_and_store<const ROWS: usize>(tile: &Tile, sums: [[int32x4_t; QUADS]; ROWS]) {
    // SAFETY: the caller promises one value per column.
    let columns = unsafe { load_floats(tile.scales.columns) };
    let mut scaled = [[vdupq_n_f32(0.0); QUADS]; ROWS];
    for (row, (scaled, sums)) in scaled.iter_mut().zip(sums).enumerate() {
        // SAFETY: the caller promises one value per row.
        let scale = unsafe { tile.scales.rows.add(row).read() };
        for ((scaled, sum), column) in scaled.iter_mut().zip(sums).zip(columns) {
            *scaled = vmulq_f32(vcvtq_f32_s32(sum), vmulq_n_f32(column, scale));
        }
    }
    // SAFETY: passed on from the caller.
    unsafe { store(tile, scaled) };
}

/// Adds the bias and what C holds, as the tile asks, and writes C.
///
/// # Safety
/// See [`super::run`].
#[inline]
#[target_feature(enable = "neon")]
unsafe fn store<const ROWS: usize>(tile: &Tile, sums: [[float32x4_t; QUADS]; ROWS]) {
    let mut bias = [vdupq_n_f32(0.0); QUADS];
    if !tile.bias.is_null() {
        // SAFETY: the caller promises one value per column.
        bias = unsafe { load_floats(tile.bias) };
    }
    for (row, sums) in sums.into_iter().enumerate() {
        for (quad, (sum, bias)) in sums.into_iter().zip(bias).enumerate() {
            // SAFETY: the caller promises `ROWS` rows of one panel.
            let c = unsafe { tile.c.add(row * tile.c_stride + quad * COLUMNS) };
            let mut value = vaddq_f32(sum, bias);
            if tile.add {
                // SAFETY: as above.
                value = vaddq_f32(value, unsafe { vld1q_f32(c) });
            }
            // SAFETY: as above.
            unsafe { vst1q_f32(c, value) };
        }
    }
}

/// One line of B.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load_line(line: *const u8) -> [uint8x16_t; QUADS] {
    // SAFETY: the caller promises 64 bytes.
    let quad = |index: usize| unsafe { vld1q_u8(line.add(index * REGISTER)) };
    [quad(0), quad(1), quad(2), quad(3)]
}

/// Sixteen values.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load_floats(start: *const f32) -> [float32x4_t; QUADS] {
    // SAFETY: the caller promises 64 bytes.
    unsafe { load_line(start.cast()) }.map(|quad| vreinterpretq_f32_u8(quad))
}

/// Asks for a line in the second-level cache. Any address will do.
#[inline]
fn fetch(line: *const u8) {
    // SAFETY: a hint; it reads nothing and cannot fault.
    unsafe { asm!("prfm pldl2keep, [{line}]", line = in(reg) line, options(nomem, nostack, preserves_flags)) };
}

#[inline]
#[target_feature(enable = "neon")]
fn floats(bytes: uint8x16_t) -> float32x4_t {
    vreinterpretq_f32_u8(bytes)
}

#[inline]
#[target_feature(enable = "neon")]
fn multiply_add<const LANE: i32>(sum: float32x4_t, quad: uint8x16_t, value: float32x4_t) -> float32x4_t {
    vfmaq_laneq_f32::<LANE>(sum, vreinterpretq_f32_u8(quad), value)
}

/// The first and the second bf16 value of every group, as f32.
#[inline]
#[target_feature(enable = "neon")]
fn widen(bytes: uint8x16_t) -> [float32x4_t; 2] {
    let groups: uint32x4_t = vreinterpretq_u32_u8(bytes);
    let second = vandq_u32(groups, vdupq_n_u32(0xffff_0000));
    [vreinterpretq_f32_u32(vshlq_n_u32::<16>(groups)), vreinterpretq_f32_u32(second)]
}

/// The second product of each pair first, as everywhere. Products of bf16 values are exact in f32, so that it does not
/// matter that they are fused with the sum.
#[inline]
#[target_feature(enable = "neon")]
fn multiply_both<const LANE: i32>(sum: float32x4_t, quad: uint8x16_t, value: [float32x4_t; 2]) -> float32x4_t {
    let quad = widen(quad);
    vfmaq_laneq_f32::<LANE>(vfmaq_laneq_f32::<LANE>(sum, quad[1], value[1]), quad[0], value[0])
}

#[inline]
#[target_feature(enable = "neon")]
const fn bytes(bytes: uint8x16_t) -> uint8x16_t {
    bytes
}

#[inline]
#[target_feature(enable = "neon,bf16")]
fn multiply_pairs<const LANE: i32>(mut sum: float32x4_t, quad: uint8x16_t, value: uint8x16_t) -> float32x4_t {
    // SAFETY: arithmetic on registers, of an extension that this function asks for.
    unsafe {
        asm!(
            "bfdot {sum:v}.4s, {quad:v}.8h, {value:v}.2h[{lane}]",
            sum = inout(vreg) sum,
            quad = in(vreg) quad,
            value = in(vreg) value,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}

/// Takes the 128 off again that makes A unsigned.
#[inline]
#[target_feature(enable = "neon")]
fn signed(bytes: uint8x16_t) -> int8x16_t {
    vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(0x80)))
}

/// Sums of two products fit 16 bits, because B has no −128.
#[inline]
#[target_feature(enable = "neon")]
fn multiply_in_halves<const LANE: i32>(sum: int32x4_t, quad: uint8x16_t, value: int8x16_t) -> int32x4_t {
    let quad = vreinterpretq_s8_u8(quad);
    let value = vreinterpretq_s8_s32(vdupq_laneq_s32::<LANE>(vreinterpretq_s32_s8(value)));
    let low = vmull_s8(vget_low_s8(quad), vget_low_s8(value));
    vpadalq_s16(sum, vpaddq_s16(low, vmull_high_s8(quad, value)))
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn multiply_fours<const LANE: i32>(mut sum: int32x4_t, quad: uint8x16_t, value: int8x16_t) -> int32x4_t {
    // SAFETY: arithmetic on registers, of an extension that this function asks for.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {quad:v}.16b, {value:v}.4b[{lane}]",
            sum = inout(vreg) sum,
            quad = in(vreg) quad,
            value = in(vreg) value,
            lane = const LANE,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    sum
}
