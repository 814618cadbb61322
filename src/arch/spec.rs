//! Every difference that an encoder family may have, as plain values. A family file turns a `config.json` into this.

use crate::kernel::Activation;

/// The shape and the options of one encoder.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderSpec {
    pub hidden_size: usize,
    /// Width of the embedding tables.
    pub embedding_size: usize,
    /// Whether a product leads from the tables to the hidden states; always where their widths differ.
    pub embedding_projection: bool,
    pub n_heads: usize,
    /// Width of one head; heads times this need not be the hidden size (T5).
    pub head_size: usize,
    pub intermediate_size: usize,
    pub vocab_size: usize,
    /// The longest row that the positions allow.
    pub max_tokens: usize,
    /// The limit where the folder names none; below `max_tokens` for families without a limit of their own.
    pub usual_tokens: usize,
    /// Learned positions added to the words.
    pub position_table: Option<PositionTable>,
    /// Learned or fixed biases by distance, shared by all layers.
    pub distance_bias: Option<DistanceBiasSpec>,
    /// Rows of the token-type table; 0 = the family has none.
    pub token_types: usize,
    /// Rows of a second such table (ERNIE's tasks), beside the first; 0 = the family has none.
    pub task_types: usize,
    pub norm: NormSpec,
    pub norm_place: NormPlace,
    /// Whether the sum of the embeddings is normalised.
    pub embedding_norm: bool,
    pub attention: AttentionSpec,
    pub feed_forward: FeedForwardSpec,
    /// One entry per layer, in order.
    pub layers: Vec<LayerSpec>,
    /// In how many groups of neighbours layers share their weights (ALBERT); `None` = each has its own.
    pub layer_groups: Option<usize>,
}

/// A learned table with one row per position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionTable {
    pub rows: usize,
    pub first: FirstPosition,
}

/// The row of a sequence's first token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstPosition {
    Zero,
    /// RoBERTa's counting: the row after the padding id's. A padding token typed into a text has the padding row and is
    /// not counted (`create_position_ids_from_input_ids` of transformers).
    AfterPadding {
        padding_id: u32,
    },
}

/// A bias on attention scores by `key − query`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DistanceBiasSpec {
    /// T5's buckets: exact near by, logarithmic up to `max_distance`, half of them for each direction.
    Buckets { count: usize, max_distance: usize },
    /// ALiBi, symmetric: `−slope·|key − query|` with one fixed slope per head.
    Linear,
}

/// The normalisation used throughout one model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormSpec {
    pub kind: NormKind,
    pub epsilon: f32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    Layer,
    LayerWithoutBias,
    RootMeanSquare,
}

/// Where a block normalises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlace {
    /// `norm(x + block(x))`.
    After,
    /// `x + block(norm(x))`, and once more after the last layer. `first_attention` = whether layer 0's attention block
    /// has a norm of its own.
    Before { first_attention: bool },
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Biases of query, key and value.
    pub input_bias: bool,
    pub output_bias: bool,
    /// Factor on the scores.
    pub scale: f32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedForwardSpec {
    pub activation: Activation,
    /// `down(act(gate(x))·up(x))` instead of `down(act(up(x)))`.
    pub gated: bool,
    pub up_bias: bool,
    pub down_bias: bool,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LayerSpec {
    /// Local attention: a query sees the keys at most this far away.
    pub window: Option<usize>,
    pub rotary: Option<RotarySpec>,
}

/// A rotary position embedding: pair i of a head turns by `position·base^(−2i/d)/divisor`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RotarySpec {
    pub base: f32,
    /// 1, unless the rotations were slowed down for longer texts.
    pub divisor: f32,
}

impl EncoderSpec {
    pub const fn n_layers(&self) -> usize {
        self.layers.len()
    }

    /// Layers with weights of their own.
    pub fn n_stored_layers(&self) -> usize {
        self.layer_groups.unwrap_or(self.n_layers())
    }

    /// Under which number a layer's weights are stored.
    pub fn stored_layer(&self, layer: usize) -> usize {
        self.layer_groups.map_or(layer, |groups| layer * groups / self.n_layers())
    }

    /// Heads times head size: the width of queries, keys and values.
    pub const fn inner_size(&self) -> usize {
        self.n_heads * self.head_size
    }

    /// Parameters of the encoder at least, biases and norms left out: checked against the file before anything is
    /// allocated, and the base of the memory estimate.
    pub fn n_parameters(&self) -> u64 {
        let positions = self.position_table.map_or(0, |table| table.rows as u64);
        let rows = self.vocab_size as u64 + positions + (self.token_types + self.task_types) as u64;
        let projection = if self.embedding_projection { self.hidden_size as u64 } else { 0 };
        let tables = (rows + projection).saturating_mul(self.embedding_size as u64);
        tables.saturating_add(self.n_linear_parameters())
    }

    /// Parameters of the matrix products of all layers that have their own: those that a number format below f32 makes smaller.
    pub fn n_linear_parameters(&self) -> u64 {
        let (h, inner) = (self.hidden_size as u64, self.inner_size() as u64);
        let down = h.saturating_mul(self.intermediate_size as u64);
        let layer = (4 * h).saturating_mul(inner).saturating_add(self.n_up_parameters()).saturating_add(down);
        layer.saturating_mul(self.n_stored_layers() as u64)
    }

    /// As many of them as are delicate: see [`Precision::where_delicate`](crate::kernel::Precision::where_delicate).
    pub fn n_delicate_parameters(&self) -> u64 {
        let layer = (2 * self.hidden_size as u64).saturating_mul(self.inner_size() as u64);
        let up = if self.n_layers() > 1 { self.n_up_parameters() } else { 0 };
        layer.saturating_mul(self.n_stored_layers() as u64).saturating_add(up)
    }

    /// Parameters of one feed-forward network's first product.
    const fn n_up_parameters(&self) -> u64 {
        let products = if self.feed_forward.gated { 2 } else { 1 };
        (products * self.hidden_size as u64).saturating_mul(self.intermediate_size as u64)
    }
}
