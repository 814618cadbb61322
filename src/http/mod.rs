//! The wire: the only place that knows `OpenAI`'s JSON and HTTP status codes.
//!
//! [`router`] shows every route and the whole middleware stack; [`server`] owns sockets and time. Order of checks: host
//! name and web origin, key, route and method, whether the server drains, headers of the body, its size, its JSON, the
//! model, whether the key may use it and has not used up its limits, the values, room for the answer, the queue. A route
//! is private unless the table says otherwise.

pub mod auth;
pub mod embeddings;
pub mod error;
pub mod exchange;
pub mod health;
pub mod host;
pub mod id;
pub mod keys;
pub mod limits;
pub mod models;
pub mod path;
pub mod reply;
pub mod server;
pub mod strangers;
pub mod stream;
pub mod wire;

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::{AllowHeaders, CorsLayer};

use crate::config::{ApiKey, HttpConfig, RequestConfig};
use crate::engine::Engine;
use crate::observe::metrics::{Metrics, PanicThread, UNMATCHED};
use auth::Keys;
use error::{ApiError, EMBEDDING_CODES};
use host::Hosts;
use limits::{AnswerBudget, BodyBudget};
use strangers::Strangers;
use wire::Caps;

/// What every handler may use.
#[derive(Debug)]
pub struct HttpState {
    pub engine: Arc<Engine>,
    http: HttpConfig,
    requests: RequestConfig,
    keys: Arc<Keys>,
    hosts: Hosts,
    bodies: BodyBudget,
    answers: AnswerBudget,
    strangers: Strangers,
}

/// Every route.
const ROUTES: [(&str, Endpoint); 25] = [
    ("/v1/embeddings", Endpoint::Embeddings),
    ("/embeddings", Endpoint::Embeddings),
    ("/v1/models", Endpoint::Models),
    ("/models", Endpoint::Models),
    ("/v1/models/{*id}", Endpoint::Model),
    ("/models/{*id}", Endpoint::Model),
    ("/openai/v1/embeddings", Endpoint::Embeddings),
    ("/openai/deployments/{deployment}/embeddings", Endpoint::Embeddings),
    ("/openai/v1/models", Endpoint::Models),
    ("/openai/v1/models/{*id}", Endpoint::Model),
    ("/", Endpoint::Live),
    ("/livez", Endpoint::Live),
    ("/healthz", Endpoint::Live),
    ("/v1/health/live", Endpoint::Live),
    ("/readyz", Endpoint::Ready),
    ("/health", Endpoint::Ready),
    ("/ready", Endpoint::Ready),
    ("/ping", Endpoint::Ready),
    ("/v1/health/ready", Endpoint::Ready),
    ("/metrics", Endpoint::Metrics),
    ("/v1/metrics", Endpoint::Metrics),
    ("/version", Endpoint::Version),
    ("/info", Endpoint::Version),
    ("/v1/version", Endpoint::Version),
    ("/v1/metadata", Endpoint::Version),
];

/// Builds the service of the whole server.
pub fn router(engine: Arc<Engine>, http: &HttpConfig, requests: &RequestConfig) -> Router {
    let keys = Arc::new(Keys::new(&http.api_keys));
    router_with(engine, http, requests, keys)
}

/// As [`router`], with keys that can be replaced later: [`replace_keys`].
pub fn router_with(engine: Arc<Engine>, http: &HttpConfig, requests: &RequestConfig, keys: Arc<Keys>) -> Router {
    let state = Arc::new(HttpState {
        http: http.clone(),
        requests: requests.clone(),
        keys,
        hosts: Hosts::new(http),
        bodies: BodyBudget::new(http),
        answers: AnswerBudget::new(http),
        strangers: Strangers::default(),
        engine,
    });
    prepare_metrics(&state.engine.metrics);
    prepare_keys(&state.engine.metrics, &http.api_keys);
    let (mut public, mut private) = (Router::new(), Router::new().fallback(unknown_url));
    for (path, endpoint) in ROUTES {
        if endpoint.is_public(http) {
            public = public.route(path, endpoint.handler());
        } else {
            private = private.route(path, endpoint.handler());
        }
    }
    // Unknown URLs are private too: without a key nobody learns which routes exist.
    let private = private.layer(from_fn_with_state(Arc::clone(&state), auth::require_key));
    surrounded(private.merge(public), state)
}

/// From now on `configured` are the keys; requests that have passed the check go on.
pub fn replace_keys(keys: &Keys, configured: &[ApiKey], metrics: &Metrics) {
    prepare_keys(metrics, configured);
    keys.replace(configured);
}

fn prepare_keys(metrics: &Metrics, keys: &[ApiKey]) {
    for key in keys {
        metrics.http().prepare_key(&key.name);
    }
}

/// The middleware around every route. What is added later runs earlier.
fn surrounded(routes: Router<Arc<HttpState>>, state: Arc<HttpState>) -> Router {
    let metrics = Arc::clone(&state.engine.metrics);
    let origins = &state.http.cors_origins;
    let routes = if origins.is_empty() { routes } else { routes.layer(cors(origins)) };
    let routes = routes
        .layer(from_fn_with_state(Arc::clone(&state), host::check))
        .layer(CatchPanicLayer::custom(move |_: Box<dyn Any + Send>| answer_panic(&metrics)))
        .layer(from_fn_with_state(Arc::clone(&state), exchange::exchange))
        .with_state(state);
    // Before routing, hence around the router: what a path means is decided once, for keys and routes alike.
    Router::new().fallback_service(routes.map_request(path::normalise).map_response(hide_methods))
}

/// axum names a route's methods on every answer that its fallback gives, outside all middleware: to a caller without a
/// key that would tell which routes exist.
fn hide_methods(mut response: Response) -> Response {
    if response.status() != StatusCode::METHOD_NOT_ALLOWED {
        response.headers_mut().remove(header::ALLOW);
    }
    response
}

/// A route as the outside may know it: its pattern, the methods it allows, and whether it needs a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteInfo {
    pub pattern: &'static str,
    pub allow: &'static str,
    pub needs_key: bool,
}

/// Every route of [`router`] under this configuration; a test walks them.
pub fn routes(http: &HttpConfig) -> impl Iterator<Item = RouteInfo> {
    ROUTES.into_iter().map(|(pattern, endpoint)| RouteInfo {
        pattern,
        allow: endpoint.allow(),
        needs_key: !endpoint.is_public(http),
    })
}

/// What a route serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Embeddings,
    Models,
    Model,
    Live,
    Ready,
    Metrics,
    Version,
}

/// The route of one exchange, for labels and headers.
#[derive(Debug, Clone, Copy)]
struct Route {
    pattern: &'static str,
    endpoint: Option<Endpoint>,
}

/// The route whose pattern was matched.
fn route_of(matched: Option<&str>) -> Route {
    let found = ROUTES.into_iter().find(|(pattern, _)| Some(*pattern) == matched);
    match found {
        Some((pattern, endpoint)) => Route { pattern, endpoint: Some(endpoint) },
        None => Route { pattern: UNMATCHED, endpoint: None },
    }
}

impl HttpState {
    fn caps(&self) -> Caps {
        let RequestConfig { max_inputs, max_request_tokens, .. } = self.requests;
        Caps { max_inputs, max_request_tokens }
    }
}

impl Route {
    /// Whether `OpenAI`'s headers belong on its answers.
    const fn is_api(self) -> bool {
        matches!(self.endpoint, None | Some(Endpoint::Embeddings | Endpoint::Models | Endpoint::Model))
    }

    /// Whether it is polled by machines, so that its log lines would only hide others.
    const fn is_quiet(self) -> bool {
        matches!(self.endpoint, Some(Endpoint::Live | Endpoint::Ready | Endpoint::Metrics))
    }
}

impl Endpoint {
    /// The list of routes that need no key. Whatever is not in it is private.
    const fn is_public(self, http: &HttpConfig) -> bool {
        match self {
            Self::Live | Self::Ready => true,
            Self::Metrics => http.metrics_public,
            Self::Embeddings | Self::Models | Self::Model | Self::Version => false,
        }
    }

    const fn allow(self) -> &'static str {
        match self {
            Self::Embeddings => "POST",
            Self::Models | Self::Model | Self::Live | Self::Ready | Self::Metrics | Self::Version => "GET, HEAD",
        }
    }

    fn handler(self) -> MethodRouter<Arc<HttpState>> {
        let handler = match self {
            Self::Embeddings => post(embeddings::embeddings),
            Self::Models => get(models::list),
            Self::Model => get(models::retrieve),
            Self::Live => get(health::live),
            Self::Ready => get(health::ready),
            Self::Metrics => get(health::metrics),
            Self::Version => get(health::version),
        };
        let allow = self.allow();
        handler.fallback(move |method: Method, uri: Uri| async move {
            let (method, path) = (method.to_string(), uri.path().to_owned());
            ApiError::MethodNotAllowed { method, path, allow }.into_response()
        })
    }

    /// The answers it can give, so that their series start at zero.
    const fn statuses(self) -> &'static [u16] {
        match self {
            Self::Embeddings => &[200, 400, 401, 403, 404, 405, 408, 413, 415, 429, 500, 503, 504],
            Self::Model => &[200, 401, 404],
            Self::Models | Self::Version => &[200, 401],
            Self::Metrics => &[200, 401, 403],
            Self::Live => &[200],
            Self::Ready => &[200, 503],
        }
    }
}

async fn unknown_url(method: Method, uri: Uri) -> Response {
    ApiError::UnknownUrl { method: method.to_string(), path: uri.path().to_owned() }.into_response()
}

/// A panic costs its own request. What it said is not logged, because it may quote an input; where it happened is.
fn answer_panic(metrics: &Metrics) -> Response {
    metrics.panicked(PanicThread::Http);
    tracing::error!("a request handler panicked; its request failed");
    ApiError::Internal.into_response()
}

/// Exact origins, no credentials; the headers a browser asks for are granted as asked.
fn cors(origins: &[String]) -> CorsLayer {
    let origins: Vec<HeaderValue> = origins.iter().filter_map(|origin| origin.parse().ok()).collect();
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::HEAD])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED.map(HeaderName::from_static))
        // A page asks once, and not before every request.
        .max_age(PREFLIGHT_AGE)
}

fn prepare_metrics(metrics: &Metrics) {
    let http = metrics.http();
    for (pattern, endpoint) in ROUTES {
        let methods: &[&'static str] = if endpoint.allow() == "POST" { &["POST"] } else { &["GET"] };
        http.prepare(pattern, methods, endpoint.statuses());
        if endpoint == Endpoint::Embeddings {
            http.prepare_embedding(pattern, &EMBEDDING_CODES);
        }
    }
    http.prepare(UNMATCHED, &["GET", "POST"], &[401, 404]);
}

/// Chrome keeps such an answer for two hours at most; settings may change sooner.
const PREFLIGHT_AGE: Duration = Duration::from_mins(10);

/// Our headers that a script in a browser may read.
const EXPOSED: [&str; 15] = [
    "x-request-id",
    "openai-model",
    "openai-processing-ms",
    "openai-version",
    "retry-after",
    "retry-after-ms",
    "server-timing",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
    "x-should-retry",
    "x-truncated-inputs",
];

#[cfg(test)]
mod tests;
