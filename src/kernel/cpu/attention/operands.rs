//! The operands of attention's products in the format they are multiplied in, f32 or bf16: keys and values in panels, like
//! a weight; queries and shares in rows.

use super::Head;
use crate::kernel::Precision;
use crate::kernel::cpu::Isa;
use crate::kernel::cpu::matrix::{MatrixView, group_size};
use crate::kernel::cpu::position::Rotary;
use crate::kernel::cpu::product::Operand;
use crate::kernel::cpu::quantise::{interleave, narrow};
use crate::kernel::cpu::rows::Rows;
use crate::kernel::cpu::tile::{LINE, PANEL, Scales};
use crate::kernel::cpu::transpose::transpose;

/// Panels of sixteen columns and `k` steps each.
#[derive(Debug, Default)]
pub(super) struct Panels {
    precision: Precision,
    k: usize,
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
    pub(super) unsafe fn pack_keys(
        &mut self,
        (isa, precision): (Isa, Precision),
        rotary: Option<&Rotary>,
        head: &Head,
    ) {
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
    pub(super) unsafe fn pack_values(&mut self, (isa, precision): (Isa, Precision), head: &Head) {
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

    fn finish(&mut self, isa: Isa, precision: Precision) {
        self.precision = precision;
        if precision == Precision::F32 {
            return;
        }
        let panel_len = self.k.div_ceil(2) * PANEL;
        let n_panels = self.exact.len() / (self.k * PANEL);
        self.pairs.resize(self.pairs.len().max(n_panels * panel_len), 0);
        for (panel, pairs) in self.exact.chunks_exact(self.k * PANEL).zip(self.pairs.chunks_exact_mut(panel_len)) {
            interleave(isa, panel.as_chunks::<PANEL>().0, pairs.as_chunks_mut::<PANEL>().0);
        }
    }

    /// `n` columns from a panel on, `k` steps of each from a step on. That step is even.
    pub(super) fn view(&self, (panel, step): (usize, usize), k: usize, n: usize) -> MatrixView {
        let group = group_size(self.precision);
        let (stride, steps) = (self.k.div_ceil(group), k.div_ceil(group));
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
    /// `n_rows` rows of `width` values: where they lie, or here, narrowed.
    ///
    /// # Safety
    /// The rows are there, and nobody writes them meanwhile.
    pub(super) unsafe fn operand(
        &mut self,
        (isa, precision): (Isa, Precision),
        rows: Rows,
        (n_rows, width): (usize, usize),
    ) -> Operand {
        if precision == Precision::F32 {
            let stride = rows.stride() * size_of::<f32>();
            return Operand { start: rows.as_ptr().cast_const().cast(), stride, scales: std::ptr::null() };
        }
        let stride = width.next_multiple_of(2);
        self.0.resize(self.0.len().max(n_rows * stride), 0);
        for (row, out) in self.0.chunks_exact_mut(stride.max(1)).take(n_rows).enumerate() {
            // SAFETY: passed on from the caller.
            narrow(isa, unsafe { rows.row(row, width) }, &mut out[..width]);
            // The other half of the last pair meets zeros, and must not be a NaN from before.
            if let Some(odd) = out.get_mut(width) {
                *odd = 0;
            }
        }
        Operand { start: self.0.as_ptr().cast(), stride: stride * size_of::<u16>(), scales: std::ptr::null() }
    }
}
