//! Attention inside each sequence of a tile: `softmax(scale·q·kᵀ + bias)·v`, one sequence and head after another.
//!
//! The keys of a head are packed like a weight (sixteen keys to a panel), the values likewise (sixteen columns to a
//! panel), and both products run on the tiles of [`super::tile`]. Queries go in blocks of `QUERY_BLOCK`, so the score
//! buffer is small even for 8,192 keys. The softmax subtracts the row's maximum, divides once at the end, and sums in
//! fixed lanes: a sequence's bits depend on nothing outside it. There is no mask: what is not in the sequence is not
//! there.
//!
//! Both products run in f32, or in bf16 where the model's weights are narrower than f32; scores and shares are f32 in
//! between.
//!
//! Rotary positions turn queries and keys as they are packed. A window limits each query to the keys around it: blocks
//! compute only the key panels that one of their queries sees, so local attention is linear in the length.
//!
//! The result takes the place of the queries: nobody needs a block of queries but the one who computes it.

mod operands;

use std::ops::Range;

use super::Isa;
use super::activation::exp;
use super::dispatch;
use super::matrix::MatrixView;
use super::norm::fold_lanes;
use super::product::{Epilogue, Operand, Output, product};
use super::rows::{Rectangle, Rows, padded};
use super::team::Team;
use super::tile::{GROUP, PANEL};
use crate::kernel::Attention;
use operands::{NarrowRows, Panels};

/// Queries whose scores are held at once.
const QUERY_BLOCK: usize = 32;

/// Buffers of one thread, reused from head to head.
#[derive(Debug, Default)]
pub(super) struct AttentionScratch {
    turned: Vec<f32>,
    queries: NarrowRows,
    keys: Panels,
    values: Panels,
    scores: Vec<f32>,
    shares: NarrowRows,
    bias: Vec<f32>,
}

/// The queries, keys and values of a tile, `[n_tokens, 3·inner]`, where inner is heads times head size.
#[derive(Debug, Clone, Copy)]
pub(super) struct QueryKeyValue<'a> {
    pub(super) rows: Rows,
    pub(super) inner: usize,
    /// Row offsets of the sequences, one more than there are sequences.
    pub(super) offsets: &'a [usize],
}

/// Replaces the queries of this member's share by the result. The other parts are only read.
///
/// # Safety
/// All rows are there and nobody writes keys and values meanwhile; all members of the team call this alike.
pub(super) unsafe fn attend(
    isa: Isa,
    op: &Attention,
    qkv: QueryKeyValue<'_>,
    team: &Team<'_>,
    scratch: &mut AttentionScratch,
) {
    let size = qkv.inner / op.n_heads;
    let lengths = || qkv.offsets.windows(2).map(|span| span[1] - span[0]);
    let cost = |n: usize| n * n.min(op.window.map_or(n, |window| 2 * window + 1));
    // Work is cut in proportion to cost, at any block of queries of any head of any sequence.
    let total: usize = op.n_heads * lengths().map(cost).sum::<usize>();
    let border = |index: usize| total * index / team.size;
    let share = team.noted(border(team.index)..border(team.index + 1));
    let mut done = 0;
    for (n, first_row) in lengths().zip(qkv.offsets) {
        let head_cost = cost(n);
        for head in 0..op.n_heads {
            let blocks = share_of_blocks(n, head_cost, done, &share);
            done += head_cost;
            if !blocks.is_empty() {
                let head = Head { rows: qkv.rows.at(*first_row, head * size), inner: qkv.inner, size, n, index: head };
                // SAFETY: passed on from the caller; shares of different members do not overlap.
                unsafe { attend_head(isa, op, &head, blocks, scratch) };
            }
        }
    }
}

/// The blocks of one head whose work begins inside a member's share, the head's own beginning at `done`.
fn share_of_blocks(n: usize, head_cost: usize, done: usize, share: &Range<usize>) -> Range<usize> {
    let n_blocks = n.div_ceil(QUERY_BLOCK);
    let begins = |block: usize| done + head_cost * block / n_blocks;
    let first = |border: usize| (0..n_blocks).find(|block| begins(*block) >= border).unwrap_or(n_blocks);
    if done + head_cost <= share.start || done >= share.end {
        return 0..0;
    }
    first(share.start)..first(share.end)
}

/// One head of one sequence.
struct Head {
    /// From the first token's query on.
    rows: Rows,
    inner: usize,
    size: usize,
    n: usize,
    index: usize,
}

impl Head {
    /// The query (0), key (1) or value (2) of a token.
    ///
    /// # Safety
    /// Nobody writes it meanwhile.
    unsafe fn part<'a>(&self, token: usize, part: usize) -> &'a [f32] {
        // SAFETY: the caller of `attend` promises all rows.
        unsafe { self.rows.at(0, part * self.inner).row(token, self.size) }
    }
}

unsafe fn attend_head(
    isa: Isa,
    op: &Attention,
    head: &Head,
    blocks: Range<usize>,
    AttentionScratch { turned, queries, keys, values, scores, shares, bias }: &mut AttentionScratch,
) {
    let (n, size) = (head.n, head.size);
    let precision = op.precision;
    // SAFETY: nobody writes keys and values during `attend`.
    unsafe { keys.pack_keys(isa, precision, op.rotary.as_deref(), head) };
    // SAFETY: as above.
    unsafe { values.pack_values(isa, precision, head) };
    if let Some(distances) = &op.bias {
        distances.expand(head.index, n, bias);
    }
    let reach = op.window.unwrap_or(n);
    let stride = padded(n);
    // Zeros once; afterwards every block overwrites what it reads.
    scores.resize(scores.len().max(QUERY_BLOCK * stride), 0.0);
    for first in blocks.map(|block| block * QUERY_BLOCK) {
        let n_rows = QUERY_BLOCK.min(n - first);
        // Queries are read where they lie, unless they must be turned first.
        let mut from = head.rows.at(first, 0);
        if let Some(rotary) = &op.rotary {
            turned.resize(turned.len().max(QUERY_BLOCK * size), 0.0);
            for (row, turned) in turned.chunks_exact_mut(size).take(n_rows).enumerate() {
                // SAFETY: this block of queries is this member's own.
                let query = unsafe { head.part(first + row, 0) };
                rotary.turn(first + row, query, |i, x| turned[i] = x);
            }
            from = Rows::new(turned, size);
        }
        // The keys that any query of the block sees, from a whole panel on.
        let seen = first.saturating_sub(reach) / PANEL * PANEL..n.min(first + n_rows + reach);
        let table = Rows::new(scores, stride);
        let from = Rectangle { rows: from, n_rows, width: size };
        // SAFETY: this block of queries is this member's own.
        let from = unsafe { queries.operand(isa, precision, from) };
        // Scores of the zeros past the last key are computed too, and left out of the softmax.
        let width = seen.len().next_multiple_of(PANEL);
        let view = keys.view(seen.start / PANEL, 0, size, width);
        // SAFETY: the score table holds the rows of a block and whole panels of keys, and belongs to this thread.
        unsafe { all_columns(isa, from, &view, table) };
        let mut factors = [0.0_f32; QUERY_BLOCK];
        for (row, factor) in factors.iter_mut().take(n_rows).enumerate() {
            let query = first + row;
            let visible = query.saturating_sub(reach).max(seen.start)..seen.end.min(query + reach + 1);
            let columns = visible.start - seen.start..visible.end - seen.start;
            // SAFETY: as above.
            let row = unsafe { table.row_mut(row, width) };
            let mut scale = op.scale;
            if op.bias.is_some() {
                let bias = &bias[n - 1 + visible.start - query..][..columns.len()];
                let (scores, factor) = (&mut row[columns.clone()], op.scale);
                dispatch!(isa, add_bias(scores: &mut [f32], factor: f32, bias: &[f32]));
                scale = 1.0;
            }
            row[..columns.start].fill(f32::NEG_INFINITY);
            row[columns.end..].fill(f32::NEG_INFINITY);
            *factor = dispatch!(isa, exponents(row: &mut [f32], scale: f32) -> f32);
            row[..columns.start].fill(0.0);
            row[columns.end..].fill(0.0);
        }
        let view = values.view(0, seen.start, seen.len(), size);
        let weights = Rectangle { rows: table, n_rows, width };
        // SAFETY: the score table belongs to this thread.
        let weights = unsafe { shares.operand(isa, precision, weights) };
        let out = head.rows.at(first, 0);
        // SAFETY: the place of this block's queries, which nobody needs any more; the head's columns only.
        unsafe { all_columns(isa, weights, &view, out) };
        for (row, factor) in factors.iter().take(n_rows).enumerate() {
            // SAFETY: as above.
            let row = unsafe { out.row_mut(row, size) };
            let factor = *factor;
            dispatch!(isa, multiply(row: &mut [f32], factor: f32));
        }
    }
}

/// # Safety
/// See [`product`].
unsafe fn all_columns(isa: Isa, operand: Operand, view: &MatrixView, out: Rows) {
    let output = Output { rows: out, epilogue: Epilogue::default() };
    // SAFETY: passed on from the caller.
    unsafe { product(isa, operand, view, 0..view.n.div_ceil(GROUP * PANEL), output) };
}

/// Replaces `x` by `exp(scale·(x − max))`; returns one over their sum. Whole panels; −∞ counts as nothing.
#[inline(always)]
fn exponents<const FUSED: bool>(row: &mut [f32], scale: f32) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; PANEL];
    let chunks = row.as_chunks_mut::<PANEL>().0;
    for chunk in &*chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = larger(*x, *lane);
        }
    }
    let max = fold_lanes(lanes, larger);
    let mut sums = [0.0; PANEL];
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            // Of −∞ the smallest power that `exp` knows, 1e-38: nothing beside the 1 of the largest.
            *x = exp::<FUSED>(scale * (*x - max));
            *sum += *x;
        }
    }
    1.0 / fold_lanes(sums, |a, b| a + b)
}

#[inline(always)]
fn add_bias<const FUSED: bool>(scores: &mut [f32], factor: f32, bias: &[f32]) {
    for (score, bias) in scores.iter_mut().zip(bias) {
        *score = factor * *score + bias;
    }
}

#[inline(always)]
fn multiply<const FUSED: bool>(row: &mut [f32], factor: f32) {
    for x in row {
        *x *= factor;
    }
}

/// One instruction, unlike `f32::max`; a NaN on the left is passed over, and stays in its place for `exp` to find.
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}
