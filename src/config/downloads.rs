//! Caches, endpoint, token and patience of downloads: flags first, then Hugging Face's own variables.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cli::SourceArgs;
use crate::config::proxy::Proxies;
use crate::config::resolve::positive;
use crate::config::{ConfigError, Environment, SourceConfig};
use crate::observe::secret::Secret;
use crate::small_file;

/// Resolves the settings of downloads, which `models pull` shares with serving.
///
/// # Errors
/// No home directory to put a cache into, or an impossible value.
pub fn source(args: &SourceArgs, environment: &Environment) -> Result<SourceConfig, ConfigError> {
    let home = environment.first(&["HOME", "USERPROFILE"]).map(PathBuf::from);
    let cache_home = environment.first(&["XDG_CACHE_HOME"]).map(PathBuf::from);
    let cache_home = cache_home.or_else(|| home.as_ref().map(|home| home.join(".cache")));
    let hf_home = environment.first(&["HF_HOME"]).map(PathBuf::from);
    let hf_home = hf_home.or_else(|| cache_home.as_ref().map(|cache| cache.join("huggingface")));
    let hub_cache = args
        .cache_dir
        .clone()
        .or_else(|| environment.first(&["HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]).map(PathBuf::from))
        .or_else(|| hf_home.as_ref().map(|home| home.join("hub")))
        .ok_or(ConfigError::NoHome)?;
    let wheel_cache = match (&args.cache_dir, cache_home) {
        (Some(directory), _) => directory.join("embedserve"),
        (None, Some(cache)) => cache.join("embedserve"),
        (None, None) => hub_cache.join("embedserve"),
    };
    let endpoint = environment.first(&["HF_ENDPOINT"]).unwrap_or("https://huggingface.co").trim_end_matches('/');
    if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
        let reason = "expected an http:// or https:// address".to_owned();
        return Err(ConfigError::Invalid { flag: "HF_ENDPOINT", value: endpoint.to_owned(), reason });
    }
    if endpoint.contains('@') {
        let reason = "credentials inside an address are not accepted; a token goes into HF_TOKEN".to_owned();
        return Err(ConfigError::Invalid { flag: "HF_ENDPOINT", value: "***".to_owned(), reason });
    }
    let variable = environment.first(&["HF_HUB_DOWNLOAD_TIMEOUT"]).and_then(|seconds| seconds.parse().ok());
    let stall_timeout = args.download_stall_timeout.or_else(|| variable.map(Duration::from_secs));
    let pip: Vec<OsString> = args.pip.split_whitespace().map(OsString::from).collect();
    if pip.is_empty() {
        let reason = "expected a command such as python3 -m pip".to_owned();
        return Err(ConfigError::Invalid { flag: "--pip", value: String::new(), reason });
    }
    Ok(SourceConfig {
        hub_cache,
        wheel_cache,
        endpoint: endpoint.to_owned(),
        token: hub_token(args, environment, hf_home.as_deref())?,
        proxies: Proxies::of(environment),
        ca_file: environment.first(&["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"]).map(PathBuf::from),
        offline: args.offline || environment.is_on("HF_HUB_OFFLINE") || environment.is_on("TRANSFORMERS_OFFLINE"),
        stall_timeout: positive("--download-stall-timeout", stall_timeout.unwrap_or(Duration::from_mins(1)))?,
        file_timeout: positive("--download-timeout", args.download_timeout)?,
        parallel_files: args.download_parallel.max(1),
        conversion_revision: !args.no_conversion_revision,
        attempts: args.download_attempts.max(1),
        backoff: Duration::from_secs(1),
        progress_bars: !environment.is_on("HF_HUB_DISABLE_PROGRESS_BARS")
            && std::io::IsTerminal::is_terminal(&std::io::stderr()),
        pip,
    })
}

/// Tokens have some 40 characters.
const MAX_TOKEN_BYTES: u64 = 4096;

fn hub_token(
    args: &SourceArgs,
    environment: &Environment,
    hf_home: Option<&Path>,
) -> Result<Option<Secret>, ConfigError> {
    let variables = ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_API_TOKEN"];
    let given = args.hf_token.clone().or_else(|| environment.first(&variables).map(str::to_owned));
    let token = match (given, environment.first(&["HF_TOKEN_PATH"])) {
        (Some(token), _) => token,
        // Somebody means this very file: to go on without it would end in a refusal that tells of another reason.
        (None, Some(path)) => small_file::read_to_string(Path::new(path), MAX_TOKEN_BYTES).map_err(|error| {
            let reason = format!("cannot read the token: {error}");
            ConfigError::Invalid { flag: "HF_TOKEN_PATH", value: path.to_owned(), reason }
        })?,
        (None, None) => hf_home
            .and_then(|home| small_file::read_to_string(&home.join("token"), MAX_TOKEN_BYTES).ok())
            .unwrap_or_default(),
    };
    let token = token.trim().to_owned();
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        let reason = "a token is made of visible ASCII characters, without spaces and line breaks".to_owned();
        return Err(ConfigError::Invalid { flag: "--hf-token", value: "***".to_owned(), reason });
    }
    Ok((!token.is_empty()).then(|| Secret::new(token)))
}
