//! The few operations the encoder skeleton needs, as data; `cpu` computes them, and with the feature `cuda` so does a GPU.
//!
//! Activations are `[T, width]` row-major f32, one row per token of the packed batch. Inside an encoder they live in
//! buffers of the compute threads ([`cpu::worker`]); candle tensors carry what enters and leaves: the last hidden states,
//! pooled vectors, and what the heads behind them make of those. A device without an implementation is an error,
//! never a silent copy to the CPU. [`mod@reference`] holds the slow, obvious versions that the tests compare against.
//!
//! | operation | meaning |
//! |---|---|
//! | [`Embed`] | token ids to `norm(word + type + position)` |
//! | [`SelfAttention`] | `x + output(softmax(scale·q·kᵀ + bias)·v)` inside each sequence, `q, k, v = x·Wᵀ + b` |
//! | [`FeedForward`] | `x + down(act(up(x)))`, or `x + down(act(gate(x))·up(x))` |
//! | [`Norm`] | LayerNorm or RMSNorm of every row |
//! | [`Linear`] | `act(x·Wᵀ + b)`, of which the blocks above are made |
//! | [`Pool`] | one row per sequence |

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod precision;
pub mod reference;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};

pub use cpu::Isa;
pub use cpu::activation::Activation;
pub use cpu::forward::{Batch, Cores, Memory, forward};
pub use cpu::matrix::{MatrixShape, PackedMatrix, Packing};
pub use cpu::norm::Norm;
pub use cpu::pages::{Arena, Pages};
pub use cpu::position::{DistanceBias, Rotary};
pub use cpu::reduce::Reduce;
pub use cpu::worker::{Norms, Widths, Worker};
pub use precision::{Compute, KERNEL_VERSION, Precision, UnknownPrecision, UnsupportedPrecision};

/// Where an encoder computes.
#[derive(Debug, Clone)]
pub enum Target {
    Cpu,
    #[cfg(feature = "cuda")]
    Cuda(cuda::Device),
}

impl Target {
    /// As `--device` names it, with the device's own name.
    pub fn label(&self) -> String {
        match self {
            Self::Cpu => "cpu".to_owned(),
            #[cfg(feature = "cuda")]
            Self::Cuda(device) => device.label(),
        }
    }

    /// Tokens of the batches at which it computes at full speed: larger ones gain nothing.
    pub const fn full_speed_tokens(&self) -> usize {
        match self {
            Self::Cpu => 2048,
            #[cfg(feature = "cuda")]
            Self::Cuda(_) => 16_384,
        }
    }
}

/// `act(x·Wᵀ + b)`: one 2-D matrix product over all rows.
#[derive(Debug, Clone)]
pub struct Linear {
    pub weight: Arc<PackedMatrix>,
    pub activation: Activation,
    pub isa: Isa,
}

impl Linear {
    /// `x [T, k]` to `[T, n]`, on the calling thread.
    ///
    /// # Errors
    /// A shape or layout that does not fit, or a device without an implementation.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        x.apply_op1_no_bwd(self)
    }
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let x = rows(storage, layout, self.weight.k())?;
        let out = cpu::linear::linear_rows(self.isa, x, &self.weight, self.activation);
        Ok(finish(out, self.weight.n()))
    }
}

/// How queries, keys and values become a context, inside each sequence.
#[derive(Debug, Clone)]
pub struct Attention {
    pub n_heads: usize,
    /// Factor on the scores, `1/√head_size` for BERT.
    pub scale: f32,
    /// Added to the scaled scores.
    pub bias: Option<Arc<DistanceBias>>,
    /// Turns queries and keys by their positions.
    pub rotary: Option<Arc<Rotary>>,
    /// A query sees the keys at most this far away; `None` = all.
    pub window: Option<usize>,
    /// The format of both products, f32 or bf16.
    pub precision: Precision,
}

impl Attention {
    /// Refuses sequences longer than the table of rotations, before anything is computed.
    ///
    /// # Errors
    /// A sequence that ends beyond it.
    pub fn check(&self, offsets: &[usize]) -> Result<()> {
        let longest = offsets.windows(2).map(|span| span[1] - span[0]).max().unwrap_or(0);
        match &self.rotary {
            Some(rotary) if longest > rotary.positions() => {
                candle_core::bail!("attention: a row of {longest} tokens, positions end at {}", rotary.positions())
            }
            _ => Ok(()),
        }
    }
}

/// An attention block without its norm.
#[derive(Debug, Clone)]
pub struct SelfAttention {
    /// `[3·inner, hidden]`: query, key and value side by side, in one product or in several whose columns follow each
    /// other.
    pub qkv: Vec<Linear>,
    pub attention: Attention,
    /// `[hidden, inner]`.
    pub output: Linear,
}

/// A feed-forward block without its norm.
#[derive(Debug, Clone)]
pub struct FeedForward {
    /// `[middle, hidden]`; of a gated network the half to activate and the other one, `[2·middle, hidden]`.
    pub up: Linear,
    /// The activation of a gated network.
    pub gate: Option<Activation>,
    /// `[hidden, middle]`.
    pub down: Linear,
}

/// Embedding tables, row-major, summed and normalised in one pass.
#[derive(Debug)]
pub struct Embed {
    pub width: usize,
    /// `[vocabulary, width]`.
    pub word: Vec<f32>,
    /// `[positions, width]`.
    pub position: Option<Vec<f32>>,
    /// Row 0 of the token-type table: single texts have no second segment.
    pub token_type: Option<Vec<f32>>,
    pub norm: Option<Norm>,
}

impl Embed {
    /// What the compute threads read.
    pub fn tables(&self) -> cpu::embed::Tables<'_> {
        cpu::embed::Tables {
            width: self.width,
            word: &self.word,
            position: self.position.as_deref(),
            token_type: self.token_type.as_deref(),
            norm: self.norm.as_ref(),
        }
    }

    /// Refuses what lies outside the tables, before anything is computed.
    ///
    /// # Errors
    /// An id or position outside its table.
    pub fn check(&self, ids: &[u32], positions: &[u32]) -> Result<()> {
        check_inside("token id", ids, self.word.len() / self.width)?;
        self.position.as_ref().map_or(Ok(()), |table| check_inside("position", positions, table.len() / self.width))
    }

    /// Memory held, in bytes.
    pub fn size_bytes(&self) -> usize {
        (self.word.len() + self.position.as_ref().map_or(0, Vec::len)) * size_of::<f32>()
    }
}

/// Refuses indices that a table does not have.
///
/// # Errors
/// The first of them.
pub fn check_inside(what: &str, indices: &[u32], rows: usize) -> Result<()> {
    match indices.iter().find(|index| **index as usize >= rows) {
        Some(index) => candle_core::bail!("{what} {index} is outside a table of {rows} rows"),
        None => Ok(()),
    }
}

/// One vector per sequence.
#[derive(Debug, Clone)]
pub struct Pool {
    pub reduce: Reduce,
    /// Row offsets of the sequences, `B + 1` of them, the first 0 and the last T.
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

    /// `hidden [T, hidden]` to `[B, ways·hidden]`, the rows of several reductions side by side.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn side_by_side(hidden: &Tensor, offsets: &Arc<[usize]>, ways: &[Reduce], skips: &[usize]) -> Result<Vec<f32>> {
        let (_, width) = hidden.dims2()?;
        let skips: Arc<[usize]> = skips.into();
        let part = |reduce: &Reduce| -> Result<Vec<f32>> {
            let pool = Self { reduce: *reduce, offsets: Arc::clone(offsets), skips: Arc::clone(&skips) };
            pool.forward(hidden)?.flatten_all()?.to_vec1()
        };
        if let [only] = ways {
            return part(only);
        }
        let parts = ways.iter().map(part).collect::<Result<Vec<_>>>()?;
        let rows = (0..skips.len()).flat_map(|row| parts.iter().map(move |part| &part[row * width..][..width]));
        Ok(rows.flatten().copied().collect())
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
        Ok(finish(cpu::reduce::reduce(self.reduce, hidden, width, &self.offsets, &self.skips), width))
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
