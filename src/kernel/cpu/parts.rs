//! f32 products whose operands are split in bf16 parts for AMX (see [`super::tile::amx::parts`]): rows and weights are
//! split here, chunk by chunk of k and two panels at a time, into scratch memory that the second-level cache holds.

use std::ops::Range;

use super::Isa;
use super::activation::activate_rows;
use super::linear::{Growing, part_of_k};
use super::matrix::MatrixView;
use super::product::{Operand, Output, cut_tile, offset, row_chunk};
use super::rows::Rectangle;
use super::tile::amx::parts::{BLOCK, PANEL_BLOCK_LEN, ROW_BLOCK_LEN, Source, run, split_row};
use super::tile::{GROUP, MAX_PANELS, MAX_ROWS, PANEL, Scales, Tile};
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
/// The level is AMX, and the thread holds [`super::tile::Registers`]. The input has rows of the weight's k values, which no
/// other thread writes; the output has as many of its n, of which no other thread touches the columns of these groups.
pub(super) unsafe fn product(
    Rectangle { rows: input, n_rows, width: k }: Rectangle,
    weight: &MatrixView,
    groups: Range<usize>,
    output: Output,
    scratch: &mut PartsScratch,
) {
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
        let operand = Operand {
            start: row_parts.as_ptr().cast(),
            stride: stride * size_of::<u16>(),
            n_rows,
            scales: std::ptr::null(),
        };
        let (weight, epilogue) = part_of_k(weight, chunk, output.epilogue);
        let output = Output { epilogue, ..output };
        for panel in all.clone().step_by(MAX_PANELS) {
            let panels = panel..all.end.min(panel + MAX_PANELS);
            let columns = panel * PANEL..weight.n.min(panels.end * PANEL);
            // SAFETY: passed on from the caller; the rows are split, and the room for panels is this thread's.
            unsafe { panels_product(operand, &weight, panels, output, panel_parts) };
            if epilogue.activation != Activation::None {
                let written = output.rows.at(0, columns.start);
                // SAFETY: the rectangle that was just written.
                unsafe { activate_rows(Isa::Amx, epilogue.activation, written, n_rows, columns.len()) };
            }
        }
    }
}

/// Rows that are split times a few panels, both of one chunk of k.
///
/// # Safety
/// See [`product`].
unsafe fn panels_product(
    operand: Operand,
    weight: &MatrixView,
    panels: Range<usize>,
    Output { rows: out, epilogue }: Output,
    panel_parts: &mut [u16],
) {
    let column = panels.start * PANEL;
    let n_columns = (panels.len() * PANEL).min(weight.n - column);
    let n_tiles = operand.n_rows.div_ceil(MAX_ROWS);
    let (least, one_more) = (operand.n_rows / n_tiles, operand.n_rows % n_tiles);
    let source = Source {
        from: weight.panels.wrapping_add(panels.start * weight.panel_stride),
        panel_stride: weight.panel_stride,
        k: weight.steps,
        keep: n_tiles > 1,
    };
    let mut tile = Tile {
        a: operand.start,
        a_stride: operand.stride,
        b: panel_parts.as_mut_ptr().cast_const().cast(),
        panel_stride: 0,
        steps: weight.steps.div_ceil(BLOCK),
        c: out.at(0, column).as_ptr(),
        c_stride: out.stride(),
        bias: offset(weight.bias, column),
        add: epilogue.add,
        scales: Scales::NONE,
        prefetch: std::ptr::null(),
        prefetch_lines: 0,
    };
    for index in 0..n_tiles {
        let n_rows = least + usize::from(index < one_more);
        let source = (index == 0).then_some(&source);
        // SAFETY: the tile lies inside the product that the caller promises; the first one splits the panels.
        let multiply = |tile: &Tile| unsafe { run(n_rows, panels.len(), tile, source) };
        if n_columns == panels.len() * PANEL {
            multiply(&tile);
        } else {
            // SAFETY: as above, and its columns end at n.
            unsafe { cut_tile(n_rows, n_columns, tile, multiply) };
        }
        tile.a = tile.a.wrapping_add(n_rows * tile.a_stride);
        tile.c = tile.c.wrapping_add(n_rows * tile.c_stride);
    }
}
