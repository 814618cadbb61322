//! LayerNorm or RMSNorm, as the model's family has it.

use crate::arch::spec::{EncoderSpec, NormKind};
use crate::kernel::Norm;
use crate::weights::{Weights, WeightsError};

/// The normalisation of hidden states that is stored under a role: `role.weight`, and `role.bias` where the kind has one.
///
/// # Errors
/// A missing or misshapen tensor.
pub fn load(spec: &EncoderSpec, weights: &Weights, role: &str) -> Result<Norm, WeightsError> {
    load_of_width(spec, weights, role, spec.hidden_size)
}

/// As [`load`], of rows of another width.
///
/// # Errors
/// A missing or misshapen tensor.
pub fn load_of_width(spec: &EncoderSpec, weights: &Weights, role: &str, width: usize) -> Result<Norm, WeightsError> {
    let epsilon = spec.norm.epsilon;
    let gamma = weights.take(&format!("{role}.weight"), &[width])?;
    Ok(match spec.norm.kind {
        NormKind::Layer => {
            let beta = weights.take(&format!("{role}.bias"), &[width])?;
            Norm::layer(gamma, Some(beta), epsilon)
        }
        NormKind::LayerWithoutBias => Norm::layer(gamma, None, epsilon),
        NormKind::RootMeanSquare => Norm::root_mean_square(gamma, epsilon),
    })
}
