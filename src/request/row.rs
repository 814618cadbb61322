//! One row on its way to a vector: its tokens, and what pooling and cutting must know of it.

use crate::request::Dimensions;

/// The token ids of one input, special tokens included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRow {
    pub ids: Vec<u32>,
    /// Tokens at the start that pooling leaves out: those of the prompt, for models that say so.
    pub skip: usize,
}

/// What a row asks of everything behind the encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowShape {
    /// As in [`TokenRow`].
    pub skip: usize,
    pub dimensions: Dimensions,
}

impl RowShape {
    /// Every token is pooled.
    pub const fn whole(dimensions: Dimensions) -> Self {
        Self { skip: 0, dimensions }
    }
}

impl From<Vec<u32>> for TokenRow {
    /// A row all of whose tokens are pooled.
    fn from(ids: Vec<u32>) -> Self {
        Self { ids, skip: 0 }
    }
}
