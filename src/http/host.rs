//! The `Host` and `Origin` check: a server on loopback without keys answers only to loopback names, and not to web pages
//! from elsewhere.
//!
//! Otherwise a page could let its own name resolve to 127.0.0.1 and use the server through the visitor's browser; or post
//! to 127.0.0.1 as plain text, which a browser sends without asking, and keep the processor busy with answers that the page
//! cannot even read.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::config::{HttpConfig, addresses, is_loopback};
use crate::http::HttpState;
use crate::http::error::ApiError;

/// Which names a request may call this server by.
#[derive(Debug)]
pub enum Hosts {
    /// Reachable from elsewhere or guarded by keys: the name does not matter.
    Any,
    /// Loopback names, `names` besides, and pages of the listed origins.
    Loopback { names: Vec<String>, origins: Vec<String> },
}

impl Hosts {
    pub fn new(config: &HttpConfig) -> Self {
        let loopback = addresses(&config.host, config.port)
            .is_ok_and(|addresses| addresses.iter().all(|address| is_loopback(address.ip())));
        if loopback && config.api_keys.is_empty() {
            let names = config.allowed_hosts.iter().chain([&config.host]).cloned().collect();
            Self::Loopback { names, origins: config.cors_origins.clone() }
        } else {
            Self::Any
        }
    }

    /// Also by the address that means every address, which people copy from where a server listens.
    fn allow_host(&self, host: &str) -> bool {
        let is_unspecified = |address: IpAddr| address.is_unspecified();
        self.allow(host) || without_port(host).parse().is_ok_and(is_unspecified)
    }

    fn allow(&self, host: &str) -> bool {
        let Self::Loopback { names, .. } = self else { return true };
        let name = without_port(host);
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        is("localhost")
            || ends_with_localhost(name)
            || CONTAINER_HOSTS.into_iter().any(is)
            || names.iter().any(|other| is(other))
            || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }

    /// Pages of the web: those of other schemes belong to programs that the user has installed.
    fn allow_origin(&self, origin: &str) -> bool {
        let Self::Loopback { origins, .. } = self else { return true };
        let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
        origins.iter().any(|listed| listed == origin) || host.map_or(origin != "null", |host| self.allow(host))
    }
}

/// Refuses foreign names and pages. A request without either is no browser's.
pub async fn check(State(state): State<Arc<HttpState>>, request: Request, next: Next) -> Response {
    let mut named =
        request.headers().get_all(header::HOST).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let absolute = request.uri().authority().map(|authority| authority.as_str().into());
    let foreign =
        absolute.into_iter().chain(&mut named).find(|host: &std::borrow::Cow<'_, str>| !state.hosts.allow_host(host));
    if let Some(host) = foreign {
        return ApiError::HostNotAllowed { host: host.into_owned() }.into_response();
    }
    let mut origins =
        request.headers().get_all(header::ORIGIN).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    if let Some(origin) = origins.find(|origin| !state.hosts.allow_origin(origin)) {
        return ApiError::OriginNotAllowed { origin: origin.into_owned() }.into_response();
    }
    next.run(request).await
}

/// What a container's engine calls the machine that it runs on. `internal` is no domain of the public DNS (ICANN, 2024), so no
/// page can come from one of these names.
const CONTAINER_HOSTS: [&str; 3] = ["host.docker.internal", "gateway.docker.internal", "host.containers.internal"];

/// Names below `localhost` are loopback, too (RFC 6761, 6.3).
fn ends_with_localhost(name: &str) -> bool {
    const SUFFIX: &str = ".localhost";
    let bytes = name.as_bytes();
    bytes.len() > SUFFIX.len() && bytes[bytes.len() - SUFFIX.len()..].eq_ignore_ascii_case(SUFFIX.as_bytes())
}

/// `localhost:8080` to `localhost`, `[::1]:8080` to `::1`.
fn without_port(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_ours() {
        let hosts = loopback();
        for ours in [
            "localhost",
            "LOCALHOST:80",
            "embed.LocalHost:80",
            "127.0.0.1",
            "127.8.9.1:8080",
            "[::1]:8080",
            "box.lan:1",
            "Host.Docker.Internal:8080",
        ] {
            assert!(hosts.allow(ours), "{ours}");
        }
        for foreign in [
            "evil.example",
            "127.0.0.1.evil.example",
            "localhost.evil.example:80",
            ".localhost",
            "notlocalhost",
            "x.docker.internal",
            "a/?x",
            "",
            "10.0.0.1",
        ] {
            assert!(!hosts.allow_host(foreign), "{foreign}");
        }
        // As where a server listens; a page of that name is nobody's.
        for address in ["0.0.0.0:8080", "[::]"] {
            assert!(hosts.allow_host(address) && !hosts.allow_origin(&format!("http://{address}")), "{address}");
        }
        assert!(Hosts::Any.allow_host("evil.example"));
    }

    #[test]
    fn pages_from_elsewhere_are_not_ours() {
        let hosts = loopback();
        for ours in [
            "http://localhost:3000",
            "https://127.0.0.1",
            "http://[::1]:80",
            "http://box.lan",
            "https://app.example",
            "app://notes.example",
            "vscode-webview://1x",
        ] {
            assert!(hosts.allow_origin(ours), "{ours}");
        }
        for foreign in ["https://evil.example", "http://app.example", "https://app.example:444", "null", "http://"] {
            assert!(!hosts.allow_origin(foreign), "{foreign}");
        }
        assert!(Hosts::Any.allow_origin("https://evil.example"));
    }

    fn loopback() -> Hosts {
        Hosts::Loopback { names: vec!["box.lan".to_owned()], origins: vec!["https://app.example".to_owned()] }
    }
}
