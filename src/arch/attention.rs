//! The attention block: one fused query-key-value product, attention between offsets, output projection, residual and
//! LayerNorm.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::arch::embeddings::load_norm;
use crate::arch::packed::PackedBatch;
use crate::arch::spec::EncoderSpec;
use crate::kernel::{Activation, AddNorm, Attention, Isa, Linear, PackedMatrix};
use crate::weights::{Weights, WeightsError};

/// One layer's self-attention.
#[derive(Debug)]
pub struct AttentionBlock {
    qkv: Linear,
    output: Linear,
    norm: AddNorm,
    n_heads: usize,
    scale: f32,
    isa: Isa,
}

impl AttentionBlock {
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn load(
        spec: &EncoderSpec,
        weights: &Weights,
        layer: usize,
        isa: Isa,
    ) -> std::result::Result<Self, WeightsError> {
        let prefix = format!("encoder.layer.{layer}.attention");
        let h = spec.hidden_size;
        // Query, key and value stacked into one [3·hidden, hidden] weight: one product instead of three.
        let (mut weight, mut bias) = (Vec::with_capacity(3 * h * h), Vec::with_capacity(3 * h));
        for part in ["query", "key", "value"] {
            weight.extend(weights.take(&format!("{prefix}.self.{part}.weight"), &[h, h])?);
            bias.extend(weights.take(&format!("{prefix}.self.{part}.bias"), &[h])?);
        }
        let qkv = PackedMatrix::pack(3 * h, h, &weight, Some(bias));
        Ok(Self {
            qkv: Linear { weight: Arc::new(qkv), activation: Activation::None, isa },
            output: load_linear(weights, &format!("{prefix}.output.dense"), (h, h), Activation::None, isa)?,
            norm: AddNorm { norm: Arc::new(load_norm(weights, &format!("{prefix}.output.LayerNorm"), spec)?), isa },
            n_heads: spec.n_heads,
            scale: 1.0 / (spec.head_size() as f32).sqrt(),
            isa,
        })
    }

    /// `[n_tokens, hidden_size]` to the same.
    ///
    /// # Errors
    /// The device failed.
    pub fn forward(&self, hidden: &Tensor, batch: &PackedBatch) -> Result<Tensor> {
        let offsets = Arc::clone(batch.offsets());
        let attention = Attention { offsets, n_heads: self.n_heads, scale: self.scale, isa: self.isa };
        let mixed = attention.forward(&self.qkv.forward(hidden)?)?;
        self.norm.forward(&self.output.forward(&mixed)?, hidden)
    }

    /// Memory held, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.qkv.weight.size_bytes() + self.output.weight.size_bytes()
    }
}

/// A linear layer stored as `prefix.weight [n, k]` and `prefix.bias [n]`.
///
/// # Errors
/// A missing or misshapen tensor.
pub fn load_linear(
    weights: &Weights,
    prefix: &str,
    (n, k): (usize, usize),
    activation: Activation,
    isa: Isa,
) -> std::result::Result<Linear, WeightsError> {
    let weight = weights.take(&format!("{prefix}.weight"), &[n, k])?;
    let bias = weights.take(&format!("{prefix}.bias"), &[n])?;
    Ok(Linear { weight: Arc::new(PackedMatrix::pack(n, k, &weight, Some(bias))), activation, isa })
}
