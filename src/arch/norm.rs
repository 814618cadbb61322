//! LayerNorm or RMSNorm, as the model's family has it.

use std::sync::Arc;

use crate::arch::spec::{EncoderSpec, NormKind};
use crate::kernel::{Isa, Norm, Normalise};
use crate::weights::{Weights, WeightsError};

/// The normalisation stored under a role: `role.weight`, and `role.bias` where the kind has one.
///
/// # Errors
/// A missing or misshapen tensor.
pub fn load(spec: &EncoderSpec, weights: &Weights, role: &str) -> Result<Arc<Norm>, WeightsError> {
    let (width, epsilon) = (spec.hidden_size, spec.norm.epsilon);
    let gamma = weights.take(&format!("{role}.weight"), &[width])?;
    Ok(Arc::new(match spec.norm.kind {
        NormKind::Layer => {
            let beta = weights.take(&format!("{role}.bias"), &[width])?;
            Norm::layer(gamma, Some(beta), epsilon)
        }
        NormKind::LayerWithoutBias => Norm::layer(gamma, None, epsilon),
        NormKind::RootMeanSquare => Norm::root_mean_square(gamma, epsilon),
    }))
}

/// As [`load`], as an operation of its own.
///
/// # Errors
/// As [`load`].
pub fn load_op(spec: &EncoderSpec, weights: &Weights, role: &str, isa: Isa) -> Result<Normalise, WeightsError> {
    Ok(Normalise { norm: load(spec, weights, role)?, isa })
}
