//! What `models list`, `models show` and `models verify` take.

use std::path::PathBuf;

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Args};

use crate::cli::SourceArgs;

#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print JSON instead of a table
    #[arg(long, env = "EMBEDSERVE_JSON", value_parser = FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub json: bool,
    #[command(flatten)]
    pub source: SourceArgs,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Catalogue id or alias, Hub id, or directory
    pub model: String,
    /// Number format to show it in: f32, f16, bf16 or int8 [default: what models.toml says, else f32]
    #[arg(long, env = "EMBEDSERVE_DTYPE", value_name = "f32|f16|bf16|int8")]
    pub dtype: Option<String>,
    #[command(flatten)]
    pub source: SourceArgs,
}

#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Catalogue ids or aliases, Hub ids, or directories [default: the default model]
    pub models: Vec<String>,
    /// JSON file with further reference vectors of the one model named (see README); repeatable
    #[arg(long, env = "EMBEDSERVE_REFERENCE", value_delimiter = ',', value_name = "FILE")]
    pub reference: Vec<PathBuf>,
    /// Number format to compute in: f32, f16 (on GPUs), bf16 or int8 [default: what models.toml says, else f32]
    #[arg(long, env = "EMBEDSERVE_DTYPE", value_name = "f32|f16|bf16|int8")]
    pub dtype: Option<String>,
    #[command(flatten)]
    pub source: SourceArgs,
}
