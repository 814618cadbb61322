//! The operands of attention's products in the format they are multiplied in, f32 or bf16: keys and values in panels, like
//! a weight; queries and shares in rows.

use super::Head;
use crate::kernel::Precision;
use crate::kernel::cpu::Isa;
use crate::kernel::cpu::matrix::{MatrixView, group_size};
use crate::kernel::cpu::position::Rotary;
use crate::kernel::cpu::product::Operand;
use crate::kernel::cpu::quantise::{interleave, narrow};
use crate::kernel::cpu::rows::{Rectangle, Rows};
use crate::kernel::cpu::tile::{LINE, PANEL, READ_ROWS, Scales, steps_at_once};
use crate::kernel::cpu::transpose::transpose;

/// Panels of sixteen columns and `k` steps each.
#[derive(Debug, Default)]
pub(super) struct Panels {
    precision: Precision,
    k: usize,
    /// Steps of k from one panel to the next, and in how many at once they are multiplied.
    stride: usize,
    at_once: usize,
    exact: Vec<f32>,
    /// The keys of a last panel that they do not fill.
    last: Vec<f32>,
    /// Two bf16 of one column and two steps, the first one low.
    pairs: Vec<u32>,
}

impl Panels {
    /// Keys: sixteen to a panel, a step for each value of a key. What lies past the last key is zero.
    ///
    /// # Safety
    /// Nobody writes the keys meanwhile.
    pub(super) unsafe fn pack_keys(&mut self, isa: Isa, precision: Precision, rotary: Option<&Rotary>, head: &Head) {
        let size = head.size;
        self.k = size;
        self.exact.clear();
        self.exact.resize(head.n.next_multiple_of(PANEL) * size, 0.0);
        for (index, panel) in self.exact.chunks_exact_mut(PANEL * size).enumerate() {
            let keys = index * PANEL..head.n.min((index + 1) * PANEL);
            if rotary.is_none() && size.is_multiple_of(PANEL) {
                let mut rows = head.rows.at(keys.start, head.inner);
                if keys.len() < PANEL {
                    // Behind the last keys there may be nothing to read.
                    self.last.clear();
                    for position in keys {
                        // SAFETY: passed on from the caller.
                        self.last.extend_from_slice(unsafe { head.part(position, 1) });
                    }
                    self.last.resize(PANEL * size, 0.0);
                    rows = Rows::read_only(&self.last, size);
                }
                // SAFETY: sixteen rows of the caller's or of our own.
                unsafe { transpose(isa, rows, panel) };
                continue;
            }
            for (lane, position) in keys.enumerate() {
                // SAFETY: passed on from the caller.
                let key = unsafe { head.part(position, 1) };
                match rotary {
                    Some(rotary) => rotary.turn(position, key, |i, x| panel[i * PANEL + lane] = x),
                    None => {
                        for (slot, value) in panel.iter_mut().skip(lane).step_by(PANEL).zip(key) {
                            *slot = *value;
                        }
                    }
                }
            }
        }
        self.finish(isa, precision);
    }

    /// Values: sixteen columns of them to a panel, a step for each token. What lies past the last column is zero.
    ///
    /// # Safety
    /// Nobody writes the values meanwhile.
    pub(super) unsafe fn pack_values(&mut self, isa: Isa, precision: Precision, head: &Head) {
        let n = head.n;
        self.k = n;
        self.exact.clear();
        self.exact.resize(head.size.next_multiple_of(PANEL) * n, 0.0);
        for index in 0..n {
            // SAFETY: passed on from the caller.
            let value = unsafe { head.part(index, 2) };
            let (whole, rest) = value.as_chunks::<PANEL>();
            let lines = self.exact.as_chunks_mut::<PANEL>().0;
            for (panel, columns) in whole.iter().enumerate() {
                lines[panel * n + index] = *columns;
            }
            if !rest.is_empty() {
                lines[whole.len() * n + index][..rest.len()].copy_from_slice(rest);
            }
        }
        self.finish(isa, precision);
    }

    /// Narrows the panels, and pads each with zeros: to what is multiplied at once, and half of that for a window which
    /// begins in its middle.
    fn finish(&mut self, isa: Isa, precision: Precision) {
        self.precision = precision;
        self.at_once = steps_at_once(isa, precision);
        let steps = self.k.div_ceil(group_size(precision));
        self.stride = steps.next_multiple_of(self.at_once) + self.at_once / 2;
        if precision == Precision::F32 {
            return;
        }
        let n_panels = self.exact.len() / (self.k * PANEL);
        let panel_len = self.stride * PANEL;
        self.pairs.resize(self.pairs.len().max(n_panels * panel_len), 0);
        for (panel, pairs) in self.exact.chunks_exact(self.k * PANEL).zip(self.pairs.chunks_exact_mut(panel_len)) {
            let lines = pairs.as_chunks_mut::<PANEL>().0;
            interleave(isa, panel.as_chunks::<PANEL>().0, lines);
            // Left over from other sequences, and no less poisonous for being multiplied by zero.
            lines[steps..].fill([0; PANEL]);
        }
    }

    /// `n` columns from a panel on, `k` steps of each from a step on. That step begins a panel of keys.
    pub(super) fn view(&self, panel: usize, step: usize, k: usize, n: usize) -> MatrixView {
        let group = group_size(self.precision);
        let steps = k.div_ceil(group).next_multiple_of(self.at_once);
        let stride = self.stride;
        let first = panel * stride + step / group;
        let (start, lines): (*const u8, usize) = match self.precision {
            Precision::F32 => (self.exact.as_ptr().cast(), self.exact.len() / PANEL),
            Precision::F16 | Precision::Bf16 | Precision::Int8 => {
                (self.pairs.as_ptr().cast(), self.pairs.len() / PANEL)
            }
        };
        assert!(
            first + (n.div_ceil(PANEL).max(1) - 1) * stride + steps <= lines,
            "packed keys or values are too short"
        );
        MatrixView {
            precision: self.precision,
            panels: start.wrapping_add(first * LINE),
            panel_stride: stride * LINE,
            steps,
            n,
            bias: std::ptr::null(),
            scales: Scales::NONE,
        }
    }
}

/// A few rows in the format of the panels they are multiplied with.
#[derive(Debug, Default)]
pub(super) struct NarrowRows(Vec<u16>);

impl NarrowRows {
    /// The rows of a rectangle: where they lie, or here, narrowed.
    ///
    /// # Safety
    /// The rows are there, and nobody writes them meanwhile.
    pub(super) unsafe fn operand(
        &mut self,
        isa: Isa,
        precision: Precision,
        Rectangle { rows, n_rows, width }: Rectangle,
    ) -> Operand {
        if precision == Precision::F32 {
            let stride = rows.stride() * size_of::<f32>();
            return Operand { start: rows.as_ptr().cast_const().cast(), stride, n_rows, scales: std::ptr::null() };
        }
        let steps = width.div_ceil(group_size(precision)).next_multiple_of(steps_at_once(isa, precision));
        let stride = steps * group_size(precision);
        self.0.resize(self.0.len().max(n_rows.max(READ_ROWS) * stride), 0);
        for (row, out) in self.0.chunks_exact_mut(stride.max(1)).take(n_rows).enumerate() {
            // SAFETY: passed on from the caller.
            narrow(isa, unsafe { rows.row(row, width) }, &mut out[..width]);
            // What is behind the row meets zeros, and must not be a NaN from before.
            out[width..].fill(0);
        }
        Operand { start: self.0.as_ptr().cast(), stride: stride * size_of::<u16>(), n_rows, scales: std::ptr::null() }
    }
}
