//! `POST /v1/embeddings`: headers, body, JSON, model, limits of the key, values, room in the queue, tokens,
//! vectors, answer; in this order, because the first thing wrong decides which error the client sees.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::HeaderName;
use axum::response::{IntoResponse, Response};
use tokio::sync::OwnedSemaphorePermit;

use crate::engine::{Embedded, EngineError, Slot};
use crate::http::HttpState;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::exchange::Account;
use crate::http::keys::{self, Key, Permit};
use crate::http::limits;
use crate::http::path;
use crate::http::reply::{self, Encoding};
use crate::http::wire::{self, WireRequest};
use crate::observe::metrics::{ModelMetrics, Receipt};
use crate::request::{EmbedRequest, Flow, RawRequest};

/// The handler. What it learnt travels to the log, the metrics and the headers beside the answer, also a failed one.
pub async fn embeddings(State(state): State<Arc<HttpState>>, request: Request) -> Response {
    let mut account = Account::default();
    let caller = request.extensions().get::<Caller>().map(|Caller(key)| Arc::clone(key));
    let mut permit = None;
    let answer = answer(&state, request, (&mut account, caller.as_ref(), &mut permit)).await;
    if let Some(permit) = &mut permit {
        let read = account.receipt.as_ref().map_or(0, |receipt| receipt.row_tokens.iter().sum::<usize>());
        permit.settle(read as u64);
    }
    let mut response = match answer {
        // Who is slow to take an answer is still being served: the place among its key's requests goes with it.
        Ok((body, room)) => reply::body_holding((room, permit), body, "application/json"),
        Err(error) => error.into_response(),
    };
    if let Some(key) = &caller {
        key.write_headers(response.headers_mut());
    }
    if let Some(receipt) = account.receipt.as_ref().filter(|receipt| receipt.truncated > 0) {
        response.headers_mut().insert(HeaderName::from_static("x-truncated-inputs"), receipt.truncated.into());
    }
    response.extensions_mut().insert(account);
    response
}

async fn answer(
    state: &HttpState,
    request: Request,
    (account, caller, permit): (&mut Account, Option<&Arc<Key>>, &mut Option<Permit>),
) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), ApiError> {
    let received = Instant::now();
    // Decided here, once: what is under way when the drain begins is answered, however slowly its body arrives.
    if state.engine.is_draining() {
        return Err(ApiError::from_engine(EngineError::Draining, "", received.elapsed()));
    }
    limits::check_headers(request.headers())?;
    let deployment = path::deployment(request.uri());
    let body = state.bodies.read(request.into_body()).await?;
    let parsing = Instant::now();
    let caps = state.caps();
    // The body's share of the budget is given back when the vectors are there: until then its texts are in memory.
    let (share, parsed) = off_thread(body.bytes.len(), move || {
        let parsed = wire::parse(&body.bytes, caps);
        (body.into_share(), parsed)
    })
    .await?;
    let parsed = parsed?;
    // Ids take more room than their digits did.
    let share = state.bodies.hold(share, parsed.raw.inputs.size_bytes())?;
    account.timings.parse = parsing.elapsed();

    let WireRequest { model: name, encoding_format, has_input, mut raw, refusal } = parsed;
    // Azure's clients name it in the path, and not always in the body.
    let (slot, name, role) = model(state, deployment.or(name))?;
    raw.role_suffix = role.or_else(|| caller.and_then(|key| default_role(key, &raw)));
    account.model = Some(Arc::clone(&slot.spec));
    if let Some(key) = caller {
        *permit = Some(admit(state, key, &name, (slot, &raw))?);
    }
    let metrics = state.engine.metrics.model(&slot.spec.id);
    metrics.parsed(account.timings.parse);
    let failed = |error| ApiError::from_engine(error, &name, received.elapsed());
    let deadline = received + state.requests.request_timeout;
    let served = state.engine.lease(slot, deadline).await.map_err(failed)?;
    if !has_input {
        return Err(ApiError::MissingInput);
    }
    let mut request = EmbedRequest::parse(name.clone(), raw, &served.limits, deadline)?;
    request.flow = caller.map_or_else(Flow::default, |key| key.flow);
    if let Some(refusal) = refusal {
        return Err(refusal.into());
    }
    let encoding = match encoding_format {
        None => Encoding::default(),
        Some(given) => Encoding::parse(&given).ok_or(ApiError::EncodingFormat { given })?,
    };
    let n_rows = request.inputs.len();
    let size_bytes = name.len() + reply::size_bytes(n_rows, n_rows.saturating_mul(served.limits.dimensions), encoding);
    // As for the queue: whoever would wait longer is told so now.
    let until = deadline.min(Instant::now() + served.queue.limits().timeout);
    let room = state.answers.reserve(size_bytes, until).await?;
    let embedded = served.embed(request).await.map_err(failed)?;
    drop(share);
    account.timings.engine = embedded.timings;
    let body = write(embedded, name, encoding, (account, &metrics)).await?;
    Ok((body, room))
}

/// The model a request means, the name that its answer repeats, and the role at the end of that name.
fn model(state: &HttpState, name: Option<String>) -> Result<(&Arc<Slot>, String, Option<&'static str>), ApiError> {
    let name = name.filter(|name| !name.is_empty());
    let names = state.engine.names();
    let (served, role) = name.as_deref().map_or((None, None), |name| {
        let (served, role) = names.split_role(name);
        (Some(served), role)
    });
    match (state.engine.slot(served), served, &name) {
        (Ok(slot), Some(served), Some(name)) => {
            if names.accepts_any() {
                state.strangers.note(names, served, &slot.spec.id);
            }
            Ok((slot, name.clone(), role))
        }
        (Ok(slot), _, _) => Ok((slot, slot.spec.id.clone(), None)),
        (Err(_), _, Some(model)) => Err(ApiError::UnknownModel { model: model.clone() }),
        (Err(_), _, None) => Err(ApiError::MissingModel),
    }
}

/// Whether the key may use this model, and as much of it as the request asks for.
fn admit(state: &HttpState, key: &Arc<Key>, name: &str, (slot, raw): (&Slot, &RawRequest)) -> Result<Permit, ApiError> {
    let model = || name.to_owned();
    if !key.may_use(&slot.spec.id) {
        return Err(ApiError::ModelNotAllowed { model: model() });
    }
    let max_row_tokens = slot.limits().map(|limits| limits.max_tokens);
    key.admit(keys::estimate(&raw.inputs, max_row_tokens)).map_err(|limited| {
        state.engine.metrics.http().limited(&key.name, limited.kind);
        ApiError::Limited { model: model(), limited }
    })
}

/// The key's role, for requests that choose no prompt.
fn default_role(key: &Key, raw: &RawRequest) -> Option<&'static str> {
    let RawRequest { prompt, prompt_name, input_type, task, .. } = raw;
    let chosen = [prompt, prompt_name, input_type, task].into_iter().any(Option::is_some);
    key.policy.default_role.filter(|_| !chosen)
}

async fn write(
    embedded: Embedded,
    name: String,
    encoding: Encoding,
    (account, metrics): (&mut Account, &ModelMetrics),
) -> Result<Vec<u8>, ApiError> {
    let writing = Instant::now();
    let rows = embedded.rows;
    let receipt = Receipt {
        row_tokens: rows.iter().map(|row| row.tokens).collect(),
        truncated: rows.iter().filter(|row| row.cut.is_some()).count(),
    };
    let values: usize = rows.iter().map(|row| row.vector.as_slice().len()).sum();
    // Digits take several times as long as the bytes they stand for.
    let per_value = match encoding {
        Encoding::Float => 4 * size_of::<f32>(),
        Encoding::Base64 => size_of::<f32>(),
    };
    let body = off_thread(values * per_value, move || reply::embeddings(&name, &rows, encoding)).await?;
    account.receipt = Some(receipt);
    account.timings.write = writing.elapsed();
    metrics.wrote(account.timings.write);
    Ok(body)
}

/// Runs `work` here when it is small, and on a thread that may block when it would hold up other connections.
async fn off_thread<R: Send + 'static>(
    size_bytes: usize,
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, ApiError> {
    if size_bytes <= INLINE_BYTES {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(panicked = error.is_panic(), "a blocking task ended without a result");
        ApiError::Internal
    })
}

/// About a quarter of a millisecond of work.
const INLINE_BYTES: usize = 256 * 1024;
