//! ELECTRA (`model_type` "electra"): the discriminator's encoder, which is BERT's.
//!
//! Reference: `ElectraModel` of Hugging Face transformers. Small models have narrower embeddings and a projection behind
//! them, which the skeleton has no place for: they are refused.

use serde::Deserialize;
use serde_json::Value;

use super::{Family, bert, read, unsupported};
use crate::arch::ArchError;
use crate::arch::names::TensorNames;
use crate::arch::spec::{EncoderSpec, FirstPosition};

pub const FAMILY: Family =
    Family { spec, names: TensorNames { prefixes: &["electra."], ..bert::FAMILY.names }, ..bert::FAMILY };

#[derive(Debug, Deserialize)]
struct EmbeddingConfig {
    #[serde(default = "small")]
    embedding_size: usize,
}

/// What transformers takes when nothing is written.
const fn small() -> usize {
    128
}

fn spec(config: &Value) -> Result<EncoderSpec, ArchError> {
    let EmbeddingConfig { embedding_size } = read(config)?;
    let config: bert::BertConfig = read(config)?;
    config.must_be_absolute()?;
    if embedding_size != config.hidden_size {
        return Err(unsupported("embedding_size", embedding_size));
    }
    config.spec(FirstPosition::Zero)
}
