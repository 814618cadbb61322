//! Which proxy leads to which host: the variables that other programs read, with the same meaning.

use std::net::IpAddr;

use crate::config::Environment;
use crate::observe::secret::Secret;

/// The proxies of the environment, and the hosts that none is asked for.
#[derive(Debug, Clone, Default)]
pub struct Proxies {
    pub http: Option<ProxyVariable>,
    pub https: Option<ProxyVariable>,
    exceptions: Vec<String>,
}

/// A variable that names a proxy. What it says is looked at when a connection is wanted: others need not be stopped by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyVariable {
    name: &'static str,
    address: Secret,
}

impl Proxies {
    pub fn of(environment: &Environment) -> Self {
        let named = |names: [&'static str; 4]| {
            names.into_iter().find_map(|name| {
                let address = Secret::new(environment.first(&[name])?.trim().to_owned());
                Some(ProxyVariable { name, address })
            })
        };
        let list = environment.first(&["no_proxy", "NO_PROXY"]).unwrap_or_default();
        let entries = list.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty());
        Self {
            http: named(["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"]),
            https: named(["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]),
            exceptions: entries.map(str::to_ascii_lowercase).collect(),
        }
    }

    /// Whether this host is reached without a proxy: it, a domain above it or a network around it is named in `NO_PROXY`.
    pub fn spare(&self, host: &str, port: u16) -> bool {
        self.exceptions.iter().any(|entry| spares(entry, host, port))
    }
}

impl ProxyVariable {
    /// The address as the client takes it. Without a scheme it is an HTTP proxy, as everywhere.
    ///
    /// # Errors
    /// A proxy of another kind. Not its address, which may hold a password.
    pub fn http_address(&self) -> Result<&Secret, String> {
        let scheme = self.address.expose().split_once("://").map_or("http", |(scheme, _)| scheme);
        match scheme.to_ascii_lowercase().as_str() {
            "http" | "https" => Ok(&self.address),
            scheme => {
                Err(format!("{} is a {scheme} proxy; only HTTP proxies are supported, http://host:port", self.name))
            }
        }
    }
}

/// One entry of `NO_PROXY`: `*`, a host or domain with or without a dot before it, an address, a network, each of the names
/// with a port or without.
fn spares(entry: &str, host: &str, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    if let Ok(address) = host.parse::<IpAddr>() {
        return match entry.split_once('/') {
            Some((network, bits)) => is_within(address, network, bits),
            None => entry.trim_matches(['[', ']']).parse() == Ok(address) || entry == format!("{host}:{port}"),
        };
    }
    let domain = entry.strip_suffix(&format!(":{port}")).unwrap_or(entry);
    let domain = domain.trim_start_matches("*.").trim_start_matches('.');
    !domain.is_empty() && host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Whether an address is in a network such as `10.0.0.0/8`.
fn is_within(address: IpAddr, network: &str, bits: &str) -> bool {
    let (Ok(network), Ok(bits)) = (network.parse::<IpAddr>(), bits.parse::<u32>()) else { return false };
    let number = |address: IpAddr| match address {
        IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
        IpAddr::V6(v6) => (v6.to_bits(), 128),
    };
    let ((address, width), (network, network_width)) = (number(address), number(network));
    width == network_width
        && bits <= width
        && address.checked_shr(width - bits).unwrap_or(0) == network.checked_shr(width - bits).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(pairs: &[(&str, &str)]) -> Proxies {
        Proxies::of(&Environment::new(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))))
    }

    #[test]
    fn each_scheme_has_its_own_proxy_and_all_proxy_stands_in() {
        let found = |pairs: &[(&str, &str)]| {
            let Proxies { http, https, .. } = proxies(pairs);
            [http, https].map(|proxy| match proxy.as_ref().map(ProxyVariable::http_address) {
                None => "none".to_owned(),
                Some(Ok(address)) => address.expose().to_owned(),
                Some(Err(reason)) => reason,
            })
        };
        assert_eq!(found(&[]), ["none", "none"]);
        assert_eq!(found(&[("HTTPS_PROXY", "http://a:1")]), ["none", "http://a:1"]);
        assert_eq!(found(&[("ALL_PROXY", "b:2"), ("https_proxy", "http://a:1")]), ["b:2", "http://a:1"]);
        assert_eq!(found(&[("HTTPS_PROXY", ""), ("ALL_PROXY", "b:2")]), ["b:2", "b:2"]);
        let [refused, own] = found(&[("ALL_PROXY", "socks5h://user:secret@a:1"), ("HTTPS_PROXY", "b:2")]);
        assert_eq!(refused, "ALL_PROXY is a socks5h proxy; only HTTP proxies are supported, http://host:port");
        assert_eq!(own, "b:2");
    }

    #[test]
    fn exceptions_name_hosts_domains_and_networks() {
        let table = [
            ("corp.example", "corp.example", true),
            ("corp.example", "hub.corp.example", true),
            ("corp.example", "notcorp.example", false),
            (".corp.example", "hub.corp.example", true),
            ("*.corp.example", "hub.corp.example", true),
            ("a, Corp.Example ,b", "corp.example", true),
            ("corp.example:443", "corp.example", true),
            ("corp.example:444", "corp.example", false),
            ("*", "anything", true),
            ("10.0.0.0/8", "10.200.3.4", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("0.0.0.0/0", "11.0.0.1", true),
            ("fd00::/8", "fd12::1", true),
            ("10.0.0.0/8", "fd12::1", false),
            ("10.0.0.7", "10.0.0.7", true),
            ("10.0.0.7:443", "10.0.0.7", true),
            ("10.0.0.0/99", "10.0.0.7", false),
            ("", "corp.example", false),
            (".", "corp.example", false),
        ];
        for (list, host, expected) in table {
            let proxies = proxies(&[("NO_PROXY", list)]);
            assert_eq!(proxies.spare(host, 443), expected, "{list} {host}");
        }
    }
}
