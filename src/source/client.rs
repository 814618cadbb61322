//! One HTTP exchange under policy: timeouts, a prompt stop, checked redirects, and a token that stays at home.
//!
//! Each exchange runs on a thread of its own and hands its answer over in blocks through a bounded channel, because a
//! blocked read cannot be interrupted: the caller looks at `stop` every few milliseconds and simply leaves, and the
//! thread ends at its own timeout. Redirects are followed here and not by ureq: the token goes to the endpoint's own
//! origin only, and `origin` decides where a redirect may lead. Proxies and authorities are those of the configuration.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method, Request, Uri, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Proxy};

use crate::config::{Proxies, ProxyVariable, SourceConfig};
use crate::observe::secret::Secret;
use crate::small_file;
use crate::source::cache::STOP_POLL;
use crate::source::error::Cause;
use crate::source::origin::{Origin, check_address, check_redirect, join, parse_url, refused};

/// Speaks to one endpoint, and to wherever that sends us.
#[derive(Debug)]
pub(super) struct Client {
    direct: Agent,
    /// For addresses of either scheme, where a proxy leads there.
    http: Option<Agent>,
    https: Option<Agent>,
    proxies: Proxies,
    endpoint: Origin,
    token: Option<Secret>,
    stall: Duration,
}

/// What is asked.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub method: Method,
    pub url: Uri,
    /// First and last byte wanted.
    pub range: Option<(u64, u64)>,
    pub follow: Follow,
    /// What this is about, for messages: a file or repository name.
    pub what: String,
}

/// Which redirects are followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Follow {
    /// Within the origin; a redirect to elsewhere is the answer, since it carries the file's metadata.
    SameOrigin,
    All,
}

/// The last answer of a chain of redirects; its body is still on its way.
#[derive(Debug)]
pub(super) struct Answer {
    pub status: u16,
    /// Headers of every hop, the first hop first.
    pub hops: Vec<HeaderMap>,
    pub url: Uri,
    messages: Receiver<Message>,
    stall: Duration,
    what: String,
}

#[derive(Debug)]
enum Message {
    Head(u16, HeaderMap),
    Block(Vec<u8>),
    End,
    /// The body ended before it should have.
    Broken,
    Failed(Cause),
}

// === impl Client ===

impl Client {
    pub(super) fn new(config: &SourceConfig) -> Result<Self, Cause> {
        let endpoint = Origin::of(&parse_url(&config.endpoint)?)?;
        let roots = config.ca_file.as_deref().map(authorities).transpose()?;
        let agent = |proxy| {
            let builder = Agent::config_builder()
                .http_status_as_error(false)
                .max_redirects(0)
                .user_agent(concat!("embedserve/", env!("CARGO_PKG_VERSION")))
                // A compressed body would not have the announced length.
                .accept_encoding("identity")
                .proxy(proxy)
                .timeout_resolve(Some(CONNECT_TIMEOUT.min(config.stall_timeout)))
                .timeout_connect(Some(CONNECT_TIMEOUT.min(config.stall_timeout)))
                .timeout_per_read(Some(config.stall_timeout))
                .timeout_per_write(Some(config.stall_timeout));
            let builder = match &roots {
                Some(roots) => builder.tls_config(TlsConfig::builder().root_certs(roots.clone()).build()),
                None => builder,
            };
            builder.build().new_agent()
        };
        let through = |proxy: &ProxyVariable| -> Result<Agent, Cause> {
            let unusable = |reason| Cause::Unreachable { host: endpoint.host.clone(), reason };
            let address = proxy.http_address().map_err(unusable)?;
            // Not the library's own words: they may hold the address, and that a password.
            let malformed = |_| unusable("the address of the proxy is malformed".to_owned());
            Ok(agent(Some(Proxy::new(address.expose()).map_err(malformed)?)))
        };
        // From an address with TLS none leads to one without.
        let http = config.proxies.http.as_ref().filter(|_| endpoint.scheme == "http").map(through).transpose()?;
        let https = config.proxies.https.as_ref().map(through).transpose()?;
        let (proxies, token, stall) = (config.proxies.clone(), config.token.clone(), config.stall_timeout);
        Ok(Self { direct: agent(None), http, https, proxies, endpoint, token, stall })
    }

    /// What leads to an origin.
    fn agent(&self, origin: &Origin) -> Agent {
        let proxied = if origin.scheme == "https" { &self.https } else { &self.http };
        let proxied = proxied.as_ref().filter(|_| !self.proxies.spare(&origin.host, origin.port));
        proxied.unwrap_or(&self.direct).clone()
    }

    /// Sends and follows redirects until there is an answer, whatever its status.
    pub(super) fn send(&self, ask: &Ask, stop: &AtomicBool) -> Result<Answer, Cause> {
        let mut url = ask.url.clone();
        let mut hops = Vec::new();
        loop {
            let origin = Origin::of(&url)?;
            let mut answer = self.exchange(ask, &url, &origin, stop)?;
            hops.push(std::mem::take(&mut answer.hops).remove(0));
            let last = &hops[hops.len() - 1];
            let location = last.get(header::LOCATION).filter(|_| answer.is_redirect());
            let Some(location) = location else { return Ok(Answer { hops, ..answer }) };
            let next = location.to_str().ok().and_then(|to| join(&url, to)).ok_or_else(|| Cause::Redirect {
                from: origin.host.clone(),
                to: "(not shown)".to_owned(),
                reason: "the address is malformed",
            })?;
            let target = Origin::of(&next)?;
            if ask.follow == Follow::SameOrigin && target != origin {
                return Ok(Answer { hops, ..answer });
            }
            check_redirect(&origin, &target)?;
            if hops.len() > MAX_HOPS {
                return Err(refused(&origin, &target, "too many redirects"));
            }
            url = next;
        }
    }

    fn exchange(&self, ask: &Ask, url: &Uri, origin: &Origin, stop: &AtomicBool) -> Result<Answer, Cause> {
        let mut request = Request::builder().method(ask.method.clone()).uri(url.clone());
        if let Some((first, last)) = ask.range {
            request = request.header(header::RANGE, format!("bytes={first}-{last}"));
        }
        if let Some(token) = self.token.as_ref().filter(|_| *origin == self.endpoint) {
            request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.expose()));
        }
        let request = request.body(()).map_err(|_| Cause::Unreachable {
            host: origin.host.clone(),
            reason: "the request cannot be written as HTTP".to_owned(),
        })?;
        let (tx, messages) = sync_channel(BLOCKS_IN_FLIGHT);
        let exchange = Exchange {
            agent: self.agent(origin),
            // The endpoint itself was chosen by the operator; only what it points to is checked.
            guard: (*origin != self.endpoint).then(|| self.endpoint.clone()),
            host: origin.clone(),
            what: ask.what.clone(),
            stall: self.stall,
        };
        std::thread::Builder::new().name("fetch".to_owned()).spawn(move || exchange.run(request, &tx)).map_err(
            |error| Cause::Unreachable { host: origin.host.clone(), reason: format!("cannot start a thread: {error}") },
        )?;
        let mut answer = Answer {
            status: 0,
            hops: Vec::new(),
            url: url.clone(),
            messages,
            stall: self.stall,
            what: ask.what.clone(),
        };
        match answer.next(stop)? {
            Message::Head(status, headers) => {
                answer.status = status;
                answer.hops.push(headers);
                Ok(answer)
            }
            Message::Failed(cause) => Err(cause),
            Message::Block(_) | Message::End | Message::Broken => Err(answer.protocol("the answer has no head")),
        }
    }
}

// === impl Answer ===

impl Answer {
    pub(super) const fn is_redirect(&self) -> bool {
        matches!(self.status, 300..=399)
    }

    /// A header of the last hop.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.hops.last()?.get(name)?.to_str().ok()
    }

    /// A header of the first hop that has it.
    pub(super) fn header_of_any_hop(&self, name: &str) -> Option<&str> {
        self.hops.iter().find_map(|headers| headers.get(name))?.to_str().ok()
    }

    /// The next block of the body; `None` at its proper end, `Broken` turned into `Cut`.
    pub(super) fn block(&mut self, stop: &AtomicBool) -> Result<Option<Vec<u8>>, Cause> {
        match self.next(stop)? {
            Message::Block(bytes) => Ok(Some(bytes)),
            Message::End => Ok(None),
            Message::Broken => Err(Cause::Cut { what: self.what.clone(), received: 0, expected: 0 }),
            Message::Failed(cause) => Err(cause),
            Message::Head(..) => Err(self.protocol("the answer has two heads")),
        }
    }

    /// A whole small body.
    pub(super) fn bytes(&mut self, limit: usize, stop: &AtomicBool) -> Result<Vec<u8>, Cause> {
        let mut bytes = Vec::new();
        while let Some(block) = self.block(stop)? {
            bytes.extend_from_slice(&block);
            if bytes.len() > limit {
                let (size, limit) = (bytes.len() as u64, limit as u64);
                return Err(Cause::TooLarge { file: self.what.clone(), size, limit });
            }
        }
        Ok(bytes)
    }

    /// The error that this answer's status is.
    pub(super) fn status_error(&self) -> Cause {
        // Only the form in seconds; a date would need two clocks to agree.
        let seconds = self.header("retry-after").and_then(|text| text.trim().parse().ok());
        Cause::Status {
            host: self.host(),
            status: self.status,
            what: self.what.clone(),
            retry_after: seconds.map(Duration::from_secs),
        }
    }

    pub(super) fn protocol(&self, reason: &str) -> Cause {
        Cause::Protocol { host: self.host(), what: self.what.clone(), reason: reason.to_owned() }
    }

    /// What was asked for.
    pub(super) fn what(&self) -> &str {
        &self.what
    }

    fn host(&self) -> String {
        self.url.host().unwrap_or_default().to_owned()
    }

    fn next(&self, stop: &AtomicBool) -> Result<Message, Cause> {
        let begun = Instant::now();
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(Cause::Stopped);
            }
            match self.messages.recv_timeout(STOP_POLL) {
                Ok(message) => return Ok(message),
                Err(RecvTimeoutError::Timeout) if begun.elapsed() < self.stall => {}
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Cause::Stalled { what: self.what.clone(), after: self.stall });
                }
                // The sender always says how it ended; silence means that its thread died.
                Err(RecvTimeoutError::Disconnected) => return Err(self.protocol("the exchange ended without a word")),
            }
        }
    }
}

/// The part of an exchange that may block.
struct Exchange {
    agent: Agent,
    /// Set when the address came from a redirect: the endpoint that sent us.
    guard: Option<Origin>,
    host: Origin,
    what: String,
    stall: Duration,
}

impl Exchange {
    /// Ends quietly when the receiver has left.
    fn run(self, request: Request<()>, tx: &SyncSender<Message>) {
        use std::io::Read as _;

        if let Some(endpoint) = &self.guard
            && let Err(cause) = check_address(endpoint, &self.host, &self.agent)
        {
            let _ = tx.send(Message::Failed(cause));
            return;
        }
        let answer = match self.agent.run(request) {
            Ok(answer) => answer,
            Err(error) => {
                let _ = tx.send(Message::Failed(self.cause(error)));
                return;
            }
        };
        let (head, body) = answer.into_parts();
        if tx.send(Message::Head(head.status.as_u16(), head.headers)).is_err() {
            return;
        }
        let mut reader = body.into_reader();
        loop {
            let mut block = vec![0; BLOCK_BYTES];
            let message = match reader.read(&mut block) {
                Ok(0) => Message::End,
                Ok(n) => {
                    block.truncate(n);
                    Message::Block(block)
                }
                Err(error) if is_timeout(&error) => {
                    Message::Failed(Cause::Stalled { what: self.what.clone(), after: self.stall })
                }
                Err(_) => Message::Broken,
            };
            let more = matches!(message, Message::Block(_));
            if tx.send(message).is_err() || !more {
                return;
            }
        }
    }

    /// No text of ureq's that might hold an address with a query or a proxy's password.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the enum grows with features, and the rest all mean the same")]
    fn cause(&self, error: ureq::Error) -> Cause {
        let host = self.host.host.clone();
        let reason = match error {
            ureq::Error::Timeout(ureq::Timeout::Connect | ureq::Timeout::Resolve) => {
                "connecting took too long".to_owned()
            }
            ureq::Error::Timeout(_) => {
                return Cause::Stalled { what: self.what.clone(), after: self.stall };
            }
            ureq::Error::HostNotFound => "the host name is unknown".to_owned(),
            ureq::Error::ConnectProxyFailed(_) => "the proxy refused".to_owned(),
            ureq::Error::Io(error) => with_advice(error.to_string()),
            ureq::Error::Rustls(error) => with_advice(error.to_string()),
            ureq::Error::Protocol(_) | ureq::Error::LargeResponseHeader(..) => {
                return Cause::Protocol { host, what: self.what.clone(), reason: "not an HTTP answer".to_owned() };
            }
            _ => "the request failed".to_owned(),
        };
        Cause::Unreachable { host, reason }
    }
}

/// What to do about a certificate that nobody here knows.
fn with_advice(reason: String) -> String {
    if reason.contains("certificate") {
        return reason + "; the certificate of a private authority goes into SSL_CERT_FILE";
    }
    reason
}

/// Whether nothing came for too long, as the one who waits for blocks may notice a moment later.
fn is_timeout(error: &std::io::Error) -> bool {
    let cause = error.get_ref().and_then(|cause| cause.downcast_ref::<ureq::Error>());
    matches!(cause, Some(ureq::Error::Timeout(_)))
}

/// The certificates of a file as they stand there, one after the other.
fn authorities(path: &Path) -> Result<RootCerts, Cause> {
    let file = || path.display().to_string();
    let bytes = small_file::read(path, MAX_CA_BYTES).map_err(Cause::io("read", path))?;
    let items = parse_pem(&bytes).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        Ok(_) | Err(_) => None,
    });
    let certificates: Vec<_> = items.collect();
    if certificates.is_empty() {
        return Err(Cause::Unreadable { file: file(), reason: "it holds no certificate".to_owned() });
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

/// The lists of distributions have a quarter of a megabyte.
const MAX_CA_BYTES: u64 = 16 << 20;
/// A host that does not complete a handshake by then is not there: the next source should have its turn.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// As many as browsers and curl allow in practice.
const MAX_HOPS: usize = 10;
const BLOCK_BYTES: usize = 64 << 10;
/// Half a megabyte on its way between the socket and the disk.
const BLOCKS_IN_FLIGHT: usize = 8;
