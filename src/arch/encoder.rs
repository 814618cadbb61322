//! The skeleton: embeddings, then attention block and feed-forward block once per layer, over one packed batch. Norms
//! stand after each block or before it, as the family has them.

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::arch::attention::{AttentionBlock, Places};
use crate::arch::embeddings::Embeddings;
use crate::arch::feed_forward::FeedForward;
use crate::arch::packed::PackedBatch;
use crate::arch::spec::{EncoderSpec, LayerSpec, NormPlace};
use crate::arch::{ArchError, Encoder, EncoderError, norm, position};
use crate::kernel::{Isa, Normalise};
use crate::weights::{Weights, WeightsError};

/// An encoder of any family.
#[derive(Debug)]
pub struct PackedEncoder {
    hidden_size: usize,
    norm_place: NormPlace,
    embeddings: Embeddings,
    layers: Vec<Layer>,
    /// After the last layer, where norms stand before the blocks.
    last_norm: Option<Normalise>,
    position_bytes: usize,
}

#[derive(Debug)]
struct Layer {
    /// Absent where a layer takes its input as it is.
    attention_norm: Option<Normalise>,
    attention: AttentionBlock,
    feed_forward_norm: Normalise,
    feed_forward: FeedForward,
}

impl PackedEncoder {
    /// Reads and packs every tensor of the encoder, layers in parallel.
    ///
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn load(spec: &EncoderSpec, weights: &Weights, device: &Device, isa: Isa) -> Result<Self, ArchError> {
        let embeddings = Embeddings::load(spec, weights, device, isa)?;
        let bias = position::distance_bias(spec, weights)?;
        let rotations = position::rotations(spec);
        let mut position_bytes = bias.as_ref().map_or(0, |bias| bias.size_bytes());
        position_bytes += rotations.iter().flatten().map(|rotary| rotary.size_bytes()).max().unwrap_or(0);
        let layers: Result<Vec<Layer>, WeightsError> = (spec.layers.par_iter().zip(rotations).enumerate())
            .map(|(layer, (options, rotary))| {
                let places = Places { bias: bias.clone(), rotary };
                Layer::load(spec, weights, (layer, *options), places, isa)
            })
            .collect();
        let last_norm = match spec.norm_place {
            NormPlace::After => None,
            NormPlace::Before { .. } => Some(norm::load_op(spec, weights, "norm", isa)?),
        };
        Ok(Self {
            hidden_size: spec.hidden_size,
            norm_place: spec.norm_place,
            embeddings,
            layers: layers?,
            last_norm,
            position_bytes,
        })
    }

    /// Memory of tables and packed weights, in bytes.
    pub fn size_bytes(&self) -> u64 {
        let layers = self.layers.iter().map(|layer| layer.attention.size_bytes() + layer.feed_forward.size_bytes());
        (self.embeddings.size_bytes() + layers.sum::<usize>() + self.position_bytes) as u64
    }
}

impl Encoder for PackedEncoder {
    fn forward(&mut self, batch: &PackedBatch) -> Result<Tensor, EncoderError> {
        let mut hidden = self.embeddings.forward(batch)?;
        for layer in &self.layers {
            hidden = match self.norm_place {
                NormPlace::After => layer.normalised_after(&hidden, batch)?,
                NormPlace::Before { .. } => layer.normalised_before(&hidden, batch)?,
            };
        }
        match &self.last_norm {
            Some(norm) => Ok(norm.forward(&hidden)?),
            None => Ok(hidden),
        }
    }

    fn hidden_size(&self) -> usize {
        self.hidden_size
    }
}

impl Layer {
    fn load(
        spec: &EncoderSpec,
        weights: &Weights,
        (layer, options): (usize, LayerSpec),
        places: Places,
        isa: Isa,
    ) -> Result<Self, WeightsError> {
        let role = |block: &str| format!("layers.{layer}.{block}.norm");
        let without_norm = layer == 0 && spec.norm_place == NormPlace::Before { first_attention: false };
        let attention_norm =
            (!without_norm).then(|| norm::load_op(spec, weights, &role("attention"), isa)).transpose()?;
        Ok(Self {
            attention_norm,
            attention: AttentionBlock::load(spec, weights, (layer, options), places, isa)?,
            feed_forward_norm: norm::load_op(spec, weights, &role("feed_forward"), isa)?,
            feed_forward: FeedForward::load(spec, weights, layer, isa)?,
        })
    }

    /// `norm(x + attention(x))`, then the same with the feed-forward network.
    fn normalised_after(&self, hidden: &Tensor, batch: &PackedBatch) -> candle_core::Result<Tensor> {
        let mut hidden = self.attention.forward(hidden, hidden, batch)?;
        if let Some(norm) = &self.attention_norm {
            hidden = norm.forward(&hidden)?;
        }
        self.feed_forward_norm.forward(&self.feed_forward.forward(&hidden, &hidden)?)
    }

    /// `x + attention(norm(x))`, then the same with the feed-forward network.
    fn normalised_before(&self, hidden: &Tensor, batch: &PackedBatch) -> candle_core::Result<Tensor> {
        let hidden = match &self.attention_norm {
            Some(norm) => self.attention.forward(&norm.forward(hidden)?, hidden, batch)?,
            None => self.attention.forward(hidden, hidden, batch)?,
        };
        self.feed_forward.forward(&self.feed_forward_norm.forward(&hidden)?, &hidden)
    }
}
