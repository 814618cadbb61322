//! Attention inside each sequence of a packed batch: `softmax(scale·q·kᵀ)·v`, one task per sequence and head.
//!
//! The keys of a head are packed like a weight (sixteen keys to a panel), the values likewise (sixteen columns to a
//! panel), and both products run on the tiles of [`super::linear`]. Queries go in blocks of `QUERY_BLOCK`, so the
//! score buffer is small even for 8,192 keys. The softmax subtracts the row's maximum, divides once at the end, and
//! sums in fixed lanes: a sequence's bits depend on nothing outside it. There is no mask: what is not in the sequence
//! is not there.

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
    keys: Vec<f32>,
    values: Vec<f32>,
    scores: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// `qkv [T, 3·hidden]` to `[T, hidden]`.
pub fn attention(op: &Attention, qkv: &[f32], hidden: usize) -> Vec<f32> {
    let n_tokens = qkv.len() / (3 * hidden);
    let mut out = vec![0.0; n_tokens * hidden];
    let output = Output { start: out.as_mut_ptr(), stride: hidden };
    let n_sequences = op.offsets.len().saturating_sub(1);
    (0..n_sequences * op.n_heads).into_par_iter().for_each(|task| {
        let (sequence, head) = (task / op.n_heads, task % op.n_heads);
        let rows = op.offsets[sequence]..op.offsets[sequence + 1];
        let head = Head {
            qkv: &qkv[rows.start * 3 * hidden..rows.end * 3 * hidden],
            hidden,
            index: head,
            n_heads: op.n_heads,
        };
        SCRATCH.with_borrow_mut(|scratch| attend(op, &head, scratch, output, rows.start));
    });
    out
}

/// One head of one sequence.
struct Head<'a> {
    /// The rows of the sequence, `[n, 3·hidden]`.
    qkv: &'a [f32],
    hidden: usize,
    index: usize,
    n_heads: usize,
}

impl Head<'_> {
    const fn size(&self) -> usize {
        self.hidden / self.n_heads
    }

    const fn stride(&self) -> usize {
        3 * self.hidden
    }

    /// Offset of this head's query (0), key (1) or value (2) inside a row.
    const fn column(&self, part: usize) -> usize {
        part * self.hidden + self.index * self.size()
    }

    const fn len(&self) -> usize {
        self.qkv.len() / self.stride()
    }
}

fn attend(op: &Attention, head: &Head<'_>, scratch: &mut Scratch, output: Output, first_row: usize) {
    let (n, size) = (head.len(), head.size());
    pack_keys(head, &mut scratch.keys);
    pack_values(head, &mut scratch.values);
    let width = n.next_multiple_of(PANEL);
    scratch.scores.clear();
    scratch.scores.resize(QUERY_BLOCK * width, 0.0);
    for first in (0..n).step_by(QUERY_BLOCK) {
        let n_rows = QUERY_BLOCK.min(n - first);
        let queries = Product {
            a: &head.qkv[first * head.stride() + head.column(0)..],
            a_stride: head.stride(),
            panels: &scratch.keys,
            k: size,
            n_rows,
            n_columns: n,
        };
        let scores = Output { start: scratch.scores.as_mut_ptr(), stride: width };
        // SAFETY: the buffer holds QUERY_BLOCK rows of `width` >= n values and belongs to this thread.
        multiply(op.isa, &queries, &mut unsafe { scores.tile(0, 0) });
        for row in scratch.scores.chunks_exact_mut(width).take(n_rows) {
            let (row, scale) = (&mut row[..n], op.scale);
            dispatch!(op.isa, softmax(row: &mut [f32], scale: f32));
        }
        let weights =
            Product { a: &scratch.scores, a_stride: width, panels: &scratch.values, k: n, n_rows, n_columns: size };
        // SAFETY: each task writes its own rows and its own head's columns of the output.
        multiply(op.isa, &weights, &mut unsafe { output.tile(first_row + first, head.column(0)) });
    }
}

/// `[n/16][size][16]`: sixteen keys side by side, as a weight with one output per key.
fn pack_keys(head: &Head<'_>, packed: &mut Vec<f32>) {
    let (n, size) = (head.len(), head.size());
    packed.clear();
    packed.resize(n.next_multiple_of(PANEL) * size, 0.0);
    for (key, row) in head.qkv.chunks_exact(head.stride()).enumerate() {
        let panel = &mut packed[key / PANEL * PANEL * size..][..PANEL * size];
        let slots = panel.iter_mut().skip(key % PANEL).step_by(PANEL);
        for (slot, value) in slots.zip(&row[head.column(1)..][..size]) {
            *slot = *value;
        }
    }
}

/// `[size/16][n][16]`: as a weight with one output per value column.
fn pack_values(head: &Head<'_>, packed: &mut Vec<f32>) {
    let (n, size) = (head.len(), head.size());
    packed.clear();
    packed.resize(size.next_multiple_of(PANEL) * n, 0.0);
    for (index, row) in head.qkv.chunks_exact(head.stride()).enumerate() {
        for (panel, columns) in row[head.column(2)..][..size].chunks(PANEL).enumerate() {
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
