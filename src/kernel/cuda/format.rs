//! Number formats of matrix products on the device: their sizes, their kernels, and how weights get into them.

use half::{bf16, f16};

use super::{Buffer, CudaError, Device};

/// A number format of weights and of what matrix products read and write. Sums are float in all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    F32,
    /// Infinity beyond 65,504: whoever writes it has to look for that.
    F16,
    Bf16,
}

impl Format {
    pub const ALL: [Self; 3] = [Self::F32, Self::F16, Self::Bf16];

    /// Bytes of one value.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Queries of one tile of the attention in this format.
    pub const fn tile_queries(self) -> usize {
        match self {
            Self::F32 => 16,
            Self::F16 | Self::Bf16 => 64,
        }
    }

    /// The first of `values` that this format makes infinite.
    pub fn overflow(self, values: &[f32]) -> Option<f32> {
        match self {
            // The range of a float.
            Self::F32 | Self::Bf16 => None,
            Self::F16 => values.iter().copied().find(|value| value.is_finite() && f16::from_f32(*value).is_infinite()),
        }
    }

    /// `values` in this format, on the device.
    ///
    /// # Errors
    /// Out of memory.
    pub fn upload(self, device: &Device, values: &[f32]) -> Result<Buffer, CudaError> {
        let narrowed = |narrow: fn(f32) -> u16| values.iter().copied().map(narrow).collect::<Vec<u16>>();
        match self {
            Self::F32 => device.upload(values),
            Self::F16 => device.upload(&narrowed(|value| f16::from_f32(value).to_bits())),
            Self::Bf16 => device.upload(&narrowed(|value| bf16::from_f32(value).to_bits())),
        }
    }

    /// The kernel of this format.
    pub(super) const fn pick(self, [f32, f16, bf16]: [&'static str; 3]) -> &'static str {
        match self {
            Self::F32 => f32,
            Self::F16 => f16,
            Self::Bf16 => bf16,
        }
    }

    /// The attention of 16-bit floats for heads of this size, if there is one.
    pub(super) const fn attend_tiles(self, head_size: usize) -> Option<&'static str> {
        Some(match (self, head_size) {
            (Self::F16, 32) => "attend_f16_32",
            (Self::F16, 64) => "attend_f16_64",
            (Self::F16, 96) => "attend_f16_96",
            (Self::F16, 128) => "attend_f16_128",
            (Self::Bf16, 32) => "attend_bf16_32",
            (Self::Bf16, 64) => "attend_bf16_64",
            (Self::Bf16, 96) => "attend_bf16_96",
            (Self::Bf16, 128) => "attend_bf16_128",
            _ => return None,
        })
    }
}
