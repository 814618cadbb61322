//! The guard of one exchange, and the bodies it watches. Whatever happens to an exchange, its guard is dropped, and
//! dropping it is what counts and logs.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::{Account, Progress, millis};
use crate::http::auth::KeyName;
use crate::http::error::ErrorCode;
use crate::http::{HttpState, Route};
use crate::observe::metrics::{Answer, Gone, HttpMetrics, UNKNOWN_MODEL};

/// What is known of an exchange; counted and logged on drop.
#[derive(Debug)]
pub(super) struct Guard {
    state: Arc<HttpState>,
    route: Route,
    method: &'static str,
    started: Instant,
    progress: Arc<Progress>,
    pub(super) request_id: HeaderValue,
    retry: u32,
    /// None until the handler has answered: a guard dropped before that had its client leave.
    pub(super) status: Option<StatusCode>,
    pub(super) account: Account,
    pub(super) key: Option<KeyName>,
    pub(super) code: Option<ErrorCode>,
    response_bytes: u64,
    /// The answer was handed over completely.
    complete: bool,
}

/// The status in the log of a request whose client left before the answer: no such answer is ever sent.
const CLIENT_GONE: u16 = 499;

impl Guard {
    pub(super) fn new(
        state: &Arc<HttpState>,
        route: Route,
        method: &'static str,
        started: Instant,
        progress: Arc<Progress>,
    ) -> Self {
        state.engine.metrics.http().started(route.pattern);
        Self {
            state: Arc::clone(state),
            route,
            method,
            started,
            progress,
            request_id: HeaderValue::from_static(""),
            retry: 0,
            status: None,
            account: Account::default(),
            key: None,
            code: None,
            response_bytes: 0,
            complete: false,
        }
    }

    /// Counts a repetition that an SDK declares.
    pub(super) fn note_retry(&mut self, headers: &HeaderMap) {
        let count = headers.get("x-stainless-retry-count").and_then(|count| count.to_str().ok()?.parse().ok());
        self.retry = count.unwrap_or(0);
        if self.retry > 0 {
            self.metrics().retry_seen(self.route.pattern);
        }
    }

    fn metrics(&self) -> &HttpMetrics {
        self.state.engine.metrics.http()
    }

    fn gone(&self) -> Option<Gone> {
        match self.status {
            None if self.progress.arrived.load(Ordering::Relaxed) => Some(Gone::Running),
            None => Some(Gone::Reading),
            Some(_) if self.complete => None,
            Some(_) => Some(Gone::Writing),
        }
    }

    fn count(&self) {
        let (metrics, route) = (self.metrics(), self.route.pattern);
        metrics.ended(route);
        if let Some(stage) = self.gone() {
            metrics.client_gone(route, stage);
        }
        let Some(status) = self.status else { return };
        metrics.answered(&Answer {
            route,
            method: self.method,
            status: status.as_u16(),
            took: self.started.elapsed(),
            request_bytes: self.progress.request_bytes.load(Ordering::Relaxed),
            response_bytes: self.response_bytes,
        });
        let model = self.account.model.as_ref().map_or(UNKNOWN_MODEL, |model| &model.id);
        if let Some(ErrorCode(code)) = self.code {
            metrics.error(route, model, code);
        }
        if let Some(receipt) = &self.account.receipt {
            metrics.delivered(route, model, receipt);
        }
    }

    fn log(&self) {
        let status = if self.gone().is_some() { CLIENT_GONE } else { self.status.map_or(0, |status| status.as_u16()) };
        let timings = &self.account.timings;
        let receipt = self.account.receipt.as_ref();
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    method = self.method,
                    route = self.route.pattern,
                    status,
                    code = self.code.map(|ErrorCode(code)| code),
                    took_ms = millis(self.started.elapsed()),
                    parse_ms = receipt.map(|_| millis(timings.parse)),
                    tokenize_ms = receipt.map(|_| millis(timings.engine.tokenize)),
                    queue_ms = receipt.map(|_| millis(timings.engine.queue)),
                    run_ms = receipt.map(|_| millis(timings.engine.run)),
                    write_ms = receipt.map(|_| millis(timings.write)),
                    model = self.account.model.as_ref().map(|model| model.id.as_str()),
                    rows = receipt.map(|receipt| receipt.row_tokens.len()),
                    tokens = receipt.map(|receipt| receipt.row_tokens.iter().sum::<usize>()),
                    truncated = receipt.map(|receipt| receipt.truncated),
                    key = self.key.as_ref().map(|KeyName(name)| &**name),
                    retry = (self.retry > 0).then_some(self.retry),
                    request_id = self.request_id.to_str().unwrap_or_default(),
                    "request"
                )
            };
        }
        if self.route.is_quiet() {
            line!(debug);
        } else {
            line!(info);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.count();
        self.log();
    }
}

/// A request body, watched while it arrives.
#[derive(Debug)]
pub(super) struct Arriving {
    body: Body,
    progress: Arc<Progress>,
}

impl Arriving {
    pub(super) fn new(body: Body, progress: Arc<Progress>) -> Self {
        progress.arrived.store(body.is_end_stream(), Ordering::Relaxed);
        Self { body, progress }
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                let n_bytes = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.progress.request_bytes.fetch_add(n_bytes, Ordering::Relaxed);
                if self.body.is_end_stream() {
                    self.progress.arrived.store(true, Ordering::Relaxed);
                }
            }
            Poll::Ready(None) => self.progress.arrived.store(true, Ordering::Relaxed),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response body, watched while it is sent; it carries the guard to the end.
#[derive(Debug)]
pub(super) struct Leaving {
    body: Body,
    guard: Guard,
}

impl Leaving {
    pub(super) fn new(body: Body, mut guard: Guard) -> Self {
        // The answer to HEAD has a body that nobody asks for.
        guard.complete = body.is_end_stream() || guard.method == "HEAD";
        Self { body, guard }
    }
}

impl HttpBody for Leaving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(context);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                self.guard.response_bytes += frame.data_ref().map_or(0, Bytes::len) as u64;
                self.guard.complete = self.body.is_end_stream();
            }
            Poll::Ready(None) => self.guard.complete = true,
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
