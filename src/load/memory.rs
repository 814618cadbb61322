//! How much memory a model needs: before it is loaded, from the headers of its weight files and the number format that
//! it is to compute in; afterwards, as measured.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::arch::spec::EncoderSpec;
use crate::arch::{self, Described};
use crate::engine::Memory;
use crate::kernel::Precision;
use crate::load::modules::{ModulesError, required_json};
use crate::load::{LoadError, weight_files};
use crate::observe::metrics::resident_bytes;

/// As much of a file as is ever read for an estimate: a header describes tensors.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Bytes in memory for each byte of a tokenizer's file, most of them while it is read: 250,002 pieces in 9 MB take 110 MB
/// then, and 25 MB afterwards.
const TOKENIZER_FACTOR: u64 = 12;
/// Intermediate values are f32 in every format.
const VALUE_BYTES: u64 = 4;
/// Embedding tables, norms and biases are f32 in memory, in every format and whatever is stored.
const TABLE_VALUE_BYTES: u64 = 4;

/// Bytes of the weights that lie in `folder`, once they are in memory in this format. Dense modules are small and left
/// out, and so are the scales of int8: one for each output column.
///
/// # Errors
/// A weight file is missing or is not safetensors; below f32, also a configuration that is not understood.
pub fn estimate(folder: &Path, precision: Precision) -> Result<u64, LoadError> {
    let files = weight_files(folder)?;
    let values = files.iter().map(header_values).sum::<Result<u64, ModulesError>>()?;
    let (linear, delicate) = match precision {
        Precision::F32 => (0, 0),
        Precision::F16 | Precision::Bf16 | Precision::Int8 => {
            let config = required_json(&folder.join("config.json"))?;
            let encoder = Described::read(&config)?.spec;
            arch::check_sizes(&encoder, &files)?;
            let linear = encoder.n_linear_parameters().min(values);
            (linear, encoder.n_delicate_parameters().min(linear))
        }
    };
    let tables = (values - linear).saturating_mul(TABLE_VALUE_BYTES);
    let delicate_bytes = delicate.saturating_mul(precision.where_delicate().weight_bytes());
    let linear_bytes = (linear - delicate).saturating_mul(precision.weight_bytes()).saturating_add(delicate_bytes);
    Ok(tables.saturating_add(linear_bytes))
}

/// Whether weights of these files in f32 fit beside what the process holds now: what an int8 model is compared with once.
///
/// # Errors
/// The numbers, and what to do.
pub(super) fn check_room_for_f32(files: &[PathBuf], limit: Option<u64>) -> Result<(), LoadError> {
    let (Some(limit), Some(resident)) = (limit, resident_bytes()) else { return Ok(()) };
    let values = files.iter().map(header_values).sum::<Result<u64, ModulesError>>()?;
    let needed = values.saturating_mul(VALUE_BYTES);
    if resident.saturating_add(needed) <= limit {
        return Ok(());
    }
    let [needed, resident, limit] = [needed, resident, limit].map(|bytes| bytes >> 20);
    Err(LoadError::NoRoomToCompare { needed, resident, limit })
}

/// Values that a safetensors header announces.
fn header_values(path: &PathBuf) -> Result<u64, ModulesError> {
    let read = |error: std::io::Error| ModulesError::Read { path: path.clone(), reason: error.to_string() };
    let format = |reason: &str| ModulesError::Format { path: path.clone(), reason: reason.to_owned() };
    let mut file = File::open(path).map_err(read)?;
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(read)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES {
        return Err(format("its header is larger than 16 MiB"));
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header).map_err(read)?;
    let header: Value = serde_json::from_slice(&header).map_err(|_| format("it is not a safetensors file"))?;
    let tensors = header.as_object().ok_or_else(|| format("it is not a safetensors file"))?;
    let values = |tensor: &Value| {
        let shape = tensor.get("shape")?.as_array()?;
        shape.iter().try_fold(1_u64, |product, size| product.checked_mul(size.as_u64()?))
    };
    // `__metadata__` has no shape.
    Ok(tensors.values().filter_map(values).fold(0, u64::saturating_add))
}

/// What the tokenizer that lies in `folder` takes in memory, from the size of its file: tables of its pieces in both
/// directions, and of a Unigram (XLM-R, T5) a tree of them.
pub fn tokenizer(folder: &Path) -> u64 {
    let size = |name: &str| folder.join(name).metadata().map(|file| file.len());
    size("tokenizer.json").or_else(|_| size("vocab.txt")).unwrap_or(0).saturating_mul(TOKENIZER_FACTOR)
}

/// What a loaded model needs: its weights and its tokenizer, and the intermediate values of one batch of `batch_tokens`. The larger of
/// the two blocks counts twice over its inputs and outputs, so the estimate is an upper bound of what lives at once.
pub(super) fn measure(weight_bytes: u64, tokenizer_bytes: u64, spec: &EncoderSpec, batch_tokens: usize) -> Memory {
    let (hidden, inner) = (spec.hidden_size as u64, spec.inner_size() as u64);
    let widened = if spec.feed_forward.gated { 3 } else { 2 } * spec.intermediate_size as u64;
    // Query, key and value before and after packing, and the mixed values.
    let attention = 7 * inner;
    let values = (4 * hidden).saturating_add(attention.max(widened)).saturating_mul(batch_tokens as u64);
    Memory { weight_bytes, tokenizer_bytes, scratch_bytes: values.saturating_mul(VALUE_BYTES) }
}
