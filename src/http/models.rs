//! `GET /v1/models` and `GET /v1/models/{id}`, from the closed catalogue.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::Uri;
use axum::response::{IntoResponse, Response};
use percent_encoding::percent_decode_str;
use serde::Serialize;

use crate::catalog::{ModelSpec, NameEntry};
use crate::engine::Slot;
use crate::http::HttpState;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::health;
use crate::http::reply;

#[derive(Debug, Serialize)]
struct List {
    object: &'static str,
    data: Vec<Model>,
}

/// One name that requests may use.
#[derive(Debug, Serialize)]
struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: String,
    /// The canonical id.
    root: String,
    /// As in `/readyz`: `ready`, `loading`, `unloaded` (a request loads it), `failed`, `stalled` or `dead`.
    state: &'static str,
    /// The limit that is enforced; absent until the model's own files have said it.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dimensions: Option<usize>,
    /// The number format that it computes in: vectors of different formats differ a little.
    dtype: &'static str,
}

/// The models that the caller's key may use.
pub async fn list(State(state): State<Arc<HttpState>>, caller: Option<Extension<Caller>>) -> Response {
    let entries = entries(&state, caller.as_deref());
    let data = entries.into_iter().filter_map(|entry| describe(&state, entry)).collect();
    reply::json(&List { object: "list", data })
}

/// The id is the rest of the path: SDKs send its slash as `%2F`, people as it is.
pub async fn retrieve(State(state): State<Arc<HttpState>>, caller: Option<Extension<Caller>>, uri: Uri) -> Response {
    let id = uri.path().split_once("/models/").map_or("", |(_, id)| id);
    let id = percent_decode_str(id).decode_utf8_lossy().into_owned();
    let entries = entries(&state, caller.as_deref());
    let (name, role) = state.engine.names().split_role(&id);
    let exact = entries.iter().position(|entry| entry.name == name);
    let found = exact.or_else(|| entries.iter().position(|entry| entry.name.eq_ignore_ascii_case(name)));
    let found = found.and_then(|index| entries.into_iter().nth(index)).map(|entry| match role {
        // A name with a role is no entry of its own; the answer repeats it.
        Some(_) => NameEntry { name: id.clone(), ..entry },
        None => entry,
    });
    let model = found.and_then(|entry| describe(&state, entry));
    match model {
        Some(model) => reply::json(&model),
        None => ApiError::NoSuchModel { model: id }.into_response(),
    }
}

/// The names that this caller may use: a model that its key may not use does not exist for it.
fn entries(state: &HttpState, caller: Option<&Caller>) -> Vec<NameEntry> {
    let mut entries = state.engine.names().entries();
    if let Some(Caller(key)) = caller {
        let slots = state.engine.slots();
        entries.retain(|entry| slots.get(entry.model_index).is_some_and(|slot| key.may_use(&slot.spec.id)));
    }
    entries
}

fn describe(state: &HttpState, entry: NameEntry) -> Option<Model> {
    let slot = state.engine.slots().get(entry.model_index)?;
    let spec = &slot.spec;
    let owner = spec.id.split_once('/').map_or("embedserve", |(owner, _)| owner);
    let Effective { max_model_len, dimensions } = Effective::of(slot, spec);
    Some(Model {
        id: entry.name,
        object: "model",
        created: spec.created,
        owned_by: owner.to_owned(),
        root: spec.id.clone(),
        state: health::name_of(&slot.state()),
        max_model_len,
        dimensions,
        dtype: spec.precision().name(),
    })
}

/// What is enforced once a model has been loaded, what its entry promises before.
#[derive(Debug, Clone, Copy)]
pub struct Effective {
    pub max_model_len: Option<usize>,
    pub dimensions: Option<usize>,
}

impl Effective {
    pub fn of(slot: &Slot, spec: &ModelSpec) -> Self {
        match slot.limits() {
            Some(limits) => Self { max_model_len: Some(limits.max_tokens), dimensions: Some(limits.dimensions) },
            None => Self { max_model_len: spec.max_tokens, dimensions: spec.dimensions },
        }
    }
}
