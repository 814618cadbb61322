//! A weight packed once at load into the panels of `tile`, in the number format it is multiplied in.
//!
//! **int8.** For `y = x·Wᵀ` both sides are rotated by the same orthogonal matrix R first, so that the product stays the
//! same while outliers are spread over their block: `W' = W·R`, one scale per output column `s = max|W'|/127`, values
//! `round(W'/s)`. Inputs get 128 added so that they are unsigned, as the processors' instruction demands; starting each
//! column's sum at `−128·Σ w` takes it off again, exactly (`QuaRot`, Ashkboos et al. 2024, for the rotation).

use half::bf16;
use rayon::prelude::*;

use super::Isa;
use super::pages::{Arena, Pages, Plain};
use super::quantise::{ROUND, block_size, rotate};
use super::tile::{GROUP, LINE, PANEL, STEP, Scales};
use crate::kernel::{Compute, Precision};

/// Columns below which an integer product is not worth its loss of accuracy: heads, not layers.
const MIN_INT8_COLUMNS: usize = 64;
/// Rotations over fewer values spread too little.
const MIN_ROTATION: usize = 32;

/// The shape of a weight `[n, k]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MatrixShape {
    /// Output columns.
    pub n: usize,
    /// Input columns.
    pub k: usize,
}

/// A weight `[n, k]` (row-major, as stored by PyTorch) packed into panels, with its bias.
#[derive(Debug)]
pub struct PackedMatrix {
    panels: Panels,
    /// Padded with zeros to whole panels.
    bias: Option<Vec<f32>>,
    n: usize,
    k: usize,
}

/// How weights are packed, and where they lie.
#[derive(Debug, Clone, Copy)]
pub struct Packing<'a> {
    pub compute: Compute,
    pub arena: &'a Arena,
}

impl Packing<'_> {
    /// The same for products that are delicate: see [`Precision::where_delicate`].
    #[must_use]
    pub fn where_delicate(self) -> Self {
        Self { compute: self.compute.where_delicate(), ..self }
    }
}

#[derive(Debug)]
enum Panels {
    F32(Pages<f32>),
    Bf16(Pages<u16>),
    Int8(Int8Panels),
}

#[derive(Debug)]
struct Int8Panels {
    values: Pages<i8>,
    /// Per column, padded to whole panels.
    scales: Vec<f32>,
    /// Per column: `−128·Σ w`.
    start: Vec<i32>,
}

/// What a product reads of a weight.
#[derive(Debug, Clone, Copy)]
pub(super) struct MatrixView {
    pub(super) precision: Precision,
    pub(super) panels: *const u8,
    /// Bytes from one panel to the next.
    pub(super) panel_stride: usize,
    pub(super) steps: usize,
    pub(super) n: usize,
    /// Null where there is none.
    pub(super) bias: *const f32,
    pub(super) scales: Scales,
}

impl PackedMatrix {
    /// Packs in single precision.
    pub fn pack(n: usize, k: usize, weight: &[f32], bias: Option<Vec<f32>>) -> Self {
        Self::pack_as(Precision::F32, n, k, weight, bias)
    }

    /// Packs for a precision; in f32 what is too small to be worth eight bits.
    pub fn pack_as(precision: Precision, n: usize, k: usize, weight: &[f32], bias: Option<Vec<f32>>) -> Self {
        Self::pack_in(&Arena::default(), precision, MatrixShape { n, k }, weight, bias)
    }

    /// The same, beside the other weights of an arena.
    pub fn pack_in(
        arena: &Arena,
        precision: Precision,
        shape: MatrixShape,
        weight: &[f32],
        bias: Option<Vec<f32>>,
    ) -> Self {
        let panels = match held_as(precision, shape) {
            Precision::Int8 => Panels::Int8(Int8Panels::pack(arena, shape, weight)),
            Precision::Bf16 => Panels::Bf16(pack_groups(arena, shape, weight, |x| bf16::from_f32(x).to_bits())),
            Precision::F32 => Panels::F32(pack_groups(arena, shape, weight, |x| x)),
            Precision::F16 => unreachable!("float16 is refused before weights are read"),
        };
        let MatrixShape { n, k } = shape;
        let bias = bias.map(|mut bias| {
            bias.resize(n.next_multiple_of(PANEL), 0.0);
            bias
        });
        Self { panels, bias, n, k }
    }

    /// Output columns.
    pub const fn n(&self) -> usize {
        self.n
    }

    /// Input columns.
    pub const fn k(&self) -> usize {
        self.k
    }

    /// The format it is held and multiplied in.
    pub const fn precision(&self) -> Precision {
        match self.panels {
            Panels::F32(_) => Precision::F32,
            Panels::Bf16(_) => Precision::Bf16,
            Panels::Int8(_) => Precision::Int8,
        }
    }

    /// Memory held, in bytes.
    pub fn size_bytes(&self) -> usize {
        let panels = match &self.panels {
            Panels::F32(values) => values.size_bytes(),
            Panels::Bf16(values) => values.size_bytes(),
            Panels::Int8(panels) => panels.values.size_bytes() + panels.scales.len() * 2 * size_of::<f32>(),
        };
        panels + self.bias.as_ref().map_or(0, Vec::len) * size_of::<f32>()
    }

    /// Groups of three panels, the unit in which columns are shared out.
    pub(super) const fn n_groups(&self) -> usize {
        self.n.div_ceil(GROUP * PANEL)
    }

    pub(super) fn view(&self) -> MatrixView {
        let (panels, scales): (*const u8, Scales) = match &self.panels {
            Panels::F32(values) => (values.as_ptr().cast(), Scales::NONE),
            Panels::Bf16(values) => (values.as_ptr().cast(), Scales::NONE),
            Panels::Int8(panels) => {
                let scales =
                    Scales { rows: std::ptr::null(), columns: panels.scales.as_ptr(), start: panels.start.as_ptr() };
                (panels.values.as_ptr().cast(), scales)
            }
        };
        let steps = steps(self.precision(), self.k);
        MatrixView {
            precision: self.precision(),
            panels,
            panel_stride: steps * LINE,
            steps,
            n: self.n,
            bias: self.bias.as_ref().map_or(std::ptr::null(), Vec::as_ptr),
            scales,
        }
    }
}

/// The format of a weight: small ones and heads are exact, they cost nothing.
const fn held_as(precision: Precision, MatrixShape { n, k }: MatrixShape) -> Precision {
    let is_small = n < MIN_INT8_COLUMNS || block_size(k) < MIN_ROTATION;
    if matches!(precision, Precision::Int8) && is_small { Precision::F32 } else { precision }
}

/// Values of one group of k.
pub(super) const fn group_size(precision: Precision) -> usize {
    match precision {
        Precision::F32 => 1,
        Precision::F16 | Precision::Bf16 => 2,
        Precision::Int8 => STEP,
    }
}

/// Groups of k, the last one padded.
pub(super) const fn steps(precision: Precision, k: usize) -> usize {
    k.div_ceil(group_size(precision))
}

/// `[n/16][k/group][16][group]`, panels in parallel; what lies past n or k is zero.
fn pack_groups<T: Plain>(
    arena: &Arena,
    MatrixShape { n, k }: MatrixShape,
    weight: &[f32],
    narrow: impl Fn(f32) -> T + Sync,
) -> Pages<T> {
    let group = STEP / size_of::<T>();
    let panel_len = k.div_ceil(group) * group * PANEL;
    let mut packed = arena.zeroed(n.div_ceil(PANEL) * panel_len);
    if k > 0 {
        packed.par_chunks_mut(panel_len).zip(weight.par_chunks(PANEL * k)).for_each(|(panel, rows)| {
            for (lane, row) in rows.chunks_exact(k).enumerate() {
                for (groups, values) in panel.chunks_exact_mut(PANEL * group).zip(row.chunks(group)) {
                    for (slot, value) in groups[lane * group..].iter_mut().zip(values) {
                        *slot = narrow(*value);
                    }
                }
            }
        });
    }
    packed
}

impl Int8Panels {
    #[expect(clippy::cast_possible_truncation, reason = "rounded and within ±127 by the choice of the scale")]
    fn pack(arena: &Arena, MatrixShape { n, k }: MatrixShape, weight: &[f32]) -> Self {
        let isa = Isa::detect();
        let block = block_size(k);
        let panel_len = k.next_multiple_of(STEP) * PANEL;
        let n_panels = n.div_ceil(PANEL);
        let mut values = arena.zeroed::<i8>(n_panels * panel_len);
        let mut scales = vec![0.0; n_panels * PANEL];
        let mut start = vec![0; n_panels * PANEL];
        let columns = scales.par_chunks_mut(PANEL).zip(start.par_chunks_mut(PANEL));
        let panels = values.par_chunks_mut(panel_len).zip(weight.par_chunks(PANEL * k));
        panels.zip(columns).for_each(|((panel, rows), (scales, start))| {
            let mut rotated = vec![0.0; k];
            for (lane, row) in rows.chunks_exact(k).enumerate() {
                rotated.copy_from_slice(row);
                let largest = rotate(isa, block, &mut rotated);
                // The rotation as computed is √block times an orthogonal one; inputs are scaled alike.
                let factor = 1.0 / (block as f32);
                // A NaN stays one, in the scale.
                let scale = if largest == 0.0 { 1.0 } else { largest / 127.0 };
                scales[lane] = scale * factor;
                let mut sum = 0;
                for (groups, values) in panel.chunks_exact_mut(PANEL * STEP).zip(rotated.chunks(STEP)) {
                    for (slot, value) in groups[lane * STEP..].iter_mut().zip(values) {
                        // As inputs are rounded: the sum leaves the integer in the low bits.
                        *slot = (value / scale + ROUND).to_bits() as i8;
                        sum += i32::from(*slot);
                    }
                }
                start[lane] = -128 * sum;
            }
        });
        Self { values, scales, start }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_weights_stay_exact_where_int8_is_asked_for() {
        let packed = |n: usize, k: usize| PackedMatrix::pack_as(Precision::Int8, n, k, &vec![0.5; n * k], None);
        assert_eq!(packed(128, 128).precision(), Precision::Int8);
        assert_eq!(packed(64, 128).precision(), Precision::Int8);
        assert_eq!(packed(63, 128).precision(), Precision::F32);
        assert_eq!(packed(64, 48).precision(), Precision::F32);
        assert_eq!(packed(96, 96).precision(), Precision::Int8);
    }
}
