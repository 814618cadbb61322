//! f32 products whose operands are split in bf16 parts for AMX (see [`super::tile::amx::parts`]): rows and weights are
//! split here, chunk by chunk of k and two panels at a time, into scratch memory that the second-level cache holds.

use std::ops::Range;

use super::Isa;
use super::activation::activate_rows;
use super::linear::Growing;
use super::matrix::MatrixView;
use super::product::{Epilogue, cut_tile, offset, row_chunk};
use super::rows::Rows;
use super::tile::amx::parts::{BLOCK, PANEL_BLOCK_LEN, ROW_BLOCK_LEN, Source, run, split_row};
use super::tile::{GROUP, LINE, MAX_PANELS, MAX_ROWS, PANEL, Scales, Tile};
use crate::kernel::Activation;

/// Values of k whose parts are held at once, 750 KB of a chunk of rows and 74 KB of panels. What comes after is added to C:
/// the same borders for every row, so the same bits.
const K_CHUNK: usize = 384;

/// One thread's room for parts: of a chunk of rows, and of the panels that they are multiplied with.
#[derive(Debug, Default)]
pub(super) struct PartsScratch {
    rows: Growing<u16>,
    panels: Growing<u16>,
}

/// At most [`row_chunk`] rows times the columns of `groups`.
///
/// # Safety
/// The level is AMX, and the thread holds [`super::tile::Registers`]. The input has `n_rows` rows of the weight's k values,
/// which no other thread writes; `out` has as many of its n, of which no other thread touches the columns of these groups.
pub(super) unsafe fn product(
    (input, n_rows): (Rows, usize),
    weight: &MatrixView,
    groups: Range<usize>,
    (out, epilogue): (Rows, Epilogue),
    scratch: &mut PartsScratch,
) {
    let k = weight.steps;
    // An odd number of cache lines from row to row, as `padded` has it.
    let stride = K_CHUNK / BLOCK * ROW_BLOCK_LEN + BLOCK;
    let row_parts = scratch.rows.at_least(row_chunk(Isa::Amx) * stride);
    let panel_parts = scratch.panels.at_least(MAX_PANELS * K_CHUNK / BLOCK * PANEL_BLOCK_LEN);
    let all = groups.start * GROUP..weight.n.div_ceil(PANEL).min(groups.end * GROUP);
    for chunk in (0..k).step_by(K_CHUNK).map(|first| first..k.min(first + K_CHUNK)) {
        for (row, parts) in row_parts.chunks_exact_mut(stride).take(n_rows).enumerate() {
            // SAFETY: the caller promises the rows.
            let values = unsafe { input.at(0, chunk.start).row(row, chunk.len()) };
            // SAFETY: the level was checked when it was chosen.
            unsafe { split_row(values, parts) };
        }
        let rows = (row_parts.as_ptr().cast(), stride * size_of::<u16>(), n_rows);
        let is_last = chunk.end == k;
        for panel in all.clone().step_by(MAX_PANELS) {
            let panels = panel..all.end.min(panel + MAX_PANELS);
            let columns = panel * PANEL..weight.n.min(panels.end * PANEL);
            // SAFETY: passed on from the caller; the rows are split, and the room for panels is this thread's.
            unsafe { panels_product(rows, weight, (chunk.clone(), panels), (out, epilogue), panel_parts) };
            if is_last && epilogue.activation != Activation::None {
                let written = (out.at(0, columns.start), n_rows);
                // SAFETY: the rectangle that was just written.
                unsafe { activate_rows(Isa::Amx, epilogue.activation, written, columns.len()) };
            }
        }
    }
}

/// Rows that are split, their distance in bytes and their number, times a chunk of k of a few panels.
///
/// # Safety
/// See [`product`].
unsafe fn panels_product(
    (rows, row_stride, n_rows): (*const u8, usize, usize),
    weight: &MatrixView,
    (chunk, panels): (Range<usize>, Range<usize>),
    (out, epilogue): (Rows, Epilogue),
    panel_parts: &mut [u16],
) {
    let column = panels.start * PANEL;
    let n_columns = (panels.len() * PANEL).min(weight.n - column);
    let n_tiles = n_rows.div_ceil(MAX_ROWS);
    let (least, one_more) = (n_rows / n_tiles, n_rows % n_tiles);
    let source = Source {
        from: weight.panels.wrapping_add(panels.start * weight.panel_stride + chunk.start * LINE),
        panel_stride: weight.panel_stride,
        k: chunk.len(),
        keep: n_tiles > 1,
    };
    let is_first = chunk.start == 0;
    let mut tile = Tile {
        a: rows,
        a_stride: row_stride,
        b: panel_parts.as_mut_ptr().cast_const().cast(),
        panel_stride: 0,
        steps: chunk.len().div_ceil(BLOCK),
        c: out.at(0, column).as_ptr(),
        c_stride: out.stride(),
        bias: if is_first { offset(weight.bias, column) } else { std::ptr::null() },
        add: epilogue.add || !is_first,
        scales: Scales::NONE,
        prefetch: std::ptr::null(),
        prefetch_lines: 0,
    };
    for index in 0..n_tiles {
        let n_rows = least + usize::from(index < one_more);
        let source = (index == 0).then_some(&source);
        // SAFETY: the tile lies inside the product that the caller promises; the first one splits the panels.
        let multiply = |tile: &Tile| unsafe { run((n_rows, panels.len()), tile, source) };
        if n_columns == panels.len() * PANEL {
            multiply(&tile);
        } else {
            // SAFETY: as above, and its columns end at n.
            unsafe { cut_tile((n_rows, n_columns), tile, multiply) };
        }
        tile.a = tile.a.wrapping_add(n_rows * tile.a_stride);
        tile.c = tile.c.wrapping_add(n_rows * tile.c_stride);
    }
}
