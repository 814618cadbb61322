//! The wording that clients match on, the table's columns, and the delays.

use axum::body::to_bytes;

use super::*;
use crate::request::{InputLocation, Measured};

async fn answer(error: ApiError) -> (u16, String, Response) {
    let response = error.into_response();
    let (head, body) = response.into_parts();
    let text = String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap();
    (head.status.as_u16(), text, Response::from_parts(head, axum::body::Body::empty()))
}

// 2.1: satisfies LiteLLM (`this model's maximum context length is`) and LangChain.js.
#[tokio::test]
async fn the_overflow_text_is_the_one_that_every_classifier_knows() {
    let place = InputLocation::at(false, 3);
    let overflow = |measured| ApiError::Request(RequestError::TooLong { place, limit: 512, measured });
    let (status, text, _) = answer(overflow(Measured::Tokens(540))).await;
    assert_eq!(status, 400);
    assert_eq!(
        text,
        r#"{"error":{"message":"Invalid 'input[3]': maximum input length is 512 tokens. This model's maximum context length is 512 tokens, however you requested 540 tokens (540 in your prompt; 0 for the completion). Please reduce your prompt, or set \"truncate\": true.","type":"invalid_request_error","param":"input","code":"context_length_exceeded"},"detail":"Invalid 'input[3]': maximum input length is 512 tokens. This model's maximum context length is 512 tokens, however you requested 540 tokens (540 in your prompt; 0 for the completion). Please reduce your prompt, or set \"truncate\": true."}"#
    );
    let (_, text, _) = answer(overflow(Measured::Bytes(500_000))).await;
    assert!(text.contains("however you requested more (the text has 500000 bytes). Please reduce"), "{text}");
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table")]
async fn rows_of_the_table() {
    let retry = RetryAfter::of(Duration::from_secs(100));
    let request = ApiError::Request;
    let place = InputLocation::at(false, 0).token(3);
    let token = |suggest_model| {
        request(RequestError::TokenId { place, id: 100_256, vocabulary: "cl100k_base".to_owned(), suggest_model })
    };
    let model = || "m".to_owned();
    let limited = |kind| ApiError::Limited {
        model: model(),
        limited: Limited { kind, limit: 60, used: 59, requested: 2, retry },
    };
    for (error, status, kind, param, code, message) in [
        (
            ApiError::NoKey,
            401,
            INVALID,
            None,
            Some("invalid_api_key"),
            "Incorrect API key provided: none. You didn't provide an API key; send it in an Authorization header as 'Bearer YOUR_KEY'.",
        ),
        (
            ApiError::WrongKey { shown: "****abcd".to_owned() },
            401,
            INVALID,
            None,
            Some("invalid_api_key"),
            "Incorrect API key provided: ****abcd.",
        ),
        (
            ApiError::ModelNotAllowed { model: model() },
            403,
            INVALID,
            None,
            Some("model_not_found"),
            "This API key does not have access to model `m`.",
        ),
        (
            ApiError::PageNotAllowed { path: "/metrics" },
            403,
            INVALID,
            None,
            None,
            "This API key is limited to some models and does not have access to /metrics.",
        ),
        (
            limited(LimitKind::Requests),
            429,
            "requests",
            None,
            Some("rate_limit_exceeded"),
            "Rate limit reached for model m on requests per min (RPM): Limit 60, Used 59, Requested 2. Please try again in 59s.",
        ),
        (
            limited(LimitKind::Tokens),
            429,
            "tokens",
            None,
            Some("rate_limit_exceeded"),
            "Rate limit reached for model m on tokens per min (TPM): Limit 60, Used 59, Requested 2. Please try again in 59s.",
        ),
        (
            limited(LimitKind::Concurrency),
            429,
            "requests",
            None,
            Some("rate_limit_exceeded"),
            "Rate limit reached for model m on concurrent requests: Limit 60, Used 59, Requested 2. Please try again in 59s.",
        ),
        (
            ApiError::HostNotAllowed { host: "h".to_owned() },
            403,
            INVALID,
            None,
            Some("host_not_allowed"),
            "Host 'h' is not allowed. Without keys this server answers to localhost and --allowed-hosts only; start it with \
             --api-key to serve others.",
        ),
        (
            ApiError::OriginNotAllowed { origin: "o".to_owned() },
            403,
            INVALID,
            None,
            Some("origin_not_allowed"),
            "Pages from 'o' are not allowed. Without keys, their origin has to be listed with --cors-origins.",
        ),
        (
            ApiError::UnknownModel { model: model() },
            404,
            INVALID,
            None,
            Some("model_not_found"),
            "The model `m` does not exist or you do not have access to it. GET /v1/models lists the models served here.",
        ),
        (
            ApiError::NoSuchModel { model: model() },
            404,
            INVALID,
            Some("model"),
            Some("model_not_found"),
            "The model 'm' does not exist",
        ),
        (
            ApiError::UnknownUrl { method: "POST".to_owned(), path: "/v1/v1/embeddings".to_owned() },
            404,
            INVALID,
            None,
            None,
            "Invalid URL (POST /v1/v1/embeddings) Did you mean POST /v1/embeddings?",
        ),
        (
            ApiError::UnknownUrl { method: "POST".to_owned(), path: "/v1/foo".to_owned() },
            404,
            INVALID,
            None,
            None,
            "Invalid URL (POST /v1/foo)",
        ),
        (
            ApiError::MethodNotAllowed { method: "GET".to_owned(), path: "/v1/embeddings".to_owned(), allow: "POST" },
            405,
            INVALID,
            None,
            Some("method_not_supported"),
            "Not allowed to GET on /v1/embeddings. (HINT: use POST.)",
        ),
        (
            ApiError::BodyTimeout { limit: Duration::from_secs(20) },
            408,
            INVALID,
            None,
            Some("request_timeout"),
            "The request body was not received within 20 s.",
        ),
        (
            ApiError::BodyTooLarge { limit: 33_554_432 },
            413,
            INVALID,
            None,
            Some("request_too_large"),
            "Maximum request body size 33554432 bytes exceeded.",
        ),
        (
            ApiError::MediaType { given: "multipart/form-data".to_owned() },
            415,
            INVALID,
            None,
            Some("unsupported_media_type"),
            "Unsupported Content-Type 'multipart/form-data': send application/json.",
        ),
        (
            ApiError::ContentEncoding { given: "gzip".to_owned() },
            415,
            INVALID,
            None,
            Some("unsupported_media_type"),
            "Unsupported Content-Encoding 'gzip': send the body uncompressed.",
        ),
        (
            ApiError::Json { reason: "oops at line 1 column 2".to_owned() },
            400,
            INVALID,
            None,
            None,
            "We could not parse the JSON body of your request: oops at line 1 column 2.",
        ),
        (
            ApiError::MissingModel,
            400,
            INVALID,
            Some("model"),
            Some("missing_required_parameter"),
            "you must provide a model parameter",
        ),
        (
            ApiError::MissingInput,
            400,
            INVALID,
            Some("input"),
            Some("missing_required_parameter"),
            "Missing required parameter: 'input'.",
        ),
        (
            ApiError::WrongType { place: "input[1]".to_owned(), expected: "a string", got: "an integer" },
            400,
            INVALID,
            Some("input"),
            Some("invalid_type"),
            "Invalid type for 'input[1]': expected a string, but got an integer instead.",
        ),
        (
            request(RequestError::EmptyArray { place: "input".to_owned() }),
            400,
            INVALID,
            Some("input"),
            None,
            "Invalid 'input': input cannot be an empty array.",
        ),
        (
            request(RequestError::EmptyString { place: InputLocation::at(false, 1) }),
            400,
            INVALID,
            Some("input"),
            None,
            "Invalid 'input[1]': input cannot be an empty string.",
        ),
        (
            request(RequestError::TooManyInputs { limit: 2048 }),
            400,
            INVALID,
            Some("input"),
            None,
            "Invalid 'input': array length must be 2048 or less.",
        ),
        (
            request(RequestError::TooManyTokens { tokens: 416_735, limit: 300_000 }),
            400,
            "max_tokens_per_request",
            Some("input"),
            Some("max_tokens_per_request"),
            "Requested 416735 tokens, max 300000 tokens per request",
        ),
        (
            token(false),
            400,
            INVALID,
            Some("input"),
            Some("invalid_token_id"),
            "Invalid 'input[0][3]': 100256 is not a valid token id (cl100k_base).",
        ),
        (
            token(true),
            400,
            INVALID,
            Some("input"),
            Some("invalid_token_id"),
            "Invalid 'input[0][3]': 100256 is not a valid token id (cl100k_base). Set \"token_encoding\": \"model\" if these are the model's own ids.",
        ),
        (
            request(RequestError::AmbiguousTokenIds { place: InputLocation::at(false, 0), encoding: "cl100k_base" }),
            400,
            INVALID,
            Some("input"),
            Some("ambiguous_token_ids"),
            "Invalid 'input[0]': these token ids read both as cl100k_base text and as this model's own ids. Set \"token_encoding\" to \"cl100k_base\" or \"model\".",
        ),
        (
            request(RequestError::TokenArraysRejected),
            400,
            INVALID,
            Some("input"),
            Some("token_arrays_not_supported"),
            "Invalid 'input': this model does not accept token arrays; send text (in LangChain: check_embedding_ctx_length=False).",
        ),
        (
            request(RequestError::DimensionsUnsupported { native: 384 }),
            400,
            INVALID,
            Some("dimensions"),
            None,
            "This model does not support specifying dimensions. Its vectors have 384 dimensions.",
        ),
        (
            request(RequestError::DimensionsTooLarge { value: 4096, native: 1024 }),
            400,
            INVALID,
            Some("dimensions"),
            None,
            "Invalid value for 'dimensions' = 4096. Must be less than or equal to 1024.",
        ),
        (
            request(RequestError::DimensionsTooSmall { value: 0 }),
            400,
            INVALID,
            Some("dimensions"),
            Some("integer_below_min_value"),
            "Invalid 'dimensions': integer below minimum value. Expected a value >= 1, but got 0 instead.",
        ),
        (
            ApiError::EncodingFormat { given: "md5".to_owned() },
            400,
            INVALID,
            Some("encoding_format"),
            None,
            "Invalid value for 'encoding_format' = md5. Supported values: ['float', 'base64'].",
        ),
        (ApiError::RowFailed, 500, SERVER, None, None, "The server had an error while processing your request."),
        (ApiError::Internal, 500, SERVER, None, None, "The server had an error while processing your request."),
        (
            ApiError::NonFinite { place: "input[3]".to_owned() },
            500,
            SERVER,
            Some("input"),
            Some("non_finite"),
            "The model returned a non-finite vector for 'input[3]'.",
        ),
        (
            ApiError::Overloaded { retry },
            503,
            UNAVAILABLE,
            None,
            Some("server_is_overloaded"),
            "The server is overloaded. Please try again in 59s.",
        ),
        (
            ApiError::Loading { model: model(), retry },
            503,
            UNAVAILABLE,
            None,
            Some("model_loading"),
            "The model `m` is still loading. Please try again in 59s.",
        ),
        (
            ApiError::Draining { retry },
            503,
            UNAVAILABLE,
            None,
            Some("shutting_down"),
            "The server is shutting down. Please try again in 59s.",
        ),
        (
            ApiError::Unavailable { model: model(), retry },
            503,
            UNAVAILABLE,
            None,
            Some("model_unavailable"),
            "The model `m` is not available. Please try again in 59s.",
        ),
        (
            ApiError::Deadline { after: Duration::from_secs(30), retry: None },
            504,
            SERVER,
            None,
            Some("deadline_exceeded"),
            "The request was not finished within 30 s.",
        ),
    ] {
        let (got, text, response) = answer(error).await;
        let body: serde_json::Value = serde_json::from_str(&text).unwrap();
        let error = serde_json::json!({"message": message, "type": kind, "param": param, "code": code});
        assert_eq!((got, body), (status, serde_json::json!({"error": error, "detail": message})));
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
        let retries = response.headers().get(header::RETRY_AFTER).map(|value| value.to_str().unwrap());
        assert_eq!(retries, [429, 503].contains(&status).then_some("59"), "{text}");
        assert!(EMBEDDING_CODES.contains(&code.unwrap_or(NO_CODE)), "{code:?} has no series");
    }
}

#[test]
fn delays_stay_within_what_every_sdk_obeys() {
    for (wait_ms, range) in
        [(0, 1..=1), (1, 1..=1), (1000, 1..=2), (10_000, 10..=12), (58_000, 58..=59), (3_600_000, 59..=59)]
    {
        for _ in 0..100 {
            let seconds = RetryAfter::of(Duration::from_millis(wait_ms)).seconds();
            assert!(range.contains(&seconds), "{seconds} for {wait_ms} ms");
        }
    }
    let spread: std::collections::HashSet<u64> =
        (0..100).map(|_| RetryAfter::of(Duration::from_secs(40)).seconds()).collect();
    assert!(spread.len() > 3, "refused clients would return together: {spread:?}");
}

#[test]
fn echoes_are_cut_by_characters() {
    assert_eq!(message::echo("é"), "é");
    assert_eq!(message::echo(&"é".repeat(500)), "é".repeat(200));
    assert_eq!(message::echo("a\u{7f}b\u{9b}2Jc\n"), "a\u{fffd}b\u{fffd}2Jc\n");
}
