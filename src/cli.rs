//! What was typed, unresolved: clap types only. Their meaning is `config`'s business.

#![expect(
    clippy::doc_markdown,
    rustdoc::bare_urls,
    rustdoc::broken_intra_doc_links,
    reason = "doc comments here are help for terminals"
)]

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::FalseyValueParser;
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

mod bench;
mod files;
mod models;
mod read;
mod residency;

pub use bench::BenchArgs;
pub use files::{BundleCommand, ExportArgs, ImportArgs, PullArgs, SourceArgs};
pub use models::{ListArgs, ShowArgs, VerifyArgs};
pub use residency::ResidencyArgs;

const ABOUT: &str = "An OpenAI-compatible embeddings server: right vectors, fast, on the hardware you have";

const EXAMPLES: &str = "\
Examples:
  embedserve                                        serve all-MiniLM-L6-v2 on http://127.0.0.1:8080
  embedserve --model BAAI/bge-base-en-v1.5          serve another model, by catalogue or Hub id
  embedserve --model ./my-model --port 9000         serve a local folder
  embedserve --host 0.0.0.0 --api-key-file keys     serve the network, with keys
  embedserve models pull BAAI/bge-small-en-v1.5     fetch now, serve later (with --offline)
  embedserve bench --model BAAI/bge-base-en-v1.5    what this machine does with it, in a minute

Every flag has an environment variable: --max-body-bytes is EMBEDSERVE_MAX_BODY_BYTES.
Flags win over the environment, the environment over models.toml. Hub variables (HF_HOME, HF_HUB_CACHE, HF_TOKEN,
HF_ENDPOINT, HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE) and PORT are honoured.

Exit codes: 0 stopped and everything answered; 1 could not start, or work was cut off; 64 wrong usage; 70 a device failed
while serving (a forward pass hung, a known text got another vector, a model died twice): start the process again.";

/// The command line. Without a subcommand, `serve` is meant.
#[derive(Debug, Parser)]
#[command(name = "embedserve", version, about = ABOUT, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve embeddings (what happens without a subcommand)
    Serve(Box<ServeArgs>),
    /// List the catalogue, or fetch models
    #[command(subcommand)]
    Models(ModelsCommand),
    /// Carry models to machines without a network, in one file
    #[command(subcommand)]
    Bundle(BundleCommand),
    /// Measure this machine's server in a minute: latency, throughput, overload
    #[command(after_help = bench::NOTES)]
    Bench(Box<BenchArgs>),
    /// Ask a running server whether it is ready; exit 0 when it is (for container health checks)
    Health(HealthArgs),
}

#[derive(Debug, Subcommand)]
pub enum ModelsCommand {
    /// List the models of the catalogue and which of them are cached
    List(ListArgs),
    /// Show all that is known of one model, and what serving it would do
    Show(ShowArgs),
    /// Compare models' vectors with published ones and with a second implementation; exit 1 when they differ
    Verify(VerifyArgs),
    /// Fetch models into the cache and verify them
    #[command(visible_alias = "download", after_help = files::EXIT_CODES)]
    Pull(PullArgs),
}

#[derive(Debug, Args)]
pub struct HealthArgs {
    /// Address of the server [default: 127.0.0.1, or $EMBEDSERVE_HOST]
    #[arg(long, env = "EMBEDSERVE_HEALTH_HOST")]
    pub host: Option<String>,
    /// Port of the server [default: 8080, or $EMBEDSERVE_PORT, or $PORT]
    #[arg(long, short = 'p')]
    pub port: Option<u16>,
}

/// Everything that starts a server.
#[derive(Debug, Clone, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    pub models: ModelArgs,
    #[command(flatten)]
    pub residency: ResidencyArgs,
    #[command(flatten)]
    pub server: ServerArgs,
    #[command(flatten)]
    pub requests: RequestArgs,
    #[command(flatten)]
    pub batching: BatchArgs,
    #[command(flatten)]
    pub source: SourceArgs,
    #[command(flatten)]
    pub logs: LogArgs,
    /// Print the resolved configuration (secrets masked) and exit
    #[arg(long, visible_alias = "dry-run", help_heading = "Other", env = "EMBEDSERVE_PRINT_CONFIG",
          value_parser = FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub print_config: bool,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Models")]
pub struct ModelArgs {
    /// Model to serve: catalogue id, Hub id (owner/name[@revision]), or directory (./path); repeatable
    #[arg(long = "model", short = 'm', visible_aliases = ["model-id", "model-name-or-path", "model-path"],
          env = "EMBEDSERVE_MODEL", value_delimiter = ',', value_name = "MODEL")]
    pub model: Vec<String>,
    /// The same, as a bare argument
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub positional: Vec<String>,
    /// Further name for a model: ALIAS=ID, or just ALIAS for the first model; repeatable
    #[arg(long, visible_aliases = ["alias"], short = 'a', env = "EMBEDSERVE_SERVED_MODEL_NAME", value_delimiter = ',',
          value_name = "ALIAS[=ID]")]
    pub served_model_name: Vec<String>,
    /// Answer unknown or missing model names with the default model
    #[arg(long, env = "EMBEDSERVE_ACCEPT_ANY_MODEL", value_parser = FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub accept_any_model: bool,
    /// Which model is the default one [default: the first]
    #[arg(long, env = "EMBEDSERVE_DEFAULT_MODEL", value_name = "ID")]
    pub default_model: Option<String>,
    /// Hub revision (branch, tag or commit) of the model; resolved to one commit before the first file
    #[arg(long, env = "EMBEDSERVE_REVISION")]
    pub revision: Option<String>,
    /// Where to compute; several GPUs share the work of every model; only `auto` may choose, and it says why
    #[arg(long, env = "EMBEDSERVE_DEVICE", default_value = "auto", value_name = "auto|cpu|cuda[:N][,cuda:N...]")]
    pub device: String,
    /// Number format of weights and matrix products, for all models: f32, f16 (on GPUs), bf16 or int8 [default: what models.toml says, else f32]
    #[arg(long, env = "EMBEDSERVE_DTYPE", value_name = "f32|f16|bf16|int8")]
    pub dtype: Option<String>,
    /// Pooling, where the model's own files do not say or must be overruled
    #[arg(long, visible_alias = "pooling-method", env = "EMBEDSERVE_POOLING", value_enum)]
    pub pooling: Option<PoolingArg>,
    /// Lower the longest input, in tokens
    #[arg(long, visible_alias = "ctx-size", short = 'c', env = "EMBEDSERVE_MAX_MODEL_LEN", value_name = "TOKENS")]
    pub max_model_len: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PoolingArg {
    Cls,
    Mean,
    Max,
    Last,
    MeanSqrtLen,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Address to listen on; a non-loopback address needs --api-key or --insecure
    #[arg(long, visible_alias = "hostname", env = "EMBEDSERVE_HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on [default: 8080, or $PORT]; 0 chooses a free one
    #[arg(long, short = 'p', env = "EMBEDSERVE_PORT")]
    pub port: Option<u16>,
    /// Key that clients must send (repeatable, or comma-separated)
    #[arg(long, env = "EMBEDSERVE_API_KEY", value_delimiter = ',', hide_env_values = true, value_name = "KEY")]
    pub api_key: Vec<String>,
    /// File with one key per line (# starts a comment); repeatable
    #[arg(long, env = "EMBEDSERVE_API_KEY_FILE", value_delimiter = ',', value_name = "FILE")]
    pub api_key_file: Vec<PathBuf>,
    /// TOML file of named keys with limits, models and a default role each (see README)
    #[arg(long, env = "EMBEDSERVE_KEYS_FILE", value_name = "FILE")]
    pub keys_file: Option<PathBuf>,
    /// Serve a non-loopback address without keys: anyone who reaches it can use it
    #[arg(long, visible_alias = "allow-unauthenticated", env = "EMBEDSERVE_INSECURE",
          value_parser = FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub insecure: bool,
    /// Web origins that browsers may call from, e.g. https://app.example; repeatable
    #[arg(long, visible_aliases = ["cors-allow-origin", "allow-origins"], env = "EMBEDSERVE_CORS_ORIGINS",
          value_delimiter = ',', value_name = "ORIGIN")]
    pub cors_origins: Vec<String>,
    /// Further names that this server may be called by when it serves this machine alone, without keys; repeatable
    #[arg(
        long,
        visible_alias = "allow-hosts",
        env = "EMBEDSERVE_ALLOWED_HOSTS",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    pub allowed_hosts: Vec<String>,
    /// Let /metrics be read without a key
    #[arg(long, env = "EMBEDSERVE_METRICS_PUBLIC", value_parser = FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub metrics_public: bool,
    /// Largest request body, in bytes
    #[arg(long, visible_alias = "payload-limit", env = "EMBEDSERVE_MAX_BODY_BYTES", default_value_t = 32 << 20,
          value_name = "BYTES")]
    pub max_body_bytes: usize,
    /// Request bodies held at once, in bytes, all connections together
    #[arg(long, env = "EMBEDSERVE_MAX_BODIES_BYTES", default_value_t = 256 << 20, value_name = "BYTES")]
    pub max_bodies_bytes: usize,
    /// Answers held at once until their clients have taken them, in bytes; small ones do not count
    #[arg(long, env = "EMBEDSERVE_MAX_ANSWERS_BYTES", default_value_t = 256 << 20, value_name = "BYTES")]
    pub max_answers_bytes: usize,
    /// Request headers, in bytes
    #[arg(long, env = "EMBEDSERVE_MAX_HEADER_BYTES", default_value_t = 64 << 10, value_name = "BYTES")]
    pub max_header_bytes: usize,
    /// Open connections
    #[arg(long, env = "EMBEDSERVE_MAX_CONNECTIONS", default_value_t = 1024, value_name = "N")]
    pub max_connections: usize,
    /// Time for a request's headers to arrive
    #[arg(long, env = "EMBEDSERVE_HEADER_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub header_timeout: Duration,
    /// Idle time between requests of one connection; more than that of a load balancer in front
    #[arg(long, env = "EMBEDSERVE_IDLE_TIMEOUT", default_value = "75s", value_parser = duration, value_name = "TIME")]
    pub idle_timeout: Duration,
    /// Time for a request's body to arrive
    #[arg(long, env = "EMBEDSERVE_BODY_TIMEOUT", default_value = "20s", value_parser = duration, value_name = "TIME")]
    pub body_timeout: Duration,
    /// Time for a client to take the next 128 KiB of its answer
    #[arg(long, env = "EMBEDSERVE_WRITE_TIMEOUT", default_value = "30s", value_parser = duration, value_name = "TIME")]
    pub write_timeout: Duration,
    /// Time for a client to take its whole answer
    #[arg(long, env = "EMBEDSERVE_ANSWER_TIMEOUT", default_value = "300s", value_parser = duration, value_name = "TIME")]
    pub answer_timeout: Duration,
    /// After SIGTERM: time in which the server says it is not ready and still accepts
    #[arg(long, env = "EMBEDSERVE_DRAIN_DELAY", default_value = "3s", value_parser = duration, value_name = "TIME")]
    pub drain_delay: Duration,
    /// After that: time for accepted requests to finish
    #[arg(long, env = "EMBEDSERVE_DRAIN_GRACE", default_value = "22s", value_parser = duration, value_name = "TIME")]
    pub drain_grace: Duration,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Requests")]
pub struct RequestArgs {
    /// Inputs of one request
    #[arg(
        long,
        visible_alias = "max-client-batch-size",
        env = "EMBEDSERVE_MAX_INPUTS",
        default_value_t = 2048,
        value_name = "N"
    )]
    pub max_inputs: usize,
    /// Tokens of one request, all inputs together
    #[arg(long, env = "EMBEDSERVE_MAX_REQUEST_TOKENS", default_value_t = 300_000, value_name = "TOKENS")]
    pub max_request_tokens: usize,
    /// Time for one request, from its headers to its answer
    #[arg(long, env = "EMBEDSERVE_REQUEST_TIMEOUT", default_value = "600s", value_parser = duration, value_name = "TIME")]
    pub request_timeout: Duration,
    /// Cut over-long inputs at their end instead of refusing them; the answer shows it
    #[arg(long, visible_alias = "truncate", env = "EMBEDSERVE_AUTO_TRUNCATE", value_parser = FalseyValueParser::new(),
          action = ArgAction::SetTrue)]
    pub auto_truncate: bool,
    /// Prompt, by its name, that goes before inputs of requests that choose none, where models.toml names none
    #[arg(long, env = "EMBEDSERVE_DEFAULT_PROMPT_NAME", value_name = "NAME", conflicts_with = "default_prompt")]
    pub default_prompt_name: Option<String>,
    /// The same, as the text itself
    #[arg(long, env = "EMBEDSERVE_DEFAULT_PROMPT", value_name = "TEXT")]
    pub default_prompt: Option<String>,
    /// Let `dimensions` cut the vectors of every model, also of those that were not trained for it
    #[arg(long, env = "EMBEDSERVE_ALLOW_DIMENSIONS", value_parser = FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub allow_dimensions: bool,
    /// Embed empty strings instead of refusing them
    #[arg(long, env = "EMBEDSERVE_ALLOW_EMPTY_INPUT", value_parser = FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub allow_empty_input: bool,
    /// How token arrays are read: decided per array, the model's own ids, OpenAI's, or refused
    #[arg(long, env = "EMBEDSERVE_TOKEN_ARRAYS", value_enum, default_value_t = TokenArraysArg::Auto)]
    pub token_arrays: TokenArraysArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TokenArraysArg {
    Auto,
    Model,
    Cl100k,
    Reject,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Batching and compute")]
pub struct BatchArgs {
    /// Tokens of one forward pass [default: about a second of work, 2048 at most (16384 on a GPU), the longest input at least]
    #[arg(long, visible_aliases = ["max-num-batched-tokens", "ubatch-size"], env = "EMBEDSERVE_MAX_BATCH_TOKENS", value_name = "TOKENS")]
    pub max_batch_tokens: Option<usize>,
    /// Rows of one forward pass [default: as many as the tokens allow]
    #[arg(long, visible_alias = "batch-size", env = "EMBEDSERVE_MAX_BATCH_ROWS", value_name = "N")]
    pub max_batch_rows: Option<usize>,
    /// Rows that may wait, each model
    #[arg(long, visible_aliases = ["max-concurrent-requests", "max-queue"], env = "EMBEDSERVE_QUEUE_ROWS",
          default_value_t = 16384, value_name = "N")]
    pub queue_rows: usize,
    /// Tokens that may wait, each model
    #[arg(long, env = "EMBEDSERVE_QUEUE_TOKENS", default_value_t = 1_000_000, value_name = "TOKENS")]
    pub queue_tokens: usize,
    /// A request that would wait longer than this for its first row is refused, and one that has is given up
    #[arg(long, env = "EMBEDSERVE_QUEUE_TIMEOUT", default_value = "10s", value_parser = duration, value_name = "TIME")]
    pub queue_timeout: Duration,
    /// CPU threads [default: what the cgroup quota and the affinity mask allow]
    #[arg(long, short = 't', env = "EMBEDSERVE_THREADS", value_name = "N")]
    pub threads: Option<usize>,
    /// A forward pass this much longer than its tokens should take ends the process with exit code 70
    #[arg(long, env = "EMBEDSERVE_STALL_LIMIT", default_value = "30s", value_parser = duration, value_name = "TIME")]
    pub stall_limit: Duration,
    /// A model without a successful forward pass for this long computes a known text and compares the vector
    #[arg(long, env = "EMBEDSERVE_CANARY_INTERVAL", default_value = "5s", value_parser = duration, value_name = "TIME")]
    pub canary_interval: Duration,
    /// Instruction set of the CPU kernels [default: the best this processor has]
    #[arg(long, env = "EMBEDSERVE_KERNEL_ISA", value_enum)]
    pub kernel_isa: Option<IsaArg>,
    /// Launch the kernels of small batches on a GPU one by one, not as recorded CUDA graphs
    #[arg(long, env = "EMBEDSERVE_NO_CUDA_GRAPHS", value_parser = FalseyValueParser::new(), action = ArgAction::SetTrue)]
    pub no_cuda_graphs: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum IsaArg {
    Portable,
    Neon,
    Avx2,
    Avx512,
    Amx,
}

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Logs")]
pub struct LogArgs {
    /// error, warn, info, debug or trace, or a filter like embedserve=debug [default: info, or $LOG_LEVEL; $RUST_LOG wins]
    #[arg(long, env = "EMBEDSERVE_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// text or json [default: text, or $LOG_FORMAT]
    #[arg(long, env = "EMBEDSERVE_LOG_FORMAT", value_enum, ignore_case = true)]
    pub log_format: Option<LogFormatArg>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormatArg {
    Text,
    Json,
}

/// `500ms`, `10s`, `2m`, `1h`, or plain seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale = match unit.trim() {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("expected a time such as 500ms, 10s, 2m or 1h".to_owned()),
    };
    let seconds: f64 = number.parse().map_err(|_| "expected a time such as 500ms, 10s, 2m or 1h".to_owned())?;
    Duration::try_from_secs_f64(seconds * scale).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    // L-07
    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    // L-07
    #[test]
    fn every_flag_has_an_environment_variable_of_its_own_name() {
        for argument in Cli::command().get_arguments() {
            let Some(long) = argument.get_long().filter(|long| !matches!(*long, "help" | "version")) else { continue };
            let expected = format!("EMBEDSERVE_{}", long.replace('-', "_").to_uppercase());
            assert_eq!(argument.get_env().and_then(|env| env.to_str()), Some(expected.as_str()), "--{long}");
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(duration("7"), Ok(Duration::from_secs(7)));
        assert!(duration("soon").is_err());
        assert!(duration("-1s").is_err());
    }
}
