//! ERNIE (`model_type` "ernie"): BERT, in later versions with a table of tasks, of which every token of an embedding has
//! the first.
//!
//! Reference: `ErnieModel` of Hugging Face transformers, called without task ids.

use serde::Deserialize;
use serde_json::Value;

use super::{Family, bert, read};
use crate::arch::ArchError;
use crate::arch::names::TensorNames;
use crate::arch::spec::{EncoderSpec, FirstPosition};

pub const FAMILY: Family =
    Family { spec, names: TensorNames { prefixes: &["ernie."], ..bert::FAMILY.names }, ..bert::FAMILY };

#[derive(Debug, Deserialize)]
struct TaskConfig {
    #[serde(default)]
    use_task_id: bool,
    #[serde(default = "three")]
    task_type_vocab_size: usize,
}

const fn three() -> usize {
    3
}

fn spec(config: &Value) -> Result<EncoderSpec, ArchError> {
    let TaskConfig { use_task_id, task_type_vocab_size } = read(config)?;
    let config: bert::BertConfig = read(config)?;
    config.must_be_absolute()?;
    let task_types = if use_task_id { task_type_vocab_size } else { 0 };
    Ok(EncoderSpec { task_types, ..config.spec(FirstPosition::Zero)? })
}
