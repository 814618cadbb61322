//! What lies between the kernels of a batch: its activations, which are overwritten by those of the next one.

use super::Layer;
use crate::arch::spec::EncoderSpec;
use crate::kernel::cuda::launch::Pass;
use crate::kernel::cuda::{Buffer, CudaError, Device, Format};

/// Room for the activations of so many tokens.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) tokens: usize,
    pub(super) residual: Buffer,
    /// What a block reads, and what it gives.
    pub(super) hidden: Buffer,
    pub(super) block: Buffer,
    pub(super) qkv: Buffer,
    pub(super) context: Buffer,
    pub(super) up: Buffer,
    /// Of a gated network, the product.
    pub(super) gated: Option<Buffer>,
}

impl Scratch {
    /// # Errors
    /// Out of memory.
    pub(super) fn new(device: &Device, spec: &EncoderSpec, format: Format, tokens: usize) -> Result<Self, CudaError> {
        let values = |width: usize| device.allocate(tokens * width * format.bytes());
        let (hidden, inner, middle) = (spec.hidden_size, spec.inner_size(), spec.intermediate_size);
        let gated = spec.feed_forward.gated;
        Ok(Self {
            tokens,
            residual: device.allocate(tokens * hidden * size_of::<f32>())?,
            hidden: values(hidden)?,
            block: values(hidden)?,
            qkv: values(3 * inner)?,
            context: values(inner)?,
            up: values(if gated { 2 * middle } else { middle })?,
            gated: gated.then(|| values(middle)).transpose()?,
        })
    }

    /// `hidden` through the network, into `block`.
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn feed_forward(&self, pass: Pass<'_>, spec: &EncoderSpec, layer: &Layer) -> Result<(), CudaError> {
        let (activation, width) = (spec.feed_forward.activation, spec.intermediate_size);
        pass.multiply(&self.hidden, &layer.up, &self.up)?;
        let middle = if let Some(gated) = &self.gated {
            pass.gate(&self.up, width, activation, gated)?;
            gated
        } else {
            pass.activate(&self.up, width, activation)?;
            &self.up
        };
        pass.multiply(middle, &layer.down, &self.block)
    }
}
