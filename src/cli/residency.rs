//! Flags for several models in one process: which have to work, and which are in memory.

use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Args};

use super::duration;

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Several models")]
pub struct ResidencyArgs {
    /// Serve the other models when one cannot be loaded; end only when none can
    #[arg(long, env = "EMBEDSERVE_KEEP_GOING", value_parser = FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub keep_going: bool,
    /// Models in memory at once; the others are loaded when a request names them, the least recently used makes room [default: all]
    #[arg(long, env = "EMBEDSERVE_MAX_LOADED_MODELS", value_name = "N")]
    pub max_loaded_models: Option<usize>,
    /// Memory for the weights of all models together, in bytes or with a unit (8GiB); room is made as above [default: unlimited]
    #[arg(long, env = "EMBEDSERVE_MAX_MODEL_MEMORY", value_parser = bytes, value_name = "BYTES")]
    pub max_model_memory: Option<u64>,
    /// Memory that the process may use; what needs more is refused at start, 0 = unlimited [default: the control group's limit]
    #[arg(long, env = "EMBEDSERVE_MEMORY_LIMIT", value_parser = bytes, value_name = "BYTES")]
    pub memory_limit: Option<u64>,
    /// Unload a model that no request has used for this long; the next one loads it again [default: never]
    #[arg(long, env = "EMBEDSERVE_IDLE_UNLOAD", value_parser = duration, value_name = "TIME")]
    pub idle_unload: Option<Duration>,
}

/// `8589934592`, `8GiB`, `500MB`.
fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || "expected a size such as 8589934592, 8GiB or 500MB".to_owned();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(scale)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, size) in [("1234", 1234), ("8GiB", 8 << 30), ("8G", 8 << 30), ("500 MB", 500_000_000), ("2k", 2048)]
        {
            assert_eq!(bytes(text), Ok(size), "{text}");
        }
        for text in ["", "GiB", "1.5G", "8GiBs", "-1", "99999999999999999999", "99999999999G"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
