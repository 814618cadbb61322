//! The attention block without its norm: one fused query-key-value product, attention between offsets, output
//! projection, residual.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::arch::packed::PackedBatch;
use crate::arch::spec::{EncoderSpec, LayerSpec};
use crate::kernel::{Activation, Attention, DistanceBias, Isa, Linear, PackedMatrix, Rotary};
use crate::weights::{Weights, WeightsError};

/// One layer's self-attention.
#[derive(Debug)]
pub struct AttentionBlock {
    qkv: Linear,
    output: Linear,
    n_heads: usize,
    scale: f32,
    window: Option<usize>,
    places: Places,
    isa: Isa,
}

/// What a layer's attention knows of positions; tables are shared between layers.
#[derive(Debug, Clone)]
pub struct Places {
    pub bias: Option<Arc<DistanceBias>>,
    pub rotary: Option<Arc<Rotary>>,
}

impl AttentionBlock {
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn load(
        spec: &EncoderSpec,
        weights: &Weights,
        (layer, options): (usize, LayerSpec),
        places: Places,
        isa: Isa,
    ) -> std::result::Result<Self, WeightsError> {
        let role = format!("layers.{layer}.attention");
        let (hidden, inner) = (spec.hidden_size, spec.inner_size());
        let parts = ["query", "key", "value"];
        let qkv = load_stacked(weights, &role, ("qkv", &parts), (inner, hidden), spec.attention.input_bias)?;
        let output = format!("{role}.output");
        Ok(Self {
            qkv: Linear { weight: Arc::new(qkv), activation: Activation::None, isa },
            output: Linear {
                weight: Arc::new(load_matrix(weights, &output, (hidden, inner), spec.attention.output_bias)?),
                activation: Activation::None,
                isa,
            },
            n_heads: spec.n_heads,
            scale: spec.attention.scale,
            window: options.window,
            places,
            isa,
        })
    }

    /// Attention over `x`, added to `residual`; all `[n_tokens, hidden_size]`.
    ///
    /// # Errors
    /// The device failed.
    pub fn forward(&self, x: &Tensor, residual: &Tensor, batch: &PackedBatch) -> Result<Tensor> {
        let attention = Attention {
            offsets: Arc::clone(batch.offsets()),
            n_heads: self.n_heads,
            scale: self.scale,
            bias: self.places.bias.clone(),
            rotary: self.places.rotary.clone(),
            window: self.window,
            isa: self.isa,
        };
        self.output.forward_add(&attention.forward(&self.qkv.forward(x)?)?, residual)
    }

    /// Memory held, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.qkv.weight.size_bytes() + self.output.weight.size_bytes()
    }
}

/// A linear layer stored as `role.weight [n, k]`, with `role.bias [n]` where the model has biases.
///
/// # Errors
/// A missing or misshapen tensor.
pub fn load_matrix(
    weights: &Weights,
    role: &str,
    (n, k): (usize, usize),
    has_bias: bool,
) -> std::result::Result<PackedMatrix, WeightsError> {
    let weight = weights.take(&format!("{role}.weight"), &[n, k])?;
    let bias = has_bias.then(|| weights.take(&format!("{role}.bias"), &[n])).transpose()?;
    Ok(PackedMatrix::pack(n, k, &weight, bias))
}

/// Several linear layers of shape `[n, k]` as one of `[parts·n, k]`: one product instead of several. Stored either
/// stacked already, under the name `whole`, or as `parts` in this order.
///
/// # Errors
/// A missing or misshapen tensor.
pub fn load_stacked(
    weights: &Weights,
    role: &str,
    (whole, parts): (&str, &[&str]),
    (n, k): (usize, usize),
    has_bias: bool,
) -> std::result::Result<PackedMatrix, WeightsError> {
    let rows = parts.len() * n;
    if weights.contains(&format!("{role}.{whole}.weight")) {
        return load_matrix(weights, &format!("{role}.{whole}"), (rows, k), has_bias);
    }
    let (mut weight, mut bias) = (Vec::with_capacity(rows * k), Vec::with_capacity(rows));
    for part in parts {
        weight.extend(weights.take(&format!("{role}.{part}.weight"), &[n, k])?);
        if has_bias {
            bias.extend(weights.take(&format!("{role}.{part}.bias"), &[n])?);
        }
    }
    Ok(PackedMatrix::pack(rows, k, &weight, has_bias.then_some(bias)))
}
