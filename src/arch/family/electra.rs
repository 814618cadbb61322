//! ELECTRA (`model_type` "electra"): the discriminator's encoder, which is BERT's. Small models have narrower embeddings
//! and a product behind them.
//!
//! Reference: Clark et al. 2020, and `ElectraModel` of Hugging Face transformers.

use serde::Deserialize;
use serde_json::Value;

use super::{Family, bert, read, unsupported};
use crate::arch::ArchError;
use crate::arch::names::TensorNames;
use crate::arch::spec::{EncoderSpec, FirstPosition};

pub const FAMILY: Family = Family {
    spec,
    names: TensorNames { prefixes: &["electra."], stems: &STEMS, ..bert::FAMILY.names },
    ..bert::FAMILY
};

const STEMS: [(&str, &str); 14] = {
    let mut stems = [("embeddings_project", "embeddings.projection"); 14];
    let mut i = 0;
    while i < bert::STEMS.len() {
        stems[i] = bert::STEMS[i];
        i += 1;
    }
    stems
};

#[derive(Debug, Deserialize)]
struct EmbeddingConfig {
    #[serde(default = "narrow")]
    embedding_size: usize,
}

/// What transformers takes when nothing is written.
const fn narrow() -> usize {
    128
}

fn spec(config: &Value) -> Result<EncoderSpec, ArchError> {
    let EmbeddingConfig { embedding_size } = read(config)?;
    let config: bert::BertConfig = read(config)?;
    config.must_be_absolute()?;
    // Generators, which nobody embeds with, have wider ones.
    if embedding_size > config.hidden_size {
        return Err(unsupported("embedding_size", embedding_size));
    }
    let embedding_projection = embedding_size != config.hidden_size;
    Ok(EncoderSpec { embedding_size, embedding_projection, ..config.spec(FirstPosition::Zero)? })
}
