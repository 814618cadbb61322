//! LayerNorm or RMSNorm, as the model's family has it.

use crate::arch::spec::{EncoderSpec, NormKind};
use crate::kernel::Norm;
use crate::weights::{Weights, WeightsError};

/// The normalisation stored under a role: `role.weight`, and `role.bias` where the kind has one.
///
/// # Errors
/// A missing or misshapen tensor.
pub fn load(spec: &EncoderSpec, weights: &Weights, role: &str) -> Result<Norm, WeightsError> {
    let (width, epsilon) = (spec.hidden_size, spec.norm.epsilon);
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
