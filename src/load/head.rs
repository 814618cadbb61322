//! What follows pooling: Dense, LayerNorm and Normalize as the model's `modules.json` lists them, with their weights.

use std::sync::Arc;

use crate::kernel::{Isa, Linear, PackedMatrix};
use crate::load::LoadError;
use crate::load::modules::{DenseModule, LayerNormModule, Modules, StepModule};
use crate::pool::{Head, Norm, Step};
use crate::weights::{Weights, WeightsError};

/// The head behind an encoder of this width.
///
/// # Errors
/// A layer that does not fit the one before it, or weights that are missing or misshapen.
pub(super) fn load(modules: &Modules, hidden_size: usize, isa: Isa) -> Result<Head, LoadError> {
    let mut width = hidden_size * modules.pooling.len();
    let mut steps = Vec::with_capacity(modules.steps.len());
    for step in &modules.steps {
        let takes = |field, wanted: usize| {
            let reason = format!("the layer before it gives {width} values");
            let refused = LoadError::Setting { field, value: wanted.to_string(), reason };
            if wanted == width { Ok(()) } else { Err(refused) }
        };
        steps.push(match step {
            StepModule::Dense(module) => {
                takes("in_features", module.in_features)?;
                width = module.out_features;
                Step::Dense(load_dense(module, isa)?)
            }
            StepModule::LayerNorm(module) => {
                takes("dimension", module.dimension)?;
                Step::LayerNorm(load_layer_norm(module)?)
            }
            StepModule::Normalize => Step::Normalize,
        });
    }
    Ok(Head { pooling: modules.pooling.clone(), steps })
}

fn load_dense(module: &DenseModule, isa: Isa) -> Result<Linear, WeightsError> {
    let weights = Weights::open(std::slice::from_ref(&module.weights), str::to_owned)?;
    let (n, k) = (module.out_features, module.in_features);
    let weight = weights.take("linear.weight", &[n, k])?;
    let bias = module.bias.then(|| weights.take("linear.bias", &[n])).transpose()?;
    weights.refuse_unread(|_| true)?;
    Ok(Linear { weight: Arc::new(PackedMatrix::pack(n, k, &weight, bias)), activation: module.activation, isa })
}

fn load_layer_norm(module: &LayerNormModule) -> Result<Norm, WeightsError> {
    /// torch's default, which sentence-transformers does not change.
    const EPSILON: f64 = 1e-5;
    let weights = Weights::open(std::slice::from_ref(&module.weights), str::to_owned)?;
    let gamma = weights.take("norm.weight", &[module.dimension])?;
    let beta = weights.take("norm.bias", &[module.dimension])?;
    weights.refuse_unread(|_| true)?;
    Ok(Norm { gamma, beta, epsilon: EPSILON })
}
