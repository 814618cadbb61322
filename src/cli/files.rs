//! What concerns model files: where they come from, `models pull`, `bundle export` and `bundle import`.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Args, Subcommand};

use super::duration;

pub(super) const EXIT_CODES: &str = "\
Exit codes: 0 all models are there and verified, 1 at least one is not (one line each says why; the others are fetched
all the same), 64 wrong usage. What was received of an interrupted download is kept: pull again to go on.";

const EXPORT_NOTES: &str = "\
Models that are not in the cache are fetched first, unless --offline. The SHA-256 of the bundle is printed, and written
to FILE.sha256. Equal models give equal bundles. Exit codes: 0 written, 1 not written, 64 wrong usage.";

const IMPORT_NOTES: &str = "\
Every file is checked before the first one is placed; importing again changes nothing. Then serve with --offline.
A bundle is to be trusted like whoever made it: compare its SHA-256. Exit codes: 0 imported, 1 refused and nothing
changed, 64 wrong usage.";

#[derive(Debug, Args)]
pub struct PullArgs {
    /// Catalogue ids or aliases, Hub ids (owner/name or owner/name@revision), or directories
    #[arg(required = true)]
    pub models: Vec<String>,
    /// Hub revision (branch, tag or commit) of the model, where it is only one
    #[arg(long, env = "EMBEDSERVE_REVISION")]
    pub revision: Option<String>,
    #[command(flatten)]
    pub source: SourceArgs,
}

#[derive(Debug, Subcommand)]
pub enum BundleCommand {
    /// Write models into one file
    #[command(after_help = EXPORT_NOTES)]
    Export(ExportArgs),
    /// Put the models of a file into the cache, where --offline finds them
    #[command(after_help = IMPORT_NOTES)]
    Import(ImportArgs),
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    /// Catalogue ids or aliases, or Hub ids (owner/name or owner/name@revision)
    #[arg(required = true)]
    pub models: Vec<String>,
    /// File to write; replaced as a whole when it exists
    #[arg(long, short = 'o', value_name = "FILE")]
    pub output: PathBuf,
    /// Hub revision (branch, tag or commit) of the model, where it is only one
    #[arg(long, env = "EMBEDSERVE_REVISION")]
    pub revision: Option<String>,
    #[command(flatten)]
    pub source: SourceArgs,
}

#[derive(Debug, Args)]
pub struct ImportArgs {
    /// File to read
    #[arg(value_name = "FILE")]
    pub bundle: PathBuf,
    /// What the file's SHA-256 must be [default: what FILE.sha256 says, if it is there]
    #[arg(long, value_name = "HEX")]
    pub sha256: Option<String>,
    #[command(flatten)]
    pub source: SourceArgs,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Catalogue and downloads")]
pub struct SourceArgs {
    /// models.toml to use instead of the built-in catalogue
    #[arg(long, visible_alias = "config", env = "EMBEDSERVE_CATALOG", value_name = "FILE")]
    pub catalog: Option<PathBuf>,
    /// Hub cache [default: $HF_HUB_CACHE, or $HF_HOME/hub, or ~/.cache/huggingface/hub]
    #[arg(long, visible_aliases = ["huggingface-hub-cache", "download-dir"], env = "EMBEDSERVE_CACHE_DIR", value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Token for the Hub [default: $HF_TOKEN, or the token file of `hf auth login`]
    #[arg(
        long,
        visible_alias = "hf-api-token",
        env = "EMBEDSERVE_HF_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    pub hf_token: Option<String>,
    /// Open no connection and start no program: serve what is cached, or fail [also $HF_HUB_OFFLINE, $TRANSFORMERS_OFFLINE]
    #[arg(long, env = "EMBEDSERVE_OFFLINE", value_parser = FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub offline: bool,
    /// Give up a transfer attempt after this long without a byte [default: 60s; also $HF_HUB_DOWNLOAD_TIMEOUT, in seconds]
    #[arg(long, env = "EMBEDSERVE_DOWNLOAD_STALL_TIMEOUT", value_parser = duration, value_name = "TIME")]
    pub download_stall_timeout: Option<Duration>,
    /// Give up a file after this long
    #[arg(long, env = "EMBEDSERVE_DOWNLOAD_TIMEOUT", default_value = "1h", value_parser = duration, value_name = "TIME")]
    pub download_timeout: Duration,
    /// Attempts per file
    #[arg(long, env = "EMBEDSERVE_DOWNLOAD_ATTEMPTS", default_value_t = 5, value_name = "N")]
    pub download_attempts: u32,
    /// Files of one model fetched at once
    #[arg(long, env = "EMBEDSERVE_DOWNLOAD_PARALLEL", default_value_t = 4, value_name = "N")]
    pub download_parallel: usize,
    /// Where a repository's main has no safetensors, refuse instead of taking the open pull request of the Hub's conversion bot
    #[arg(long, env = "EMBEDSERVE_NO_CONVERSION_REVISION", value_parser = FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub no_conversion_revision: bool,
    /// Command that fetches wheels; `download …` is appended
    #[arg(
        long,
        env = "EMBEDSERVE_PIP",
        hide_env_values = true,
        default_value = "python3 -m pip",
        value_name = "COMMAND"
    )]
    pub pip: String,
}
