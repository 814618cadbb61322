//! What surrounds every exchange: the request id, the headers that every answer carries, one log line, and the
//! metrics; counted once, when the answer ends or its client has left.

mod guard;

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;

use crate::catalog::ModelSpec;
use crate::engine;
use crate::http::auth::KeyName;
use crate::http::error::ErrorCode;
use crate::http::{HttpState, id, route_of};
use crate::observe::metrics::Receipt;
use guard::{Arriving, Guard, Leaving};

/// What a handler tells about a request, beside its answer; travels as a response extension.
#[derive(Debug, Clone, Default)]
pub struct Account {
    /// The model that was named, once it is known to exist.
    pub model: Option<Arc<ModelSpec>>,
    /// What was delivered.
    pub receipt: Option<Receipt>,
    pub timings: Stages,
}

/// Time per stage.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stages {
    pub parse: Duration,
    pub engine: engine::Timings,
    pub write: Duration,
}

/// How far a request has come, seen from its guard and from the body that arrives.
#[derive(Debug, Default)]
struct Progress {
    request_bytes: AtomicU64,
    /// The whole body has arrived.
    arrived: AtomicBool,
}

/// The middleware.
pub async fn exchange(State(state): State<Arc<HttpState>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let route = route_of(request.extensions().get::<MatchedPath>().map(MatchedPath::as_str));
    let request_id = request_id(request.headers());
    let span = tracing::info_span!("request", id = request_id.to_str().unwrap_or_default());
    let progress = Arc::new(Progress::default());
    let mut guard = Guard::new(&state, route, method_label(request.method()), started, Arc::clone(&progress));
    guard.request_id = request_id.clone();
    guard.note_retry(request.headers());
    let request = request.map(|body| Body::new(Arriving::new(body, Arc::clone(&progress))));

    // hyper lets go of a connection that offers another protocol when it closes, and of what is not written by then.
    let may_close = !request.headers().contains_key(header::UPGRADE);
    let mut response = next.run(request).instrument(span).await;
    guard.status = Some(response.status());
    guard.account = response.extensions_mut().remove::<Account>().unwrap_or_default();
    guard.key = response.extensions_mut().remove::<KeyName>();
    guard.code = response.extensions_mut().remove::<ErrorCode>();
    let arrived = progress.arrived.load(Ordering::Relaxed);
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("x-request-id"), request_id);
    if !arrived || (may_close && state.engine.is_leaving()) {
        // The rest of the body will not be read, so the connection cannot carry another request; or this server is about to
        // end, and the next request had better go elsewhere than into a connection that is being closed.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if route.is_api() {
        api_headers(headers, &guard.account, started.elapsed());
    }
    response.map(|body| Body::new(Leaving::new(body, guard)))
}

fn api_headers(headers: &mut HeaderMap, account: &Account, took: Duration) {
    let millis = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    headers.insert(HeaderName::from_static("openai-processing-ms"), millis.into());
    headers.insert(HeaderName::from_static("openai-version"), HeaderValue::from_static("2020-10-01"));
    let Some(model) = &account.model else { return };
    if let Ok(id) = HeaderValue::from_str(&model.id) {
        headers.insert(HeaderName::from_static("openai-model"), id);
    }
    if account.receipt.is_some()
        && let Ok(timing) = HeaderValue::from_str(&server_timing(&account.timings))
    {
        headers.insert(HeaderName::from_static("server-timing"), timing);
    }
}

fn server_timing(stages: &Stages) -> String {
    let Stages { parse, engine: engine::Timings { tokenize, queue, run }, write } = stages;
    let stages = [("parse", parse), ("tokenize", tokenize), ("queue", queue), ("run", run), ("write", write)];
    let mut text = String::with_capacity(SERVER_TIMING_CHARS);
    for (name, took) in stages {
        let micros = took.saturating_add(Duration::from_nanos(500)).as_micros();
        let separator = if text.is_empty() { "" } else { ", " };
        // Whole numbers: a fraction of three digits takes ten times as long to print from a float. A `String` takes
        // whatever is written.
        let _ = write!(text, "{separator}{name};dur={}.{:03}", micros / 1000, micros % 1000);
    }
    text
}

/// Room for five stages of less than a minute.
const SERVER_TIMING_CHARS: usize = 112;

/// Milliseconds to the microsecond.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

/// The client's own id if it is sane, else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let sane = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=128).contains(&bytes.len())
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._:-".contains(byte))
    };
    let own = headers.get("x-request-id").filter(sane).cloned();
    own.unwrap_or_else(|| HeaderValue::from_str(&id::unique("req_")).unwrap_or(HeaderValue::from_static("req_")))
}

/// A label from a closed set.
fn method_label(method: &Method) -> &'static str {
    const KNOWN: [&str; 9] = ["GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "CONNECT"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or("other")
}
