//! `sentence_bert_config.json`: what sentence-transformers asks of the encoder and of its tokenizer.
//!
//! Newer versions store there which of the encoder's outputs they take, and arguments that they give to transformers. What
//! would change a vector and is not implemented is refused.

use std::path::Path;

use serde_json::Value;

use crate::load::modules::{ModulesError, read_json};
use crate::source::ENCODER_SETTINGS;

/// Fields with the only value that is implemented; null is always that.
const ONLY: [(&str, &str); 4] = [
    ("/transformer_task", "feature-extraction"),
    ("/module_output_name", "token_embeddings"),
    ("/modality_config/text/method", "forward"),
    ("/modality_config/text/method_output_name", "last_hidden_state"),
];

/// Fields that must say nothing.
const EMPTY: [&str; 4] = ["processing_kwargs", "query_length", "document_length", "query_expansion"];

/// Arguments for transformers, under their old and their new names.
const ARGUMENTS: [&str; 6] =
    ["model_args", "model_kwargs", "config_args", "config_kwargs", "tokenizer_args", "processor_kwargs"];

/// Arguments that do not change vectors: how to load, where to compute, in which number format.
const HARMLESS: [&str; 17] = [
    "add_pooling_layer",
    "attn_implementation",
    "clean_up_tokenization_spaces",
    "device_map",
    "dtype",
    "low_cpu_mem_usage",
    "padding_side",
    "reference_compile",
    "revision",
    "torch_dtype",
    "trust_remote_code",
    "unpad_inputs",
    "use_cache",
    "use_fast",
    "use_flash_attn",
    "use_memory_efficient_attention",
    "use_safetensors",
];

/// What the file says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct EncoderSettings {
    pub(super) lower_case: bool,
    /// Special tokens included.
    pub(super) max_tokens: Option<usize>,
}

/// Reads the settings of `folder`; without a limit of their own, the tokenizer's counts.
pub(super) fn read(folder: &Path) -> Result<EncoderSettings, ModulesError> {
    let mut settings = EncoderSettings::default();
    for name in ENCODER_SETTINGS {
        let path = folder.join(name);
        // An empty one counts as none.
        let config = read_json(&path)?.filter(|config| config.as_object().is_none_or(|keys| !keys.is_empty()));
        let Some(config) = config else { continue };
        refuse_variants(&path, &config)?;
        settings.lower_case = config.get("do_lower_case").and_then(Value::as_bool).unwrap_or(false);
        settings.max_tokens = match tokenizer_limit(&path, &config)? {
            Some(limit) => Some(limit),
            None => positive(&path, config.get("max_seq_length"), "max_seq_length")?,
        };
        break;
    }
    if settings.max_tokens.is_none()
        && let Some(config) = read_json(&folder.join("tokenizer_config.json"))?
    {
        // Tokenizers without a limit store 10³⁰ here, which is no number of tokens. The oldest files say `max_len`.
        settings.max_tokens = config
            .get("model_max_length")
            .or_else(|| config.get("max_len"))
            .and_then(Value::as_u64)
            .filter(|tokens| *tokens < 1 << 24)
            .and_then(|tokens| usize::try_from(tokens).ok())
            .filter(|tokens| *tokens > 0);
    }
    Ok(settings)
}

fn refuse_variants(path: &Path, config: &Value) -> Result<(), ModulesError> {
    let unsupported = |field, value: String| Err(ModulesError::Unsupported { path: path.to_owned(), field, value });
    for (pointer, only) in ONLY {
        match config.pointer(pointer) {
            None | Some(Value::Null) => {}
            Some(value) if value == only => {}
            Some(value) => return unsupported(pointer.rsplit('/').next().unwrap_or(pointer), value.to_string()),
        }
    }
    if let Some(modalities) = config.get("modality_config").filter(|modalities| modalities.get("text").is_none()) {
        return unsupported("modality_config", modalities.to_string());
    }
    for field in EMPTY {
        match config.get(field) {
            None | Some(Value::Null) => {}
            Some(Value::Object(values)) if values.is_empty() => {}
            Some(value) => return unsupported(field, value.to_string()),
        }
    }
    for field in ARGUMENTS {
        let arguments = config.get(field).and_then(Value::as_object).into_iter().flatten();
        for (name, value) in arguments {
            let is_limit = name == "model_max_length" && field.starts_with(['t', 'p']);
            if !is_limit && !HARMLESS.contains(&name.as_str()) {
                return unsupported(field, format!("{name} = {value}"));
            }
        }
    }
    Ok(())
}

/// A limit among the tokenizer's arguments, which is stronger than `max_seq_length`.
fn tokenizer_limit(path: &Path, config: &Value) -> Result<Option<usize>, ModulesError> {
    let mut arguments = ["processor_kwargs", "tokenizer_args"].into_iter().filter_map(|field| config.get(field));
    let limit = arguments.find_map(|arguments| arguments.get("model_max_length"));
    positive(path, limit, "model_max_length")
}

fn positive(path: &Path, value: Option<&Value>, field: &'static str) -> Result<Option<usize>, ModulesError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
            Some(n) if n > 0 => Ok(Some(n)),
            _ => Err(ModulesError::Unsupported { path: path.to_owned(), field, value: value.to_string() }),
        },
    }
}
