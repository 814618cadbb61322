//! Where an address leads, and whether a redirect may lead there.
//!
//! An origin is scheme, host and port: what a token may be shown to. TLS is never given up, and a public host cannot
//! send us to a private address. A name is resolved once for that check and again for the connection, so it is a
//! barrier against accidents and simple attacks, not against a hostile resolver.

use std::net::{IpAddr, ToSocketAddrs as _};

use http::Uri;
use ureq::Agent;

use crate::source::error::Cause;

/// Scheme, host and port: what a token may be shown to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    pub scheme: String,
    pub host: String,
    pub port: u16,
}

pub(super) fn parse_url(text: &str) -> Result<Uri, Cause> {
    text.parse::<Uri>()
        .map_err(|_| Cause::Unreachable { host: "(malformed address)".to_owned(), reason: "not an address".to_owned() })
}

/// The address that a `Location` means; relative ones begin with a slash.
pub(super) fn join(base: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with('/') && !location.starts_with("//") {
        let mut parts = base.clone().into_parts();
        parts.path_and_query = Some(location.parse().ok()?);
        return Uri::from_parts(parts).ok();
    }
    location.parse::<Uri>().ok().filter(|uri| uri.scheme().is_some() && uri.authority().is_some())
}

pub(super) fn check_redirect(from: &Origin, to: &Origin) -> Result<(), Cause> {
    if from.scheme == "https" && to.scheme != "https" {
        return Err(refused(from, to, "it gives up TLS"));
    }
    Ok(())
}

pub(super) fn check_address(endpoint: &Origin, to: &Origin, agent: &Agent) -> Result<(), Cause> {
    if to.host != endpoint.host && to.is_private(agent) && !endpoint.is_private(agent) {
        return Err(refused(endpoint, to, "it leads from a public host to a private address"));
    }
    Ok(())
}

pub(super) fn refused(from: &Origin, to: &Origin, reason: &'static str) -> Cause {
    Cause::Redirect { from: from.host.clone(), to: to.host.clone(), reason }
}

// === impl Origin ===

impl Origin {
    pub(super) fn of(url: &Uri) -> Result<Self, Cause> {
        let bad = |reason: &str| Cause::Unreachable {
            host: url.host().unwrap_or_default().to_owned(),
            reason: reason.to_owned(),
        };
        let port = match url.scheme_str() {
            Some("https") => 443,
            Some("http") => 80,
            _ => return Err(bad("an address begins with https:// or http://")),
        };
        let authority = url.authority().ok_or_else(|| bad("the address has no host"))?;
        if authority.as_str().contains('@') {
            return Err(bad("credentials inside an address are not accepted"));
        }
        Ok(Self {
            scheme: url.scheme_str().unwrap_or_default().to_owned(),
            host: authority.host().trim_matches(['[', ']']).to_ascii_lowercase(),
            port: authority.port_u16().unwrap_or(port),
        })
    }

    /// Whether the host is, or resolves to, an address that is not on the public internet.
    fn is_private(&self, agent: &Agent) -> bool {
        if let Ok(address) = self.host.parse::<IpAddr>() {
            return is_private(address);
        }
        if self.host == "localhost" || self.host.ends_with(".localhost") {
            return true;
        }
        // Behind a proxy names are the proxy's business, and may not resolve here at all.
        if agent.config().proxy().is_some() {
            return false;
        }
        (self.host.as_str(), self.port)
            .to_socket_addrs()
            .is_ok_and(|mut addresses| addresses.any(|address| is_private(address.ip())))
    }
}

/// Loopback, link-local, private, shared, unspecified and multicast ranges, also written as IPv6.
fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, ..] = v4.octets();
            v4.is_loopback()
                || v4.is_private()
                || v4.is_link_local()
                || v4.is_broadcast()
                || v4.is_multicast()
                || a == 0
                // Carrier-grade NAT, where clouds keep their metadata and neighbours.
                || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => is_private(IpAddr::V4(v4)),
            None => {
                v6.is_loopback()
                    || v6.is_unspecified()
                    || v6.is_multicast()
                    || v6.is_unique_local()
                    || v6.is_unicast_link_local()
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(url: &str) -> Origin {
        Origin::of(&url.parse().unwrap()).unwrap()
    }

    fn agent() -> Agent {
        Agent::config_builder().proxy(None).build().new_agent()
    }

    // D-08
    #[test]
    fn a_redirect_never_gives_up_tls() {
        let (hub, cdn) = (origin("https://hub.example"), origin("http://cdn.example"));
        assert!(matches!(check_redirect(&hub, &cdn), Err(Cause::Redirect { .. })));
        assert!(check_redirect(&cdn, &hub).is_ok());
    }

    // D-08
    #[test]
    fn a_public_hub_cannot_send_us_to_a_private_address() {
        let hub = origin("https://8.8.8.8");
        let private = [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.100.100.200",
            "0.0.0.0",
            "[::1]",
            "[fd00::1]",
            "[fe80::1]",
            "[::ffff:127.0.0.1]",
            "localhost",
            "x.localhost",
        ];
        for host in private {
            let target = origin(&format!("https://{host}/x"));
            assert!(matches!(check_address(&hub, &target, &agent()), Err(Cause::Redirect { .. })), "{host}");
        }
        for host in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "[2606:4700::1111]"] {
            assert!(check_address(&hub, &origin(&format!("https://{host}/x")), &agent()).is_ok(), "{host}");
        }
    }

    #[test]
    fn a_private_hub_may_stay_private() {
        let hub = origin("http://127.0.0.1:1234");
        assert!(check_address(&hub, &origin("http://10.0.0.7/x"), &agent()).is_ok());
    }

    #[test]
    fn origins_differ_by_scheme_host_and_port() {
        assert_eq!(origin("https://Hub.example/a"), origin("https://hub.example:443/b?c"));
        assert_ne!(origin("https://hub.example"), origin("http://hub.example"));
        assert_ne!(origin("https://hub.example"), origin("https://hub.example:444"));
        for bad in ["ftp://hub.example/x", "/x", "https://user:secret@hub.example/x"] {
            let error = Origin::of(&bad.parse().unwrap()).unwrap_err().to_string();
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn locations_are_joined_or_refused() {
        let base: Uri = "https://hub.example/a/b?c=d".parse().unwrap();
        assert_eq!(join(&base, "/x?y=z").unwrap(), "https://hub.example/x?y=z");
        assert_eq!(join(&base, "https://cdn.example/x").unwrap(), "https://cdn.example/x");
        for bad in ["//evil.example/x", "x/y", "", "https://"] {
            assert!(join(&base, bad).is_none(), "{bad}");
        }
    }
}
