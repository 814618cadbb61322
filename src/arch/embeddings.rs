//! Token ids to the first hidden states: word, position and token-type tables, summed and normalised in one pass.

use candle_core::{Device, Result, Tensor};

use crate::arch::packed::PackedBatch;
use crate::arch::spec::{EncoderSpec, FirstPosition};
use crate::arch::{norm, position};
use crate::kernel::{Embed, Isa};
use crate::weights::{Weights, WeightsError};

/// The embedding tables of one model.
#[derive(Debug)]
pub struct Embeddings {
    op: Embed,
    first_position: Option<FirstPosition>,
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
        let word = weights.tensor("embeddings.word.weight", &[spec.vocab_size, width], device)?;
        let position = spec.position_table.map(|table| {
            let rows = weights.tensor("embeddings.position.weight", &[table.rows, width], device)?;
            Ok((rows, table.first))
        });
        let (position, first_position) = position.transpose()?.unzip();
        let token_type = match spec.token_types {
            0 => None,
            types => {
                let table = weights.take("embeddings.token_type.weight", &[types, width])?;
                Some(table.get(..width).unwrap_or(&table).into())
            }
        };
        let norm = spec.embedding_norm.then(|| norm::load(spec, weights, "embeddings.norm")).transpose()?;
        Ok(Self { op: Embed { word, position, token_type, norm, isa }, first_position })
    }

    /// `[n_tokens, hidden_size]`.
    ///
    /// # Errors
    /// An id or position outside its table.
    pub fn forward(&self, batch: &PackedBatch) -> Result<Tensor> {
        let positions = position::rows(self.first_position.unwrap_or(FirstPosition::Zero), batch);
        self.op.forward(batch.ids(), &positions)
    }

    /// Memory held, in bytes.
    pub fn size_bytes(&self) -> usize {
        let tables = self.op.word.elem_count() + self.op.position.as_ref().map_or(0, Tensor::elem_count);
        tables * size_of::<f32>()
    }
}
