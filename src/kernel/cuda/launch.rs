//! The kernels of `device/`, one function each: parameters in the order of the declaration, sizes checked.

use super::matmul::Operands;
use super::{Argument, BLOCK, Buffer, CudaError, Device, Format, Grid};
use crate::kernel::{Activation, MatrixShape, Norm, Reduce};

/// All kernels by name.
#[rustfmt::skip]
pub(super) const KERNELS: [&str; 25] = [
    "embed_f32", "embed_f16", "embed_bf16",
    "add_norm_f32", "add_norm_f16", "add_norm_bf16",
    "activate_f32", "activate_f16", "activate_bf16",
    "gate_f32", "gate_f16", "gate_bf16",
    "rotate_f32", "rotate_f16", "rotate_bf16",
    "attend_f32",
    "attend_f16_32", "attend_f16_64", "attend_f16_96", "attend_f16_128",
    "attend_bf16_32", "attend_bf16_64", "attend_bf16_96", "attend_bf16_128",
    "pool",
];

/// Values of one 16-byte vector in the narrowest format: widths of feed-forward networks must be multiples of it.
pub const VECTOR: usize = 8;
/// Head sizes of the attention in 16-bit floats.
pub const HEAD_SIZES: [usize; 4] = [32, 64, 96, 128];
/// The largest head of the attention in float.
pub const MAX_HEAD: usize = 128;

/// A linear layer, `[n, k]` row-major.
#[derive(Debug)]
pub struct Weight {
    pub shape: MatrixShape,
    pub values: Buffer,
    /// `[n]`, in the same format.
    pub bias: Option<Buffer>,
}

/// A norm's scale and shift, always float.
#[derive(Debug)]
pub struct DeviceNorm {
    gamma: Buffer,
    beta: Option<Buffer>,
    epsilon: f32,
    kind: i32,
}

/// Embedding tables, always float.
#[derive(Debug)]
pub struct Tables {
    pub width: usize,
    pub word: Buffer,
    pub position: Option<Buffer>,
    pub token_type: Option<Buffer>,
    pub norm: Option<DeviceNorm>,
}

/// Numbers of one batch, in one buffer; each field is where its numbers begin, counted in numbers.
#[derive(Debug, Clone, Copy)]
pub struct Places<'a> {
    pub buffer: &'a Buffer,
    pub ids: usize,
    /// Rows of the position table.
    pub positions: usize,
    /// Of each token in its sequence.
    pub places: usize,
    pub offsets: usize,
    pub skips: usize,
    pub tiles: usize,
    pub n_tiles: usize,
}

/// One layer's attention.
#[derive(Debug, Clone, Copy)]
pub struct DeviceAttention<'a> {
    pub n_heads: usize,
    pub head_size: usize,
    pub scale: f32,
    /// `[heads, 2·reach + 1]`, and the reach.
    pub bias: Option<(&'a Buffer, usize)>,
    /// Cosines and sines, `[positions, head size / 2]`.
    pub rotary: Option<(&'a Buffer, &'a Buffer)>,
    pub window: Option<usize>,
}

/// One batch on its way through a device: all its kernels work on so many tokens in one format.
#[derive(Debug, Clone, Copy)]
pub struct Pass<'a> {
    pub device: &'a Device,
    pub format: Format,
    pub tokens: usize,
    pub places: Places<'a>,
}

/// What goes on as the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// The normalised sum.
    Normalised,
    /// The sum itself.
    Sum,
    /// The block's output alone, whatever was there before.
    Block,
}

/// The residual stream, `[tokens, width]`.
#[derive(Debug, Clone, Copy)]
pub struct Residual<'a> {
    pub buffer: &'a Buffer,
    pub width: usize,
    /// What it holds afterwards.
    pub becomes: Stream,
}

/// Columns from `first` on of a matrix whose rows have `stride` values.
#[derive(Debug, Clone, Copy)]
pub struct Columns<'a> {
    pub buffer: &'a Buffer,
    pub first: usize,
    pub width: usize,
    pub stride: usize,
}

const NULL: Argument = Argument::Pointer(0);

fn pointer(buffer: &Buffer) -> Argument {
    Argument::Pointer(buffer.pointer)
}

fn optional(buffer: Option<&Buffer>) -> Argument {
    buffer.map_or(NULL, pointer)
}

/// Widths, counts and places are far below 2³¹: models and batches that large are refused long before.
fn int(value: usize) -> Argument {
    Argument::Int(i32::try_from(value).unwrap_or(i32::MAX))
}

fn blocks(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Blocks of a grid's first dimension, each with a row in shared memory.
fn by_row(rows: usize, width: usize) -> Grid {
    Grid { blocks: (blocks(rows), 1), shared_bytes: blocks(width * size_of::<f32>()) }
}

fn holds(buffer: &Buffer, values: usize, format: Format) {
    assert!(buffer.len() >= values * format.bytes(), "a buffer of {} bytes for {values} values", buffer.len());
}

impl DeviceNorm {
    /// # Errors
    /// Out of memory.
    pub fn upload(device: &Device, norm: &Norm) -> Result<Self, CudaError> {
        let (gamma, beta, epsilon, centred) = norm.parts();
        let beta = beta.map(|beta| device.upload(beta)).transpose()?;
        Ok(Self { gamma: device.upload(gamma)?, beta, epsilon, kind: if centred { 1 } else { 2 } })
    }

    fn arguments(norm: Option<&Self>) -> [Argument; 4] {
        match norm {
            Some(Self { gamma, beta, epsilon, kind }) => {
                [pointer(gamma), optional(beta.as_ref()), Argument::Float(*epsilon), Argument::Int(*kind)]
            }
            None => [NULL, NULL, Argument::Float(0.0), Argument::Int(0)],
        }
    }
}

impl Places<'_> {
    fn at(&self, index: usize) -> Argument {
        Argument::Pointer(self.buffer.pointer + (index * size_of::<u32>()) as u64)
    }
}

// Buffers that are too small for what a kernel is told about them are a fault of this program: every function panics.
#[expect(clippy::missing_panics_doc, reason = "said above for all of them")]
impl Pass<'_> {
    /// `norm(word + position + type)` of every token, into the residual stream and, in `format`, into `out`.
    ///
    /// # Errors
    /// The device failed.
    pub fn embed(&self, tables: &Tables, residual: &Buffer, out: &Buffer) -> Result<(), CudaError> {
        let Self { device, format, tokens, places } = *self;
        let Tables { width, word, position, token_type, norm } = tables;
        holds(residual, tokens * width, Format::F32);
        holds(out, tokens * width, format);
        let [gamma, beta, epsilon, kind] = DeviceNorm::arguments(norm.as_ref());
        let arguments = [
            places.at(places.ids),
            places.at(places.positions),
            pointer(word),
            optional(position.as_ref()),
            optional(token_type.as_ref()),
            gamma,
            beta,
            epsilon,
            kind,
            int(*width),
            pointer(residual),
            pointer(out),
        ];
        device.launch(format.pick(["embed_f32", "embed_f16", "embed_bf16"]), by_row(tokens, *width), &arguments)
    }

    /// The residual stream plus a block's output, and the norm of that, in `format`, into `out`.
    ///
    /// # Errors
    /// The device failed.
    pub fn add_norm(
        &self,
        Residual { buffer: residual, width, becomes }: Residual<'_>,
        block: Option<&Buffer>,
        norm: Option<&DeviceNorm>,
        out: &Buffer,
    ) -> Result<(), CudaError> {
        let Self { device, format, tokens, .. } = *self;
        holds(residual, tokens * width, Format::F32);
        block.into_iter().chain([out]).for_each(|buffer| holds(buffer, tokens * width, format));
        let [gamma, beta, epsilon, kind] = DeviceNorm::arguments(norm);
        let stream = Argument::Int(match becomes {
            Stream::Normalised => 0,
            Stream::Sum => 1,
            Stream::Block => 2,
        });
        let arguments =
            [pointer(residual), optional(block), gamma, beta, epsilon, kind, stream, int(width), pointer(out)];
        device.launch(format.pick(["add_norm_f32", "add_norm_f16", "add_norm_bf16"]), by_row(tokens, width), &arguments)
    }

    /// An activation of `values [tokens, width]` in place.
    ///
    /// # Errors
    /// The device failed.
    pub fn activate(&self, values: &Buffer, width: usize, activation: Activation) -> Result<(), CudaError> {
        /// Enough to fill any GPU; threads go on to what is left.
        const MOST_BLOCKS: usize = 4096;
        if activation == Activation::None {
            return Ok(());
        }
        let (format, n) = (self.format, self.tokens * width);
        holds(values, n, format);
        assert!(n.is_multiple_of(VECTOR), "{n} values are not whole vectors");
        let grid =
            Grid { blocks: (blocks((n / VECTOR).div_ceil(BLOCK as usize).clamp(1, MOST_BLOCKS)), 1), shared_bytes: 0 };
        let arguments = [pointer(values), Argument::Long(n as u64), Argument::Int(code(activation))];
        self.device.launch(format.pick(["activate_f32", "activate_f16", "activate_bf16"]), grid, &arguments)
    }

    /// `act(x[:, :width])·x[:, width:]` of `values [tokens, 2·width]`.
    ///
    /// # Errors
    /// The device failed.
    pub fn gate(&self, values: &Buffer, width: usize, activation: Activation, out: &Buffer) -> Result<(), CudaError> {
        let Self { device, format, tokens, .. } = *self;
        holds(values, 2 * tokens * width, format);
        holds(out, tokens * width, format);
        assert!(width.is_multiple_of(VECTOR), "a width of {width} is not whole vectors");
        let arguments = [pointer(values), int(width), Argument::Int(code(activation)), pointer(out)];
        let grid = Grid { blocks: (blocks(tokens), 1), shared_bytes: 0 };
        device.launch(format.pick(["gate_f32", "gate_f16", "gate_bf16"]), grid, &arguments)
    }

    /// The context of every token from `qkv [tokens, 3·inner]`, which is turned in place where the model has rotations.
    ///
    /// # Errors
    /// The device failed.
    pub fn attend(&self, qkv: &Buffer, attention: DeviceAttention<'_>, out: &Buffer) -> Result<(), CudaError> {
        let Self { device, format, tokens, places } = *self;
        let DeviceAttention { n_heads, head_size, scale, bias, rotary, window } = attention;
        holds(qkv, 3 * tokens * n_heads * head_size, format);
        holds(out, tokens * n_heads * head_size, format);
        if let Some((cosines, sines)) = rotary {
            let arguments = [
                pointer(qkv),
                places.at(places.places),
                pointer(cosines),
                pointer(sines),
                int(n_heads),
                int(head_size),
            ];
            let grid = Grid { blocks: (blocks(tokens), 1), shared_bytes: 0 };
            device.launch(format.pick(["rotate_f32", "rotate_f16", "rotate_bf16"]), grid, &arguments)?;
        }
        let (bias, reach) = bias.map_or((NULL, 0), |(bias, reach)| (pointer(bias), reach));
        let window = window.map_or(Argument::Int(-1), int);
        let scores = [Argument::Float(scale), bias, int(reach), window];
        let (kernel, shared_bytes) = match format {
            Format::F32 => (Some("attend_f32"), exact_bytes(head_size)),
            Format::F16 | Format::Bf16 => (format.attend_tiles(head_size), tile_bytes(head_size)),
        };
        let kernel = kernel.ok_or_else(|| CudaError::Other(format!("no attention for heads of {head_size}")))?;
        let mut arguments = vec![pointer(qkv), places.at(places.tiles), int(n_heads)];
        if format == Format::F32 {
            arguments.push(int(head_size));
        }
        arguments.extend(scores);
        arguments.push(pointer(out));
        let grid = Grid { blocks: (blocks(places.n_tiles), blocks(n_heads)), shared_bytes: blocks(shared_bytes) };
        device.launch(kernel, grid, &arguments)
    }

    /// `out [tokens, n] = x [tokens, k]·weightᵀ + bias`.
    ///
    /// # Errors
    /// The device failed.
    pub fn multiply(&self, x: &Buffer, weight: &Weight, out: &Buffer) -> Result<(), CudaError> {
        let MatrixShape { n, k } = weight.shape;
        holds(x, self.tokens * k, self.format);
        holds(out, self.tokens * n, self.format);
        holds(&weight.values, n * k, self.format);
        self.device.multiply(self.format, self.tokens, Operands { x, weight, out })
    }

    /// One row per sequence of `hidden [tokens, width]`, into as many columns of `out [sequences, stride]`.
    ///
    /// # Errors
    /// The device failed.
    pub fn pool(
        &self,
        hidden: &Buffer,
        sequences: usize,
        reduce: Reduce,
        Columns { buffer: out, first, width, stride }: Columns<'_>,
    ) -> Result<(), CudaError> {
        let places = self.places;
        holds(hidden, self.tokens * width, Format::F32);
        holds(out, sequences * stride, Format::F32);
        assert!(first + width <= stride, "columns {first} to {} of {stride}", first + width);
        let reduce = match reduce {
            Reduce::First => 0,
            Reduce::Last => 1,
            Reduce::Max => 2,
            Reduce::Mean => 3,
            Reduce::MeanSqrtLen => 4,
            Reduce::WeightedMean => 5,
        };
        let arguments = [
            pointer(hidden),
            places.at(places.offsets),
            places.at(places.skips),
            Argument::Int(reduce),
            int(width),
            int(first),
            int(stride),
            pointer(out),
        ];
        let grid = Grid { blocks: (blocks(sequences), blocks(width.div_ceil(BLOCK as usize))), shared_bytes: 0 };
        self.device.launch("pool", grid, &arguments)
    }
}

/// Shared memory of the exact attention: 16 queries, 32 keys with a float more each, 32 values, and the weights.
const fn exact_bytes(head_size: usize) -> usize {
    (16 * head_size + 32 * (head_size + 1) + 32 * head_size + 16 * 32) * size_of::<f32>()
}

/// Shared memory of the attention on matrix units: 64 keys, and 64 values transposed, with their padding.
const fn tile_bytes(head_size: usize) -> usize {
    (64 * (head_size + 8) + head_size * (64 + 8)) * size_of::<u16>()
}

/// As `activation.cu` counts them.
const fn code(activation: Activation) -> i32 {
    match activation {
        Activation::None => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
        Activation::Silu => 4,
        Activation::Tanh => 5,
    }
}
