//! Loading of the feed-forward block: up-projection with its activation, plain or gated, and down-projection.

use crate::arch::attention::{Stack, StoredLinear, load_matrix, load_stacked};
use crate::arch::spec::{EncoderSpec, FeedForwardSpec};
use crate::kernel::{Activation, FeedForward, MatrixShape, Packing};
use crate::weights::{Weights, WeightsError};

/// One layer's feed-forward network.
///
/// # Errors
/// A missing or misshapen tensor.
pub fn load(
    spec: &EncoderSpec,
    weights: &Weights,
    layer: usize,
    packing: Packing<'_>,
) -> Result<FeedForward, WeightsError> {
    let (up, down) = stored(spec, weights, layer)?;
    // Models of this kind build up their few huge values in the last layers but one (Bondarenko et al. 2021).
    let delicate = spec.n_layers().checked_sub(2).map(|layer| spec.stored_layer(layer));
    let up_packing = if delicate == Some(layer) { packing.where_delicate() } else { packing };
    let FeedForwardSpec { activation, gated, .. } = spec.feed_forward;
    let (up, gate) = if gated {
        (up.pack(up_packing, Activation::None), Some(activation))
    } else {
        (up.pack(up_packing, activation), None)
    };
    Ok(FeedForward { up, gate, down: down.pack(packing, Activation::None) })
}

/// The first product, `[middle, hidden]` or gated `[2·middle, hidden]` with the activated half first, and the second one.
///
/// # Errors
/// A missing or misshapen tensor.
pub fn stored(
    spec: &EncoderSpec,
    weights: &Weights,
    layer: usize,
) -> Result<(StoredLinear, StoredLinear), WeightsError> {
    let role = format!("layers.{layer}.feed_forward");
    let (hidden, width, options) = (spec.hidden_size, spec.intermediate_size, spec.feed_forward);
    let (up_shape, down_shape) = (MatrixShape { n: width, k: hidden }, MatrixShape { n: hidden, k: width });
    let up = if options.gated {
        load_gate_up(weights, &role, up_shape, options.up_bias)?
    } else {
        load_matrix(weights, &format!("{role}.up"), up_shape, options.up_bias)?
    };
    let down = load_matrix(weights, &format!("{role}.down"), down_shape, options.down_bias)?;
    Ok((up, down))
}

/// Two halves of this shape, the activated one first, whichever way they are stored.
fn load_gate_up(
    weights: &Weights,
    role: &str,
    shape: MatrixShape,
    has_bias: bool,
) -> Result<StoredLinear, WeightsError> {
    let reversed = format!("{role}.up_gate");
    if !weights.contains(&format!("{reversed}.weight")) {
        let stack = Stack { whole: "gate_up", parts: &["gate", "up"] };
        return load_stacked(weights, role, stack, shape, has_bias);
    }
    let MatrixShape { n: width, k: hidden } = shape;
    let mut weight = weights.take(&format!("{reversed}.weight"), &[2 * width, hidden])?;
    weight.rotate_left(width * hidden);
    let bias = has_bias.then(|| weights.take(&format!("{reversed}.bias"), &[2 * width])).transpose()?;
    let bias = bias.map(|mut bias| {
        bias.rotate_left(width);
        bias
    });
    Ok(StoredLinear { shape: MatrixShape { n: 2 * width, k: hidden }, weight, bias })
}
