//! The skeleton: embeddings, then attention block and feed-forward block once per layer, over one packed batch. Norms
//! stand after each block or before it, as the family has them.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rayon::ThreadPool;
use rayon::prelude::*;

use crate::arch::attention::Places;
use crate::arch::embeddings::Embeddings;
use crate::arch::packed::PackedBatch;
use crate::arch::spec::{EncoderSpec, NormPlace};
use crate::arch::{ArchError, Encoder, EncoderError, attention, feed_forward, norm, position};
use crate::kernel::{
    Activation, Arena, Batch, Compute, Cores, FeedForward, Isa, Linear, Memory, Norm, Norms, Packing, Precision,
    SelfAttention, Widths, Worker, forward,
};
use crate::weights::{Weights, WeightsError};

/// An encoder of any family.
#[derive(Debug)]
pub struct PackedEncoder {
    isa: Isa,
    widths: Widths,
    norm_place: NormPlace,
    embeddings: Embeddings,
    /// From the tables' width to the hidden size, in f32 whatever the others are: it is small, and all layers build on it.
    projection: Option<Linear>,
    layers: Vec<Layer>,
    /// Which of them follow each other.
    order: Vec<usize>,
    /// After the last layer, where norms stand before the blocks.
    last_norm: Option<Norm>,
    position_bytes: usize,
    memory: Memory,
    /// Whose threads compute beside the caller of a forward pass.
    pool: Arc<ThreadPool>,
}

#[derive(Debug)]
struct Layer {
    /// Absent where a layer takes its input as it is.
    attention_norm: Option<Norm>,
    attention: SelfAttention,
    feed_forward_norm: Norm,
    feed_forward: FeedForward,
}

impl PackedEncoder {
    /// Reads and packs every tensor of the encoder, layers in parallel.
    ///
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn load(
        spec: &EncoderSpec,
        weights: &Weights,
        compute: Compute,
        pool: &Arc<ThreadPool>,
    ) -> Result<Self, ArchError> {
        let embeddings = Embeddings::load(spec, weights)?;
        let bias = position::distance_bias(spec, weights)?;
        let rotations = position::rotations(spec);
        let mut position_bytes = bias.as_ref().map_or(0, |bias| bias.size_bytes());
        position_bytes += rotations.iter().flatten().map(|rotary| rotary.size_bytes()).max().unwrap_or(0);
        let packing = Packing { compute, arena: &Arena::default() };
        let exact = Packing { compute: Compute { precision: Precision::F32, ..compute }, ..packing };
        let projection = Embeddings::projection(spec, weights)?.map(|stored| stored.pack(exact, Activation::None));
        let order: Vec<usize> = (0..spec.n_layers()).map(|layer| spec.stored_layer(layer)).collect();
        // Layers that share their weights have the same options.
        let first: Vec<usize> = (0..order.len()).filter(|i| *i == 0 || order[*i] != order[i - 1]).collect();
        let layers: Result<Vec<Layer>, WeightsError> = (first.par_iter())
            .map(|first| {
                let (rotary, window) = (rotations[*first].clone(), spec.layers[*first].window);
                let places = Places { bias: bias.clone(), rotary, window };
                Layer::load(spec, weights, order[*first], places, packing)
            })
            .collect();
        let last_norm = match spec.norm_place {
            NormPlace::After => None,
            NormPlace::Before { .. } => Some(norm::load(spec, weights, "norm")?),
        };
        let halves = if spec.feed_forward.gated { 2 } else { 1 };
        Ok(Self {
            isa: compute.isa,
            widths: Widths {
                hidden: spec.hidden_size,
                inner: spec.inner_size(),
                middle: halves * spec.intermediate_size,
            },
            norm_place: spec.norm_place,
            embeddings,
            projection,
            layers: layers?,
            order,
            last_norm,
            position_bytes,
            memory: Memory::default(),
            pool: Arc::clone(pool),
        })
    }

    /// Memory of tables and packed weights, in bytes.
    pub fn size_bytes(&self) -> u64 {
        let layers = self.layers.iter().map(Layer::size_bytes);
        let projection = self.projection.as_ref().map_or(0, |linear| linear.weight.size_bytes());
        (self.embeddings.op.size_bytes() + projection + layers.sum::<usize>() + self.position_bytes) as u64
    }
}

impl Encoder for PackedEncoder {
    fn forward(&mut self, batch: &PackedBatch) -> Result<Tensor, EncoderError> {
        let Self { isa, widths, norm_place, embeddings, projection, layers, order, .. } = self;
        let Self { last_norm, memory, pool, .. } = self;
        let positions = embeddings.positions(batch);
        embeddings.op.check(batch.ids(), &positions)?;
        layers.iter().try_for_each(|layer| layer.attention.attention.check(batch.offsets()))?;
        let batch = Batch { ids: batch.ids(), positions: &positions, offsets: batch.offsets() };
        let cores = Cores { isa: *isa, pool };
        let hidden = forward(cores, *widths, memory, batch, |worker| {
            worker.embed(&embeddings.op.tables(), projection.as_ref());
            for layer in order.iter().map(|stored| &layers[*stored]) {
                match norm_place {
                    NormPlace::After => layer.normalised_after(worker),
                    NormPlace::Before { .. } => layer.normalised_before(worker),
                }
            }
            if let Some(norm) = &*last_norm {
                worker.normalise(norm);
            }
        });
        Ok(Tensor::from_vec(hidden, (batch.ids.len(), widths.hidden), &Device::Cpu)?)
    }

    fn hidden_size(&self) -> usize {
        self.widths.hidden
    }
}

impl Layer {
    fn load(
        spec: &EncoderSpec,
        weights: &Weights,
        layer: usize,
        places: Places,
        packing: Packing<'_>,
    ) -> Result<Self, WeightsError> {
        let role = |block: &str| format!("layers.{layer}.{block}.norm");
        let without_norm = layer == 0 && spec.norm_place == NormPlace::Before { first_attention: false };
        let attention_norm = (!without_norm).then(|| norm::load(spec, weights, &role("attention"))).transpose()?;
        Ok(Self {
            attention_norm,
            attention: attention::load(spec, weights, layer, places, packing)?,
            feed_forward_norm: norm::load(spec, weights, &role("feed_forward"))?,
            feed_forward: feed_forward::load(spec, weights, layer, packing)?,
        })
    }

    /// `norm(x + attention(x))`, then the same with the feed-forward network.
    fn normalised_after(&self, worker: &mut Worker<'_>) {
        worker.attend(&self.attention, Norms { before: None, after: self.attention_norm.as_ref() });
        worker.feed_forward(&self.feed_forward, Norms { before: None, after: Some(&self.feed_forward_norm) });
    }

    /// `x + attention(norm(x))`, then the same with the feed-forward network.
    fn normalised_before(&self, worker: &mut Worker<'_>) {
        worker.attend(&self.attention, Norms { before: self.attention_norm.as_ref(), after: None });
        worker.feed_forward(&self.feed_forward, Norms { before: Some(&self.feed_forward_norm), after: None });
    }

    fn size_bytes(&self) -> usize {
        let SelfAttention { qkv, attention: _, output } = &self.attention;
        let FeedForward { up, gate: _, down } = &self.feed_forward;
        qkv.iter().chain([output, up, down]).map(|linear| linear.weight.size_bytes()).sum()
    }
}
