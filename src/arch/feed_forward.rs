//! The feed-forward block without its norm: up-projection with its activation, plain or gated, down-projection,
//! residual.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use crate::arch::attention::{load_matrix, load_stacked};
use crate::arch::spec::EncoderSpec;
use crate::kernel::{Activation, Gate, Isa, Linear, PackedMatrix};
use crate::weights::{Weights, WeightsError};

/// One layer's feed-forward network.
#[derive(Debug)]
pub struct FeedForward {
    up: Linear,
    /// After the up-projection of a gated network, whose two halves it combines.
    gate: Option<Gate>,
    down: Linear,
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
        let role = format!("layers.{layer}.feed_forward");
        let (hidden, width, options) = (spec.hidden_size, spec.intermediate_size, spec.feed_forward);
        let activation = options.activation;
        let (up, gate) = if options.gated {
            let up = load_gate_up(weights, &role, (width, hidden), options.up_bias)?;
            let up = Linear { weight: Arc::new(up), activation: Activation::None, isa };
            (up, Some(Gate { activation, isa }))
        } else {
            let up = load_matrix(weights, &format!("{role}.up"), (width, hidden), options.up_bias)?;
            (Linear { weight: Arc::new(up), activation, isa }, None)
        };
        let down = load_matrix(weights, &format!("{role}.down"), (hidden, width), options.down_bias)?;
        Ok(Self { up, gate, down: Linear { weight: Arc::new(down), activation: Activation::None, isa } })
    }

    /// The network over `x`, added to `residual`; all `[n_tokens, hidden_size]`.
    ///
    /// # Errors
    /// The device failed.
    pub fn forward(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        let mut middle = self.up.forward(x)?;
        if let Some(gate) = &self.gate {
            middle = gate.forward(&middle)?;
        }
        self.down.forward_add(&middle, residual)
    }

    /// Memory held, in bytes.
    pub fn size_bytes(&self) -> usize {
        self.up.weight.size_bytes() + self.down.weight.size_bytes()
    }
}

/// The activated half first, whichever way it is stored.
fn load_gate_up(
    weights: &Weights,
    role: &str,
    (width, hidden): (usize, usize),
    has_bias: bool,
) -> std::result::Result<PackedMatrix, WeightsError> {
    let reversed = format!("{role}.up_gate");
    if !weights.contains(&format!("{reversed}.weight")) {
        return load_stacked(weights, role, ("gate_up", &["gate", "up"]), (width, hidden), has_bias);
    }
    let mut weight = weights.take(&format!("{reversed}.weight"), &[2 * width, hidden])?;
    weight.rotate_left(width * hidden);
    let bias = has_bias.then(|| weights.take(&format!("{reversed}.bias"), &[2 * width])).transpose()?;
    let bias = bias.map(|mut bias| {
        bias.rotate_left(width);
        bias
    });
    Ok(PackedMatrix::pack(2 * width, hidden, &weight, bias))
}
