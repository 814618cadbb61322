//! One small file per family: `config.json` to [`EncoderSpec`], and its tensor names.

pub mod albert;
pub mod bert;
pub mod distilbert;
pub mod electra;
pub mod ernie;
pub mod gte;
pub mod jina;
pub mod modernbert;
pub mod mpnet;
pub mod nomic;
pub mod roberta;
pub mod t5;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::arch::ArchError;
use crate::arch::names::TensorNames;
use crate::arch::spec::{EncoderSpec, RotarySpec};
use crate::kernel::Activation;

/// What `arch` needs to know of a family.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    pub spec: fn(&Value) -> Result<EncoderSpec, ArchError>,
    pub names: TensorNames,
    /// A role that may be stored under a second name: role, and the stored name that stands in for it.
    pub stand_in: Option<(&'static str, &'static str)>,
    /// Repositories of this family name Python code in `auto_map`. Classes that begin like one of these are what we
    /// implement.
    pub remote_classes: &'static [&'static str],
}

/// The families by `model_type`.
const FAMILIES: [(&str, Family); 14] = [
    ("bert", bert::FAMILY),
    ("albert", albert::FAMILY),
    ("ernie", ernie::FAMILY),
    ("electra", electra::FAMILY),
    ("roberta", roberta::FAMILY),
    ("xlm-roberta", roberta::FAMILY),
    ("camembert", roberta::FAMILY),
    ("distilbert", distilbert::FAMILY),
    ("mpnet", mpnet::FAMILY),
    ("t5", t5::FAMILY),
    ("modernbert", modernbert::FAMILY),
    ("gte", gte::FAMILY),
    ("new", gte::FAMILY),
    ("nomic_bert", nomic::FAMILY),
];

/// The family of a `model_type`. Jina's second generation calls itself "bert" and differs in its fields.
///
/// # Errors
/// It is none of those that we know.
pub fn find(model_type: &str, config: &Value) -> Result<Family, ArchError> {
    if model_type == "bert" && jina::is_meant(config) {
        return Ok(jina::FAMILY);
    }
    let known = FAMILIES.iter().find(|(name, _)| *name == model_type).map(|(_, family)| *family);
    known.ok_or_else(|| ArchError::Family {
        found: model_type.to_owned(),
        known: FAMILIES.map(|(name, _)| name).join(", "),
    })
}

/// Reads the fields that decide vectors; others are training settings and are ignored.
fn read<C: DeserializeOwned>(config: &Value) -> Result<C, ArchError> {
    C::deserialize(config).map_err(|error| ArchError::Config { reason: error.to_string() })
}

/// Activation names as transformers defines them (`ACT2FN`).
///
/// # Errors
/// A name that is not implemented here: it would silently change every vector.
fn activation(field: &'static str, name: &str) -> Result<Activation, ArchError> {
    match name {
        "gelu" => Ok(Activation::Gelu),
        "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "relu" => Ok(Activation::Relu),
        "silu" | "swish" => Ok(Activation::Silu),
        "tanh" => Ok(Activation::Tanh),
        other => Err(unsupported(field, other)),
    }
}

fn unsupported(field: &'static str, value: impl std::fmt::Display) -> ArchError {
    ArchError::Unsupported { field, value: value.to_string() }
}

/// Refuses a switch that the skeleton has no counterpart for.
fn must_be(field: &'static str, value: bool, expected: bool) -> Result<(), ArchError> {
    if value == expected { Ok(()) } else { Err(unsupported(field, value)) }
}

/// `1/√head_size`, the usual factor on attention scores, and the head size.
fn heads(hidden_size: usize, n_heads: usize) -> (usize, f32) {
    let head_size = hidden_size.checked_div(n_heads).unwrap_or(0);
    (head_size, 1.0 / (head_size as f32).sqrt())
}

#[expect(clippy::cast_possible_truncation, reason = "an epsilon or a base is a float of either precision")]
const fn single(value: f64) -> f32 {
    value as f32
}

/// Rotary positions as newer configurations describe them.
#[derive(Debug, Default, Deserialize)]
struct RopeParameters {
    rope_type: Option<String>,
    rope_theta: Option<f64>,
    /// Of "linear" scaling: what every frequency is divided by.
    factor: Option<f64>,
}

impl RopeParameters {
    /// The base of a plain rotation, where one is given.
    fn base(&self) -> Result<Option<f64>, ArchError> {
        match self.rope_type.as_deref() {
            None | Some("default") => Ok(self.rope_theta),
            Some(other) => Err(unsupported("rope_parameters.rope_type", other)),
        }
    }
}

/// The default of most families.
fn gelu() -> String {
    "gelu".to_owned()
}

/// BERT's default, and of those that were modelled on it.
const fn small_epsilon() -> f64 {
    1e-12
}

/// A plain rotary position embedding.
fn rotary(field: &'static str, base: f64) -> Result<RotarySpec, ArchError> {
    if base.is_finite() && base > 1.0 {
        return Ok(RotarySpec { base: single(base), divisor: 1.0 });
    }
    Err(ArchError::Impossible { field, value: base.to_string(), reason: "expected a number above 1" })
}

#[cfg(test)]
mod tests;
