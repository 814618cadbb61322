//! The metrics of the HTTP side. Every event is counted once, when its answer ends.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;

use super::UNKNOWN_MODEL;
use super::sheet::{Counters, FloatGauge, Gauges, Histograms, Labels, Scale, Sheet, labels, zero};

/// Routes that no pattern matched.
pub const UNMATCHED: &str = "unmatched";

/// Counters, gauges and histograms of requests and connections.
#[derive(Debug)]
pub struct HttpMetrics {
    requests: Counters,
    duration: Histograms,
    in_flight: Gauges,
    connections: FloatGauge,
    connections_refused: Counters,
    request_bytes: Histograms,
    response_bytes: Histograms,
    clients_gone: Counters,
    retries_seen: Counters,
    errors: Counters,
    auth_failures: Counters,
    limited: Counters,
    inputs: Counters,
    inputs_truncated: Counters,
    input_tokens_total: Counters,
    input_tokens: Histograms,
    request_inputs: Histograms,
    models: Vec<String>,
    routes: Known<&'static str, RouteSeries>,
}

/// Series that have been found before. Every request counts on a dozen of them, and to find one by its labels costs far
/// more than to count on it.
type Known<K, V> = RwLock<HashMap<K, Arc<V>>>;

/// The series that the requests of one route are counted on.
#[derive(Debug)]
struct RouteSeries {
    in_flight: FloatGauge,
    request_bytes: Histogram,
    response_bytes: Histogram,
    /// By method and status.
    answers: Known<(&'static str, u16), AnswerSeries>,
    /// By model.
    delivered: Known<String, DeliverySeries>,
}

#[derive(Debug)]
struct AnswerSeries {
    requests: Counter,
    duration: Histogram,
}

#[derive(Debug)]
struct DeliverySeries {
    inputs: Counter,
    truncated: Counter,
    tokens: Counter,
    request_inputs: Histogram,
    row_tokens: Histogram,
}

/// What is known under `key`, or else found and then known.
fn known<K, Q, V>(known: &Known<K, V>, key: &Q, find: impl FnOnce() -> V) -> Arc<V>
where
    K: Borrow<Q> + Hash + Eq,
    Q: Hash + Eq + ToOwned<Owned = K> + ?Sized,
{
    if let Some(found) = known.read().unwrap_or_else(PoisonError::into_inner).get(key) {
        return Arc::clone(found);
    }
    // Two may find it at the same time; they find the same series.
    let found = Arc::new(find());
    known.write().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), Arc::clone(&found));
    found
}

/// One answer that ended.
#[derive(Debug, Clone, Copy)]
pub struct Answer {
    /// The matched pattern, or [`UNMATCHED`].
    pub route: &'static str,
    pub method: &'static str,
    pub status: u16,
    pub took: Duration,
    pub request_bytes: u64,
    pub response_bytes: u64,
}

/// What an embeddings answer delivered.
#[derive(Debug, Clone, Default)]
pub struct Receipt {
    /// Tokens of each row, in order.
    pub row_tokens: Vec<usize>,
    /// Rows that were cut.
    pub truncated: usize,
}

/// How far an answer was when its client left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// The request was still arriving.
    Reading,
    /// It was being tokenised, queued or computed.
    Running,
    /// The answer was being sent.
    Writing,
}

/// Why a connection was not served, or not served at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// All permits were taken: it waited in the kernel's queue.
    Limit,
    /// The head of a request did not arrive in time.
    HeaderTimeout,
    /// What arrived was not HTTP, or more of it than is allowed.
    Malformed,
}

/// Why a key was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthFailure {
    Missing,
    Wrong,
}

/// Which limit of a key a request ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    Requests,
    Tokens,
    Concurrency,
}

// === impl HttpMetrics ===

impl HttpMetrics {
    #[rustfmt::skip]
    pub(super) fn new(s: &mut Sheet, models: &[String]) -> Self {
        use Scale::{Bytes, Requests, Rows, Tokens};
        let metrics = Self {
            requests: s.counters("embedserve_http_requests", "Answers, by route, method and status"),
            duration: s.histograms(Requests, "embedserve_http_request_duration_seconds", "From the head of a request to the end of its answer"),
            in_flight: s.gauges("embedserve_http_requests_in_flight", "Requests being answered"),
            connections: s.gauges("embedserve_http_connections", "Open connections").get_or_create_owned(&labels([])),
            connections_refused: s.counters("embedserve_http_connections_refused", "Connections kept waiting or closed, by reason"),
            request_bytes: s.histograms(Bytes, "embedserve_http_request_body_bytes", "Request bodies on the wire"),
            response_bytes: s.histograms(Bytes, "embedserve_http_response_body_bytes", "Response bodies on the wire"),
            clients_gone: s.counters("embedserve_http_clients_gone", "Clients that left before their answer ended, by stage"),
            retries_seen: s.counters("embedserve_http_retries_seen", "Requests that an SDK marked as a repetition"),
            errors: s.counters("embedserve_errors", "Error answers, by route, model and code"),
            auth_failures: s.counters("embedserve_auth_failures", "Refused keys, by reason"),
            limited: s.counters("embedserve_limited", "Requests refused for a limit of their key, by key and kind"),
            inputs: s.counters("embedserve_inputs", "Inputs that got a vector"),
            inputs_truncated: s.counters("embedserve_inputs_truncated", "Inputs that were cut to fit"),
            input_tokens_total: s.counters("embedserve_input_tokens", "Tokens read; the sum of every usage"),
            input_tokens: s.histograms(Tokens, "embedserve_input_row_tokens", "Tokens of one input"),
            request_inputs: s.histograms(Rows, "embedserve_request_inputs", "Inputs of one request"),
            models: models.iter().cloned().chain([UNKNOWN_MODEL.to_owned()]).collect(),
            routes: Known::default(),
        };
        for end in [ConnectionEnd::Limit, ConnectionEnd::HeaderTimeout, ConnectionEnd::Malformed] {
            zero(&metrics.connections_refused, &labels([("reason", end.label().into())]));
        }
        for reason in [AuthFailure::Missing, AuthFailure::Wrong] {
            zero(&metrics.auth_failures, &labels([("reason", reason.label().into())]));
        }
        metrics.prepare_key(NO_KEY);
        for model in &metrics.models {
            zero(&metrics.input_tokens, &labels([("model", model.clone().into())]));
        }
        metrics
    }

    /// Creates a route's series: the answers that its handler can give.
    pub fn prepare(&self, route: &'static str, methods: &[&'static str], statuses: &[u16]) {
        for status in statuses {
            for method in methods {
                self.request_counter(route, method, *status);
            }
            zero(&self.duration, &labels([("route", route.into()), ("status", status.to_string().into())]));
        }
        let own = labels([("route", route.into())]);
        zero(&self.in_flight, &own);
        zero(&self.request_bytes, &own);
        zero(&self.response_bytes, &own);
        zero(&self.retries_seen, &own);
        for stage in [Gone::Reading, Gone::Running, Gone::Writing] {
            zero(&self.clients_gone, &labels([("route", route.into()), ("stage", stage.label().into())]));
        }
    }

    /// Creates the series of a route that embeds, for every model and every error code that it can answer with.
    pub fn prepare_embedding(&self, route: &'static str, codes: &[&'static str]) {
        zero(&self.request_inputs, &labels([("route", route.into())]));
        for model in &self.models {
            let own = of_model(route, model);
            zero(&self.inputs, &own);
            zero(&self.inputs_truncated, &own);
            zero(&self.input_tokens_total, &own);
            for code in codes {
                zero(&self.errors, &error_labels(route, model, code));
            }
        }
    }

    fn route(&self, route: &'static str) -> Arc<RouteSeries> {
        known(&self.routes, &route, || {
            let own = labels([("route", route.into())]);
            RouteSeries {
                in_flight: self.in_flight.get_or_create_owned(&own),
                request_bytes: self.request_bytes.get_or_create_owned(&own),
                response_bytes: self.response_bytes.get_or_create_owned(&own),
                answers: Known::default(),
                delivered: Known::default(),
            }
        })
    }

    pub fn started(&self, route: &'static str) {
        self.route(route).in_flight.inc();
    }

    /// Balances [`Self::started`], whatever became of the request.
    pub fn ended(&self, route: &'static str) {
        self.route(route).in_flight.dec();
    }

    pub fn answered(&self, answer: &Answer) {
        let Answer { route, method, status, .. } = *answer;
        let series = self.route(route);
        let own = known(&series.answers, &(method, status), || {
            let timed = labels([("route", route.into()), ("status", status.to_string().into())]);
            AnswerSeries {
                requests: self.request_counter(route, method, status),
                duration: self.duration.get_or_create_owned(&timed),
            }
        });
        own.requests.inc();
        own.duration.observe(answer.took.as_secs_f64());
        series.request_bytes.observe(answer.request_bytes as f64);
        series.response_bytes.observe(answer.response_bytes as f64);
    }

    pub fn delivered(&self, route: &'static str, model: &str, receipt: &Receipt) {
        let own = known(&self.route(route).delivered, model, || {
            let own = of_model(route, model);
            DeliverySeries {
                inputs: self.inputs.get_or_create_owned(&own),
                truncated: self.inputs_truncated.get_or_create_owned(&own),
                tokens: self.input_tokens_total.get_or_create_owned(&own),
                request_inputs: self.request_inputs.get_or_create_owned(&labels([("route", route.into())])),
                row_tokens: self.input_tokens.get_or_create_owned(&labels([("model", model.to_owned().into())])),
            }
        });
        let rows = receipt.row_tokens.len();
        own.inputs.inc_by(rows as u64);
        own.truncated.inc_by(receipt.truncated as u64);
        own.tokens.inc_by(receipt.row_tokens.iter().sum::<usize>() as u64);
        own.request_inputs.observe(rows as f64);
        for n_tokens in &receipt.row_tokens {
            own.row_tokens.observe(*n_tokens as f64);
        }
    }

    /// `model` is a canonical id, or [`UNKNOWN_MODEL`].
    pub fn error(&self, route: &'static str, model: &str, code: &'static str) {
        self.errors.get_or_create(&error_labels(route, model, code)).inc();
    }

    pub fn client_gone(&self, route: &'static str, stage: Gone) {
        self.clients_gone.get_or_create(&labels([("route", route.into()), ("stage", stage.label().into())])).inc();
    }

    pub fn retry_seen(&self, route: &'static str) {
        self.retries_seen.get_or_create(&labels([("route", route.into())])).inc();
    }

    pub fn auth_failed(&self, reason: AuthFailure) {
        self.auth_failures.get_or_create(&labels([("reason", reason.label().into())])).inc();
    }

    /// Creates the series of a configured key.
    pub fn prepare_key(&self, name: &str) {
        for kind in LimitKind::ALL {
            zero(&self.limited, &limit_labels(name, kind));
        }
    }

    /// A request was refused because its key, by its configured name, is over a limit.
    pub fn limited(&self, key: &str, kind: LimitKind) {
        self.limited.get_or_create(&limit_labels(key, kind)).inc();
    }

    pub fn connection_opened(&self) {
        self.connections.inc();
    }

    pub fn connection_closed(&self) {
        self.connections.dec();
    }

    pub fn connection_refused(&self, reason: ConnectionEnd) {
        self.connections_refused.get_or_create(&labels([("reason", reason.label().into())])).inc();
    }

    fn request_counter(&self, route: &'static str, method: &'static str, status: u16) -> Counter {
        let series =
            labels([("route", route.into()), ("method", method.into()), ("status", status.to_string().into())]);
        self.requests.get_or_create_owned(&series)
    }
}

fn of_model(route: &'static str, model: &str) -> Labels {
    labels([("route", route.into()), ("model", model.to_owned().into())])
}

fn error_labels(route: &'static str, model: &str, code: &'static str) -> Labels {
    labels([("route", route.into()), ("model", model.to_owned().into()), ("code", code.into())])
}

fn limit_labels(key: &str, kind: LimitKind) -> Labels {
    labels([("key", key.to_owned().into()), ("kind", kind.label().into())])
}

/// The label of the series that exist before any key is configured.
const NO_KEY: &str = "none";

impl Gone {
    const fn label(self) -> &'static str {
        match self {
            Self::Reading => "reading",
            Self::Running => "running",
            Self::Writing => "writing",
        }
    }
}

impl ConnectionEnd {
    const fn label(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::HeaderTimeout => "header_timeout",
            Self::Malformed => "malformed",
        }
    }
}

impl AuthFailure {
    const fn label(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Wrong => "wrong",
        }
    }
}

impl LimitKind {
    pub const ALL: [Self; 3] = [Self::Requests, Self::Tokens, Self::Concurrency];

    const fn label(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::Concurrency => "concurrency",
        }
    }
}
