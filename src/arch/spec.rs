//! Every difference that an encoder family may have, as plain values. A family file turns a `config.json` into this.

use crate::kernel::Activation;

/// The shape and the options of one encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderSpec {
    pub hidden_size: usize,
    pub n_layers: usize,
    pub n_heads: usize,
    pub intermediate_size: usize,
    pub vocab_size: usize,
    pub positions: Positions,
    /// Rows of the token-type table; 0 = the family has none.
    pub token_types: usize,
    pub activation: Activation,
    pub norm_epsilon: f32,
}

/// How a token's place reaches the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Positions {
    /// A learned table of this many rows; the first token is row 0.
    Absolute { rows: usize },
}

impl EncoderSpec {
    /// The longest row that the positions allow.
    pub const fn max_tokens(&self) -> usize {
        match self.positions {
            Positions::Absolute { rows } => rows,
        }
    }

    pub const fn head_size(&self) -> usize {
        self.hidden_size / self.n_heads
    }

    /// Parameters of the encoder, for the memory estimate: checked against the file before anything is allocated.
    pub const fn n_parameters(&self) -> u64 {
        let (h, f) = (self.hidden_size as u64, self.intermediate_size as u64);
        let Positions::Absolute { rows } = self.positions;
        let tables = (self.vocab_size as u64 + rows as u64 + self.token_types as u64 + 2) * h;
        let layer = 4 * (h * h + h) + 2 * h * f + f + h + 4 * h;
        tables + self.n_layers as u64 * layer
    }
}
