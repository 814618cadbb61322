//! Loading onto a device: what shapes have kernels, and how tables, weights and rotations get there.

use std::sync::Arc;

use crate::arch::ArchError;
use crate::arch::attention::StoredLinear;
use crate::arch::spec::EncoderSpec;
use crate::kernel::cuda::launch::{DeviceNorm, HEAD_SIZES, MAX_HEAD, Tables, VECTOR, Weight};
use crate::kernel::cuda::{Buffer, CudaError, Device, Format};
use crate::kernel::{Activation, Embed, Rotary};

/// Rows of shared memory hold one token; 48 KiB is what a kernel has without asking.
const MAX_WIDTH: usize = 12_288;

/// Rotations that were put on the device, so that layers share them.
#[derive(Default)]
pub(super) struct Turned(Vec<(Arc<Rotary>, Rotations)>);

/// Cosines and sines.
pub(super) type Rotations = Arc<(Buffer, Buffer)>;

impl Turned {
    pub(super) fn upload(&mut self, device: &Device, rotary: &Arc<Rotary>) -> Result<Rotations, CudaError> {
        if let Some((_, known)) = self.0.iter().find(|(known, _)| Arc::ptr_eq(known, rotary)) {
            return Ok(Arc::clone(known));
        }
        let (cosines, sines) = rotary.parts();
        let buffers = Arc::new((device.upload(cosines)?, device.upload(sines)?));
        self.0.push((Arc::clone(rotary), Arc::clone(&buffers)));
        Ok(buffers)
    }
}

/// Refuses shapes that the kernels do not have.
pub(super) fn check(spec: &EncoderSpec, format: Format) -> Result<(), ArchError> {
    let refuse = |field, value: usize| Err(ArchError::NoKernel { field, value });
    if spec.hidden_size > MAX_WIDTH {
        return refuse("hidden_size", spec.hidden_size);
    }
    if !spec.intermediate_size.is_multiple_of(VECTOR) && spec.feed_forward.activation != Activation::None {
        return refuse("intermediate_size", spec.intermediate_size);
    }
    match format {
        Format::F32 if spec.head_size > MAX_HEAD => refuse("head size", spec.head_size),
        Format::F16 | Format::Bf16 if !HEAD_SIZES.contains(&spec.head_size) => refuse("head size", spec.head_size),
        Format::F32 | Format::F16 | Format::Bf16 => Ok(()),
    }
}

/// The embedding tables on the device.
pub(super) fn tables(device: &Device, embed: &Embed) -> Result<Tables, CudaError> {
    let upload = |table: &Option<Vec<f32>>| table.as_ref().map(|table| device.upload(table)).transpose();
    Ok(Tables {
        width: embed.width,
        word: device.upload(&embed.word)?,
        position: upload(&embed.position)?,
        token_type: upload(&embed.token_type)?,
        norm: embed.norm.as_ref().map(|norm| DeviceNorm::upload(device, norm)).transpose()?,
    })
}

/// A linear layer on the device, in its format. A weight that would be infinite there is an error, not an infinity.
pub(super) fn upload(device: &Device, format: Format, stored: &StoredLinear) -> Result<Weight, ArchError> {
    let put = |values: &[f32]| match format.overflow(values) {
        Some(value) => Err(ArchError::WeightOverflow { value }),
        None => Ok(format.upload(device, values)?),
    };
    let bias = stored.bias.as_deref().map(put).transpose()?;
    Ok(Weight { shape: stored.shape, values: put(&stored.weight)?, bias })
}
