//! The process environment as one value, and what its well-known variables mean.

use std::collections::HashMap;
use std::ffi::OsString;

use crate::cli::{LogArgs, LogFormatArg};
use crate::config::ConfigError;
use crate::observe::log::{LogConfig, LogFormat};

/// The environment as one value, so that its meaning can be tested without touching the process.
#[derive(Debug, Clone, Default)]
pub struct Environment(HashMap<String, String>);

impl Environment {
    /// The process's own; values that are not UTF-8 are left out.
    pub fn of_process() -> Self {
        let utf8 = |(key, value): (OsString, OsString)| Some((key.into_string().ok()?, value.into_string().ok()?));
        Self::new(std::env::vars_os().filter_map(utf8))
    }

    /// Kubernetes tells every pod of every service: of one that is called `embedserve`, in a variable of the same name as
    /// ours. That is nobody's setting, and read as one that is empty.
    pub fn new(values: impl IntoIterator<Item = (String, String)>) -> Self {
        let is_service_link = |name: &str, value: &str| {
            name == "EMBEDSERVE_PORT" && ["tcp://", "udp://", "sctp://"].iter().any(|scheme| value.starts_with(scheme))
        };
        let own = |(name, value): (String, String)| {
            let value = if is_service_link(&name, &value) { String::new() } else { value };
            (name, value)
        };
        Self(values.into_iter().map(own).collect())
    }

    /// Whether a variable is set, to nothing.
    pub fn is_blank(&self, name: &str) -> bool {
        self.0.get(name).is_some_and(String::is_empty)
    }

    /// The first of `names` that is set and not empty.
    pub(super) fn first(&self, names: &[&str]) -> Option<&str> {
        names.iter().filter_map(|name| self.0.get(*name)).map(String::as_str).find(|value| !value.is_empty())
    }

    /// Hugging Face's notion of a switched-on flag.
    pub(super) fn is_on(&self, name: &str) -> bool {
        self.first(&[name]).is_some_and(|v| ["1", "ON", "YES", "TRUE"].contains(&v.to_ascii_uppercase().as_str()))
    }
}

/// `PORT`, as platforms set it.
pub(super) fn port(environment: &Environment) -> Result<Option<u16>, ConfigError> {
    port_of(environment, "PORT")
}

fn port_of(environment: &Environment, name: &'static str) -> Result<Option<u16>, ConfigError> {
    let parse = |value: &str| {
        let reason = "expected a port number".to_owned();
        value.parse().map_err(|_| ConfigError::Invalid { flag: name, value: value.to_owned(), reason })
    };
    environment.first(&[name]).map(parse).transpose()
}

/// The port that `embedserve health` asks: the one the server beside it would choose.
///
/// # Errors
/// A variable that is not a port number.
pub fn health_port(environment: &Environment) -> Result<u16, ConfigError> {
    Ok(match port_of(environment, "EMBEDSERVE_PORT")? {
        Some(port) => port,
        None => port(environment)?.unwrap_or(8080),
    })
}

/// The address that `embedserve health` asks: where the server beside it listens, or this machine if that is everywhere.
pub fn health_host(environment: &Environment) -> &str {
    match environment.first(&["EMBEDSERVE_HOST"]) {
        None | Some("0.0.0.0") => "127.0.0.1",
        Some("::" | "[::]") => "::1",
        Some(host) => host,
    }
}

/// Resolves the log settings, which are needed before anything else can fail: flags, then `LOG_LEVEL` and `LOG_FORMAT`;
/// `RUST_LOG` wins over every level.
pub fn log(args: &LogArgs, environment: &Environment) -> LogConfig {
    log_from("info", args, environment)
}

/// As [`log`], for a command that by default says less, or more, than a server.
pub fn log_from(default_level: &str, args: &LogArgs, environment: &Environment) -> LogConfig {
    let level = args.log_level.as_deref().or_else(|| environment.first(&["LOG_LEVEL"])).unwrap_or(default_level);
    let filter = environment.first(&["RUST_LOG"]).unwrap_or(level).to_owned();
    let format = match (args.log_format, environment.first(&["LOG_FORMAT"])) {
        (Some(LogFormatArg::Json), _) => LogFormat::Json,
        (None, Some(text)) if text.eq_ignore_ascii_case("json") => LogFormat::Json,
        (Some(LogFormatArg::Text) | None, _) => LogFormat::Text,
    };
    let color = environment.first(&["NO_COLOR"]).is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr());
    LogConfig { filter, format, color }
}
