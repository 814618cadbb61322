//! One thread's part in a forward pass: the operations of the encoder skeleton on one tile of tokens.
//!
//! A tile is a few whole sequences; its hidden states stay in one buffer that every operation replaces. A team of one
//! thread runs a tile alone. A larger team shares it out: by rows where there are many, so that only attention makes its
//! members wait for each other, by columns of the weights where there are few, so that each member streams a part of
//! the weights and together they have the whole bandwidth of the memory.

use std::ops::Range;

use super::Isa;
use super::activation::gate_rows;
use super::attention::{AttentionScratch, QueryKeyValue, attend};
use super::embed::{Tables, embed_row};
use super::linear::{Growing, Input, InputScratch, Product, Share, linear};
use super::norm::{Norm, normalise_row};
use super::product::{Epilogue, Output, even_parts, row_chunk};
use super::rows::{Rows, padded};
use super::team::Team;
use crate::kernel::{Activation, FeedForward, SelfAttention};

/// Rows per member from which a team shares out rows rather than columns.
pub(super) const ROWS_WORTH_SHARING: usize = 48;
/// Rows are shared out in multiples of the largest register tile.
const ROW_UNIT: usize = 8;
/// Bytes that the middle of a feed-forward network may take: what stays in the second-level cache.
const MIDDLE_BYTES: usize = 768 << 10;

/// Buffers of one thread.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    input: InputScratch,
    attention: AttentionScratch,
}

/// The shared buffers of one tile, kept from tile to tile.
#[derive(Debug, Default)]
pub(super) struct TileMemory {
    hidden: Growing<f32>,
    qkv: Growing<f32>,
    middle: Growing<f32>,
}

/// The widest rows that a model needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Widths {
    pub hidden: usize,
    /// Heads times head size.
    pub inner: usize,
    /// Outputs of the feed-forward network's first product.
    pub middle: usize,
}

/// The tokens of a tile.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tokens<'a> {
    pub(super) ids: &'a [u32],
    /// Row of the position table of each token.
    pub(super) positions: &'a [u32],
    /// Offsets of the sequences inside the tile.
    pub(super) offsets: &'a [usize],
}

/// The buffers of one tile as rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct TileRows {
    hidden: Rows,
    qkv: Rows,
    middle: Rows,
}

impl TileMemory {
    /// Room for `n_rows` tokens and a team of `n_members`.
    pub(super) fn rows(&mut self, isa: Isa, widths: Widths, n_rows: usize, n_members: usize) -> TileRows {
        let rows = |buffer: &mut Growing<f32>, n_rows: usize, width: usize| {
            let stride = padded(width);
            Rows::new(buffer.at_least(n_rows * stride), stride)
        };
        TileRows {
            hidden: rows(&mut self.hidden, n_rows, widths.hidden),
            qkv: rows(&mut self.qkv, n_rows, 3 * widths.inner),
            middle: rows(&mut self.middle, n_members * row_chunk(isa), widths.middle),
        }
    }
}

/// One member of the team that computes a tile.
#[derive(Debug)]
pub struct Worker<'a> {
    isa: Isa,
    team: Team<'a>,
    tokens: Tokens<'a>,
    rows: TileRows,
    scratch: &'a mut Scratch,
}

/// Which norms stand around a block: of its input, or of its sum with the residual.
#[derive(Debug, Clone, Copy, Default)]
pub struct Norms<'a> {
    pub before: Option<&'a Norm>,
    pub after: Option<&'a Norm>,
}

impl<'a> Worker<'a> {
    pub(super) const fn new(
        isa: Isa,
        team: Team<'a>,
        tokens: Tokens<'a>,
        rows: TileRows,
        scratch: &'a mut Scratch,
    ) -> Self {
        Self { isa, team, tokens, rows, scratch }
    }

    const fn n_rows(&self) -> usize {
        self.tokens.ids.len()
    }

    /// Whether members take rows; otherwise they take columns.
    const fn by_rows(&self) -> bool {
        self.team.size == 1 || self.n_rows() >= ROWS_WORTH_SHARING * self.team.size
    }

    fn own_rows(&self) -> Range<usize> {
        self.team.share(self.n_rows(), ROW_UNIT)
    }

    /// Hidden states from token ids; through a product where the tables are narrower. No table is wider than the room for
    /// queries, keys and values.
    pub fn embed(&mut self, tables: &Tables<'_>, projection: Option<&crate::kernel::Linear>) {
        let rows = if projection.is_some() { self.rows.qkv } else { self.rows.hidden };
        for row in self.own_rows() {
            // SAFETY: every member has its own rows.
            let out = unsafe { rows.row_mut(row, tables.width) };
            embed_row(self.isa, out, tables, self.tokens.ids[row], self.tokens.positions[row]);
        }
        self.wait_unless_by_rows();
        if let Some(projection) = projection {
            // SAFETY: by columns everybody has waited for the rows, which nobody writes again before the next wait.
            unsafe { self.multiply(Input { rows, norm: None }, projection, self.rows.hidden, false) };
            self.wait_unless_by_rows();
        }
    }

    /// Every row normalised.
    pub fn normalise(&mut self, norm: &Norm) {
        for row in self.own_rows() {
            // SAFETY: every member has its own rows.
            normalise_row(self.isa, unsafe { self.rows.hidden.row_mut(row, norm.width()) }, norm);
        }
        self.wait_unless_by_rows();
    }

    /// The hidden states plus attention over them.
    pub fn attend(&mut self, block: &SelfAttention, norms: Norms<'_>) {
        let (hidden, qkv) = (self.rows.hidden, self.rows.qkv);
        let mut column = 0;
        let input = Input { rows: hidden, norm: norms.before };
        for part in &block.qkv {
            // SAFETY: buffers have all rows of the tile; members write disjoint parts, and wait where one reads another's.
            unsafe { self.multiply(input, part, qkv.at(0, column), false) };
            column += part.weight.n();
        }
        self.team.wait();
        let parts = QueryKeyValue { rows: qkv, inner: block.output.weight.k(), offsets: self.tokens.offsets };
        // SAFETY: as above.
        unsafe { attend(self.isa, &block.attention, parts, &self.team, &mut self.scratch.attention) };
        self.team.wait();
        let context = Input { rows: qkv, norm: None };
        // SAFETY: as above.
        unsafe { self.multiply(context, &block.output, hidden, true) };
        self.finish_block(norms.after);
    }

    /// The hidden states plus the feed-forward network over them.
    pub fn feed_forward(&mut self, block: &FeedForward, norms: Norms<'_>) {
        if self.by_rows() {
            // A chunk at a time, so that the wide middle stays in cache.
            let own = self.own_rows();
            for rows in even_parts(own, middle_rows(self.isa, block.up.weight.n())) {
                self.feed_forward_rows(block, norms.before, rows);
            }
            self.finish_block(norms.after);
            return;
        }
        let (hidden, middle) = (self.rows.hidden, self.rows.middle);
        let input = Input { rows: hidden, norm: norms.before };
        // SAFETY: columns are shared out, and members wait where one reads another's; few rows fit the middle.
        unsafe { self.multiply(input, &block.up, middle, false) };
        self.team.wait();
        if let Some(activation) = block.gate {
            let own = self.own_rows();
            // SAFETY: every member has its own rows.
            unsafe { gate_rows(self.isa, activation, middle.at(own.start, 0), own.len(), block.down.weight.k()) };
            self.team.wait();
        }
        let input = Input { rows: middle, norm: None };
        // SAFETY: as above.
        unsafe { self.multiply(input, &block.down, hidden, true) };
        self.finish_block(norms.after);
    }

    /// The whole block for a few rows, all of them this member's own.
    fn feed_forward_rows(&mut self, block: &FeedForward, norm: Option<&Norm>, rows: Range<usize>) {
        let (isa, n) = (self.isa, rows.len());
        let hidden = self.rows.hidden.at(rows.start, 0);
        let middle = self.rows.middle.at(self.team.index * row_chunk(isa), 0);
        let scratch = &mut self.scratch.input;
        let (up, down) = (&*block.up.weight, &*block.down.weight);
        let input = Input { rows: hidden, norm };
        let output = Output { rows: middle, epilogue: Epilogue { activation: block.up.activation, add: false } };
        let share = Share { rows: 0..n, groups: 0..up.n_groups() };
        // SAFETY: these rows, and this part of the middle, are this member's alone.
        unsafe { linear(isa, Product { input, weight: up, output }, share, scratch) };
        if let Some(activation) = block.gate {
            // SAFETY: as above.
            unsafe { gate_rows(isa, activation, middle, n, down.k()) };
        }
        let input = Input { rows: middle, norm: None };
        let output = Output { rows: hidden, epilogue: Epilogue { activation: Activation::None, add: true } };
        let share = Share { rows: 0..n, groups: 0..down.n_groups() };
        // SAFETY: as above.
        unsafe { linear(isa, Product { input, weight: down, output }, share, scratch) };
    }

    /// This member's part of a product over all rows, written to `out` or added to it.
    ///
    /// # Safety
    /// Input and output have all rows of the tile; nobody writes the input meanwhile.
    unsafe fn multiply(&mut self, input: Input<'_>, op: &crate::kernel::Linear, out: Rows, add: bool) {
        let weight = &*op.weight;
        let share = if self.by_rows() {
            Share { rows: self.own_rows(), groups: 0..weight.n_groups() }
        } else {
            Share { rows: 0..self.n_rows(), groups: self.team.share(weight.n_groups(), 1) }
        };
        let output = Output { rows: out, epilogue: Epilogue { activation: op.activation, add } };
        // SAFETY: passed on from the caller; shares of rows or columns do not overlap.
        unsafe { linear(self.isa, Product { input, weight, output }, share, &mut self.scratch.input) };
    }

    /// The norm behind a block.
    fn finish_block(&mut self, norm: Option<&Norm>) {
        self.wait_unless_by_rows();
        if let Some(norm) = norm {
            self.normalise(norm);
        }
    }

    /// By rows, each member goes on with the rows it wrote itself.
    fn wait_unless_by_rows(&self) {
        if !self.by_rows() {
            self.team.wait();
        }
    }

    /// Copies the hidden states of a row to where the caller of the forward pass wants it.
    pub(super) fn copy_rows(&self, width: usize, place: impl Fn(usize) -> Rows) {
        for row in self.own_rows() {
            // SAFETY: this member wrote the row, or everybody has waited since.
            let from = unsafe { self.rows.hidden.row(row, width) };
            // SAFETY: every row has its own place.
            unsafe { place(row).row_mut(0, width) }.copy_from_slice(from);
        }
    }
}

/// Rows of a chunk of the feed-forward network with a middle of this width. On AMX what is computed between two passes
/// over the weights must be more than the caches hold.
fn middle_rows(isa: Isa, width: usize) -> usize {
    if isa == Isa::Amx {
        return row_chunk(isa);
    }
    (MIDDLE_BYTES / size_of::<f32>() / width.max(1) / ROW_UNIT * ROW_UNIT).clamp(4 * ROW_UNIT, row_chunk(isa))
}
