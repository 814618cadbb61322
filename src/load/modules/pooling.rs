//! `1_Pooling/config.json`: which reductions, in which order, and whether they see the prompt.

use std::path::Path;

use serde_json::Value;

use crate::load::modules::{ModulesError, required_json};
use crate::pool::PoolingMode;

/// The names that sentence-transformers writes today, the switches that it wrote before, and what both mean. Several
/// switches mean that their vectors are put end to end, in this order.
const MODES: [(&str, &str, PoolingMode); 6] = [
    ("cls", "pooling_mode_cls_token", PoolingMode::Cls),
    ("max", "pooling_mode_max_tokens", PoolingMode::Max),
    ("mean", "pooling_mode_mean_tokens", PoolingMode::Mean),
    ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens", PoolingMode::MeanSqrtLen),
    ("weightedmean", "pooling_mode_weightedmean_tokens", PoolingMode::WeightedMean),
    ("lasttoken", "pooling_mode_lasttoken", PoolingMode::Last),
];

/// A switch that asks for something else.
fn is_unknown_switch((name, value): &(&String, &Value)) -> bool {
    let is_known = MODES.iter().any(|(_, switch, _)| switch == name);
    name.starts_with("pooling_mode_") && !is_known && **value == Value::Bool(true)
}

/// One or more modes, and `include_prompt`.
pub(super) fn read(folder: &Path) -> Result<(Vec<PoolingMode>, bool), ModulesError> {
    let path = folder.join("config.json");
    let config = required_json(&path)?;
    let unsupported =
        |field, value: &Value| ModulesError::Unsupported { path: path.clone(), field, value: value.to_string() };
    let named = |value: &Value| {
        let mode = MODES.iter().find(|(name, _, _)| value.as_str() == Some(name)).map(|(_, _, mode)| *mode);
        mode.ok_or_else(|| unsupported("pooling_mode", value))
    };
    let mut modes = match config.get("pooling_mode") {
        None | Some(Value::Null) => {
            let on = |(_, switch, _): &&(&str, &str, PoolingMode)| config.get(*switch) == Some(&Value::Bool(true));
            if let Some((switch, value)) = config.as_object().into_iter().flatten().find(is_unknown_switch) {
                return Err(unsupported("pooling_mode", &Value::from(format!("{switch}: {value}"))));
            }
            MODES.iter().filter(on).map(|(_, _, mode)| *mode).collect()
        }
        Some(Value::Array(values)) if values.len() > MODES.len() => {
            return Err(unsupported("pooling_mode", &Value::from(format!("{} modes", values.len()))));
        }
        Some(Value::Array(values)) => values.iter().map(named).collect::<Result<_, _>>()?,
        Some(value) => vec![named(value)?],
    };
    if modes.is_empty() {
        // What sentence-transformers does when nothing is switched on.
        modes.push(PoolingMode::Mean);
    }
    let include_prompt = match config.get("include_prompt") {
        None | Some(Value::Null) => true,
        Some(Value::Bool(include)) => *include,
        Some(value) => return Err(unsupported("include_prompt", value)),
    };
    Ok((modes, include_prompt))
}
