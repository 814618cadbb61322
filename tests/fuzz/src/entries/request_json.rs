//! The body of an embeddings request: JSON to `WireRequest`, and that to `EmbedRequest`. W-01, W-13, V-01 to V-04

use std::time::Instant;

use axum::response::IntoResponse;
use embedserve::http::error::{ApiError, EMBEDDING_CODES};
use embedserve::http::wire::{self, Caps, WireRequest};
use embedserve::request::{EmbedRequest, Input, Prompts, RawInputs, RequestLimits, Side, TokenArrays};
use futures_util::FutureExt as _;
use serde_json::Value;

use super::Verdict;
use super::message;

/// Small, so that small bodies reach them.
const CAPS: Caps = Caps { max_inputs: 8, max_request_tokens: 16 };
/// Ids kept at most, as a multiple of the request's tokens.
const STORED_IDS: usize = 8;

pub fn check(data: &[u8]) -> Verdict {
    let request = wire::parse(data, CAPS).map_err(|error| refused(error, data))?;
    check_stored(&request, data);
    check_against_a_tree(&request, data);
    let mut verdict = Ok(());
    for limits in [lenient(), strict()] {
        let name = request.model.clone().unwrap_or_default();
        match EmbedRequest::parse(name, request.raw.clone(), &limits, Instant::now()) {
            Ok(request) => check_limits(&request, &limits),
            Err(error) => verdict = verdict.and(Err(refused(error.into(), data))),
        }
    }
    match request.refusal {
        Some(refusal) => Err(refused(refusal.into(), data)),
        None => verdict,
    }
}

/// The answer that a client would get, checked.
pub fn refused(error: ApiError, input: &[u8]) -> String {
    let response = error.into_response();
    let status = response.status().as_u16();
    assert_eq!(status, 400, "whatever a body has wrong is a 400");
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).now_or_never().expect("a body in memory").unwrap();
    envelope(std::str::from_utf8(&body).unwrap(), input)
}

/// The message of an error body, which has the four keys that clients read.
pub fn envelope(body: &str, input: &[u8]) -> String {
    // JSON escapes what would break a line, and U+2028 is an ordinary character of it.
    assert!(!body.chars().any(char::is_control) && body.len() <= 4096, "an error body of {} bytes: {body}", body.len());
    let parsed: Value = serde_json::from_str(body).expect("an error is JSON");
    let error = parsed["error"].as_object().unwrap_or_else(|| panic!("no envelope: {body}"));
    let keys: Vec<&str> = error.keys().map(String::as_str).collect();
    assert_eq!(keys.len(), 4, "{keys:?}");
    for (key, may_be_null) in [("message", false), ("type", false), ("param", true), ("code", true)] {
        let value = error.get(key).unwrap_or_else(|| panic!("no {key}: {body}"));
        assert!(value.is_string() || may_be_null && value.is_null(), "{key} is {value}");
    }
    if let Some(code) = error["code"].as_str() {
        assert!(EMBEDDING_CODES.contains(&code), "a code that no metric knows: {code}");
    }
    let message = error["message"].as_str().unwrap_or_default().to_owned();
    message::not_quoting(&message, input);
    message
}

/// Whatever the body says, no more is kept than a small multiple of what may be used.
fn check_stored(request: &WireRequest, data: &[u8]) {
    match &request.raw.inputs {
        RawInputs::Texts { texts, .. } => {
            assert!(texts.len() <= CAPS.max_inputs + 1, "{} texts are kept", texts.len());
            let bytes: usize = texts.iter().map(String::len).sum();
            assert!(bytes <= data.len(), "{bytes} bytes of text out of {}", data.len());
        }
        RawInputs::Tokens { arrays, .. } => {
            assert!(arrays.len() <= CAPS.max_inputs + 1, "{} arrays are kept", arrays.len());
            let ids: usize = arrays.iter().map(Vec::len).sum();
            assert!(ids <= CAPS.max_request_tokens * STORED_IDS, "{ids} ids are kept");
        }
    }
}

/// The reading in one pass agrees with the tree that an ordinary parser builds.
fn check_against_a_tree(request: &WireRequest, data: &[u8]) {
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data);
    // Numbers beyond f64 are refused by the tree and skipped by us.
    let Ok(tree) = serde_json::from_slice::<Value>(data) else { return };
    let tree = tree.as_object().expect("only an object is accepted");
    let text = |key: &str| tree.get(key).and_then(Value::as_str);
    assert_eq!(request.model.as_deref(), text("model"));
    if !tree.contains_key("embedding_type") {
        assert_eq!(request.encoding_format.as_deref(), text("encoding_format"));
    }
    assert_eq!(request.raw.prompt.as_deref(), text("prompt"));
    let input = tree.get("input").filter(|input| !input.is_null());
    assert_eq!(request.has_input, input.is_some());
    if let RawInputs::Texts { texts, .. } = &request.raw.inputs {
        let expected: Vec<&str> = match input {
            Some(Value::String(text)) => vec![text],
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let kept = expected.len().min(CAPS.max_inputs + 1);
        assert_eq!(*texts, expected[..kept]);
    }
}

/// Whatever exists as an `EmbedRequest` has passed every check.
fn check_limits(request: &EmbedRequest, limits: &RequestLimits) {
    assert!((1..=limits.max_inputs).contains(&request.inputs.len()), "{} inputs", request.inputs.len());
    let dimensions = request.dimensions.get();
    assert!((1..=limits.dimensions).contains(&dimensions), "{dimensions} dimensions");
    assert!(limits.matryoshka || dimensions == limits.dimensions, "a model with one length gives {dimensions}");
    let kept = request.truncation.max_tokens;
    assert!((1..=limits.max_tokens).contains(&kept), "{kept} tokens are kept");
    let own = limits.prompts.named.iter().any(|(_, text)| *text == request.prompt);
    assert!(own || request.prompt.len() <= limits.max_prompt_bytes, "a prompt of {} bytes", request.prompt.len());
    for input in &request.inputs {
        match input {
            Input::Text(text) => assert!(limits.allow_empty_input || !text.is_empty(), "an empty text"),
            Input::Tokens(ids) => {
                assert!(!ids.is_empty() && limits.token_arrays != TokenArrays::Reject, "{ids:?}");
            }
        }
    }
}

/// What a model with everything allows.
fn lenient() -> RequestLimits {
    let named = [("query", "query: "), ("passage", ""), ("s2s", "same? ")];
    let named = named.map(|(name, text)| (name.to_owned(), text.to_owned())).to_vec();
    RequestLimits {
        max_tokens: 64,
        dimensions: 32,
        matryoshka: true,
        max_inputs: CAPS.max_inputs,
        max_request_tokens: CAPS.max_request_tokens,
        max_input_bytes: 4096,
        allow_empty_input: true,
        token_arrays: TokenArrays::Auto,
        truncate: Some(Side::End),
        prompts: Prompts { named, default: "query: ".to_owned() },
        max_prompt_bytes: 16,
    }
}

/// What a model with nothing allows.
fn strict() -> RequestLimits {
    RequestLimits {
        matryoshka: false,
        allow_empty_input: false,
        token_arrays: TokenArrays::Reject,
        truncate: None,
        prompts: Prompts::default(),
        ..lenient()
    }
}
