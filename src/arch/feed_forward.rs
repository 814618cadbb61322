//! The feed-forward block: up-projection with its activation, down-projection, residual and LayerNorm.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::arch::attention::load_linear;
use crate::arch::embeddings::load_norm;
use crate::arch::spec::EncoderSpec;
use crate::kernel::{Activation, AddNorm, Isa, Linear};
use crate::weights::{Weights, WeightsError};

/// One layer's feed-forward network.
#[derive(Debug)]
pub struct FeedForward {
    up: Linear,
    down: Linear,
    norm: AddNorm,
}

impl FeedForward {
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn load(
        spec: &EncoderSpec,
        weights: &Weights,
        layer: usize,
        isa: Isa,
    ) -> std::result::Result<Self, WeightsError> {
        let prefix = format!("encoder.layer.{layer}");
        let (h, f) = (spec.hidden_size, spec.intermediate_size);
        let norm = load_norm(weights, &format!("{prefix}.output.LayerNorm"), spec)?;
        Ok(Self {
            up: load_linear(weights, &format!("{prefix}.intermediate.dense"), (f, h), spec.activation, isa)?,
            down: load_linear(weights, &format!("{prefix}.output.dense"), (h, f), Activation::None, isa)?,
            norm: AddNorm { norm: Arc::new(norm), isa },
        })
    }

    /// `[n_tokens, hidden_size]` to the same.
    ///
    /// # Errors
    /// The device failed.
    pub fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        self.norm.forward(&self.down.forward(&self.up.forward(hidden)?)?, hidden)
    }

    /// Memory held, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.up.weight.size_bytes() + self.down.weight.size_bytes()
    }
}
