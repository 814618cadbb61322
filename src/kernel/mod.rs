//! The few operations the encoder skeleton needs, as candle custom ops: one struct per operation, every device.
//!
//! Activations are candle tensors, `[T, width]` row-major f32, one row per token of the packed batch. Each op checks
//! its shapes, refuses a layout it would have to copy, and hands slices to `cpu`. A device without an implementation
//! is an error, never a silent copy to the CPU. [`mod@reference`] holds the slow, obvious versions that the tests compare
//! against.
//!
//! | op | in | out |
//! |---|---|---|
//! | [`Linear`] | `x [T, k]` | `act(x·Wᵀ + b) [T, n]`, with a residual added where one is given |
//! | [`Gate`] | `[a, b] [T, 2·n]` | `act(a)·b [T, n]` |
//! | [`Attention`] | `qkv [T, 3·inner]` | `softmax(scale·q·kᵀ + bias)·v [T, inner]`, inside each sequence |
//! | [`Normalise`] | `x [T, hidden]` | `norm(x)`, LayerNorm or RMSNorm |
//! | [`Embed`] | token ids | `norm(word + position + type) [T, hidden]` |
//! | [`Pool`] | `hidden [T, hidden]` | one row per sequence `[B, hidden]` |

pub mod cpu;
pub mod precision;
pub mod reference;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor};

pub use cpu::Isa;
pub use cpu::activation::Activation;
pub use cpu::linear::PackedMatrix;
pub use cpu::norm::Norm;
pub use cpu::position::{DistanceBias, Rotary};
pub use cpu::reduce::Reduce;
pub use precision::{Compute, Precision};

/// `act(x·Wᵀ + b)`: one 2-D matrix product over all tokens of the batch.
#[derive(Debug, Clone)]
pub struct Linear {
    pub weight: Arc<PackedMatrix>,
    pub activation: Activation,
    pub isa: Isa,
}

impl Linear {
    /// `x [T, k]` to `[T, n]`.
    ///
    /// # Errors
    /// A shape or layout that does not fit, or a device without an implementation.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1_no_bwd(self)
    }

    /// `forward(x) + residual`, both `[T, n]`, in one pass.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        x.apply_op2_no_bwd(residual, self)
    }
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = rows(storage, layout, self.weight.k())?;
        let out = cpu::linear::linear(self.isa, x, &self.weight, self.activation, None);
        Ok(finish(out, self.weight.n()))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "linear-add"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, r: &CpuStorage, rl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (k, n) = (self.weight.k(), self.weight.n());
        let (x, residual) = (rows(x, xl, k)?, rows(r, rl, n)?);
        if x.len() / k.max(1) != residual.len() / n.max(1) {
            candle_core::bail!("linear: {} rows and a residual of {}", x.len() / k.max(1), residual.len() / n.max(1));
        }
        Ok(finish(cpu::linear::linear(self.isa, x, &self.weight, self.activation, Some(residual)), n))
    }
}

/// The middle of a gated feed-forward.
#[derive(Debug, Clone, Copy)]
pub struct Gate {
    pub activation: Activation,
    pub isa: Isa,
}

impl Gate {
    /// `[T, 2·n]`, the activated half first, to `[T, n]`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1_no_bwd(self)
    }
}

impl CustomOp1 for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = layout.shape().dims2()?;
        if width % 2 != 0 || width == 0 {
            candle_core::bail!("gate: width {width} is not twice another");
        }
        let out = cpu::activation::gate(self.isa, self.activation, rows(storage, layout, width)?, width / 2);
        Ok(finish(out, width / 2))
    }
}

/// Self-attention inside the sequences of a packed batch.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Row offsets of the sequences, `B + 1` of them, the first 0 and the last T.
    pub offsets: Arc<[usize]>,
    pub n_heads: usize,
    /// Factor on the scores, `1/√head_size` for BERT.
    pub scale: f32,
    /// Added to the scaled scores.
    pub bias: Option<Arc<DistanceBias>>,
    /// Turns queries and keys by their positions.
    pub rotary: Option<Arc<Rotary>>,
    /// A query sees the keys at most this far away; `None` = all.
    pub window: Option<usize>,
    pub isa: Isa,
}

impl Attention {
    /// `qkv [T, 3·inner]` (query, key, value side by side) to `[T, inner]`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward(&self, qkv: &Tensor) -> Result<Tensor> {
        qkv.apply_op1_no_bwd(self)
    }
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = layout.shape().dims2()?;
        if width % (3 * self.n_heads) != 0 {
            candle_core::bail!("attention: width {width} is not 3 x {} heads", self.n_heads);
        }
        let qkv = rows(storage, layout, width)?;
        if self.offsets.last().copied() != Some(qkv.len() / width) {
            candle_core::bail!("attention: offsets do not end at {} rows", qkv.len() / width);
        }
        if let Some(rotary) = &self.rotary {
            let longest = self.offsets.windows(2).map(|span| span[1] - span[0]).max().unwrap_or(0);
            if longest > rotary.positions() {
                candle_core::bail!("attention: a row of {longest} tokens, positions end at {}", rotary.positions());
            }
        }
        let out = cpu::attention::attention(self, qkv, width / 3);
        Ok(finish(out, width / 3))
    }
}

/// LayerNorm or RMSNorm of every row.
#[derive(Debug, Clone)]
pub struct Normalise {
    pub norm: Arc<Norm>,
    pub isa: Isa,
}

impl Normalise {
    /// `[T, hidden]` to the same.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1_no_bwd(self)
    }
}

impl CustomOp1 for Normalise {
    fn name(&self) -> &'static str {
        "normalise"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let width = self.norm.width();
        let out = cpu::norm::norm(self.isa, rows(storage, layout, width)?, &self.norm);
        Ok(finish(out, width))
    }
}

/// Embedding tables summed and normalised in one pass.
#[derive(Debug, Clone)]
pub struct Embed {
    /// `[vocabulary, hidden]`.
    pub word: Tensor,
    /// `[positions, hidden]`.
    pub position: Option<Tensor>,
    /// Row 0 of the token-type table: single texts have no second segment.
    pub token_type: Option<Arc<[f32]>>,
    pub norm: Option<Arc<Norm>>,
    pub isa: Isa,
}

impl Embed {
    /// Token ids and rows of the position table, both of length T, to `[T, hidden]`.
    ///
    /// # Errors
    /// An id or position outside its table.
    pub fn forward(&self, ids: &[u32], positions: &[u32]) -> Result<Tensor> {
        let op = EmbedOp { embed: self, ids, positions };
        match &self.position {
            Some(position) => op.run(&self.word, Some(position)),
            None => op.run(&self.word, None),
        }
    }
}

/// One call of [`Embed`]. Not a candle op: its inputs are host integers, and only its output is a tensor.
struct EmbedOp<'a> {
    embed: &'a Embed,
    ids: &'a [u32],
    positions: &'a [u32],
}

impl EmbedOp<'_> {
    fn run(&self, word: &Tensor, position: Option<&Tensor>) -> Result<Tensor> {
        let width = word.dim(1)?;
        let (word_storage, word_layout) = word.storage_and_layout();
        let tables = match &*word_storage {
            candle_core::Storage::Cpu(storage) => rows(storage, word_layout, width)?,
            candle_core::Storage::Cuda(_) | candle_core::Storage::Metal(_) => {
                candle_core::bail!("embed: no implementation for {:?}", word.device())
            }
        };
        let position = position.map(Tensor::storage_and_layout);
        let position_table = match &position {
            None => None,
            Some((storage, layout)) => match &**storage {
                candle_core::Storage::Cpu(storage) => Some(rows(storage, layout, width)?),
                candle_core::Storage::Cuda(_) | candle_core::Storage::Metal(_) => {
                    candle_core::bail!("embed: tables on different devices")
                }
            },
        };
        let tables = cpu::embed::Tables {
            width,
            word: tables,
            position: position_table,
            token_type: self.embed.token_type.as_deref(),
            norm: self.embed.norm.as_deref(),
        };
        let out = cpu::embed::embed(self.embed.isa, &tables, self.ids, self.positions)?;
        Tensor::from_vec(out, (self.ids.len(), width), word.device())
    }
}

/// One vector per sequence.
#[derive(Debug, Clone)]
pub struct Pool {
    pub reduce: Reduce,
    pub offsets: Arc<[usize]>,
    /// Rows at the start of each sequence to leave out.
    pub skips: Arc<[usize]>,
}

impl Pool {
    /// `hidden [T, hidden]` to `[B, hidden]`.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        hidden.apply_op1_no_bwd(self)
    }
}

impl CustomOp1 for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, width) = layout.shape().dims2()?;
        let hidden = rows(storage, layout, width)?;
        if self.skips.len() + 1 != self.offsets.len() {
            candle_core::bail!("pool: {} skips for {} offsets", self.skips.len(), self.offsets.len());
        }
        Ok(finish(cpu::reduce::reduce(self.reduce, hidden, width, (&self.offsets, &self.skips)), width))
    }
}

/// A contiguous f32 matrix `[rows, width]` as one slice; anything else is refused rather than copied.
fn rows<'a>(storage: &'a CpuStorage, layout: &Layout, width: usize) -> Result<&'a [f32]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        candle_core::bail!("a contiguous tensor is needed, got {layout:?}");
    };
    let (_, columns) = layout.shape().dims2()?;
    if columns != width {
        candle_core::bail!("width {width} is needed, got {columns}");
    }
    let values = storage.as_slice::<f32>()?;
    values.get(start..end).ok_or_else(|| candle_core::Error::Msg(format!("layout outside storage: {layout:?}")))
}

fn finish(values: Vec<f32>, width: usize) -> (CpuStorage, Shape) {
    let n_rows = values.len() / width.max(1);
    (CpuStorage::F32(values), Shape::from((n_rows, width)))
}
