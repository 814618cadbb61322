//! Loading of the embedding tables: word, position and token-type; and of the product behind them, where the family has
//! one.

use crate::arch::attention::{StoredLinear, load_matrix};
use crate::arch::norm;
use crate::arch::packed::PackedBatch;
use crate::arch::position;
use crate::arch::spec::{EncoderSpec, FirstPosition};
use crate::kernel::{Embed, MatrixShape};
use crate::weights::{Weights, WeightsError};

/// The embedding tables of one model, and which row of the position table a token takes.
#[derive(Debug)]
pub struct Embeddings {
    pub op: Embed,
    first_position: FirstPosition,
}

impl Embeddings {
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn load(spec: &EncoderSpec, weights: &Weights) -> Result<Self, WeightsError> {
        let width = spec.embedding_size;
        let word = weights.take("embeddings.word.weight", &[spec.vocab_size, width])?;
        let rows = |rows: usize| weights.take("embeddings.position.weight", &[rows, width]);
        let position = spec.position_table.map(|table| rows(table.rows)).transpose()?;
        let token_type = match spec.token_types {
            0 => None,
            types => {
                let mut table = weights.take("embeddings.token_type.weight", &[types, width])?;
                table.truncate(width);
                if spec.task_types > 0 {
                    // Every token takes the first row of both tables, so only their sum is kept.
                    let tasks = weights.take("embeddings.task_type.weight", &[spec.task_types, width])?;
                    table.iter_mut().zip(tasks).for_each(|(value, task)| *value += task);
                }
                Some(table)
            }
        };
        let norm =
            spec.embedding_norm.then(|| norm::load_of_width(spec, weights, "embeddings.norm", width)).transpose()?;
        let first_position = spec.position_table.map_or(FirstPosition::Zero, |table| table.first);
        Ok(Self { op: Embed { width, word, position, token_type, norm }, first_position })
    }

    /// The product from the tables' width to the hidden size, where the family has one: `[hidden, embedding]`.
    ///
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn projection(spec: &EncoderSpec, weights: &Weights) -> Result<Option<StoredLinear>, WeightsError> {
        let shape = MatrixShape { n: spec.hidden_size, k: spec.embedding_size };
        let load = || load_matrix(weights, "embeddings.projection", shape, true);
        spec.embedding_projection.then(load).transpose()
    }

    /// Which row of the position table a sequence's first token takes.
    pub const fn first_position(&self) -> FirstPosition {
        self.first_position
    }

    /// The row of the position table of every token.
    pub fn positions(&self, batch: &PackedBatch) -> Vec<u32> {
        position::rows(self.first_position, batch)
    }
}
