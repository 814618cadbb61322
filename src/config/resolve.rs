//! From what was typed to what it means: models and their names, the wire's limits, keys, device and kernels.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::catalog::id::Revision;
use crate::catalog::{self, CatalogError, ModelSpec, Names, SourceSpec};
use crate::cli::{IsaArg, PoolingArg, RequestArgs, ResidencyArgs, ServeArgs, ServerArgs, TokenArraysArg};
use crate::config::device::{self, Launches};
use crate::config::environment::{log, port};
use crate::config::{
    ApiKey, BatchConfig, Config, ConfigError, DEFAULT_MODEL, DefaultPrompt, DeviceConfig, Environment, HttpConfig,
    KeySources, LifecycleConfig, RequestConfig, ResidencyConfig, source,
};
use crate::kernel::{Compute, Isa, Precision, UnknownPrecision};
use crate::observe::secret::Secret;
use crate::pool::PoolingMode;
use crate::request::{Side, TokenArrays};
use crate::threads;

impl Config {
    /// Resolves what was typed against the environment and the catalogue.
    ///
    /// # Errors
    /// See [`ConfigError`]; each names the flag and what to do.
    pub fn resolve(args: &ServeArgs, environment: &Environment) -> Result<Self, ConfigError> {
        let names = names(args)?;
        let keys = key_sources(&args.server);
        let http = http(&args.server, environment, keys.read(&names)?)?;
        let (requests, batch) = (requests(args)?, batch(args)?);
        check_precisions(&names, &batch)?;
        let residency = residency(&args.residency)?;
        let lifecycle = LifecycleConfig { drain_delay: args.server.drain_delay, drain_grace: args.server.drain_grace };
        let source = source(&args.source, environment)?;
        let log_format = log(&args.logs, environment).format;
        Ok(Self { names, http, keys, requests, batch, residency, lifecycle, source, log_format })
    }
}

/// What one request may ask.
///
/// # Errors
/// A limit that is impossible.
pub fn requests(args: &ServeArgs) -> Result<RequestConfig, ConfigError> {
    Ok(RequestConfig {
        max_inputs: at_least_one("--max-inputs", args.requests.max_inputs)?,
        max_request_tokens: at_least_one("--max-request-tokens", args.requests.max_request_tokens)?,
        max_input_bytes_per_token: 64,
        allow_empty_input: args.requests.allow_empty_input,
        accept_any_model: args.models.accept_any_model,
        token_arrays: match args.requests.token_arrays {
            TokenArraysArg::Auto => TokenArrays::Auto,
            TokenArraysArg::Model => TokenArrays::Model,
            TokenArraysArg::Cl100k => TokenArrays::Cl100k,
            TokenArraysArg::Reject => TokenArrays::Reject,
        },
        truncate: args.requests.auto_truncate.then_some(Side::End),
        default_prompt: default_prompt(&args.requests),
        max_prompt_bytes: 4096,
        allow_dimensions: args.requests.allow_dimensions,
        request_timeout: positive("--request-timeout", args.requests.request_timeout)?,
    })
}

/// Queue and batch budgets.
///
/// # Errors
/// A limit that is impossible, or kernels that this processor lacks.
pub fn batch(args: &ServeArgs) -> Result<BatchConfig, ConfigError> {
    Ok(BatchConfig {
        queue_rows: at_least_one("--queue-rows", args.batching.queue_rows)?,
        queue_tokens: at_least_one("--queue-tokens", args.batching.queue_tokens)?,
        queue_timeout: positive("--queue-timeout", args.batching.queue_timeout)?,
        max_batch_tokens: args.batching.max_batch_tokens,
        max_batch_rows: at_least_one("--max-batch-rows", args.batching.max_batch_rows.unwrap_or(usize::MAX))?,
        threads: threads(args.batching.threads.unwrap_or_else(threads::available))?,
        device: device(args)?,
        device_choice: device::choose(&args.models.device, launches(args))?,
        isa: isa(args.batching.kernel_isa)?,
    })
}

fn launches(args: &ServeArgs) -> Launches {
    if args.batching.no_cuda_graphs { Launches::OneByOne } else { Launches::Recorded }
}

fn device(args: &ServeArgs) -> Result<DeviceConfig, ConfigError> {
    Ok(DeviceConfig {
        canary_interval: positive("--canary-interval", args.batching.canary_interval)?,
        heartbeat: Duration::from_secs(5),
        stall_limit: positive("--stall-limit", args.batching.stall_limit)?,
        isolation_passes_per_second: 20,
        restart_delay: Duration::from_secs(1),
        restart_window: Duration::from_mins(10),
    })
}

fn default_prompt(args: &RequestArgs) -> Option<DefaultPrompt> {
    let name = args.default_prompt_name.clone().map(DefaultPrompt::Name);
    name.or_else(|| args.default_prompt.clone().map(DefaultPrompt::Text))
}

fn names(args: &ServeArgs) -> Result<Names, ConfigError> {
    let catalogue = catalogue(args.source.catalog.as_deref())?;
    let chosen = [args.models.model.as_slice(), &args.models.positional].concat();
    let chosen = if chosen.is_empty() { vec![DEFAULT_MODEL.to_owned()] } else { chosen };
    let mut models = Vec::with_capacity(chosen.len());
    for choice in &chosen {
        models.push(Arc::new(overrule(catalog::resolve(choice.trim(), &catalogue)?, args, chosen.len())?));
    }
    let first = models.first().map(|model| model.id.clone()).unwrap_or_default();
    let alias = |text: &String| match text.split_once('=') {
        Some((alias, id)) => (alias.to_owned(), id.to_owned()),
        None => (text.clone(), first.clone()),
    };
    let aliases: Vec<(String, String)> = args.models.served_model_name.iter().map(alias).collect();
    let default = match &args.models.default_model {
        None => 0,
        Some(wanted) => {
            let id = catalog::resolve(wanted, &catalogue)?.id;
            models.iter().position(|model| model.id == id).ok_or_else(|| ConfigError::Invalid {
                flag: "--default-model",
                value: wanted.clone(),
                reason: "it is not among the models served".to_owned(),
            })?
        }
    };
    Ok(Names::new(models, aliases, default, args.models.accept_any_model)?)
}

/// The catalogue file, or the one inside the binary.
///
/// # Errors
/// An unreadable or invalid file.
pub fn catalogue(path: Option<&Path>) -> Result<Vec<ModelSpec>, CatalogError> {
    path.map_or_else(catalog::builtin, catalog::schema::load)
}

/// Flags that overrule a model's own settings.
fn overrule(mut spec: ModelSpec, args: &ServeArgs, n_models: usize) -> Result<ModelSpec, ConfigError> {
    if let Some(revision) = &args.models.revision {
        spec = at_revision(spec, revision, n_models)?;
    }
    spec.pooling = match args.models.pooling {
        None => spec.pooling,
        Some(PoolingArg::Cls) => Some(PoolingMode::Cls),
        Some(PoolingArg::Mean) => Some(PoolingMode::Mean),
        Some(PoolingArg::Max) => Some(PoolingMode::Max),
        Some(PoolingArg::Last) => Some(PoolingMode::Last),
        Some(PoolingArg::MeanSqrtLen) => Some(PoolingMode::MeanSqrtLen),
    };
    spec.max_tokens = args.models.max_model_len.or(spec.max_tokens);
    in_dtype(spec, args.models.dtype.as_deref())
}

/// The model in the number format that the command line or the environment asks for, else in its own.
///
/// # Errors
/// A format that there is not.
pub fn in_dtype(mut spec: ModelSpec, wanted: Option<&str>) -> Result<ModelSpec, ConfigError> {
    if let Some(text) = wanted {
        let invalid = |error: UnknownPrecision| ConfigError::Invalid {
            flag: "--dtype",
            value: text.to_owned(),
            reason: error.to_string(),
        };
        spec.dtype = Some(Precision::parse(text).map_err(invalid)?);
    }
    Ok(spec)
}

/// The model at another Hub revision than the catalogue's.
///
/// # Errors
/// A revision that is none, for several models at once, or for a model that is not on the Hub.
pub fn at_revision(mut spec: ModelSpec, text: &str, n_models: usize) -> Result<ModelSpec, ConfigError> {
    let invalid = |reason: String| ConfigError::Invalid { flag: "--revision", value: text.to_owned(), reason };
    if n_models > 1 {
        return Err(invalid("with several models, write owner/name@revision".to_owned()));
    }
    let wanted = Revision::parse(text).map_err(|error| invalid(error.to_string()))?;
    spec.sources.retain(|source| matches!(source, SourceSpec::Hub { .. }));
    for source in &mut spec.sources {
        if let SourceSpec::Hub { revision, sha256, .. } = source {
            // Hashes pinned for another revision say nothing about this one.
            (*revision, *sha256) = (wanted.clone(), Vec::new());
        }
    }
    if spec.sources.is_empty() {
        return Err(invalid("the model has no Hub source".to_owned()));
    }
    Ok(spec)
}

/// A format that the processor cannot compute is found out before anything is fetched.
fn check_precisions(names: &Names, batch: &BatchConfig) -> Result<(), ConfigError> {
    let isa = batch.isa;
    for spec in names.models() {
        if !batch.device_choice.is_cpu() {
            if spec.precision() == Precision::Int8 {
                let reason = "GPUs compute f32, f16 and bf16: use one of them, or --device cpu".to_owned();
                return Err(ConfigError::Invalid { flag: "--dtype", value: "int8".to_owned(), reason });
            }
            continue;
        }
        let compute = Compute { isa, precision: spec.precision() };
        compute.check().map_err(|source| ConfigError::Dtype { model: spec.id.clone(), source })?;
    }
    Ok(())
}

fn isa(wanted: Option<IsaArg>) -> Result<Isa, ConfigError> {
    let isa = match wanted {
        None => return Ok(Isa::detect()),
        Some(IsaArg::Portable) => Isa::Portable,
        Some(IsaArg::Neon) => Isa::Neon,
        Some(IsaArg::Avx2) => Isa::Avx2,
        Some(IsaArg::Avx512) => Isa::Avx512,
        Some(IsaArg::Amx) => Isa::Amx,
    };
    if isa.is_supported() {
        return Ok(isa);
    }
    let reason = format!("this processor lacks it; the best it has is {}", Isa::detect());
    Err(ConfigError::Invalid { flag: "--kernel-isa", value: isa.to_string(), reason })
}

fn at_least_one(flag: &'static str, value: usize) -> Result<usize, ConfigError> {
    if value > 0 {
        return Ok(value);
    }
    Err(ConfigError::Invalid { flag, value: value.to_string(), reason: "expected 1 or more".to_owned() })
}

/// No time at all would refuse every request, or end every connection.
pub(super) fn positive(flag: &'static str, time: Duration) -> Result<Duration, ConfigError> {
    let reason = "expected a time above zero".to_owned();
    if time.is_zero() { Err(ConfigError::Invalid { flag, value: "0".to_owned(), reason }) } else { Ok(time) }
}

/// More threads than any machine has cores are a slip of the finger, and starting them would take minutes.
fn threads(n: usize) -> Result<usize, ConfigError> {
    let n = at_least_one("--threads", n)?;
    let reason = format!("expected {MAX_THREADS} or less");
    if n > MAX_THREADS { Err(ConfigError::Invalid { flag: "--threads", value: n.to_string(), reason }) } else { Ok(n) }
}

const MAX_THREADS: usize = 1024;

fn residency(args: &ResidencyArgs) -> Result<ResidencyConfig, ConfigError> {
    let loaded = |value| at_least_one("--max-loaded-models", value);
    Ok(ResidencyConfig {
        keep_going: args.keep_going,
        max_models: args.max_loaded_models.map(loaded).transpose()?,
        max_bytes: args.max_model_memory,
        memory_limit: args.memory_limit,
        idle_unload: args.idle_unload.map(|time| positive("--idle-unload", time)).transpose()?,
        turn: Duration::from_secs(2),
        max_waiting: 1024,
        retry_failed: Duration::from_secs(30),
    })
}

fn http(args: &ServerArgs, environment: &Environment, api_keys: Vec<ApiKey>) -> Result<HttpConfig, ConfigError> {
    let port = match args.port {
        Some(port) => port,
        None => port(environment)?.unwrap_or(8080),
    };
    let host = args.host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let addresses = addresses(&host, port)?;
    if api_keys.is_empty() && !args.insecure && !addresses.iter().all(|address| is_loopback(address.ip())) {
        return Err(ConfigError::Exposed { host });
    }
    if let Some(origin) = args.cors_origins.iter().find(|origin| !origin.contains("://") || origin.ends_with('/')) {
        let reason = "expected an exact origin such as https://app.example".to_owned();
        return Err(ConfigError::Invalid { flag: "--cors-origins", value: origin.clone(), reason });
    }
    let is_name = |name: &str| !name.is_empty() && !name.contains(['/', ':', '*']);
    if let Some(name) = args.allowed_hosts.iter().find(|name| !is_name(name)) {
        let reason = "expected a host name such as embed.internal, without a scheme or a port".to_owned();
        return Err(ConfigError::Invalid { flag: "--allowed-hosts", value: name.clone(), reason });
    }
    let max_body_bytes = at_least_one("--max-body-bytes", args.max_body_bytes)?;
    if args.max_bodies_bytes < max_body_bytes {
        let reason = format!("one body may have {max_body_bytes}");
        let value = args.max_bodies_bytes.to_string();
        return Err(ConfigError::Invalid { flag: "--max-bodies-bytes", value, reason });
    }
    if args.max_header_bytes < 8192 {
        let (value, reason) = (args.max_header_bytes.to_string(), "expected 8192 or more".to_owned());
        return Err(ConfigError::Invalid { flag: "--max-header-bytes", value, reason });
    }
    Ok(HttpConfig {
        host,
        port,
        api_keys,
        insecure: args.insecure,
        cors_origins: args.cors_origins.clone(),
        allowed_hosts: args.allowed_hosts.clone(),
        max_body_bytes,
        max_bodies_bytes: args.max_bodies_bytes,
        max_answers_bytes: at_least_one("--max-answers-bytes", args.max_answers_bytes)?,
        max_header_bytes: args.max_header_bytes,
        max_headers: 100,
        max_connections: at_least_one("--max-connections", args.max_connections)?,
        header_timeout: positive("--header-timeout", args.header_timeout)?,
        idle_timeout: positive("--idle-timeout", args.idle_timeout)?,
        body_timeout: positive("--body-timeout", args.body_timeout)?,
        write_timeout: positive("--write-timeout", args.write_timeout)?,
        answer_timeout: positive("--answer-timeout", args.answer_timeout)?,
        metrics_public: args.metrics_public,
    })
}

/// What a host name means. One that does not resolve is an error, never a reason to listen everywhere.
///
/// # Errors
/// The name does not resolve.
pub fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, ConfigError> {
    let invalid = |reason: String| ConfigError::Invalid { flag: "--host", value: host.to_owned(), reason };
    let addresses: Vec<SocketAddr> =
        (host, port).to_socket_addrs().map_err(|error| invalid(error.to_string()))?.collect();
    if addresses.is_empty() { Err(invalid("it does not resolve to an address".to_owned())) } else { Ok(addresses) }
}

/// Whether an address stays on this machine.
pub const fn is_loopback(address: IpAddr) -> bool {
    address.is_loopback()
}

fn key_sources(args: &ServerArgs) -> KeySources {
    KeySources {
        typed: args.api_key.iter().cloned().map(Secret::new).collect(),
        plain_files: args.api_key_file.clone(),
        keys_file: args.keys_file.clone(),
    }
}
