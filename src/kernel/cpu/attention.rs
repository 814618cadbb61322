//! Attention inside each sequence of a packed batch: `softmax(scale·q·kᵀ + bias)·v`, one task per sequence and head.
//!
//! The keys of a head are packed like a weight (sixteen keys to a panel), the values likewise (sixteen columns to a
//! panel), and both products run on the tiles of [`super::linear`]. Queries go in blocks of `QUERY_BLOCK`, so the
//! score buffer is small even for 8,192 keys. The softmax subtracts the row's maximum, divides once at the end, and
//! sums in fixed lanes: a sequence's bits depend on nothing outside it. There is no mask: what is not in the sequence
//! is not there.
//!
//! Rotary positions turn queries and keys as they are packed. A window limits each query to the keys around it: blocks
//! compute only the key panels that one of their queries sees, so local attention is linear in the length.

use std::cell::RefCell;

use rayon::prelude::*;

use super::activation::exp;
use super::dispatch;
use super::linear::{Output, PANEL, Product, multiply};
use super::norm::lane_sum;
use crate::kernel::Attention;

/// Queries whose scores are held at once.
const QUERY_BLOCK: usize = 32;

/// Buffers of one thread, reused from task to task.
#[derive(Default)]
struct Scratch {
    queries: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
    bias: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// `qkv [T, 3·inner]` to `[T, inner]`, where `inner` is heads times head size.
pub fn attention(op: &Attention, qkv: &[f32], inner: usize) -> Vec<f32> {
    let n_tokens = qkv.len() / (3 * inner);
    let mut out = vec![0.0; n_tokens * inner];
    let output = Output { start: out.as_mut_ptr(), stride: inner };
    let n_sequences = op.offsets.len().saturating_sub(1);
    (0..n_sequences * op.n_heads).into_par_iter().for_each(|task| {
        let (sequence, head) = (task / op.n_heads, task % op.n_heads);
        let rows = op.offsets[sequence]..op.offsets[sequence + 1];
        let head =
            Head { qkv: &qkv[rows.start * 3 * inner..rows.end * 3 * inner], inner, index: head, n_heads: op.n_heads };
        SCRATCH.with_borrow_mut(|scratch| attend(op, &head, scratch, output, rows.start));
    });
    out
}

/// One head of one sequence.
struct Head<'a> {
    /// The rows of the sequence, `[n, 3·inner]`.
    qkv: &'a [f32],
    inner: usize,
    index: usize,
    n_heads: usize,
}

impl Head<'_> {
    const fn size(&self) -> usize {
        self.inner / self.n_heads
    }

    const fn stride(&self) -> usize {
        3 * self.inner
    }

    /// Offset of this head's query (0), key (1) or value (2) inside a row.
    const fn column(&self, part: usize) -> usize {
        part * self.inner + self.index * self.size()
    }

    const fn len(&self) -> usize {
        self.qkv.len() / self.stride()
    }

    /// The query (0), key (1) or value (2) of every token, in order.
    fn rows(&self, part: usize) -> impl Iterator<Item = &[f32]> {
        self.qkv.chunks_exact(self.stride()).map(move |row| &row[self.column(part)..][..self.size()])
    }
}

fn attend(op: &Attention, head: &Head<'_>, scratch: &mut Scratch, output: Output, first_row: usize) {
    let (n, size) = (head.len(), head.size());
    let Scratch { queries, keys, values, scores, bias } = scratch;
    pack_keys(op, head, keys);
    pack_values(head, values);
    // Queries are read where they lie, unless they must be turned first.
    let (queries, query_stride) = match &op.rotary {
        None => (&head.qkv[head.column(0).min(head.qkv.len())..], head.stride()),
        Some(rotary) => {
            queries.clear();
            queries.resize(n * size, 0.0);
            for (position, (query, turned)) in head.rows(0).zip(queries.chunks_exact_mut(size)).enumerate() {
                rotary.turn(position, query, |i, x| turned[i] = x);
            }
            (queries.as_slice(), size)
        }
    };
    if let Some(distances) = &op.bias {
        distances.expand(head.index, n, bias);
    }
    let reach = op.window.unwrap_or(n);
    scores.clear();
    scores.resize(QUERY_BLOCK * n.next_multiple_of(PANEL), 0.0);
    for first in (0..n).step_by(QUERY_BLOCK) {
        let n_rows = QUERY_BLOCK.min(n - first);
        // The keys that any query of the block sees, from a whole panel on.
        let seen = first.saturating_sub(reach) / PANEL * PANEL..n.min(first + n_rows + reach);
        let width = seen.len().next_multiple_of(PANEL);
        let product = Product {
            a: &queries[first * query_stride..],
            a_stride: query_stride,
            panels: &keys[seen.start * size..],
            panel_stride: size,
            k: size,
            n_rows,
            n_columns: seen.len(),
        };
        let table = Output { start: scores.as_mut_ptr(), stride: width };
        // SAFETY: the buffer holds QUERY_BLOCK rows of `width` values at least and belongs to this thread.
        multiply(op.isa, &product, &mut unsafe { table.tile(0, 0) });
        for (query, row) in (first..).zip(scores.chunks_exact_mut(width).take(n_rows)) {
            let visible = query.saturating_sub(reach).max(seen.start)..seen.end.min(query + reach + 1);
            let columns = visible.start - seen.start..visible.end - seen.start;
            row[..columns.start].fill(0.0);
            row[columns.end..].fill(0.0);
            let row = &mut row[columns];
            let scale = if op.bias.is_some() {
                let bias = &bias[n - 1 + visible.start - query..][..row.len()];
                for (score, bias) in row.iter_mut().zip(bias) {
                    *score = op.scale * *score + bias;
                }
                1.0
            } else {
                op.scale
            };
            dispatch!(op.isa, softmax(row: &mut [f32], scale: f32));
        }
        let product = Product {
            a: scores,
            a_stride: width,
            panels: &values[seen.start * PANEL..],
            panel_stride: n,
            k: seen.len(),
            n_rows,
            n_columns: size,
        };
        // SAFETY: each task writes its own rows and its own head's columns of the output.
        multiply(op.isa, &product, &mut unsafe { output.tile(first_row + first, head.column(0)) });
    }
}

/// `[n/16][size][16]`: sixteen keys side by side, as a weight with one output per key.
fn pack_keys(op: &Attention, head: &Head<'_>, packed: &mut Vec<f32>) {
    let (n, size) = (head.len(), head.size());
    packed.clear();
    packed.resize(n.next_multiple_of(PANEL) * size, 0.0);
    for (position, key) in head.rows(1).enumerate() {
        let panel = &mut packed[position / PANEL * PANEL * size..][..PANEL * size];
        let lane = position % PANEL;
        match &op.rotary {
            Some(rotary) => rotary.turn(position, key, |i, x| panel[i * PANEL + lane] = x),
            None => {
                for (slot, value) in panel.iter_mut().skip(lane).step_by(PANEL).zip(key) {
                    *slot = *value;
                }
            }
        }
    }
}

/// `[size/16][n][16]`: as a weight with one output per value column.
fn pack_values(head: &Head<'_>, packed: &mut Vec<f32>) {
    let (n, size) = (head.len(), head.size());
    packed.clear();
    packed.resize(size.next_multiple_of(PANEL) * n, 0.0);
    for (index, value) in head.rows(2).enumerate() {
        for (panel, columns) in value.chunks(PANEL).enumerate() {
            packed[(panel * n + index) * PANEL..][..columns.len()].copy_from_slice(columns);
        }
    }
}

/// `exp(scale·(x − max))/Σ`, in place.
#[inline(always)]
fn softmax<const FUSED: bool>(row: &mut [f32], scale: f32) {
    let mut lanes = [f32::NEG_INFINITY; PANEL];
    let (chunks, tail) = row.as_chunks::<PANEL>();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = lane.max(*x);
        }
    }
    let max = lanes.iter().chain(tail).fold(f32::NEG_INFINITY, |max, x| max.max(*x));
    for x in row.iter_mut() {
        *x = exp::<FUSED>(scale * (*x - max));
    }
    let inverse = 1.0 / lane_sum(row, |x| x);
    for x in row {
        *x *= inverse;
    }
}
