//! What a bad request gets: status, code, param, and the words that clients match on.

use serde_json::{Value, json};

use crate::support::app::{DIMENSIONS, F, Kind, M, TestApp, words};
use crate::support::evil::Evil;

/// Sends `body` and checks the refusal.
async fn refused(app: &TestApp, body: Value, status: u16, code: Option<&str>, param: Option<&str>) -> String {
    let answer = app.embed(body.clone()).await;
    assert_eq!(answer.status, status, "{body}: {}", answer.text);
    answer.refusal(status, code, param)
}

// V-01
#[tokio::test]
async fn empty_inputs_name_their_place() {
    let app = TestApp::start().await;
    for (input, message) in [
        (json!([]), "Invalid 'input': input cannot be an empty array."),
        (json!([[]]), "Invalid 'input[0]': input cannot be an empty array."),
        (json!([[1], []]), "Invalid 'input[1]': input cannot be an empty array."),
        (json!(""), "Invalid 'input': input cannot be an empty string."),
        (json!([""]), "Invalid 'input[0]': input cannot be an empty string."),
        (json!(["a", ""]), "Invalid 'input[1]': input cannot be an empty string."),
    ] {
        assert_eq!(refused(&app, json!({"model": M, "input": input}), 400, None, Some("input")).await, message);
    }
}

#[tokio::test]
async fn encoding_format_is_float_or_base64() {
    let app = TestApp::start().await;
    for wrong in ["md5", "BASE64", ""] {
        let body = json!({"model": M, "input": "a", "encoding_format": wrong});
        let message = refused(&app, body, 400, None, Some("encoding_format")).await;
        assert_eq!(
            message,
            format!("Invalid value for 'encoding_format' = {wrong}. Supported values: ['float', 'base64'].")
        );
    }
    let body = json!({"model": M, "input": "a", "encoding_format": 1});
    refused(&app, body, 400, Some("invalid_type"), Some("encoding_format")).await;
}

// V-03
#[tokio::test]
async fn dimensions_must_be_possible() {
    let app = TestApp::start().await;
    let body = |model: &str, dimensions: Value| json!({"model": model, "input": "a", "dimensions": dimensions});
    let param = Some("dimensions");
    for short in [1, 8, DIMENSIONS - 1, DIMENSIONS + 1] {
        assert_eq!(
            refused(&app, body(F, json!(short)), 400, None, param).await,
            "This model does not support specifying dimensions. Its vectors have 32 dimensions."
        );
    }
    for (value, shown) in [
        (json!(DIMENSIONS + 1), "33".to_owned()),
        (json!(4096), "4096".to_owned()),
        (json!(2_147_483_648_u32), "2147483648".to_owned()),
        (json!(18_446_744_073_709_551_615_u64), i64::MAX.to_string()),
    ] {
        assert_eq!(
            refused(&app, body(M, value), 400, None, param).await,
            format!("Invalid value for 'dimensions' = {shown}. Must be less than or equal to 32.")
        );
    }
    for value in [0, -1] {
        assert_eq!(
            refused(&app, body(M, json!(value)), 400, Some("integer_below_min_value"), param).await,
            format!(
                "Invalid 'dimensions': integer below minimum value. Expected a value >= 1, but got {value} instead."
            )
        );
    }
    for value in [json!(1.5), json!("8"), json!([8]), json!(true)] {
        refused(&app, body(M, value), 400, Some("invalid_type"), param).await;
    }
    let beyond = format!(r#"{{"model":"{M}","input":"a","dimensions":18446744073709551616}}"#);
    app.post("/v1/embeddings", &[], beyond).await.refusal(400, None, param);
}

// W-13
#[tokio::test]
async fn types_are_checked_with_their_place() {
    let app = TestApp::start().await;
    for (input, message) in [
        (json!(["a", 1]), "Invalid type for 'input[1]': expected a string, but got an integer instead."),
        (json!([[["a"]]]), "Invalid type for 'input[0][0]': expected an integer, but got an array instead."),
        (json!(5), "Invalid type for 'input': expected a string or an array, but got an integer instead."),
        (json!({}), "Invalid type for 'input': expected a string or an array, but got an object instead."),
        (json!(true), "Invalid type for 'input': expected a string or an array, but got a boolean instead."),
    ] {
        let body = json!({"model": M, "input": input});
        assert_eq!(refused(&app, body, 400, Some("invalid_type"), Some("input")).await, message);
    }
    for body in [json!({"model": M}), json!({"model": M, "input": null})] {
        let message = refused(&app, body, 400, Some("missing_required_parameter"), Some("input")).await;
        assert_eq!(message, "Missing required parameter: 'input'.");
    }
    refused(&app, json!({"model": M, "input": "a", "user": 5}), 400, Some("invalid_type"), Some("user")).await;
}

// A-09
#[tokio::test]
async fn only_names_of_the_catalogue_exist() {
    let app = TestApp::start().await;
    for body in [json!({"input": "a"}), json!({"model": null, "input": "a"}), json!({"model": "", "input": "a"})] {
        let message = refused(&app, body, 400, Some("missing_required_parameter"), Some("model")).await;
        assert_eq!(message, "you must provide a model parameter");
    }
    refused(&app, json!({"model": 123, "input": "a"}), 400, Some("invalid_type"), Some("model")).await;
    for name in [
        "nope",
        "http://169.254.169.254/latest",
        "../../etc/passwd",
        "/etc/passwd",
        "sentence-transformers/all-mpnet-base-v2",
        "tiny\u{0}/fixed",
        "tiny/fіxed",
    ] {
        let message = refused(&app, json!({"model": name, "input": "a"}), 404, Some("model_not_found"), None).await;
        assert_eq!(
            message,
            format!(
                "The model `{name}` does not exist or you do not have access to it. GET /v1/models lists the models \
                 served here."
            )
        );
    }
    let long = "m".repeat(1 << 20);
    let answer = app.embed(json!({"model": long, "input": "a"})).await;
    let message = answer.refusal(404, Some("model_not_found"), None);
    assert!(message.len() < 400 && message.contains(&"m".repeat(200)), "{}", message.len());
    assert_eq!(answer.header("openai-model"), None);
    // A wrong type is found before an unknown name, an unknown name before a wrong value.
    refused(&app, json!({"model": "nope", "input": [1, "a"]}), 400, Some("invalid_type"), Some("input")).await;
    refused(&app, json!({"model": "nope", "input": []}), 404, Some("model_not_found"), None).await;
}

// V-02
#[tokio::test]
async fn the_tokens_of_a_request_are_summed() {
    let app = TestApp::with(|setup| setup.requests.max_request_tokens = 30).await;
    assert_eq!(app.vectors(json!(vec!["x"; 10])).await.len(), 10);
    let body = json!({"model": M, "input": [words(9), words(18)]});
    let answer = app.embed(body).await;
    let message = answer.refusal(400, Some("max_tokens_per_request"), Some("input"));
    assert_eq!(message, "Requested 31 tokens, max 30 tokens per request");
    assert_eq!(answer.json()["error"]["type"], "max_tokens_per_request");
}

#[tokio::test]
async fn contradicting_truncation_fields_are_refused() {
    let app = TestApp::start().await;
    for (fields, param) in [
        (json!({"truncate": false, "truncation": true}), "truncation"),
        (json!({"truncate": "MIDDLE"}), "truncate"),
        (json!({"truncate_prompt_tokens": 0}), "truncate_prompt_tokens"),
        (json!({"truncate_prompt_tokens": 65}), "truncate_prompt_tokens"),
        (json!({"truncation_side": "middle"}), "truncation_side"),
        (json!({"truncate": "START", "truncation_side": "right"}), "truncation_side"),
        (json!({"truncation_direction": "left", "truncation_side": "right"}), "truncation_side"),
    ] {
        let mut body = json!({"model": M, "input": "a"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let message = refused(&app, body, 400, Some("invalid_value"), Some(param)).await;
        assert!(message.starts_with(&format!("Invalid value for '{param}' = ")), "{message}");
    }
}

// V-05
#[tokio::test]
async fn a_text_past_the_byte_cap_is_refused_before_it_is_tokenised() {
    let app = TestApp::start().await;
    for text in [".".repeat(1 << 20), "x".repeat(1 << 20), "\u{200d}".repeat(100_000), "\u{fdfa}".repeat(100_000)] {
        let message = refused(
            &app,
            json!({"model": M, "input": ["a", text]}),
            400,
            Some("context_length_exceeded"),
            Some("input"),
        )
        .await;
        assert!(message.starts_with("Invalid 'input[1]': maximum input length is 64 tokens. This model's maximum"));
        assert!(message.contains(&format!("you requested more (the text has {} bytes)", text.len())), "{message}");
    }
    // With truncation its beginning is used, and its true length stays unknown.
    let answer = app.embed(json!({"model": M, "input": "x ".repeat(1 << 19), "truncate": true})).await;
    assert_eq!(answer.vectors(), app.vectors(json!(vec!["x"; 62].join(" "))).await);
    let item = &answer.json()["data"][0];
    assert_eq!((&item["truncated"], item.get("original_tokens")), (&json!(true), None));
}

// W-01, W-13
#[tokio::test]
async fn what_is_no_json_says_where() {
    let app = TestApp::start().await;
    let bodies: [(&[u8], &str); 9] = [
        (b"{\"model\":", "EOF while parsing a value at line 1 column 9"),
        (b"", "it is empty"),
        (b"[]", "expected a JSON object at line 1 column 2"),
        (b"\"x\"", "expected a JSON object at line 1 column 3"),
        (b"null", "expected a JSON object at line 1 column 4"),
        (b"{\"input\":\n\"\xc3\x28\"}", "invalid UTF-8 at line 2 column 2"),
        (b"{\"input\":\"\\ud800\"}", "half of a surrogate pair at line 1 column 17"),
        (b"{\"input\":\"a\",\"input\":\"b\"}", "duplicate field `input` at line 1 column 20"),
        (b"input=a&model=b", "expected value at line 1 column 1"),
    ];
    for (body, expected) in bodies {
        let message = app.post("/v1/embeddings", &[], body).await.refusal(400, None, None);
        assert!(message.starts_with("We could not parse the JSON body of your request: "), "{message}");
        assert!(message.ends_with(&format!("{expected}.")), "{message}");
    }
    for deep in
        ["[".repeat(10_000), format!("{{\"input\":{}", "[".repeat(10_000)), format!("{{\"a\":{}", "[".repeat(100_000))]
    {
        app.post("/v1/embeddings", &[], deep).await.refusal(400, None, None);
    }
    assert_eq!(app.vectors(json!("a")).await.len(), 1);
}

// W-02, W-07
#[tokio::test]
async fn media_types_and_codings() {
    let app = TestApp::start().await;
    let body = json!({"model": M, "input": "a"}).to_string();
    for fine in ["application/x-www-form-urlencoded", "text/plain", "application/json; charset=utf-8"] {
        app.post("/v1/embeddings", &[("content-type", fine)], body.clone()).await.vectors();
    }
    app.post("/v1/embeddings", &[], body.clone()).await.vectors();
    for wrong in ["multipart/form-data; boundary=x", "application/xml", "application/json; charset=utf-16"] {
        let answer = app.post("/v1/embeddings", &[("content-type", wrong)], body.clone()).await;
        let message = answer.refusal(415, Some("unsupported_media_type"), None);
        assert_eq!(message, format!("Unsupported Content-Type '{wrong}': send application/json."));
    }
    for coding in ["gzip", "br", "zstd"] {
        // Not even a bomb is opened.
        let answer = app.post("/v1/embeddings", &[("content-encoding", coding)], vec![0x1f, 0x8b, 8, 0]).await;
        let message = answer.refusal(415, Some("unsupported_media_type"), None);
        assert_eq!(message, format!("Unsupported Content-Encoding '{coding}': send the body uncompressed."));
        assert_eq!(answer.header("accept-encoding"), Some("identity"));
    }
    let answer = app.post("/v1/embeddings", &[("content-encoding", "identity")], body.clone()).await;
    answer.vectors();
    let answer = app.post("/v1/embeddings", &[("accept-encoding", "gzip, deflate, zstd")], body).await;
    assert_eq!((answer.vectors().len(), answer.header("content-encoding")), (1, None));
}

// W-12
#[tokio::test]
async fn unknown_routes_and_methods_stay_in_the_envelope() {
    let app = TestApp::start().await;
    let method = |name: &str| reqwest::Method::from_bytes(name.as_bytes()).unwrap();
    for name in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW"] {
        let answer = app.send(method(name), "/v1/embeddings", &[], Vec::new()).await;
        let message = answer.refusal(405, Some("method_not_supported"), None);
        assert_eq!(message, format!("Not allowed to {name} on /v1/embeddings. (HINT: use POST.)"));
        assert_eq!(answer.header("allow"), Some("POST"));
    }
    for (path, name) in
        [("/v1/models", "POST"), ("/v1/models/a", "DELETE"), ("/livez", "POST"), ("/metrics", "OPTIONS")]
    {
        let answer = app.send(method(name), path, &[], Vec::new()).await;
        answer.refusal(405, Some("method_not_supported"), None);
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
    for (path, hint) in [
        ("/v1/foo", ""),
        ("/v1/embeddings/embeddings", " Did you mean POST /v1/embeddings?"),
        ("/v1/v1/embeddings", " Did you mean POST /v1/embeddings?"),
        ("/V1/embeddings", " Did you mean POST /v1/embeddings?"),
        ("/api/embed", " Did you mean POST /v1/embeddings?"),
        ("/embedding", " Did you mean POST /v1/embeddings?"),
        ("/v1/embeddings2", ""),
        ("/v1/files", ""),
    ] {
        let answer = app.post(path, &[], "{}").await;
        assert_eq!(answer.refusal(404, None, None), format!("Invalid URL (POST {path}){hint}"));
    }
    let base = app.post("/", &[], "{}").await.refusal(405, Some("method_not_supported"), None);
    assert_eq!(base, "Not allowed to POST on /. Did you mean POST /v1/embeddings?");
    let head = app.send(reqwest::Method::HEAD, "/v1/embeddings", &[], Vec::new()).await;
    assert_eq!((head.status, head.header("allow"), head.text.as_str()), (405, Some("POST"), ""));
    let head = app.send(reqwest::Method::HEAD, "/v1/models", &[], Vec::new()).await;
    assert_eq!((head.status, head.text.as_str()), (200, ""));
    assert_eq!(head.header("content-length"), app.get("/v1/models").await.header("content-length"));
    let head = app.send(reqwest::Method::HEAD, "/v1/nothing", &[], Vec::new()).await;
    assert_eq!((head.status, head.text.as_str()), (404, ""));
}

// N-01, N-02
#[tokio::test]
async fn a_row_without_finite_values_is_named_and_harms_nobody() {
    let app = TestApp::with(|setup| setup.only("evil", Kind::Evil(Evil::default()))).await;
    let poisoned = json!({"model": "evil", "input": ["a", "b", "%"]});
    let (poisoned, healthy) = tokio::join!(app.embed(poisoned), app.embed(json!({"model": "evil", "input": "a"})));
    let message = poisoned.refusal(500, Some("non_finite"), Some("input"));
    assert_eq!(message, "The model returned a non-finite vector for 'input[2]'.");
    assert_eq!(poisoned.header("x-should-retry"), Some("false"));
    assert_eq!(healthy.vectors().len(), 1);
    let single = app.embed(json!({"model": "evil", "input": "%"})).await;
    assert!(single.refusal(500, Some("non_finite"), Some("input")).ends_with("'input'."));
}

// O-03: what went wrong inside stays inside.
#[tokio::test]
async fn an_internal_failure_tells_nothing() {
    let app = TestApp::with(|setup| setup.only("evil", Kind::Evil(Evil::default()))).await;
    for word in ["#", "$"] {
        let answer = app.embed(json!({"model": "evil", "input": ["a", word]})).await;
        let message = answer.refusal(500, None, None);
        assert_eq!(message, "The server had an error while processing your request.");
        assert_eq!(answer.header("x-should-retry"), Some("false"), "it fails again");
    }
    app.embed(json!({"model": "evil", "input": "a"})).await.vectors();
    let app = TestApp::with(|setup| setup.only("broken", Kind::Failed)).await;
    let answer = app.embed(json!({"model": "broken", "input": "a"})).await;
    let message = answer.refusal(503, Some("model_unavailable"), None);
    assert!(message.starts_with("The model `broken` is not available. Please try again in "), "{message}");
    for text in [answer.text, app.get("/readyz").await.text, app.get("/version").await.text] {
        assert!(!text.contains("/secret") && !text.contains("safetensors"), "{text}");
    }
}
