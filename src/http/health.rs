//! Is the process alive, may it be sent work, what does it measure, what is it.
//!
//! Liveness and readiness need no key and never wait: they read flags, not queues. What a failure says in detail is in
//! the log, not in a public answer.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use crate::engine::{Slot, SlotState};
use crate::http::models::Effective;
use crate::http::{HttpState, reply};
use crate::observe::metrics;
use crate::runner::Health;

#[derive(Debug, Serialize)]
struct Live {
    status: &'static str,
}

#[derive(Debug, Serialize)]
struct HealthReport {
    object: &'static str,
    /// `ready`, `loading`, `draining` or `not ready`.
    message: &'static str,
    ready: bool,
    models: Vec<ModelHealth>,
}

#[derive(Debug, Serialize)]
struct ModelHealth {
    id: String,
    ready: bool,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<String>,
}

#[derive(Debug, Serialize)]
struct Build {
    name: &'static str,
    version: &'static str,
    models: Vec<ModelVersion>,
    limits: Limits,
}

#[derive(Debug, Serialize)]
struct ModelVersion {
    id: String,
    aliases: Vec<String>,
    state: &'static str,
    max_model_len: Option<usize>,
    dimensions: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Limits {
    max_inputs: usize,
    max_request_tokens: usize,
    max_body_bytes: usize,
    max_header_bytes: usize,
    max_connections: usize,
    request_timeout_seconds: f64,
    allow_empty_input: bool,
    accept_any_model: bool,
}

/// The process answers.
pub async fn live() -> Response {
    reply::json(&Live { status: "live" })
}

/// Every model would compute a request now, and the server is not on its way out.
pub async fn ready(State(state): State<Arc<HttpState>>) -> Response {
    let models: Vec<ModelHealth> = state.engine.slots().iter().map(|slot| readiness(slot)).collect();
    let leaving = state.engine.is_leaving() || state.engine.is_draining();
    let ready = !leaving && models.iter().all(|model| model.ready);
    let message = match () {
        () if leaving => "draining",
        () if ready => "ready",
        () if models.iter().any(|model| model.state == LOADING) => LOADING,
        () => "not ready",
    };
    let mut response = reply::json(&HealthReport { object: "health.response", message, ready, models });
    if !ready {
        *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    }
    response
}

pub async fn metrics(State(state): State<Arc<HttpState>>) -> Response {
    reply::body(state.engine.metrics.encode().into_bytes(), metrics::CONTENT_TYPE)
}

pub async fn version(State(state): State<Arc<HttpState>>) -> Response {
    let models = state.engine.slots().iter().map(|slot| {
        let Effective { max_model_len, dimensions } = Effective::of(slot, &slot.spec);
        let (id, aliases) = (slot.spec.id.clone(), slot.spec.aliases.clone());
        ModelVersion { id, aliases, state: state_of(slot), max_model_len, dimensions }
    });
    let limits = Limits {
        max_inputs: state.requests.max_inputs,
        max_request_tokens: state.requests.max_request_tokens,
        max_body_bytes: state.http.max_body_bytes,
        max_header_bytes: state.http.max_header_bytes,
        max_connections: state.http.max_connections,
        request_timeout_seconds: state.requests.request_timeout.as_secs_f64(),
        allow_empty_input: state.requests.allow_empty_input,
        accept_any_model: state.requests.accept_any_model,
    };
    let (name, version) = (env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"));
    reply::json(&Build { name, version, models: models.collect(), limits })
}

fn readiness(slot: &Slot) -> ModelHealth {
    let state = state_of(slot);
    let progress = (state == LOADING).then(|| slot.progress.describe());
    ModelHealth { id: slot.spec.id.clone(), ready: state == READY, state, progress }
}

fn state_of(slot: &Slot) -> &'static str {
    match slot.state() {
        SlotState::Loading => LOADING,
        SlotState::Failed { .. } => "failed",
        SlotState::Ready(served) => match served.runner.health() {
            Health::Ready => READY,
            Health::Stalled { .. } => "stalled",
            Health::Dead => "dead",
        },
    }
}

const LOADING: &str = "loading";
const READY: &str = "ready";
