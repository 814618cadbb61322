//! What `bench` takes.

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Args};

use crate::cli::{BatchArgs, LogArgs, ModelArgs, SourceArgs};

pub(super) const NOTES: &str = "\
Starts the real server on a port of its own, or measures the one at --url, and prints a table: latency of one request
alone, throughput of clients that wait for their answers, and latency when requests arrive by the clock, below and above
what the server can do. Run it on a quiet machine. Exit codes: 0 measured, 1 not measured, 64 wrong usage.";

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Measure the running server at this address (http://HOST:PORT) instead of starting one; --model names its model
    #[arg(long, env = "EMBEDSERVE_URL", value_name = "URL")]
    pub url: Option<String>,
    /// Key to send to the server at --url
    #[arg(long, env = "EMBEDSERVE_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub api_key: Option<String>,
    /// About how long the whole measurement takes
    #[arg(long, env = "EMBEDSERVE_SECONDS", default_value_t = 60.0, value_name = "SECONDS")]
    pub seconds: f64,
    /// Print JSON instead of a table
    #[arg(long, env = "EMBEDSERVE_JSON", value_parser = FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub json: bool,
    #[command(flatten)]
    pub models: ModelArgs,
    #[command(flatten)]
    pub batching: BatchArgs,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub logs: LogArgs,
}
