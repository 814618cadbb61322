//! Token ids to the first hidden states: word, position and token-type tables, summed and normalised in one pass.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use crate::arch::packed::PackedBatch;
use crate::arch::spec::{EncoderSpec, Positions};
use crate::kernel::{Embed, Isa, LayerNorm};
use crate::weights::{Weights, WeightsError};

/// The embedding tables of one model.
#[derive(Debug)]
pub struct Embeddings {
    op: Embed,
}

impl Embeddings {
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn load(
        spec: &EncoderSpec,
        weights: &Weights,
        device: &Device,
        isa: Isa,
    ) -> std::result::Result<Self, WeightsError> {
        let width = spec.hidden_size;
        let Positions::Absolute { rows } = spec.positions;
        let word = weights.tensor("embeddings.word_embeddings.weight", &[spec.vocab_size, width], device)?;
        let position = weights.tensor("embeddings.position_embeddings.weight", &[rows, width], device)?;
        let token_type = match spec.token_types {
            0 => None,
            types => {
                let table = weights.take("embeddings.token_type_embeddings.weight", &[types, width])?;
                Some(table.get(..width).unwrap_or(&table).into())
            }
        };
        let norm = Arc::new(load_norm(weights, "embeddings.LayerNorm", spec)?);
        Ok(Self { op: Embed { word, position: Some(position), token_type, norm, isa } })
    }

    /// `[n_tokens, hidden_size]`.
    ///
    /// # Errors
    /// An id or position outside its table.
    pub fn forward(&self, batch: &PackedBatch) -> Result<Tensor> {
        self.op.forward(batch.ids(), batch.positions())
    }

    /// Memory held, in bytes.
    pub fn size_bytes(&self) -> usize {
        let tables = self.op.word.elem_count() + self.op.position.as_ref().map_or(0, Tensor::elem_count);
        tables * size_of::<f32>()
    }
}

/// A LayerNorm stored as `prefix.weight` and `prefix.bias`.
///
/// # Errors
/// A missing or misshapen tensor.
pub fn load_norm(weights: &Weights, prefix: &str, spec: &EncoderSpec) -> std::result::Result<LayerNorm, WeightsError> {
    let gamma = weights.take(&format!("{prefix}.weight"), &[spec.hidden_size])?;
    let beta = weights.take(&format!("{prefix}.bias"), &[spec.hidden_size])?;
    Ok(LayerNorm::new(gamma, beta, spec.norm_epsilon))
}
