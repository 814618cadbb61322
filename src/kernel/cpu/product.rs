//! Matrix products in cache: rows of one operand by a range of columns of a packed weight, tile by tile.
//!
//! **Order.** Chunks of rows ([`row_chunk`]), inside them groups of three panels, inside them blocks of up to 8 rows; on
//! AMX two panels and 32 rows. A group of a 768-wide f32 weight has 147 KB: it stays in the second-level cache while the
//! rows of the chunk pass over it, and the group after it is fetched there meanwhile, so that a weight that streams from
//! memory costs no waiting.

use std::ops::Range;

use super::Isa;
use super::activation::{Activation, activate_rows};
use super::matrix::MatrixView;
use super::rows::Rows;
use super::tile::{self, GROUP, LINE, MAX_ROWS, PANEL, Scales, Tile, UNROLL, panels_at_once};
use crate::kernel::Precision;

/// Rows that pass over one group of panels before the next: their inputs fit the second-level cache beside it. AMX
/// multiplies so fast that fetching the panels from behind that cache takes as long as 100 rows, so they serve more.
pub(super) const fn row_chunk(isa: Isa) -> usize {
    match isa {
        Isa::Amx => 320,
        Isa::Portable | Isa::Neon | Isa::Avx2 | Isa::Avx512 => 128,
    }
}

/// Values of k of a chunk of rows in a format, where it must be cut to fit: what comes after is added to C. The borders are
/// the same for every row, and so are its bits.
pub(super) const fn k_chunk(isa: Isa, precision: Precision) -> usize {
    match (isa, precision) {
        (Isa::Amx, Precision::Bf16) => 1536,
        _ => usize::MAX,
    }
}

/// Cuts a range into as few parts as possible of at most `at_most`, all of about the same size: a last one of few rows would
/// fetch as much as the others.
pub(super) fn even_parts(range: Range<usize>, at_most: usize) -> impl Iterator<Item = Range<usize>> {
    let n = range.len().div_ceil(at_most);
    let border = move |index: usize| range.start + range.len() * index / n.max(1);
    (0..n).map(move |index| border(index)..border(index + 1))
}

/// Rows in the format of the weight. Where they were brought into it, [`tile::READ_ROWS`] can be read, however few count.
#[derive(Debug, Clone, Copy)]
pub(super) struct Operand {
    pub(super) start: *const u8,
    /// Bytes from one row to the next.
    pub(super) stride: usize,
    pub(super) n_rows: usize,
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

/// Where the result goes, and what happens to the sums on the way.
#[derive(Debug, Clone, Copy)]
pub(super) struct Output {
    pub(super) rows: Rows,
    pub(super) epilogue: Epilogue,
}

/// Panels that the rows pass over at once.
#[derive(Debug, Clone)]
struct Span {
    panels: Range<usize>,
    /// The first of those that come after.
    next: usize,
}

/// The product of an operand's rows with the column groups `groups`, written at the same columns of the output.
///
/// # Safety
/// The thread holds [`tile::Registers`]. The operand's rows have the weight's k; the view's weight is alive; the output has
/// as many rows of the weight's n values, of which no other thread touches the columns of these groups.
pub(super) unsafe fn product(isa: Isa, operand: Operand, weight: &MatrixView, groups: Range<usize>, output: Output) {
    let n_panels = weight.n.div_ceil(PANEL);
    let at_once = panels_at_once(isa, weight.precision);
    let first = groups.start * GROUP;
    let end = n_panels.min(groups.end * GROUP);
    for panel in (first..end).step_by(at_once) {
        let panels = panel..end.min(panel + at_once);
        // What is needed next: the next panels, or the first ones again for the next rows.
        let next = if panels.end < end { panels.end } else { first };
        // SAFETY: passed on from the caller.
        unsafe { panels_product(isa, operand, weight, Span { panels, next }, output) };
    }
}

/// As [`product`] for a few panels.
unsafe fn panels_product(
    isa: Isa,
    operand: Operand,
    weight: &MatrixView,
    Span { panels: all, next }: Span,
    Output { rows: out, epilogue }: Output,
) {
    let n_rows = operand.n_rows;
    let (max_rows, max_panels) = tile::largest(isa, weight.precision);
    let n_blocks = n_rows.div_ceil(max_rows);
    // Blocks of equal size, give or take one row: a last block of a single row would cost as much as one of four.
    let (least, one_more) = (n_rows / n_blocks, n_rows % n_blocks);
    // Together, the blocks fetch the next panels once.
    let prefetch_lines = (UNROLL * all.len()).div_ceil(n_blocks);
    let fetched = weight.steps / UNROLL * prefetch_lines * LINE;
    let fetch_from = weight.panels.wrapping_add(next * weight.panel_stride);
    for panel in all.clone().step_by(max_panels) {
        let panels = max_panels.min(all.end - panel);
        let n_columns = (panels * PANEL).min(weight.n - panel * PANEL);
        let mut tile = Tile {
            a: operand.start,
            a_stride: operand.stride,
            b: weight.panels.wrapping_add(panel * weight.panel_stride),
            panel_stride: weight.panel_stride,
            steps: weight.steps,
            c: out.at(0, panel * PANEL).as_ptr(),
            c_stride: out.stride(),
            bias: offset(weight.bias, panel * PANEL),
            add: epilogue.add,
            scales: Scales {
                rows: operand.scales,
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
                unsafe { tile::run(isa, weight.precision, n_rows, panels, &tile) };
            } else {
                // SAFETY: as above.
                let multiply = |tile: &Tile| unsafe { tile::run(isa, weight.precision, n_rows, panels, tile) };
                // SAFETY: as above, and its columns end at n.
                unsafe { cut_tile(n_rows, n_columns, tile, multiply) };
            }
            tile.a = tile.a.wrapping_add(n_rows * tile.a_stride);
            tile.c = tile.c.wrapping_add(n_rows * tile.c_stride);
            tile.scales.rows = offset(tile.scales.rows, n_rows);
            tile.prefetch = tile.prefetch.wrapping_add(fetched);
        }
    }
    if epilogue.activation != Activation::None {
        let first_column = all.start * PANEL;
        let n_columns = (all.len() * PANEL).min(weight.n - first_column);
        let written = out.at(0, first_column);
        // SAFETY: the rectangle that was just written.
        unsafe { activate_rows(isa, epilogue.activation, written, n_rows, n_columns) };
    }
}

/// The address `count` values further on, or null for null.
pub(super) const fn offset<T>(start: *const T, count: usize) -> *const T {
    if start.is_null() { start } else { start.wrapping_add(count) }
}

/// A tile of which the last columns are past n: computed aside, and what counts copied.
///
/// # Safety
/// `multiply` computes a tile of `n_rows` rows, the caller promises `n_columns` columns of C.
pub(super) unsafe fn cut_tile(n_rows: usize, n_columns: usize, tile: Tile, multiply: impl FnOnce(&Tile)) {
    const WIDTH: usize = GROUP * PANEL;
    let mut aside = [0.0_f32; MAX_ROWS * WIDTH];
    multiply(&Tile { c: aside.as_mut_ptr(), c_stride: WIDTH, add: false, ..tile });
    for (row, values) in aside.chunks_exact(WIDTH).take(n_rows).enumerate() {
        let start = tile.c.wrapping_add(row * tile.c_stride);
        // SAFETY: the caller promises the columns up to n.
        let kept = unsafe { std::slice::from_raw_parts_mut(start, n_columns) };
        for (kept, value) in kept.iter_mut().zip(values) {
            *kept = if tile.add { *kept + value } else { *value };
        }
    }
}
