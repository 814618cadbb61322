//! Register tiles: the innermost loop of every matrix product.
//!
//! A tile is `ROWS` rows of A by `PANELS` panels of sixteen columns of B, summed over all of k in registers. The three
//! number formats share one shape: k advances in groups of four bytes (one f32, two bf16, four 8-bit integers), the group of
//! one row of A is broadcast, and the groups of sixteen columns of B are one 64-byte line, `[n/16][k/group][16][group]`.
//! A needs no packing.
//!
//! **Bits.** On one instruction set the order of a sum depends on k alone, never on the tile, the thread or the number of
//! rows; a row's result does not depend on the rows beside it. Vector levels run one chain over rising k; AMX adds up sums of
//! sixteen steps (`amx`), and a long k is divided at fixed places (`product`). f32 chains of fused multiply-adds are the same on every vector
//! width; integer sums are exact everywhere.
//!
//! | format | product | after the last k |
//! |---|---|---|
//! | f32 | `sum + a·b` | `sum + bias` |
//! | bf16 | two exact products, added to an f32 sum | `sum + bias` |
//! | int8 | `u8·s8` into i32, started at `−128·Σ b` | `sum·(row scale·column scale) + bias` |

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use super::Isa;
use crate::kernel::Precision;

/// Columns of one panel: one AVX-512 register of f32, two AVX2 registers.
pub(super) const PANEL: usize = 16;
/// Panels of one column group: with 8 rows they fill 24 of the 32 AVX-512 registers with sums.
pub(super) const GROUP: usize = 3;
/// Bytes of A per row, and of B per column, that one step over k takes.
pub(super) const STEP: usize = 4;
/// Steps of one turn of the unrolled loops.
pub(super) const UNROLL: usize = 4;
/// Bytes of B that one panel holds per step.
pub(super) const LINE: usize = PANEL * STEP;

/// Where a tile reads and writes. Everything but `c` is read only.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    /// First row of A, its columns in groups of [`STEP`] bytes.
    pub(super) a: *const u8,
    /// Bytes from one row of A to the next.
    pub(super) a_stride: usize,
    /// First panel of B.
    pub(super) b: *const u8,
    /// Bytes from one panel to the next.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "tiles of one panel have no next"))]
    pub(super) panel_stride: usize,
    /// Groups of k.
    pub(super) steps: usize,
    /// Top left value of the result.
    pub(super) c: *mut f32,
    /// Values from one row of the result to the next.
    pub(super) c_stride: usize,
    /// One value per column, or null.
    pub(super) bias: *const f32,
    /// Whether the result is added to what `c` holds.
    pub(super) add: bool,
    /// What the integer sums are multiplied by; null for the other formats.
    pub(super) scales: Scales,
    /// Lines from here on are fetched into the second-level cache meanwhile; any address will do.
    pub(super) prefetch: *const u8,
    /// How many of them for every [`UNROLL`] steps.
    pub(super) prefetch_lines: usize,
}

/// The factors of an integer product.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scales {
    /// One per row.
    pub(super) rows: *const f32,
    /// One per column.
    pub(super) columns: *const f32,
    /// Where each column's sum starts: it undoes the 128 that was added to every value of A.
    pub(super) start: *const i32,
}

impl Scales {
    pub(super) const NONE: Self = Self { rows: std::ptr::null(), columns: std::ptr::null(), start: std::ptr::null() };
}

/// Rows of the largest tile of all.
pub(super) const MAX_ROWS: usize = 32;

/// Panels of a tile of AMX. With three of them fewer loads fall on each product, but one tile register is left for each
/// operand: by itself that is a quarter slower over 768 values, and as fast inside a forward pass.
pub(super) const MAX_PANELS: usize = 2;

/// Rows of A that tiles of AMX read, needed or not: those of 17 rows and more stay inside, fewer go on behind the last.
pub(super) const READ_ROWS: usize = 16;

/// Panels that the rows of a product pass over before the next: a group, or what a tile of AMX takes.
pub(super) const fn panels_at_once(isa: Isa, precision: Precision) -> usize {
    match (isa, precision) {
        (Isa::Amx, Precision::Bf16 | Precision::Int8) => MAX_PANELS,
        _ => GROUP,
    }
}

/// Steps of k that an instruction set takes at once in a format: others are slower, never wrong.
pub(super) const fn steps_at_once(isa: Isa, precision: Precision) -> usize {
    match (isa, precision) {
        (Isa::Amx, Precision::Bf16 | Precision::Int8) => 16,
        _ => 1,
    }
}

/// What a thread must hold while it computes tiles: the registers of AMX.
#[derive(Debug)]
pub(super) struct Registers {
    #[cfg(target_arch = "x86_64")]
    _amx: Option<amx::Registers>,
}

impl Registers {
    pub(super) fn of(isa: Isa) -> Self {
        let _ = isa;
        Self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: this level is only chosen after `is_supported` returned true.
            _amx: (isa == Isa::Amx).then(|| unsafe { amx::Registers::configure() }),
        }
    }
}

/// Whether this process may use AMX.
#[cfg(target_arch = "x86_64")]
pub(super) fn amx_is_granted() -> bool {
    amx::is_granted()
}

/// The largest tile of an instruction set, in rows and panels.
pub(super) const fn largest(isa: Isa, precision: Precision) -> (usize, usize) {
    match (isa, precision) {
        (Isa::Amx, Precision::Bf16 | Precision::Int8) => (MAX_ROWS, MAX_PANELS),
        (Isa::Avx512 | Isa::Amx, _) => (8, GROUP),
        (Isa::Avx2, Precision::F32) => (6, 1),
        (Isa::Neon, _) => (5, 1),
        (Isa::Avx2 | Isa::Portable, _) => (4, 1),
    }
}

/// Computes one tile.
///
/// # Safety
/// The instruction set is there, and the thread holds [`Registers`]. `rows` and `panels` are at least 1 and at most
/// [`largest`]. All rows of A and C, all panels of B and every vector named in `tile` that is not null can be read (C:
/// written) over the whole tile, on AMX at least [`READ_ROWS`] rows of A; no other thread touches that part of C.
pub(super) unsafe fn run(isa: Isa, precision: Precision, rows: usize, panels: usize, tile: &Tile) {
    debug_assert!(rows <= largest(isa, precision).0 && panels <= largest(isa, precision).1, "the tile is too large");
    match (isa, precision) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: passed on from the caller.
        (Isa::Amx, Precision::Bf16 | Precision::Int8) => unsafe { amx::run(precision, rows, panels, tile) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Isa::Avx512 | Isa::Amx, _) => unsafe { avx512::run(precision, rows, panels, tile) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        (Isa::Avx2, Precision::F32) => unsafe { avx2::run(rows, tile) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        (Isa::Neon, _) => unsafe { neon::run(precision, rows, tile) },
        // SAFETY: as above.
        _ => unsafe { portable::run(precision, rows, tile) },
    }
}
