//! `act(x·Wᵀ + b)`, or the same added to what the output holds: inputs brought into the weight's number format in the
//! scratch memory of one thread, then multiplied.

use std::ops::Range;

use super::Isa;
use super::matrix::{MatrixView, PackedMatrix, group_size};
use super::norm::{Norm, normalise_row};
use super::pages::{Pages, Plain};
#[cfg(target_arch = "x86_64")]
use super::parts::{self, PartsScratch};
use super::product::{Epilogue, Operand, Output, even_parts, k_chunk, product, row_chunk};
use super::quantise::{block_size, narrow, quantise, rotate};
use super::rows::{Rectangle, Rows, padded};
use super::tile::{LINE, Registers, STEP};
use crate::kernel::{Activation, Precision};

/// One thread's room for a chunk of inputs, kept from product to product.
#[derive(Debug, Default)]
pub(super) struct InputScratch {
    normed: Growing<f32>,
    narrow: Growing<u16>,
    bytes: Growing<u8>,
    scales: Vec<f32>,
    rotated: Vec<f32>,
    #[cfg(target_arch = "x86_64")]
    parts: PartsScratch,
}

/// A buffer that grows and never shrinks.
#[derive(Debug)]
pub(super) struct Growing<T>(Option<Pages<T>>);

impl<T> Default for Growing<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Plain> Growing<T> {
    /// At least `len` values; their content is left over from before.
    pub(super) fn at_least(&mut self, len: usize) -> &mut [T] {
        if self.0.as_ref().is_none_or(|pages| pages.len() < len) {
            // Dropped first: both need not fit at once.
            self.0 = None;
        }
        self.0.get_or_insert_with(|| Pages::zeroed(len))
    }
}

/// Where the inputs of a product come from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) rows: Rows,
    /// Applied to each row first.
    pub(super) norm: Option<&'a Norm>,
}

/// What is multiplied, and where the result goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) input: Input<'a>,
    pub(super) weight: &'a PackedMatrix,
    pub(super) output: Output,
}

/// What one thread computes of a product.
#[derive(Debug, Clone)]
pub(super) struct Share {
    /// Of the input and of the output.
    pub(super) rows: Range<usize>,
    /// Column groups of the weight.
    pub(super) groups: Range<usize>,
}

/// A share of a product: its rows of the input times the columns of its groups, written to or added to the same rows of
/// the output.
///
/// # Safety
/// Input and output have these rows, of the weight's k and n values. No other thread writes the input meanwhile or
/// touches the output's columns of these groups.
pub(super) unsafe fn linear(
    isa: Isa,
    Product { input, weight, output }: Product<'_>,
    Share { rows, groups }: Share,
    scratch: &mut InputScratch,
) {
    let view = weight.view();
    for chunk in even_parts(rows, row_chunk(isa)) {
        let n_rows = chunk.len();
        let output = Output { rows: output.rows.at(chunk.start, 0), ..output };
        // SAFETY: passed on from the caller.
        let source = unsafe { normalised(isa, input, chunk, weight.k(), &mut scratch.normed) };
        #[cfg(target_arch = "x86_64")]
        if isa == Isa::Amx && weight.precision() == Precision::F32 {
            let input = Rectangle { rows: source, n_rows, width: weight.k() };
            // SAFETY: as above.
            unsafe { parts::product(input, &view, groups.clone(), output, &mut scratch.parts) };
            continue;
        }
        let k_chunk = k_chunk(isa, weight.precision()).min(weight.k()).max(1);
        for first in (0..weight.k()).step_by(k_chunk) {
            let values = first..weight.k().min(first + k_chunk);
            let columns = Rectangle { rows: source.at(0, first), n_rows, width: values.len() };
            let (view, epilogue) = part_of_k(&view, values, output.epilogue);
            // SAFETY: passed on from the caller.
            let operand = unsafe { prepare(isa, view.precision, columns, scratch) };
            // SAFETY: as above; the operand holds exactly the rows of the chunk.
            unsafe { product(isa, operand, &view, groups.clone(), Output { epilogue, ..output }) };
        }
    }
}

/// The product of these values of k alone: the first brings the bias, the others are added, the last activates.
pub(super) fn part_of_k(view: &MatrixView, values: Range<usize>, epilogue: Epilogue) -> (MatrixView, Epilogue) {
    let group = group_size(view.precision);
    let is_last = values.end.div_ceil(group) == view.steps;
    let part = MatrixView {
        panels: view.panels.wrapping_add(values.start / group * LINE),
        steps: values.len().div_ceil(group),
        bias: if values.start == 0 { view.bias } else { std::ptr::null() },
        ..*view
    };
    let activation = if is_last { epilogue.activation } else { Activation::None };
    (part, Epilogue { activation, add: epilogue.add || values.start > 0 })
}

/// At most [`row_chunk`] rows, normalised in scratch memory, or where they lie if there is no norm.
///
/// # Safety
/// The input has these rows of k values, and no other thread writes them meanwhile.
unsafe fn normalised(isa: Isa, input: Input<'_>, rows: Range<usize>, k: usize, normed: &mut Growing<f32>) -> Rows {
    let source = input.rows.at(rows.start, 0);
    let Some(norm) = input.norm else {
        return source;
    };
    let stride = padded(k);
    let chunk = Rows::new(normed.at_least(row_chunk(isa) * stride), stride);
    for row in 0..rows.len() {
        // SAFETY: the caller promises the input's rows.
        let from = unsafe { source.row(row, k) };
        // SAFETY: the scratch belongs to this thread.
        let to = unsafe { chunk.row_mut(row, k) };
        to.copy_from_slice(from);
        normalise_row(isa, to, norm);
    }
    chunk
}

/// At most [`row_chunk`] rows in the format of the weight.
///
/// # Safety
/// The rows are there, and no other thread writes them meanwhile.
unsafe fn prepare(
    isa: Isa,
    precision: Precision,
    Rectangle { rows: source, n_rows, width: k }: Rectangle,
    scratch: &mut InputScratch,
) -> Operand {
    let InputScratch { narrow: pairs, bytes, scales, rotated, .. } = scratch;
    // SAFETY: the caller promises the input's rows; the scratch is not written again before the product.
    let values = (0..n_rows).map(|row| unsafe { source.row(row, k) });
    let stride = padded(k.div_ceil(group_size(precision))) * STEP;
    match precision {
        Precision::F32 => Operand {
            start: source.as_ptr().cast_const().cast(),
            stride: source.stride() * size_of::<f32>(),
            n_rows,
            scales: std::ptr::null(),
        },
        Precision::Bf16 => {
            let pairs = pairs.at_least(row_chunk(isa) * stride / size_of::<u16>());
            for (row, to) in values.zip(pairs.chunks_exact_mut(stride / size_of::<u16>())) {
                narrow(isa, row, to);
                // The other half of the last group meets a weight of zero, and must not be a NaN from before.
                if let Some(odd) = to.get_mut(k) {
                    *odd = 0;
                }
            }
            Operand { start: pairs.as_ptr().cast(), stride, n_rows, scales: std::ptr::null() }
        }
        Precision::F16 => unreachable!("no matrix holds float16"),
        Precision::Int8 => {
            let bytes = bytes.at_least(row_chunk(isa) * stride);
            scales.clear();
            for (row, to) in values.zip(bytes.chunks_exact_mut(stride)) {
                rotated.clear();
                rotated.extend_from_slice(row);
                let largest = rotate(isa, block_size(k), rotated);
                scales.push(quantise(isa, rotated, largest, to));
            }
            Operand { start: bytes.as_ptr(), stride, n_rows, scales: scales.as_ptr() }
        }
    }
}

/// Rows `[m, k]` to `[m, n]`, on one thread, with scratch memory of its own: for heads and tests, not for encoders.
pub fn linear_rows(isa: Isa, x: &[f32], weight: &PackedMatrix, activation: Activation) -> Vec<f32> {
    let (k, n) = (weight.k(), weight.n());
    let m = x.len().checked_div(k).unwrap_or(0);
    let mut out = vec![0.0; m * n];
    let input = Input { rows: Rows::read_only(x, k), norm: None };
    let output = Output { rows: Rows::new(&mut out, n), epilogue: Epilogue { activation, add: false } };
    let all = Share { rows: 0..m, groups: 0..weight.n_groups() };
    let mut scratch = InputScratch::default();
    let _registers = Registers::of(isa);
    // SAFETY: both buffers hold m rows, and this thread alone knows the output.
    unsafe { linear(isa, Product { input, weight, output }, all, &mut scratch) };
    out
}
