//! RoBERTa and its descendants (`model_type` "roberta", "xlm-roberta", "camembert"): BERT with positions that begin after
//! the padding id, and one token type.
//!
//! Reference: `RobertaModel`, `XLMRobertaModel` and `CamembertModel` of Hugging Face transformers, which are the same
//! computation.

use serde::Deserialize;
use serde_json::Value;

use super::{Family, bert, read};
use crate::arch::ArchError;
use crate::arch::names::TensorNames;
use crate::arch::spec::{EncoderSpec, FirstPosition};

pub const FAMILY: Family = Family {
    spec,
    names: TensorNames { prefixes: &["roberta.", "camembert."], ..bert::FAMILY.names },
    stand_in: None,
    remote_classes: &[],
};

#[derive(Debug, Deserialize)]
struct PaddingConfig {
    #[serde(default = "one")]
    pad_token_id: u32,
}

const fn one() -> u32 {
    1
}

fn spec(config: &Value) -> Result<EncoderSpec, ArchError> {
    let PaddingConfig { pad_token_id } = read(config)?;
    let config: bert::BertConfig = read(config)?;
    config.must_be_absolute()?;
    config.spec(FirstPosition::AfterPadding { padding_id: pad_token_id })
}
