//! Every failure a client can see, and the one table that says how: status, type, param, code and headers.
//!
//! The wording (`message`) is an interface: client libraries classify errors by substring.

mod message;

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::batch::RowFailure;
use crate::engine::EngineError;
use crate::http::reply;
use crate::observe::metrics::LimitKind;
use crate::request::RequestError;

/// One failed request, with the values that its message shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApiError {
    /// 401: a key is needed and none was sent.
    NoKey,
    /// 401: none of ours, with what may be shown of it.
    WrongKey { shown: String },
    /// 403: the key is for other models.
    ModelNotAllowed { model: String },
    /// 403: a page about the whole server, asked for with a key of some models.
    PageNotAllowed { path: &'static str },
    /// 403: a host name that this server does not answer to (DNS rebinding).
    HostNotAllowed { host: String },
    /// 403: a web page that is not listed, where no key is needed.
    OriginNotAllowed { origin: String },
    /// 404: a request for vectors names a model that is not served.
    UnknownModel { model: String },
    /// 404: the description of a model that is not served.
    NoSuchModel { model: String },
    /// 404
    UnknownUrl { method: String, path: String },
    /// 405
    MethodNotAllowed { method: String, path: String, allow: &'static str },
    /// 408: the body took too long.
    BodyTimeout { limit: Duration },
    /// 413
    BodyTooLarge { limit: usize },
    /// 415: a media type or charset that is not ours.
    MediaType { given: String },
    /// 415: a compressed body.
    ContentEncoding { given: String },
    /// 400: no JSON object, or a key twice; the reason ends with its line and column.
    Json { reason: String },
    /// 400
    MissingModel,
    /// 400
    MissingInput,
    /// 400
    WrongType { place: String, expected: &'static str, got: &'static str },
    /// 400: the values, or what the model reads of them, are not possible.
    Request(RequestError),
    /// 400: neither "float" nor "base64".
    EncodingFormat { given: String },
    /// 429: requests or tokens per minute, or requests at the same time.
    Limited { model: String, limited: Limited },
    /// 500
    Internal,
    /// 500 for a row that fails even alone: repeating it fails again.
    RowFailed,
    /// 500: the model has no finite vector for this input.
    NonFinite { place: String },
    /// 503: the queue, or the memory for bodies and answers, is full.
    Overloaded { retry: RetryAfter },
    /// 503
    Loading { model: String, retry: RetryAfter },
    /// 503: the server is about to end.
    Draining { retry: RetryAfter },
    /// 503: its files, its weights or its device failed.
    Unavailable { model: String, retry: RetryAfter },
    /// 504: with a delay when the time was lost in a queue.
    Deadline { after: Duration, retry: Option<RetryAfter> },
    /// 400: the body ended early, or its chunks are malformed.
    BodyBroken,
}

/// A limit of a key that a request ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limited {
    pub kind: LimitKind,
    pub limit: u64,
    pub used: u64,
    pub requested: u64,
    pub retry: RetryAfter,
}

/// A delay that a client is asked to keep: whole seconds from 1 to 59, because several SDKs ignore or misread others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryAfter(u64);

/// The error's `code`, for metrics and the log; travels as a response extension.
#[derive(Debug, Clone, Copy)]
pub struct ErrorCode(pub &'static str);

/// The codes that an embeddings route can answer with; `none` stands for `null`.
pub const EMBEDDING_CODES: [&str; 25] = [
    NO_CODE,
    "invalid_api_key",
    "host_not_allowed",
    "origin_not_allowed",
    "model_not_found",
    "method_not_supported",
    "request_timeout",
    "request_too_large",
    "unsupported_media_type",
    "missing_required_parameter",
    "invalid_type",
    "context_length_exceeded",
    "max_tokens_per_request",
    "invalid_token_id",
    "ambiguous_token_ids",
    "token_arrays_not_supported",
    "integer_below_min_value",
    "invalid_value",
    "rate_limit_exceeded",
    "non_finite",
    "server_is_overloaded",
    "model_loading",
    "shutting_down",
    "model_unavailable",
    "deadline_exceeded",
];

const NO_CODE: &str = "none";

/// One row of the table.
struct Row {
    status: StatusCode,
    kind: &'static str,
    param: Option<Cow<'static, str>>,
    code: Option<&'static str>,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Fields<'a>,
    /// The message once more, where clients of Voyage and Jina look for it.
    detail: &'a str,
}

#[derive(Serialize)]
struct Fields<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

const INVALID: &str = "invalid_request_error";
const SERVER: &str = "server_error";
const UNAVAILABLE: &str = "service_unavailable_error";

// === impl ApiError ===

impl ApiError {
    /// What an engine's failure means for a request that named `model` and has taken `elapsed` so far.
    pub fn from_engine(error: EngineError, model: &str, elapsed: Duration) -> Self {
        let model = || model.to_owned();
        match error {
            EngineError::UnknownModel => Self::UnknownModel { model: model() },
            EngineError::Loading { retry_after } => {
                Self::Loading { model: model(), retry: RetryAfter::of(retry_after) }
            }
            EngineError::Draining => Self::Draining { retry: RetryAfter::of(DRAINING_WAIT) },
            EngineError::Unavailable { .. } => {
                Self::Unavailable { model: model(), retry: RetryAfter::of(UNAVAILABLE_WAIT) }
            }
            EngineError::Request(error) => Self::Request(error),
            EngineError::QueueFull { retry_after } => Self::Overloaded { retry: RetryAfter::of(retry_after) },
            // A queue that made a row wait this long needs about as long again to become short.
            EngineError::Deadline { stage: "queued" } => {
                Self::Deadline { after: elapsed, retry: Some(RetryAfter::of(elapsed)) }
            }
            EngineError::Deadline { .. } => Self::Deadline { after: elapsed, retry: None },
            EngineError::Row { place, failure } => match failure {
                RowFailure::NonFinite => Self::NonFinite { place: place.to_string() },
                RowFailure::Failed | RowFailure::Panicked => Self::RowFailed,
                // Others may have the memory now; by itself the row is a valid one.
                RowFailure::OutOfMemory => Self::Overloaded { retry: RetryAfter::of(UNAVAILABLE_WAIT) },
                RowFailure::Dropped => Self::Unavailable { model: model(), retry: RetryAfter::of(UNAVAILABLE_WAIT) },
            },
            EngineError::Internal(_) => Self::Internal,
        }
    }

    fn row(&self) -> Row {
        let invalid = |status, code| Row { status, kind: INVALID, param: None, code };
        let field = |param: &'static str, code| Row {
            status: StatusCode::BAD_REQUEST,
            kind: INVALID,
            param: Some(param.into()),
            code,
        };
        let later =
            |code| Row { status: StatusCode::SERVICE_UNAVAILABLE, kind: UNAVAILABLE, param: None, code: Some(code) };
        let server = |status, param: Option<&'static str>, code| Row {
            status,
            kind: SERVER,
            param: param.map(Cow::Borrowed),
            code,
        };
        match self {
            Self::NoKey | Self::WrongKey { .. } => invalid(StatusCode::UNAUTHORIZED, Some("invalid_api_key")),
            Self::ModelNotAllowed { .. } => invalid(StatusCode::FORBIDDEN, Some("model_not_found")),
            Self::PageNotAllowed { .. } => invalid(StatusCode::FORBIDDEN, None),
            Self::HostNotAllowed { .. } => invalid(StatusCode::FORBIDDEN, Some("host_not_allowed")),
            Self::OriginNotAllowed { .. } => invalid(StatusCode::FORBIDDEN, Some("origin_not_allowed")),
            Self::UnknownModel { .. } => invalid(StatusCode::NOT_FOUND, Some("model_not_found")),
            Self::NoSuchModel { .. } => {
                Row { status: StatusCode::NOT_FOUND, ..field("model", Some("model_not_found")) }
            }
            Self::UnknownUrl { .. } => invalid(StatusCode::NOT_FOUND, None),
            Self::MethodNotAllowed { .. } => invalid(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_supported")),
            Self::BodyTimeout { .. } => invalid(StatusCode::REQUEST_TIMEOUT, Some("request_timeout")),
            Self::BodyTooLarge { .. } => invalid(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large")),
            Self::MediaType { .. } | Self::ContentEncoding { .. } => {
                invalid(StatusCode::UNSUPPORTED_MEDIA_TYPE, Some("unsupported_media_type"))
            }
            Self::Json { .. } | Self::BodyBroken => invalid(StatusCode::BAD_REQUEST, None),
            Self::MissingModel => field("model", Some("missing_required_parameter")),
            Self::MissingInput => field("input", Some("missing_required_parameter")),
            Self::WrongType { place, .. } => {
                let name = place.split('[').next().unwrap_or_default().to_owned();
                Row { param: Some(name.into()), ..field("input", Some("invalid_type")) }
            }
            Self::Request(error) => request_row(error, field),
            Self::EncodingFormat { .. } => field("encoding_format", None),
            Self::Limited { limited, .. } => Row {
                status: StatusCode::TOO_MANY_REQUESTS,
                kind: if limited.kind == LimitKind::Tokens { "tokens" } else { "requests" },
                param: None,
                code: Some("rate_limit_exceeded"),
            },
            Self::Internal | Self::RowFailed => server(StatusCode::INTERNAL_SERVER_ERROR, None, None),
            Self::NonFinite { .. } => server(StatusCode::INTERNAL_SERVER_ERROR, Some("input"), Some("non_finite")),
            Self::Overloaded { .. } => later("server_is_overloaded"),
            Self::Loading { .. } => later("model_loading"),
            Self::Draining { .. } => later("shutting_down"),
            Self::Unavailable { .. } => later("model_unavailable"),
            Self::Deadline { .. } => server(StatusCode::GATEWAY_TIMEOUT, None, Some("deadline_exceeded")),
        }
    }

    fn retry(&self) -> Option<RetryAfter> {
        if let Self::Overloaded { retry }
        | Self::Loading { retry, .. }
        | Self::Draining { retry }
        | Self::Unavailable { retry, .. }
        | Self::Limited { limited: Limited { retry, .. }, .. } = self
        {
            return Some(*retry);
        }
        if let Self::Deadline { retry, .. } = self { *retry } else { None }
    }

    /// A header that belongs to this failure alone.
    fn extra_header(&self) -> Option<(HeaderName, &'static str)> {
        if let Self::NoKey | Self::WrongKey { .. } = self {
            Some((header::WWW_AUTHENTICATE, "Bearer"))
        } else if let Self::MethodNotAllowed { allow, .. } = self {
            Some((header::ALLOW, allow))
        } else if let Self::ContentEncoding { .. } = self {
            Some((header::ACCEPT_ENCODING, "identity"))
        } else if let Self::BodyTimeout { .. } | Self::BodyTooLarge { .. } | Self::Draining { .. } = self {
            // The rest of the body is not wanted, or nothing that follows: the connection carries no more requests.
            Some((header::CONNECTION, "close"))
        } else if let Self::NonFinite { .. } | Self::RowFailed = self {
            // Repeating it gives the same answer: stops the SDKs from trying.
            Some((HeaderName::from_static("x-should-retry"), "false"))
        } else {
            None
        }
    }
}

/// The rows for values that do not fit the model.
fn request_row(error: &RequestError, field: impl Fn(&'static str, Option<&'static str>) -> Row) -> Row {
    match error {
        RequestError::EmptyArray { .. } | RequestError::EmptyString { .. } | RequestError::TooManyInputs { .. } => {
            field("input", None)
        }
        RequestError::TooLong { .. } => field("input", Some("context_length_exceeded")),
        RequestError::TooManyTokens { .. } => {
            Row { kind: "max_tokens_per_request", ..field("input", Some("max_tokens_per_request")) }
        }
        RequestError::TokenId { .. } => field("input", Some("invalid_token_id")),
        RequestError::AmbiguousTokenIds { .. } => field("input", Some("ambiguous_token_ids")),
        RequestError::TokenArraysRejected => field("input", Some("token_arrays_not_supported")),
        RequestError::DimensionsUnsupported { .. } | RequestError::DimensionsTooLarge { .. } => {
            field("dimensions", None)
        }
        RequestError::DimensionsTooSmall { .. } => field("dimensions", Some("integer_below_min_value")),
        RequestError::InvalidValue { field: name, .. } => field(name, Some("invalid_value")),
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        Self::Request(error)
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let row = self.row();
        let mut response = envelope(row.status, &self.message(), &row);
        let headers = response.headers_mut();
        if let Some((name, value)) = self.extra_header() {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if let Some(retry) = self.retry() {
            headers.insert(header::RETRY_AFTER, retry.0.into());
            headers.insert(HeaderName::from_static("retry-after-ms"), (retry.0 * 1000).into());
        }
        response.extensions_mut().insert(ErrorCode(row.code.unwrap_or(NO_CODE)));
        response
    }
}

fn envelope(status: StatusCode, message: &str, row: &Row) -> Response {
    let error = Fields { message, r#type: row.kind, param: row.param.as_deref(), code: row.code };
    let mut response = reply::json(&Envelope { detail: error.message, error });
    *response.status_mut() = status;
    response
}

/// The body of an answer to something that is not a request we can parse: 431 and malformed HTTP.
pub fn wire_error(message: &str, code: Option<&str>) -> Vec<u8> {
    let error = Fields { message, r#type: INVALID, param: None, code };
    serde_json::to_vec(&Envelope { detail: error.message, error }).unwrap_or_default()
}

/// The message of 431.
pub fn headers_too_large(limit_bytes: usize, limit: usize) -> String {
    format!("Request headers exceed {limit_bytes} bytes, or are more than {limit}.")
}

// === impl RetryAfter ===

impl RetryAfter {
    /// `wait` and up to a fifth more, so that refused clients do not return together.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 1..=59 before the cast")]
    pub fn of(wait: Duration) -> Self {
        let spread = 1.0 + 0.2 * (RandomState::new().hash_one(0) as f64 / u64::MAX as f64);
        Self((wait.as_secs_f64() * spread).ceil().clamp(1.0, 59.0) as u64)
    }

    pub const fn seconds(self) -> u64 {
        self.0
    }
}

/// Long enough for a balancer to have taken us out.
const DRAINING_WAIT: Duration = Duration::from_secs(2);
/// A dead model needs its process restarted.
const UNAVAILABLE_WAIT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests;
