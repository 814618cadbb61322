//! The same skeleton on a GPU: the operations of [`kernel::cuda`](crate::kernel::cuda) in the order of
//! [`encoder`](crate::arch::encoder), over whole batches instead of tiles.
//!
//! Of a batch one block of numbers goes up and one matrix of pooled rows comes back; nothing else waits for the device. Two
//! batches may be on their way (`berth`): the kernels of the second follow those of the first at once. Buffers grow to the
//! largest batch seen and stay. Small batches take less time than the launches of their kernels, which are therefore recorded
//! (`shape`).

mod berth;
mod load;
mod scratch;
mod shape;

use candle_core::{Device as CandleDevice, Tensor};

use crate::arch::attention::StoredLinear;
use crate::arch::embeddings::Embeddings;
use crate::arch::packed::PackedBatch;
use crate::arch::spec::{EncoderSpec, FirstPosition, NormPlace};
use crate::arch::{ArchError, Encoder, EncoderError, Submitted, attention, feed_forward, never_begun, norm, position};
use crate::kernel::cpu::reduce::reduce;
use crate::kernel::cuda::launch::{Columns, DeviceAttention, DeviceNorm, Pass, Residual, Stream, Tables, Weight};
use crate::kernel::cuda::{Buffer, CudaError, Device, Format};
use crate::kernel::{Reduce, check_inside};
use crate::weights::Weights;
use berth::{Berth, Layout, State, lay_out, most_numbers};
use load::{Rotations, Turned, check, tables, upload};
use scratch::Scratch;
use shape::{Recordings, Shape, rounded};

/// Device memory that is left free for what the driver and cuBLASLt load later, kernels above all.
const HEADROOM_BYTES: usize = 64 << 20;

/// An encoder of any family, on one device.
#[derive(Debug)]
pub struct CudaEncoder {
    device: Device,
    format: Format,
    spec: EncoderSpec,
    first_position: FirstPosition,
    /// Rows of the word and position tables.
    rows: (usize, usize),
    tables: Tables,
    projection: Option<Weight>,
    /// Those with weights of their own.
    layers: Vec<Layer>,
    last_norm: Option<DeviceNorm>,
    /// `[heads, 2·reach + 1]`, and the reach.
    bias: Option<(Buffer, usize)>,
    positions: Option<usize>,
    scratch: Option<Scratch>,
    /// Of batches in the first berth, where those are that come alone.
    recordings: Recordings,
    berths: [Berth; 2],
    weight_bytes: u64,
}

#[derive(Debug)]
struct Layer {
    attention_norm: Option<DeviceNorm>,
    qkv: Weight,
    output: Weight,
    feed_forward_norm: DeviceNorm,
    up: Weight,
    down: Weight,
    window: Option<usize>,
    rotary: Option<Rotations>,
}

impl From<CudaError> for EncoderError {
    fn from(error: CudaError) -> Self {
        match error {
            CudaError::OutOfMemory => Self::OutOfMemory,
            CudaError::Lost(reason) => Self::Lost { reason },
            other @ (CudaError::NoDriver
            | CudaError::NoMatmul
            | CudaError::NoSuchDevice { .. }
            | CudaError::TooOld { .. }
            | CudaError::Other(_)) => Self::Compute(candle_core::Error::Msg(other.to_string())),
        }
    }
}

impl From<CudaError> for ArchError {
    fn from(error: CudaError) -> Self {
        Self::Gpu(error.to_string())
    }
}

impl CudaEncoder {
    /// Reads every tensor of the encoder and puts it on the device, layer by layer: beside the files' pages, the host holds
    /// one layer at a time.
    ///
    /// # Errors
    /// A shape without kernels, a missing or misshapen tensor, or no room on the device.
    pub fn load(spec: &EncoderSpec, weights: &Weights, device: &Device, format: Format) -> Result<Self, ArchError> {
        check(spec, format)?;
        let free_before = device.memory()?.0;
        let embeddings = Embeddings::load(spec, weights)?;
        let tables = tables(device, &embeddings.op)?;
        let first_position = embeddings.first_position();
        drop(embeddings);
        let bias = position::distance_bias(spec, weights)?;
        let bias = bias.map(|bias| {
            let (values, reach) = bias.parts();
            Ok::<_, CudaError>((device.upload(values)?, reach))
        });
        let mut turned = Turned::default();
        let mut layers = Vec::with_capacity(spec.n_stored_layers());
        let upload = |stored: StoredLinear| upload(device, format, &stored);
        let projection = Embeddings::projection(spec, weights)?.map(upload).transpose()?;
        let all = spec.layers.iter().zip(position::rotations(spec)).enumerate();
        // Layers that share their weights have the same options.
        let own = all.filter(|(layer, _)| *layer == 0 || spec.stored_layer(*layer) != spec.stored_layer(layer - 1));
        for (index, (options, rotary)) in own.map(|(layer, options)| (spec.stored_layer(layer), options)) {
            let named = |block: &str| format!("layers.{index}.{block}.norm");
            let on_device = |role: &str| -> Result<DeviceNorm, ArchError> {
                Ok(DeviceNorm::upload(device, &norm::load(spec, weights, role)?)?)
            };
            let without = index == 0 && spec.norm_place == NormPlace::Before { first_attention: false };
            let attention_norm = (!without).then(|| on_device(&named("attention"))).transpose()?;
            let (qkv, output) = attention::stored(spec, weights, index)?;
            let (up, down) = feed_forward::stored(spec, weights, index)?;
            layers.push(Layer {
                attention_norm,
                qkv: upload(qkv)?,
                output: upload(output)?,
                feed_forward_norm: on_device(&named("feed_forward"))?,
                up: upload(up)?,
                down: upload(down)?,
                window: options.window,
                rotary: rotary.map(|rotary| turned.upload(device, &rotary)).transpose()?,
            });
        }
        let last_norm = match spec.norm_place {
            NormPlace::After => None,
            NormPlace::Before { .. } => Some(DeviceNorm::upload(device, &norm::load(spec, weights, "norm")?)?),
        };
        let rotated = spec.layers.iter().any(|layer| layer.rotary.is_some());
        Ok(Self {
            device: device.clone(),
            format,
            spec: spec.clone(),
            first_position,
            rows: (spec.vocab_size, spec.position_table.map_or(usize::MAX, |table| table.rows)),
            tables,
            projection,
            layers,
            last_norm,
            bias: bias.transpose()?,
            positions: rotated.then_some(spec.max_tokens),
            scratch: None,
            recordings: Recordings::default(),
            berths: [Berth::new(device)?, Berth::new(device)?],
            weight_bytes: free_before.saturating_sub(device.memory()?.0) as u64,
        })
    }

    /// Device memory of tables and weights, in bytes.
    pub const fn size_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// A berth that no batch is in. One whose batch failed half-way is empty once the device has done what was asked for.
    fn berth(&mut self) -> Result<usize, CudaError> {
        let find = |state: State| self.berths.iter().position(|berth| berth.state == state);
        if let Some(index) = find(State::Free) {
            return Ok(index);
        }
        let index = find(State::Unsettled);
        let index = index.ok_or_else(|| CudaError::Other("two batches are under way already".to_owned()))?;
        self.device.settle()?;
        self.berths[index].state = State::Free;
        Ok(index)
    }

    /// Room for a batch, and its numbers on their way into a berth.
    fn send(&mut self, index: usize, batch: &PackedBatch, skips: &[usize]) -> Result<Layout, EncoderError> {
        self.check_batch(batch)?;
        let exact = Shape::of(batch, self.format);
        // Rounded also where nothing is recorded yet: a row must not meet other products because of that.
        let shape = if self.device.records() { exact.rounded(self.format) } else { exact };
        if self.scratch.as_ref().is_none_or(|scratch| scratch.tokens < shape.tokens) {
            self.recordings.forget();
            // The old one first: both may be more than the device holds.
            self.scratch = None;
            let tokens = shape.tokens.next_power_of_two();
            self.scratch = Some(Scratch::new(&self.device, &self.spec, self.format, tokens)?);
        }
        let (numbers, layout) = lay_out(batch, skips, shape, self.first_position, self.format);
        self.berths[index].send(&self.device, &numbers)?;
        Ok(layout)
    }

    /// Asks for the last hidden states of the batch in a berth; they end up in the residual stream.
    fn ask(&mut self, index: usize, layout: Layout) -> Result<(), CudaError> {
        if index > 0 || !layout.shape.is_small() || !self.device.records() {
            return self.encode(self.pass(&self.device, index, layout));
        }
        // Taken out for as long, since the launches need everything else.
        let mut recordings = std::mem::take(&mut self.recordings);
        let (shape, address) = (layout.shape, self.berths[index].address());
        let launches = |device: &Device| self.encode(self.pass(device, index, layout));
        let asked = recordings.ask(&self.device, shape, address, launches);
        self.recordings = recordings;
        asked
    }

    /// The batch in a berth, as the kernels see it.
    fn pass<'a>(&'a self, device: &'a Device, index: usize, layout: Layout) -> Pass<'a> {
        Pass { device, format: self.format, tokens: layout.shape.tokens, places: self.berths[index].places(layout) }
    }

    fn scratch(&self) -> Result<&Scratch, CudaError> {
        self.scratch.as_ref().ok_or(CudaError::OutOfMemory)
    }

    /// All launches, one by one.
    fn encode(&self, pass: Pass<'_>) -> Result<(), CudaError> {
        let Self { spec, tables, projection, last_norm, bias, .. } = self;
        let layers: Vec<&Layer> = (0..spec.n_layers()).map(|layer| &self.layers[spec.stored_layer(layer)]).collect();
        let scratch = self.scratch()?;
        let stream = match spec.norm_place {
            NormPlace::After => Stream::Normalised,
            NormPlace::Before { .. } => Stream::Sum,
        };
        pass.embed(tables, &scratch.residual, &scratch.hidden)?;
        let residual = Residual { buffer: &scratch.residual, width: spec.hidden_size, becomes: stream };
        if let Some(projection) = projection {
            pass.multiply(&scratch.hidden, projection, &scratch.block)?;
            pass.add_norm(
                Residual { becomes: Stream::Block, ..residual },
                Some(&scratch.block),
                None,
                &scratch.hidden,
            )?;
        }
        let n_layers = layers.len();
        // Where norms stand before the blocks, the first one reads the embeddings through its own norm.
        if stream == Stream::Sum
            && let Some(norm) = layers.first().and_then(|layer| layer.attention_norm.as_ref())
        {
            pass.add_norm(residual, None, Some(norm), &scratch.hidden)?;
        }
        for index in 0..n_layers {
            let layer = layers[index];
            let attention = DeviceAttention {
                n_heads: spec.n_heads,
                head_size: spec.head_size,
                scale: spec.attention.scale,
                bias: bias.as_ref().map(|(values, reach)| (values, *reach)),
                rotary: layer.rotary.as_deref().map(|(cosines, sines)| (cosines, sines)),
                window: layer.window,
            };
            pass.multiply(&scratch.hidden, &layer.qkv, &scratch.qkv)?;
            pass.attend(&scratch.qkv, attention, &scratch.context)?;
            pass.multiply(&scratch.context, &layer.output, &scratch.block)?;
            // What follows a block normalises for the next one: the norm of its own place, or that of the next block.
            let (after_attention, after_feed_forward) = match spec.norm_place {
                NormPlace::After => (layer.attention_norm.as_ref(), Some(&layer.feed_forward_norm)),
                NormPlace::Before { .. } => {
                    let next = layers.get(index + 1).and_then(|next| next.attention_norm.as_ref());
                    (Some(&layer.feed_forward_norm), next)
                }
            };
            pass.add_norm(residual, Some(&scratch.block), after_attention, &scratch.hidden)?;
            scratch.feed_forward(pass, spec, layer)?;
            // After the last block the stream itself is what is wanted, through the last norm.
            let last = index + 1 == n_layers && stream == Stream::Sum;
            let (norm, becomes) =
                if last { (last_norm.as_ref(), Stream::Normalised) } else { (after_feed_forward, stream) };
            pass.add_norm(Residual { becomes, ..residual }, Some(&scratch.block), norm, &scratch.hidden)?;
        }
        Ok(())
    }

    /// Everything that a batch of so many tokens and rows needs; further ways of pooling, which few models have, come later.
    fn take_room(&mut self, tokens: usize, rows: usize) -> Result<(), CudaError> {
        let tokens = if self.device.records() { rounded(tokens) } else { tokens };
        self.scratch = Some(Scratch::new(&self.device, &self.spec, self.format, tokens)?);
        let n_numbers = most_numbers(tokens, rows, self.format);
        for berth in &mut self.berths {
            berth.grow(&self.device, n_numbers, rows * self.spec.hidden_size)?;
        }
        // What the libraries load when they first need it must not be what fails.
        if self.device.memory()?.0 < HEADROOM_BYTES { Err(CudaError::OutOfMemory) } else { Ok(()) }
    }

    fn check_batch(&self, batch: &PackedBatch) -> Result<(), EncoderError> {
        check_inside("token id", batch.ids(), self.rows.0)?;
        check_inside("position", &position::rows(self.first_position, batch), self.rows.1)?;
        let longest = batch.sequences().map(<[u32]>::len).max().unwrap_or(0);
        if let Some(positions) = self.positions
            && longest > positions
        {
            let reason = format!("attention: a row of {longest} tokens, positions end at {positions}");
            return Err(EncoderError::Compute(candle_core::Error::Msg(reason)));
        }
        Ok(())
    }
}

impl Encoder for CudaEncoder {
    fn forward(&mut self, batch: &PackedBatch) -> Result<Tensor, EncoderError> {
        let (tokens, width) = (batch.n_tokens(), self.spec.hidden_size);
        let index = self.berth()?;
        let layout = self.send(index, batch, &[])?;
        self.ask(index, layout)?;
        let hidden = self.device.read(&self.scratch()?.residual, tokens * width)?;
        self.berths[index].state = State::Free;
        Ok(Tensor::from_vec(hidden, (tokens, width), &CandleDevice::Cpu)?)
    }

    fn pooled(&mut self, batch: &PackedBatch, ways: &[Reduce], skips: &[usize]) -> Result<Vec<f32>, EncoderError> {
        let submitted = self.submit(batch, ways, skips)?;
        self.collect(submitted)
    }

    fn submit(&mut self, batch: &PackedBatch, ways: &[Reduce], skips: &[usize]) -> Result<Submitted, EncoderError> {
        let (rows, width) = (batch.n_rows(), self.spec.hidden_size);
        if batch.n_tokens() == 0 {
            // No kernel runs on nothing.
            let pooled = ways.iter().map(|way| reduce(*way, &[], width, batch.offsets(), skips));
            return Ok(Submitted::Done(pooled.flatten().collect()));
        }
        let index = self.berth()?;
        let layout = self.send(index, batch, skips)?;
        let stride = width * ways.len();
        self.device.grow(&mut self.berths[index].pooled, rows * stride * size_of::<f32>())?;
        self.ask(index, layout)?;
        let (scratch, pass) = (self.scratch()?, self.pass(&self.device, index, layout));
        for (column, way) in ways.iter().enumerate() {
            let out = Columns { buffer: &self.berths[index].pooled, first: column * width, width, stride };
            pass.pool(&scratch.residual, rows, *way, out)?;
        }
        self.berths[index].fetch(rows * stride)?;
        Ok(Submitted::UnderWay(index))
    }

    fn collect(&mut self, submitted: Submitted) -> Result<Vec<f32>, EncoderError> {
        let index = match submitted {
            Submitted::Done(vectors) => return Ok(vectors),
            Submitted::UnderWay(index) => index,
        };
        match self.berths.get_mut(index).map(|berth| (berth.state, berth)) {
            Some((State::UnderWay { values }, berth)) => Ok(berth.arrived(values)?),
            Some((State::Free | State::Unsettled, _)) | None => Err(never_begun()),
        }
    }

    fn overlaps(&self) -> bool {
        true
    }

    fn hidden_size(&self) -> usize {
        self.spec.hidden_size
    }

    fn reserve(&mut self, tokens: usize, rows: usize) -> Result<(), EncoderError> {
        self.recordings.forget();
        self.scratch = None;
        let reserved = self.take_room(tokens, rows);
        if reserved.is_err() {
            self.scratch = None;
            self.berths = [Berth::new(&self.device)?, Berth::new(&self.device)?];
        }
        Ok(reserved?)
    }

    /// Company decides about the algorithm of a product, and with it about the order of its sums.
    fn company_bound(&self) -> f32 {
        match self.format {
            Format::F32 => 1e-5,
            // Three bits more than bf16.
            Format::F16 => 2e-3,
            Format::Bf16 => 1e-2,
        }
    }
}
