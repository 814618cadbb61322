//! AMX tiles: up to 32 rows by 32 columns, four of the eight tile registers full of sums.
//!
//! A tile register holds sixteen rows of 64 bytes: sixteen rows of A at sixteen steps of k, or sixteen steps of one panel
//! of B, which is how panels lie anyway. One instruction multiplies two of them: `16·16·16` groups in sixteen cycles,
//! sixteen times the f32 rate of AVX-512 in bf16 and twice that in int8.
//!
//! **Bits.** Inside one instruction the products of a row and a column are summed from zero over its sixteen steps, even
//! and odd values apart, and then added to the sum before. So bf16 sums differ in their last bits from those of
//! [`super::avx512`]. The last steps, where they fill no tile register, go through the AVX-512 instruction, one after the
//! other.
//!
//! **Rows.** A register is always filled with sixteen rows. Of 17 to 31 rows the second sixteen overlap the first; below
//! sixteen, what lies behind the rows is read and multiplied too, and thrown away. Sums go through a buffer in the
//! first-level cache, where bias, scales and residual are applied.
#![expect(clippy::multiple_unsafe_ops_per_block, reason = "an address and the one access to it share their reason")]

/// Fills a register with sixteen times 64 bytes.
macro_rules! load {
    ($register:literal, $start:expr, $stride:expr) => {
        asm!(concat!("tileloadd tmm", $register, ", [{0} + {1}*1]"), in(reg) $start, in(reg) $stride,
            options(nostack, readonly, preserves_flags))
    };
}

/// `sum += a·b`, of bf16 or of unsigned by signed bytes.
macro_rules! multiply {
    ($int8:ident: $sum:literal += $a:literal, $b:literal) => {
        if $int8 {
            asm!(concat!("tdpbusd tmm", $sum, ", tmm", $a, ", tmm", $b), options(nostack, nomem, preserves_flags))
        } else {
            asm!(concat!("tdpbf16ps tmm", $sum, ", tmm", $a, ", tmm", $b), options(nostack, nomem, preserves_flags))
        }
    };
}

pub(in super::super) mod parts;

use std::arch::asm;
use std::arch::x86_64::{
    _MM_HINT_T1, _mm_prefetch, _mm512_add_epi32, _mm512_add_ps, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_cvtepi32_ps, _mm512_loadu_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};
use std::cell::Cell;
use std::mem::MaybeUninit;
use std::sync::OnceLock;

use super::avx512::{broadcast_integers, load_integers, multiply_fours, multiply_pairs};
use super::{LINE, MAX_PANELS, PANEL, STEP, Tile, UNROLL};
use crate::kernel::Precision;

/// Rows of a tile register, and steps of k that it holds.
const SIDE: usize = 16;
/// Columns of the buffer of sums.
const WIDTH: usize = MAX_PANELS * PANEL;

/// Whether the processor has the instructions and the system lets this process use them, which is asked once.
pub(in super::super) fn is_granted() -> bool {
    static GRANTED: OnceLock<bool> = OnceLock::new();
    *GRANTED.get_or_init(|| has_instructions() && ask_for_tiles())
}

/// Tiles, and products of bf16 and of 8-bit integers.
fn has_instructions() -> bool {
    const BF16: u32 = 1 << 22;
    const TILE: u32 = 1 << 24;
    const INT8: u32 = 1 << 25;
    let features = std::arch::x86_64::__cpuid_count(7, 0).edx;
    features & (BF16 | TILE | INT8) == BF16 | TILE | INT8
}

/// Linux saves tile registers, 8 KiB of them, only for processes that have asked for it.
#[cfg(target_os = "linux")]
fn ask_for_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: takes two numbers, and touches no memory of this process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
const fn ask_for_tiles() -> bool {
    false
}

/// What `ldtilecfg` reads: the shape of every tile register.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; SIDE],
    rows: [u8; SIDE],
}

/// All eight registers whole.
static SHAPES: Shapes = Shapes {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

thread_local! {
    static CONFIGURED: Cell<bool> = const { Cell::new(false) };
}

/// This thread's tile registers in use, until it is dropped. Idle ones are given back, for then the system need not save
/// them when it switches threads.
#[derive(Debug)]
pub(in super::super) struct Registers {
    /// An outer one gives them back.
    nested: bool,
}

impl Registers {
    /// # Safety
    /// [`is_granted`] returned true.
    pub(in super::super) unsafe fn configure() -> Self {
        let nested = CONFIGURED.replace(true);
        if !nested {
            // SAFETY: the instruction is there, and reads 64 bytes.
            unsafe { asm!("ldtilecfg [{0}]", in(reg) &raw const SHAPES, options(nostack, readonly)) };
        }
        Self { nested }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        if !self.nested {
            CONFIGURED.set(false);
            // SAFETY: the instruction is there, or there would be nothing to drop.
            unsafe { asm!("tilerelease", options(nostack, nomem)) };
        }
    }
}

/// Sums on their way from the registers to C, `[32, WIDTH]`: f32, or the bits of i32.
#[repr(C, align(64))]
struct Sums(MaybeUninit<[f32; 2 * SIDE * WIDTH]>);

impl Sums {
    const fn new() -> Self {
        Self(MaybeUninit::uninit())
    }

    const fn as_mut_ptr(&mut self) -> *mut f32 {
        self.0.as_mut_ptr().cast()
    }
}

/// # Safety
/// See [`super::run`]. The registers are configured.
pub(super) unsafe fn run(precision: Precision, rows: usize, panels: usize, tile: &Tile) {
    debug_assert!(CONFIGURED.get(), "the tile registers of this thread are not configured");
    macro_rules! choose {
        ($($int8:literal $tall:literal)*) => {
            match (precision == Precision::Int8, rows > SIDE, panels) {
                $(
                    // SAFETY: passed on from the caller.
                    ($int8, $tall, 2) => unsafe { tile_of::<$int8, $tall, 2>(rows, tile) },
                    // SAFETY: as above.
                    ($int8, $tall, _) => unsafe { tile_of::<$int8, $tall, 1>(rows, tile) },
                )*
            }
        };
    }
    choose!(false false false true true false true true);
}

/// # Safety
/// See [`run`].
#[target_feature(enable = "avx512f,avx512bf16,avx512vnni")]
unsafe fn tile_of<const INT8: bool, const TALL: bool, const PANELS: usize>(rows: usize, tile: &Tile) {
    let mut sums = Sums::new();
    let sums = sums.as_mut_ptr();
    let second_row = if TALL { rows - SIDE } else { 0 };
    // SAFETY: passed on from the caller; the buffer holds 32 rows.
    unsafe { whole_steps::<INT8, TALL, PANELS>(second_row, tile, sums) };
    if !tile.steps.is_multiple_of(SIDE) {
        // SAFETY: passed on from the caller; the sums were just stored.
        unsafe { last_steps::<INT8, PANELS>(rows, tile, sums) };
    }
    // SAFETY: as above.
    unsafe { finish::<INT8, PANELS>(rows, tile, sums) };
}

/// Adds the steps behind the last ones that fill a register.
///
/// # Safety
/// See [`run`]; `sums` holds the sums of the steps before.
#[cold]
#[target_feature(enable = "avx512f,avx512bf16,avx512vnni")]
unsafe fn last_steps<const INT8: bool, const PANELS: usize>(rows: usize, tile: &Tile, sums: *mut f32) {
    for row in 0..rows {
        for panel in 0..PANELS {
            let sum = sums.wrapping_add(row * WIDTH + panel * PANEL);
            let a = tile.a.wrapping_add(row * tile.a_stride);
            let b = tile.b.wrapping_add(panel * tile.panel_stride);
            // SAFETY: the buffer has all rows and panels.
            let mut value = unsafe { _mm512_loadu_ps(sum) };
            for step in tile.steps / SIDE * SIDE..tile.steps {
                // SAFETY: the caller promises all steps of the row and the panel.
                let (a, b) = unsafe { (broadcast_integers(a.add(step * STEP)), load_integers(b.add(step * LINE))) };
                value = if INT8 {
                    _mm512_castsi512_ps(multiply_fours(_mm512_castps_si512(value), a, b))
                } else {
                    multiply_pairs(value, a, b)
                };
            }
            // SAFETY: as above.
            unsafe { _mm512_storeu_ps(sum, value) };
        }
    }
}

/// The sums over all steps that fill registers, stored as `[32, WIDTH]`; the second sixteen rows begin at `second_row`.
///
/// # Safety
/// See [`run`]; `sums` holds those rows.
#[inline]
unsafe fn whole_steps<const INT8: bool, const TALL: bool, const PANELS: usize>(
    second_row: usize,
    tile: &Tile,
    sums: *mut f32,
) {
    zero_sums();
    let mut a = tile.a;
    let below = second_row * tile.a_stride;
    let mut b = tile.b;
    let mut next = tile.prefetch.cast::<i8>();
    for _ in 0..tile.steps / SIDE {
        // SAFETY: the caller promises these steps of sixteen rows from both starts, and of all panels.
        unsafe {
            load!(6, b, LINE);
            load!(4, a, tile.a_stride);
            multiply!(INT8: 0 += 4, 6);
            if PANELS > 1 {
                load!(7, b.wrapping_add(tile.panel_stride), LINE);
                multiply!(INT8: 1 += 4, 7);
            }
            if TALL {
                load!(5, a.wrapping_add(below), tile.a_stride);
                multiply!(INT8: 2 += 5, 6);
                if PANELS > 1 {
                    multiply!(INT8: 3 += 5, 7);
                }
            }
        }
        for _ in 0..tile.prefetch_lines * (SIDE / UNROLL) {
            // SAFETY: fetching is harmless at any address.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(next) };
            next = next.wrapping_add(LINE);
        }
        a = a.wrapping_add(SIDE * STEP);
        b = b.wrapping_add(SIDE * LINE);
    }
    // SAFETY: passed on from the caller.
    unsafe { store_sums::<TALL, PANELS>(second_row, sums) };
}

/// Four registers of zeros.
#[inline]
fn zero_sums() {
    // SAFETY: registers that are configured, and belong to tiles alone.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            options(nostack, nomem, preserves_flags)
        );
    }
}

/// Writes the four registers, or those that are in use, to a buffer of [`Sums`].
///
/// # Safety
/// The buffer holds sixteen rows from `second_row` on.
#[inline]
unsafe fn store_sums<const TALL: bool, const PANELS: usize>(second_row: usize, sums: *mut f32) {
    macro_rules! store {
        ($register:literal, $row:expr, $panel:literal) => {
            asm!(concat!("tilestored [{0} + {1}*1], tmm", $register),
                in(reg) sums.wrapping_add($row * WIDTH + $panel * PANEL), in(reg) WIDTH * size_of::<f32>(),
                options(nostack, preserves_flags))
        };
    }
    // SAFETY: the buffer holds 32 rows of two panels.
    unsafe {
        store!(0, 0, 0);
        if PANELS > 1 {
            store!(1, 0, 1);
        }
        if TALL {
            store!(2, second_row, 0);
            if PANELS > 1 {
                store!(3, second_row, 1);
            }
        }
    }
}

/// Scales integers, adds the bias and what C holds, as the tile asks, and writes C.
///
/// # Safety
/// See [`super::run`]; `sums` holds all rows.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn finish<const INT8: bool, const PANELS: usize>(rows: usize, tile: &Tile, sums: *const f32) {
    let per_column = |values: *const f32| {
        let mut lines = [_mm512_setzero_ps(); PANELS];
        if !values.is_null() {
            for (panel, line) in lines.iter_mut().enumerate() {
                // SAFETY: the caller promises one value per column.
                *line = unsafe { _mm512_loadu_ps(values.add(panel * PANEL)) };
            }
        }
        lines
    };
    let (bias, columns, start) =
        (per_column(tile.bias), per_column(tile.scales.columns), per_column(tile.scales.start.cast()));
    for row in 0..rows {
        let (sums, c) = (sums.wrapping_add(row * WIDTH), tile.c.wrapping_add(row * tile.c_stride));
        // SAFETY: the caller promises one value per row.
        let scale = if INT8 { _mm512_set1_ps(unsafe { *tile.scales.rows.add(row) }) } else { _mm512_setzero_ps() };
        for panel in 0..PANELS {
            // SAFETY: the buffer has all rows and panels.
            let mut value = unsafe { _mm512_loadu_ps(sums.add(panel * PANEL)) };
            if INT8 {
                let sum = _mm512_add_epi32(_mm512_castps_si512(value), _mm512_castps_si512(start[panel]));
                value = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_mul_ps(scale, columns[panel]));
            }
            value = _mm512_add_ps(value, bias[panel]);
            // SAFETY: the caller promises this row of C.
            unsafe {
                let c = c.add(panel * PANEL);
                if tile.add {
                    value = _mm512_add_ps(value, _mm512_loadu_ps(c));
                }
                _mm512_storeu_ps(c, value);
            }
        }
    }
}
