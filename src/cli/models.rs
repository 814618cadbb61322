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
    #[command(flatten)]
    pub source: SourceArgs,
}
