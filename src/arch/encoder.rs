//! The skeleton: embeddings, then N times attention block and feed-forward block, over one packed batch.

use candle_core::{Device, Tensor};

use crate::arch::attention::AttentionBlock;
use crate::arch::embeddings::Embeddings;
use crate::arch::feed_forward::FeedForward;
use crate::arch::packed::PackedBatch;
use crate::arch::spec::EncoderSpec;
use crate::arch::{ArchError, Encoder, EncoderError};
use crate::kernel::Isa;
use crate::weights::Weights;

/// An encoder with LayerNorm after each block, as BERT has it.
#[derive(Debug)]
pub struct BertEncoder {
    hidden_size: usize,
    embeddings: Embeddings,
    layers: Vec<(AttentionBlock, FeedForward)>,
}

impl BertEncoder {
    /// Reads and packs every tensor of the encoder, layer by layer.
    ///
    /// # Errors
    /// A missing or misshapen tensor.
    pub fn load(spec: &EncoderSpec, weights: &Weights, device: &Device, isa: Isa) -> Result<Self, ArchError> {
        let embeddings = Embeddings::load(spec, weights, device, isa)?;
        let mut layers = Vec::with_capacity(spec.n_layers);
        for layer in 0..spec.n_layers {
            let attention = AttentionBlock::load(spec, weights, layer, isa)?;
            layers.push((attention, FeedForward::load(spec, weights, layer, isa)?));
        }
        Ok(Self { hidden_size: spec.hidden_size, embeddings, layers })
    }

    /// Memory of tables and packed weights, in bytes.
    pub fn size_bytes(&self) -> u64 {
        let layers = self.layers.iter().map(|(attention, ffn)| attention.size_bytes() + ffn.size_bytes());
        (self.embeddings.size_bytes() + layers.sum::<usize>()) as u64
    }
}

impl Encoder for BertEncoder {
    fn forward(&mut self, batch: &PackedBatch) -> Result<Tensor, EncoderError> {
        let mut hidden = self.embeddings.forward(batch)?;
        for (attention, feed_forward) in &self.layers {
            hidden = attention.forward(&hidden, batch)?;
            hidden = feed_forward.forward(&hidden)?;
        }
        Ok(hidden)
    }

    fn hidden_size(&self) -> usize {
        self.hidden_size
    }
}
