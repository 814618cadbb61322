//! `C = A·Bᵀ + bias`, then an activation, then a residual: A is row-major activations, B a weight packed once at load.
//!
//! **Packing.** Sixteen output columns form a panel; inside it k advances and the sixteen columns of one k lie side
//! by side: `[n/16][k][16]`, columns past n filled with zeros. A needs no packing.
//!
//! **Bits.** Every output is one chain `((0 + a₀b₀) + a₁b₁) + …` of multiply-adds in rising k, whatever the tile, the
//! thread or the number of rows: a row's result does not depend on the rows beside it.
//!
//! **Threads.** The output is cut into tiles of `ROW_CHUNK` rows by one column group; with few rows every thread
//! streams its own columns of the weight, with many they share them out of cache.

use rayon::prelude::*;

use super::activation::{Activation, activate};
use super::{Isa, multiply_add};

/// Columns of one panel: one AVX-512 register, two AVX2 registers.
pub const PANEL: usize = 16;
/// Panels of one column group: with 8 rows they fill 24 of the 32 AVX-512 registers with sums.
const GROUP: usize = 3;
/// Rows handed to one task: the slice of A stays in the second-level cache while the column groups pass over it.
const ROW_CHUNK: usize = 128;

/// A weight `[n, k]` (row-major, as stored by PyTorch) packed into panels, with its bias.
#[derive(Debug, Clone)]
pub struct PackedMatrix {
    panels: Vec<f32>,
    bias: Option<Vec<f32>>,
    n: usize,
    k: usize,
}

impl PackedMatrix {
    /// Packs rows given one at a time: `row(i)` yields the k weights of output column i.
    pub fn pack(n: usize, k: usize, weight: &[f32], bias: Option<Vec<f32>>) -> Self {
        let mut panels = vec![0.0; n.div_ceil(PANEL) * k * PANEL];
        if k > 0 {
            panels.par_chunks_mut(k * PANEL).enumerate().for_each(|(panel, packed)| {
                let first = panel * PANEL;
                for (lane, row) in weight.chunks_exact(k).skip(first).take(PANEL).enumerate() {
                    for (slot, value) in packed.iter_mut().skip(lane).step_by(PANEL).zip(row) {
                        *slot = *value;
                    }
                }
            });
        }
        Self { panels, bias, n, k }
    }

    /// Output columns.
    pub const fn n(&self) -> usize {
        self.n
    }

    /// Input columns.
    pub const fn k(&self) -> usize {
        self.k
    }

    /// Memory held, in bytes.
    pub fn size_bytes(&self) -> usize {
        (self.panels.len() + self.bias.as_ref().map_or(0, Vec::len)) * size_of::<f32>()
    }
}

/// Rows `[m, k]` to `[m, n]`; a residual has the shape of the result and is added last.
pub fn linear(
    isa: Isa,
    a: &[f32],
    weight: &PackedMatrix,
    activation: Activation,
    residual: Option<&[f32]>,
) -> Vec<f32> {
    let (k, n) = (weight.k, weight.n);
    let m = a.len().checked_div(k).unwrap_or(0);
    let mut out = vec![0.0; m * n];
    let column_groups = n.div_ceil(GROUP * PANEL);
    let output = Output { start: out.as_mut_ptr(), stride: n };
    (0..m.div_ceil(ROW_CHUNK) * column_groups).into_par_iter().for_each(|task| {
        let (chunk, group) = (task / column_groups, task % column_groups);
        let first_row = chunk * ROW_CHUNK;
        let n_rows = ROW_CHUNK.min(m - first_row);
        let first_column = group * GROUP * PANEL;
        let n_columns = (GROUP * PANEL).min(n - first_column);
        let panels = &weight.panels[first_column * k..];
        let block = Product { a: &a[first_row * k..], a_stride: k, panels, panel_stride: k, k, n_rows, n_columns };
        // SAFETY: tasks cover disjoint rectangles of `out`, which outlives the loop and is not read inside it.
        let mut tile = unsafe { output.tile(first_row, first_column) };
        multiply(isa, &block, &mut tile);
        for row in 0..n_rows {
            // SAFETY: the row lies inside this task's rectangle.
            let values = unsafe { tile.row(row, n_columns) };
            if let Some(bias) = &weight.bias {
                for (value, bias) in values.iter_mut().zip(&bias[first_column..]) {
                    *value += bias;
                }
            }
            activate(isa, activation, values);
            if let Some(residual) = residual {
                for (value, residual) in values.iter_mut().zip(&residual[(first_row + row) * n + first_column..]) {
                    *value += residual;
                }
            }
        }
    });
    out
}

/// One rectangular product: `n_rows` rows of A by `n_columns` columns of packed panels.
pub(super) struct Product<'a> {
    pub(super) a: &'a [f32],
    pub(super) a_stride: usize,
    /// From the first panel of the rectangle on, and inside each panel from the first k of the product on.
    pub(super) panels: &'a [f32],
    /// k rows from one panel to the next; more than `k` where the product takes only some of them.
    pub(super) panel_stride: usize,
    pub(super) k: usize,
    pub(super) n_rows: usize,
    pub(super) n_columns: usize,
}

/// A row-major output of which several threads write disjoint rectangles.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub(super) start: *mut f32,
    pub(super) stride: usize,
}

// SAFETY: an `Output` is an address; the rectangles written through it are disjoint by the contract of `tile`.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

/// The rectangle of an [`Output`] that one task may write.
pub(super) struct Tile {
    start: *mut f32,
    stride: usize,
}

impl Output {
    /// # Safety
    /// The position lies inside the allocation, and no other thread touches the rectangle written through the tile.
    pub(super) unsafe fn tile(self, row: usize, column: usize) -> Tile {
        // SAFETY: the caller promises that the position lies inside the allocation.
        Tile { start: unsafe { self.start.add(row * self.stride + column) }, stride: self.stride }
    }
}

impl Tile {
    /// # Safety
    /// `row` and `n_columns` lie inside the rectangle the tile was made for.
    pub(super) unsafe fn row(&mut self, row: usize, n_columns: usize) -> &mut [f32] {
        // SAFETY: the caller promises that the row lies inside the rectangle, which this tile alone writes.
        let start = unsafe { self.start.add(row * self.stride) };
        // SAFETY: as above; the values were initialised when the output was allocated.
        unsafe { std::slice::from_raw_parts_mut(start, n_columns) }
    }
}

/// Overwrites the tile with the product, in blocks of the register tile of the instruction set.
pub(super) fn multiply(isa: Isa, block: &Product<'_>, out: &mut Tile) {
    let n_panels = block.n_columns.div_ceil(PANEL);
    assert!(block.n_rows == 0 || block.a.len() >= (block.n_rows - 1) * block.a_stride + block.k, "A is too short");
    let last = n_panels.saturating_sub(1) * block.panel_stride + block.k;
    assert!(n_panels == 0 || block.panels.len() >= last * PANEL, "the packed weight is too short");
    assert!(n_panels <= 1 || block.panel_stride >= block.k, "panels overlap");
    let max_rows = match isa {
        Isa::Avx512 => 8,
        Isa::Avx2 => 6,
        Isa::Portable => 4,
    };
    let max_panels = if isa == Isa::Avx512 { GROUP } else { 1 };
    let mut panel = 0;
    while panel < n_panels {
        let panels = max_panels.min(n_panels - panel);
        let mut row = 0;
        while row < block.n_rows {
            let rows = max_rows.min(block.n_rows - row);
            register_tile(isa, block, (row, rows), (panel, panels), out);
            row += rows;
        }
        panel += panels;
    }
}

/// Sums of one register tile, `[8 rows][3 panels][16]` at most.
type Sums = [[[f32; PANEL]; GROUP]; 8];

fn register_tile(
    isa: Isa,
    block: &Product<'_>,
    (row, rows): (usize, usize),
    (panel, panels): (usize, usize),
    out: &mut Tile,
) {
    let a = &block.a[row * block.a_stride..];
    let b = &block.panels[panel * block.panel_stride * PANEL..];
    let mut sums: Sums = [[[0.0; PANEL]; GROUP]; 8];
    match isa {
        Isa::Portable => portable(a, b, block, (rows, panels), &mut sums),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the level was checked when it was chosen; `multiply` checked the lengths of A and the panels.
        Isa::Avx2 => unsafe { x86::avx2(a.as_ptr(), b.as_ptr(), block, rows, &mut sums) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { x86::avx512(a.as_ptr(), b.as_ptr(), block, (rows, panels), &mut sums) },
        #[cfg(not(target_arch = "x86_64"))]
        _ => portable(a, b, block, (rows, panels), &mut sums),
    }
    let first_column = panel * PANEL;
    for (index, sums) in sums.iter().take(rows).enumerate() {
        // SAFETY: the register tile lies inside the block, and the block inside the tile's rectangle.
        let values = unsafe { out.row(row + index, block.n_columns) };
        let columns = values[first_column..].iter_mut();
        for (value, sum) in columns.zip(sums[..panels].as_flattened()) {
            *value = *sum;
        }
    }
}

fn portable(a: &[f32], b: &[f32], block: &Product<'_>, (rows, panels): (usize, usize), sums: &mut Sums) {
    for panel in 0..panels {
        let b = &b[panel * block.panel_stride * PANEL..][..block.k * PANEL];
        for row in 0..rows {
            let a = &a[row * block.a_stride..][..block.k];
            let sums = &mut sums[row][panel];
            for (a, b) in a.iter().zip(b.as_chunks::<PANEL>().0) {
                for (sum, b) in sums.iter_mut().zip(b) {
                    *sum = multiply_add::<false>(*a, *b, *sum);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! Register tiles. One body per instruction set, unrolled by constant row and panel counts.
    #![expect(clippy::multiple_unsafe_ops_per_block, reason = "an address and the one access to it share their reason")]

    use std::arch::x86_64::{
        __m256, __m512, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_ps,
        _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{PANEL, Product, Sums};

    /// # Safety
    /// AVX-512 F is there; `a` holds `rows` rows and `b` `panels` panels of the block's k.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512(
        a: *const f32,
        b: *const f32,
        block: &Product<'_>,
        (rows, panels): (usize, usize),
        sums: &mut Sums,
    ) {
        let (k, stride, b) = (block.k, block.a_stride, Panels { start: b, stride: block.panel_stride });
        macro_rules! choose {
            ($($rows:literal)*) => {
                match (rows, panels) {
                    $(
                        // SAFETY: passed on from the caller.
                        ($rows, 3) => unsafe { avx512_tile::<$rows, 3>(a, stride, b, k, sums) },
                        // SAFETY: as above.
                        ($rows, 2) => unsafe { avx512_tile::<$rows, 2>(a, stride, b, k, sums) },
                        // SAFETY: as above.
                        ($rows, _) => unsafe { avx512_tile::<$rows, 1>(a, stride, b, k, sums) },
                    )*
                    _ => unreachable!("at most 8 rows"),
                }
            };
        }
        choose!(1 2 3 4 5 6 7 8);
    }

    /// Where packed panels begin, and how many k rows lie from one to the next.
    #[derive(Clone, Copy)]
    struct Panels {
        start: *const f32,
        stride: usize,
    }

    /// # Safety
    /// As [`avx512`], with `ROWS` rows and `PANELS` panels.
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512_tile<const ROWS: usize, const PANELS: usize>(
        a: *const f32,
        stride: usize,
        b: Panels,
        k: usize,
        sums: &mut Sums,
    ) {
        let mut acc: [[__m512; PANELS]; ROWS] = [[_mm512_setzero_ps(); PANELS]; ROWS];
        for p in 0..k {
            let mut columns = [_mm512_setzero_ps(); PANELS];
            for (panel, column) in columns.iter_mut().enumerate() {
                // SAFETY: the caller promises `PANELS` panels of k times 16 values.
                let values = unsafe { b.start.add((panel * b.stride + p) * PANEL) };
                // SAFETY: as above.
                *column = unsafe { _mm512_loadu_ps(values) };
            }
            for (row, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the caller promises `ROWS` rows of k values, `stride` apart.
                let value = _mm512_set1_ps(unsafe { a.add(row * stride + p).read() });
                for (acc, column) in acc.iter_mut().zip(columns) {
                    *acc = _mm512_fmadd_ps(value, column, *acc);
                }
            }
        }
        for (acc, sums) in acc.iter().zip(sums) {
            for (acc, sums) in acc.iter().zip(sums) {
                // SAFETY: the destination is an array of 16 floats.
                unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), *acc) };
            }
        }
    }

    /// # Safety
    /// AVX2 and FMA are there; `a` holds `rows` rows and `b` one panel of the block's k.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(a: *const f32, b: *const f32, block: &Product<'_>, rows: usize, sums: &mut Sums) {
        let (k, stride) = (block.k, block.a_stride);
        macro_rules! choose {
            ($($rows:literal)*) => {
                match rows {
                    // SAFETY: passed on from the caller.
                    $($rows => unsafe { avx2_tile::<$rows>(a, stride, b, k, sums) },)*
                    _ => unreachable!("at most 6 rows"),
                }
            };
        }
        choose!(1 2 3 4 5 6);
    }

    /// # Safety
    /// As [`avx2`], with `ROWS` rows.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2_tile<const ROWS: usize>(a: *const f32, stride: usize, b: *const f32, k: usize, sums: &mut Sums) {
        let mut acc: [[__m256; 2]; ROWS] = [[_mm256_setzero_ps(); 2]; ROWS];
        for p in 0..k {
            // SAFETY: the caller promises a panel of k times 16 values.
            let columns = unsafe { b.add(p * PANEL) };
            // SAFETY: as above.
            let low = unsafe { _mm256_loadu_ps(columns) };
            // SAFETY: as above, the second eight of them.
            let high = unsafe { _mm256_loadu_ps(columns.add(8)) };
            for (row, acc) in acc.iter_mut().enumerate() {
                // SAFETY: the caller promises `ROWS` rows of k values, `stride` apart.
                let value = _mm256_set1_ps(unsafe { a.add(row * stride + p).read() });
                acc[0] = _mm256_fmadd_ps(value, low, acc[0]);
                acc[1] = _mm256_fmadd_ps(value, high, acc[1]);
            }
        }
        for (acc, sums) in acc.iter().zip(sums) {
            let sums = sums[0].as_mut_ptr();
            // SAFETY: the destination is an array of 16 floats.
            unsafe { _mm256_storeu_ps(sums, acc[0]) };
            // SAFETY: as above, its second half.
            unsafe { _mm256_storeu_ps(sums.add(8), acc[1]) };
        }
    }
}
