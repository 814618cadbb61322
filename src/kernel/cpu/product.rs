//! Matrix products in cache: rows of one operand by a range of columns of a packed weight, tile by tile.
//!
//! **Order.** Chunks of rows, inside them groups of three panels, inside them blocks of up to 8 rows. A group of a
//! 768-wide f32 weight has 147 KB: it stays in the second-level cache while the rows of the chunk pass over it, and the
//! group after it is fetched there meanwhile, so that a weight that streams from memory costs no waiting.

use std::ops::Range;

use super::Isa;
use super::activation::{Activation, activate_rows};
use super::matrix::MatrixView;
use super::rows::Rows;
use super::tile::{self, GROUP, LINE, MAX_ROWS, PANEL, Scales, Tile, UNROLL};

/// Rows that pass over one group of panels before the next: their inputs fit the second-level cache beside it.
pub(super) const ROW_CHUNK: usize = 128;

/// Rows in the format of the weight; at least [`tile::READ_ROWS`] of them can be read, however few count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operand {
    pub(super) start: *const u8,
    /// Bytes from one row to the next.
    pub(super) stride: usize,
    /// The integer format's factor of each row; null for the others.
    pub(super) scales: *const f32,
}

/// What happens to the sums.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Epilogue {
    pub(super) activation: Activation,
    /// Whether the result is added to what the output holds.
    pub(super) add: bool,
}

/// The product of `n_rows` rows with the column groups `groups`, written at the same columns of `out`.
///
/// # Safety
/// The thread holds [`tile::Registers`]. The operand holds `n_rows` rows of the weight's k; the view's weight is alive; `out` has `n_rows` rows of the weight's
/// n values, of which no other thread touches the columns of these groups.
pub(super) unsafe fn product(
    isa: Isa,
    (operand, n_rows): (Operand, usize),
    weight: &MatrixView,
    groups: Range<usize>,
    (out, epilogue): (Rows, Epilogue),
) {
    for first in (0..n_rows).step_by(ROW_CHUNK) {
        let rows = first..n_rows.min(first + ROW_CHUNK);
        for group in groups.clone() {
            // What is needed next: the next group, or the first one again for the next rows.
            let next = if group + 1 < groups.end { group + 1 } else { groups.start };
            // SAFETY: passed on from the caller.
            unsafe { group_product(isa, (operand, rows.clone()), weight, (group, next), (out, epilogue)) };
        }
    }
}

/// As [`product`] for one group and at most [`ROW_CHUNK`] rows.
unsafe fn group_product(
    isa: Isa,
    (operand, rows): (Operand, Range<usize>),
    weight: &MatrixView,
    (group, next): (usize, usize),
    (out, epilogue): (Rows, Epilogue),
) {
    let (max_rows, max_panels) = tile::largest(isa, weight.precision);
    let group_panels = GROUP.min(weight.n.div_ceil(PANEL) - group * GROUP);
    let n_blocks = rows.len().div_ceil(max_rows);
    // Blocks of equal size, give or take one row: a last block of a single row would cost as much as one of four.
    let (least, one_more) = (rows.len() / n_blocks, rows.len() % n_blocks);
    // Together, the blocks fetch the next group once.
    let prefetch_lines = (UNROLL * GROUP).div_ceil(n_blocks);
    let fetched = weight.steps / UNROLL * prefetch_lines * LINE;
    let fetch_from = weight.panels.wrapping_add(next * GROUP * weight.panel_stride);
    for first in (0..group_panels).step_by(max_panels) {
        let panel = group * GROUP + first;
        let panels = max_panels.min(group_panels - first);
        let n_columns = (panels * PANEL).min(weight.n - panel * PANEL);
        let mut tile = Tile {
            a: operand.start.wrapping_add(rows.start * operand.stride),
            a_stride: operand.stride,
            b: weight.panels.wrapping_add(panel * weight.panel_stride),
            panel_stride: weight.panel_stride,
            steps: weight.steps,
            c: out.at(rows.start, panel * PANEL).as_ptr(),
            c_stride: out.stride(),
            bias: offset(weight.bias, panel * PANEL),
            add: epilogue.add,
            scales: Scales {
                rows: offset(operand.scales, rows.start),
                columns: offset(weight.scales.columns, panel * PANEL),
                start: offset(weight.scales.start, panel * PANEL),
            },
            prefetch: fetch_from,
            prefetch_lines,
        };
        for block in 0..n_blocks {
            let n_rows = least + usize::from(block < one_more);
            if n_columns == panels * PANEL {
                // SAFETY: the tile lies inside the product that the caller promises.
                unsafe { tile::run(isa, weight.precision, (n_rows, panels), &tile) };
            } else {
                // SAFETY: as above, and its columns end at n.
                unsafe { cut_tile(isa, weight, (n_rows, panels, n_columns), tile) };
            }
            tile.a = tile.a.wrapping_add(n_rows * tile.a_stride);
            tile.c = tile.c.wrapping_add(n_rows * tile.c_stride);
            tile.scales.rows = offset(tile.scales.rows, n_rows);
            tile.prefetch = tile.prefetch.wrapping_add(fetched);
        }
    }
    if epilogue.activation != Activation::None {
        let first_column = group * GROUP * PANEL;
        let n_columns = (group_panels * PANEL).min(weight.n - first_column);
        let written = (out.at(rows.start, first_column), rows.len());
        // SAFETY: the rectangle that was just written.
        unsafe { activate_rows(isa, epilogue.activation, written, n_columns) };
    }
}

/// The address `count` values further on, or null for null.
const fn offset<T>(start: *const T, count: usize) -> *const T {
    if start.is_null() { start } else { start.wrapping_add(count) }
}

/// A tile of which the last columns are past n: computed aside, and what counts copied.
unsafe fn cut_tile(isa: Isa, weight: &MatrixView, (n_rows, panels, n_columns): (usize, usize, usize), tile: Tile) {
    const WIDTH: usize = GROUP * PANEL;
    let mut aside = [0.0_f32; MAX_ROWS * WIDTH];
    let out = Tile { c: aside.as_mut_ptr(), c_stride: WIDTH, add: false, ..tile };
    // SAFETY: passed on from the caller; the result goes to a buffer large enough for every tile.
    unsafe { tile::run(isa, weight.precision, (n_rows, panels), &out) };
    for (row, values) in aside.chunks_exact(WIDTH).take(n_rows).enumerate() {
        let start = tile.c.wrapping_add(row * tile.c_stride);
        // SAFETY: the caller promises the columns up to n.
        let kept = unsafe { std::slice::from_raw_parts_mut(start, n_columns) };
        for (kept, value) in kept.iter_mut().zip(values) {
            *kept = if tile.add { *kept + value } else { *value };
        }
    }
}
