//! The `Host` check: a server on loopback without keys answers only to loopback names.
//!
//! Otherwise a web page could let its own name resolve to 127.0.0.1 and use the server through the visitor's browser.

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
    /// Loopback names, and the name that was configured.
    Loopback { configured: String },
}

impl Hosts {
    pub fn new(config: &HttpConfig) -> Self {
        let loopback = addresses(&config.host, config.port)
            .is_ok_and(|addresses| addresses.iter().all(|address| is_loopback(address.ip())));
        if loopback && config.api_keys.is_empty() {
            Self::Loopback { configured: config.host.clone() }
        } else {
            Self::Any
        }
    }

    fn allow(&self, host: &str) -> bool {
        let Self::Loopback { configured } = self else { return true };
        let name = without_port(host);
        let local = name.eq_ignore_ascii_case("localhost") || name.eq_ignore_ascii_case(configured);
        local || name.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }
}

/// Refuses foreign names. A request without any name is an old client, never a browser.
pub async fn check(State(state): State<Arc<HttpState>>, request: Request, next: Next) -> Response {
    let mut named =
        request.headers().get_all(header::HOST).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let absolute = request.uri().authority().map(|authority| authority.as_str().into());
    let foreign =
        absolute.into_iter().chain(&mut named).find(|host: &std::borrow::Cow<'_, str>| !state.hosts.allow(host));
    match foreign {
        Some(host) => ApiError::HostNotAllowed { host: host.into_owned() }.into_response(),
        None => next.run(request).await,
    }
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
        let hosts = Hosts::Loopback { configured: "box.lan".to_owned() };
        for ours in ["localhost", "LOCALHOST:80", "127.0.0.1", "127.8.9.1:8080", "[::1]:8080", "box.lan:1"] {
            assert!(hosts.allow(ours), "{ours}");
        }
        for foreign in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "a/?x", "", "10.0.0.1"] {
            assert!(!hosts.allow(foreign), "{foreign}");
        }
        assert!(Hosts::Any.allow("evil.example"));
    }
}
