//! Is the process alive, may it be sent work, what does it measure, what is it.
//!
//! Liveness and readiness need no key and never wait: they read flags, not queues. What a failure says in detail is in
//! the log, not in a public answer.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::engine::{Slot, SlotState};
use crate::http::auth::Caller;
use crate::http::error::ApiError;
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
    #[serde(skip_serializing_if = "is_false")]
    default: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<String>,
    /// Why it failed, in general terms; the log has the details.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// Each of them, where it computes on several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    devices: Vec<DeviceReport>,
}

/// One device of a model.
#[derive(Debug, Serialize)]
struct DeviceReport {
    device: String,
    state: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Build {
    name: &'static str,
    version: &'static str,
    /// The default model, in the words of TEI and of Azure's clients.
    #[serde(skip_serializing_if = "Option::is_none")]
    model_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model_name: Option<String>,
    model_type: &'static str,
    model_provider_name: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_input_length: Option<usize>,
    max_client_batch_size: usize,
    models: Vec<ModelVersion>,
    memory: MemoryReport,
    limits: Limits,
}

/// What the models in memory, of those that are listed, need together.
#[derive(Debug, Serialize)]
struct MemoryReport {
    weight_bytes: u64,
    scratch_bytes: u64,
}

#[derive(Debug, Serialize)]
struct ModelVersion {
    id: String,
    aliases: Vec<String>,
    state: &'static str,
    max_model_len: Option<usize>,
    dimensions: Option<usize>,
    dtype: &'static str,
    /// Where it computes, and the tokens of one batch there, while it is in memory.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    devices: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_tokens: Option<usize>,
    /// What it needs in memory on each of them, known once it has been loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scratch_bytes: Option<u64>,
    default: bool,
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

/// Every model would compute a request now, if need be after loading it, and the server is not on its way out. With
/// `--keep-going` a failed model is listed and does not count, as long as there is another.
pub async fn ready(State(state): State<Arc<HttpState>>) -> Response {
    let default = state.engine.names().default_index();
    let slots = state.engine.slots().iter().enumerate();
    let models: Vec<ModelHealth> = slots.map(|(index, slot)| readiness(slot, index == default)).collect();
    let leaving = state.engine.is_leaving() || state.engine.is_draining();
    let excused = |model: &ModelHealth| state.engine.policy().keep_going && model.state == FAILED;
    let usable = models.iter().any(|model| model.ready);
    let ready = !leaving && usable && models.iter().all(|model| model.ready || excused(model));
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

/// The page tells of every model and every key: it is not for callers that may know of some models only.
pub async fn metrics(State(state): State<Arc<HttpState>>, caller: Option<Extension<Caller>>) -> Response {
    if caller.is_some_and(|Extension(Caller(key))| key.policy.models.is_some()) {
        return ApiError::PageNotAllowed { path: "/metrics" }.into_response();
    }
    reply::body(state.engine.metrics.encode().into_bytes(), metrics::CONTENT_TYPE)
}

/// The build, the limits, and the models that the caller's key may use.
pub async fn version(State(state): State<Arc<HttpState>>, caller: Option<Extension<Caller>>) -> Response {
    let may_use = |id: &str| caller.as_ref().is_none_or(|Extension(Caller(key))| key.may_use(id));
    let mut memory = MemoryReport { weight_bytes: 0, scratch_bytes: 0 };
    let mut models = Vec::new();
    for (index, slot) in state.engine.slots().iter().enumerate().filter(|(_, slot)| may_use(&slot.spec.id)) {
        let Effective { max_model_len, dimensions } = Effective::of(slot, &slot.spec);
        let (own, default) = (slot.memory(), index == state.engine.names().default_index());
        let (weight_bytes, scratch_bytes) = (own.map(|own| own.weight_bytes), own.map(|own| own.scratch_bytes));
        let (mut devices, mut batch_tokens) = (Vec::new(), None);
        if let SlotState::Ready(served) = slot.state() {
            devices = served.runner.devices().map(|(device, _)| device.to_owned()).collect();
            batch_tokens = Some(served.queue.batch_tokens());
            memory.weight_bytes += weight_bytes.unwrap_or(0);
            memory.scratch_bytes += scratch_bytes.unwrap_or(0);
        }
        models.push(ModelVersion {
            id: slot.spec.id.clone(),
            aliases: slot.spec.aliases.clone(),
            state: state_of(slot),
            max_model_len,
            dimensions,
            dtype: slot.spec.precision().name(),
            devices,
            batch_tokens,
            weight_bytes,
            scratch_bytes,
            default,
        });
    }
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
    let default = models.iter().find(|model| model.default);
    let model_id = default.map(|model| model.id.clone());
    reply::json(&Build {
        name: env!("CARGO_PKG_NAME"),
        version: env!("CARGO_PKG_VERSION"),
        model_name: model_id.clone(),
        model_id,
        model_type: "embeddings",
        model_provider_name: env!("CARGO_PKG_NAME"),
        max_input_length: default.and_then(|model| model.max_model_len),
        max_client_batch_size: limits.max_inputs,
        models,
        memory,
        limits,
    })
}

fn readiness(slot: &Slot, default: bool) -> ModelHealth {
    let now = slot.state();
    let state = name_of(&now);
    let reason = reason_of(&now);
    let progress = (state == LOADING).then(|| slot.progress.describe());
    // A request for a model that is not in memory waits a moment and is answered.
    let ready = state == READY || matches!(now, SlotState::Unloaded | SlotState::Waking);
    ModelHealth { id: slot.spec.id.clone(), ready, state, default, progress, reason, devices: devices_of(&now) }
}

fn state_of(slot: &Slot) -> &'static str {
    name_of(&slot.state())
}

/// A model's state in one word.
pub(super) fn name_of(state: &SlotState) -> &'static str {
    match state {
        SlotState::Loading | SlotState::Waking => LOADING,
        SlotState::Unloaded => "unloaded",
        SlotState::Failed(_) => FAILED,
        SlotState::Ready(served) => word(served.runner.health()),
    }
}

const fn word(health: Health) -> &'static str {
    match health {
        Health::Ready => READY,
        Health::Stalled { .. } => "stalled",
        Health::Dead | Health::Broken(_) => "dead",
    }
}

/// Why a model is not ready, in general terms.
fn reason_of(state: &SlotState) -> Option<&'static str> {
    match state {
        SlotState::Failed(failure) => Some(failure.at.describe()),
        SlotState::Ready(served) => fault(served.runner.health()),
        SlotState::Loading | SlotState::Waking | SlotState::Unloaded => None,
    }
}

const fn fault(health: Health) -> Option<&'static str> {
    match health {
        Health::Ready => None,
        Health::Stalled { .. } => Some("a forward pass takes too long"),
        Health::Dead => Some("its device thread ended"),
        Health::Broken(breakage) => Some(breakage.describe()),
    }
}

/// Every device by itself, where there are several.
fn devices_of(state: &SlotState) -> Vec<DeviceReport> {
    let SlotState::Ready(served) = state else { return Vec::new() };
    let report = |(device, health): (&str, Health)| DeviceReport {
        device: device.to_owned(),
        state: word(health),
        reason: fault(health),
    };
    let devices: Vec<DeviceReport> = served.runner.devices().map(report).collect();
    if devices.len() > 1 { devices } else { Vec::new() }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
const fn is_false(value: &bool) -> bool {
    !*value
}

const FAILED: &str = "failed";
const LOADING: &str = "loading";
const READY: &str = "ready";
