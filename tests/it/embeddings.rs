//! `POST /v1/embeddings`: what a good request gets. Numbers are the cases of the wire contract.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::support::app::{Answer, DIMENSIONS, F, M, MAX_TOKENS, TestApp, length, vector, words};

/// Every value of a body but those that differ from answer to answer.
fn lasting(answer: &Answer) -> Value {
    assert_eq!(answer.status, 200, "{}", answer.text);
    let mut body = answer.json();
    body.as_object_mut().unwrap().retain(|key, _| !["id", "created"].contains(&key.as_str()));
    body
}

#[tokio::test]
async fn one_text_gets_one_unit_vector_and_its_usage() {
    let app = TestApp::start().await;
    let answer = app.embed(json!({"model": M, "input": "a b c"})).await;
    let vectors = answer.vectors();
    assert_eq!((vectors.len(), vectors[0].len()), (1, DIMENSIONS));
    assert!((length(&vectors[0]) - 1.0).abs() < 1e-6);
    let body = answer.json();
    assert_eq!((&body["object"], &body["model"]), (&json!("list"), &json!(M)));
    assert_eq!(body["usage"], json!({"prompt_tokens": 5, "total_tokens": 5}));
    assert!(body["created"].as_u64().unwrap() > 1_700_000_000);
    let id = body["id"].as_str().unwrap().strip_prefix("embd-").unwrap();
    assert!(id.len() == 32 && id.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')), "{id}");
    assert_eq!(body["data"][0].as_object().unwrap().keys().collect::<Vec<_>>(), ["embedding", "index", "object"]);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert_eq!(answer.header("content-length"), Some(answer.text.len().to_string().as_str()));
    assert_eq!(answer.header("openai-model"), Some(M));
    assert_eq!(answer.header("x-truncated-inputs"), None);
    let timing = answer.header("server-timing").unwrap();
    let stages: Vec<&str> = timing.split(", ").map(|stage| stage.split_once(";dur=").unwrap().0).collect();
    assert_eq!(stages, ["parse", "tokenize", "queue", "run", "write"]);
}

#[tokio::test]
async fn each_text_of_a_list_gets_the_answer_it_gets_alone() {
    let app = TestApp::start().await;
    let together = app.vectors(json!(["a", "b"])).await;
    assert_ne!(together[0], together[1]);
    assert_eq!(together, [app.vectors(json!("a")).await, app.vectors(json!(["b"])).await].concat());
}

// V-02: with the limits of a release.
#[tokio::test]
async fn two_thousand_and_forty_eight_inputs_are_the_limit() {
    let app = TestApp::start().await;
    assert_eq!(app.vectors(json!(vec!["x"; 2048])).await.len(), 2048);
    let answer = app.embed(json!({"model": M, "input": vec!["x"; 2049]})).await;
    assert_eq!(answer.refusal(400, None, Some("input")), "Invalid 'input': array length must be 2048 or less.");
    app.until_metric("embedserve_inputs_total", "route=\"/v1/embeddings\",model=\"tiny/matryoshka\"", 2048.0).await;
    app.check_metric("embedserve_stage_duration_seconds_count", "model=\"tiny/matryoshka\",stage=\"tokenize\"", 1.0);
}

// V-01
#[tokio::test]
async fn text_of_white_space_alone_is_a_text() {
    let app = TestApp::start().await;
    for text in [" ", "\n", "\u{3000}"] {
        let answer = app.embed(json!({"model": M, "input": text})).await;
        assert!((length(&answer.vectors()[0]) - 1.0).abs() < 1e-6, "{text:?}");
        assert_eq!(answer.json()["usage"]["prompt_tokens"], 2);
    }
}

// W-14
#[tokio::test]
async fn floats_and_base64_are_the_same_bits() {
    let app = TestApp::start().await;
    let request = |format: Value| json!({"model": M, "input": ["a", "b c"], "encoding_format": format});
    let floats = app.embed(request(json!("float"))).await;
    assert!(floats.json()["data"][1]["embedding"].is_array());
    let base64 = app.embed(request(json!("base64"))).await;
    let text = base64.json()["data"][1]["embedding"].as_str().unwrap().to_owned();
    assert_eq!(text.len(), (4 * DIMENSIONS).div_ceil(3) * 4);
    assert_eq!(floats.vectors(), base64.vectors());
    for absent in [app.embed(request(Value::Null)).await, app.embed(json!({"model": M, "input": ["a", "b c"]})).await] {
        assert_eq!(lasting(&absent), lasting(&floats));
    }
}

// V-03
#[tokio::test]
async fn a_shorter_vector_is_the_scaled_beginning_of_the_whole_one() {
    let app = TestApp::start().await;
    let full = app.vectors(json!("a b")).await.remove(0);
    for format in ["float", "base64"] {
        let body = json!({"model": M, "input": "a b", "dimensions": 8, "encoding_format": format});
        let short = app.embed(body).await.vectors().remove(0);
        assert_eq!(short.len(), 8);
        assert!((length(&short) - 1.0).abs() < 1e-6);
        let scale = length(&full[..8]);
        for (short, full) in short.iter().zip(&full) {
            assert!((f64::from(*short) - f64::from(*full) / scale).abs() < 1e-6);
        }
    }
    assert_eq!(app.embed(json!({"model": M, "input": "a", "dimensions": 1})).await.vectors()[0].len(), 1);
}

// W-13
#[tokio::test]
async fn fields_that_mean_nothing_change_nothing() {
    let app = TestApp::start().await;
    for model in [M, F] {
        let plain = lasting(&app.embed(json!({"model": model, "input": ["a", "b"]})).await);
        for extra in [
            json!({"dimensions": DIMENSIONS}),
            json!({"dimensions": null}),
            json!({"user": "u"}),
            json!({"user": ""}),
            json!({"user": null}),
            json!({"user": "u".repeat(1 << 20)}),
            json!({"drop_params": true, "input_type": "query", "foo": {"a": [1]}}),
            json!({"input_type": null, "output_dtype": null, "output_dimension": null, "truncation": true}),
            json!({"truncate": null, "truncation": null, "truncate_prompt_tokens": null, "token_encoding": null}),
        ] {
            let mut body = json!({"model": model, "input": ["a", "b"]});
            body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            assert_eq!(lasting(&app.embed(body).await), plain, "{extra}");
        }
    }
}

// V-07
#[tokio::test]
async fn the_context_length_is_exact() {
    let app = TestApp::start().await;
    let fits = app.embed(json!({"model": M, "input": words(MAX_TOKENS - 2)})).await;
    fits.vectors();
    assert_eq!(fits.json()["usage"]["prompt_tokens"], MAX_TOKENS);
    let too_long = |n: usize, place: &str| {
        format!(
            "Invalid '{place}': maximum input length is 64 tokens. This model's maximum context length is 64 tokens, \
             however you requested {n} tokens ({n} in your prompt; 0 for the completion). Please reduce your prompt, \
             or set \"truncate\": true."
        )
    };
    for n in [MAX_TOKENS - 1, MAX_TOKENS, 2 * MAX_TOKENS] {
        let answer = app.embed(json!({"model": M, "input": words(n)})).await;
        let message = answer.refusal(400, Some("context_length_exceeded"), Some("input"));
        assert_eq!(message, too_long(n + 2, "input"));
        assert_eq!(answer.header("openai-model"), Some(M));
    }
    let answer = app.embed(json!({"model": M, "input": ["a", words(90)]})).await;
    let message = answer.refusal(400, Some("context_length_exceeded"), Some("input"));
    assert_eq!(message, too_long(92, "input[1]"));
}

/// A text of 90 distinguishable words, its first 62 and its last 62.
fn long_text() -> (String, String, String) {
    let words: Vec<String> = (0..90_u8).map(|i| char::from(b'a' + i % 26).to_string()).collect();
    (words.join(" "), words[..62].join(" "), words[28..].join(" "))
}

// V-07
#[tokio::test]
async fn truncation_is_asked_for_and_shows() {
    let app = TestApp::start().await;
    let (long, first, _) = long_text();
    let expected = app.vectors(json!(first)).await;
    for field in [
        json!({"truncate": true}),
        json!({"truncation": true}),
        json!({"truncate": "END"}),
        json!({"truncate": "end"}),
        json!({"truncate_prompt_tokens": -1}),
        json!({"truncate_prompt_tokens": 64}),
    ] {
        let mut body = json!({"model": M, "input": ["a", long]});
        body.as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
        let answer = app.embed(body).await;
        assert_eq!(answer.vectors()[1], expected[0], "{field}");
        assert_eq!(answer.header("x-truncated-inputs"), Some("1"));
        let body = answer.json();
        assert_eq!((&body["data"][1]["truncated"], &body["data"][1]["original_tokens"]), (&json!(true), &json!(92)));
        assert_eq!(body["data"][0].as_object().unwrap().len(), 3);
        assert_eq!(body["usage"]["prompt_tokens"], 3 + MAX_TOKENS);
    }
    app.until_metric("embedserve_inputs_truncated_total", "route=\"/v1/embeddings\",model=\"tiny/matryoshka\"", 6.0)
        .await;
    let kept = app.embed(json!({"model": M, "input": "a b c d", "truncate_prompt_tokens": 4})).await;
    assert_eq!(kept.vectors(), app.vectors(json!("a b")).await);
    assert_eq!(kept.json()["usage"]["prompt_tokens"], 4);
}

// The operator's switch, and the request's own word against it.
#[tokio::test]
async fn auto_truncate_applies_where_the_request_is_silent() {
    let app = TestApp::with(|setup| setup.requests.truncate = Some(embedserve::request::Side::End)).await;
    let (long, first, last) = long_text();
    assert_eq!(app.vectors(json!(long)).await, app.vectors(json!(first)).await);
    let start = app.embed(json!({"model": M, "input": long, "truncate": "START"})).await;
    assert_eq!(start.vectors(), app.vectors(json!(last)).await);
    let refused = app.embed(json!({"model": M, "input": long, "truncate": false})).await;
    refused.refusal(400, Some("context_length_exceeded"), Some("input"));
}

#[tokio::test]
async fn the_start_can_be_cut_instead() {
    let app = TestApp::start().await;
    let (long, _, last) = long_text();
    let expected = app.vectors(json!(last)).await;
    for fields in [
        json!({"truncate": "START"}),
        json!({"truncation_side": "left", "truncation": true}),
        json!({"truncation_direction": "Left", "truncate": true}),
        json!({"truncation_side": "left", "truncate_prompt_tokens": -1}),
    ] {
        let mut body = json!({"model": M, "input": long});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        assert_eq!(app.embed(body).await.vectors(), expected, "{fields}");
    }
    // The side alone does not switch truncation on.
    let off = app.embed(json!({"model": M, "input": long, "truncation_side": "left"})).await;
    off.refusal(400, Some("context_length_exceeded"), Some("input"));
}

#[tokio::test]
async fn empty_texts_pass_with_the_switch_alone() {
    let app = TestApp::with(|setup| setup.requests.allow_empty_input = true).await;
    for (input, n) in [(json!(""), 1), (json!([""]), 1), (json!(["a", ""]), 2)] {
        let vectors = app.vectors(input.clone()).await;
        assert_eq!(vectors.len(), n, "{input}");
        assert!((length(&vectors[n - 1]) - 1.0).abs() < 1e-6);
    }
    let none = app.embed(json!({"model": M, "input": []})).await;
    assert_eq!(none.refusal(400, None, Some("input")), "Invalid 'input': input cannot be an empty array.");
}

// V-09
#[tokio::test]
async fn escaped_and_raw_json_are_the_same_text() {
    let app = TestApp::start().await;
    let raw = app.post("/v1/embeddings", &[], format!(r#"{{"model":"{M}","input":"é 😀 中"}}"#)).await;
    let escaped =
        app.post("/v1/embeddings", &[], format!(r#"{{"model":"{M}","input":"\u00e9 \ud83d\ude00 \u4e2d"}}"#)).await;
    assert_eq!(lasting(&raw), lasting(&escaped));
    let with_mark =
        app.post("/v1/embeddings", &[], format!("\u{feff}{{\"model\":\"{M}\",\"input\":\"é 😀 中\"}}")).await;
    assert_eq!(lasting(&with_mark), lasting(&raw));
    for odd in ["a\u{0}b", "\u{feff}", "\u{202e}abc", "\u{10ffff}", "\u{fffd}"] {
        assert_eq!(app.vectors(json!([odd, "a"])).await.len(), 2, "{odd:?}");
    }
}

// V-08
#[tokio::test]
async fn company_and_order_change_no_bit() {
    let app = TestApp::start().await;
    let texts: Vec<String> = (1..=8).map(|n| vec!["a b c"; n].join(" d ")).collect();
    let mut alone = Vec::new();
    for text in &texts {
        alone.extend(app.vectors(json!(text)).await);
    }
    let many: Vec<&String> = texts.iter().cycle().take(512).collect();
    let together = app.vectors(json!(many)).await;
    for (index, vector) in together.iter().enumerate() {
        assert_eq!(vector, &alone[index % 8], "row {index}");
    }
    let (mut reversed, mut backwards) = (texts.clone(), alone.clone());
    reversed.reverse();
    backwards.reverse();
    assert_eq!(app.vectors(json!(reversed)).await, backwards);
    let cut =
        app.embed(json!({"model": M, "input": [texts[0], words(200), texts[1]], "truncate": true})).await.vectors();
    assert_eq!((&cut[0], &cut[2]), (&alone[0], &alone[1]));
}

// Aliases, also in another case; the model repeats the requested name.
#[tokio::test]
async fn a_model_answers_to_its_aliases() {
    let app = TestApp::with(|setup| setup.aliases.push(("BGE-M3".to_owned(), M.to_owned()))).await;
    let expected = app.vectors(json!(["a", "b", "a", "c"])).await;
    assert_eq!(expected[0], expected[2]);
    for name in ["BGE-M3", "bge-m3", "Tiny/MATRYOSHKA", "matryoshka", "gpt-4o"] {
        let answer = app.embed(json!({"model": name, "input": ["a", "b", "a", "c"]})).await;
        assert_eq!(answer.vectors(), expected);
        assert_eq!(answer.json()["model"], name);
        assert_eq!(answer.header("openai-model"), Some(M));
    }
    assert_ne!(app.embed(json!({"model": F, "input": ["a"]})).await.vectors()[0], expected[0]);
}

// With --accept-any-model
#[tokio::test]
async fn any_name_means_the_default_model_with_the_switch_alone() {
    let app = TestApp::with(|setup| setup.requests.accept_any_model = true).await;
    let expected = app.vectors(json!("a")).await;
    for name in [json!("text-embedding-3-small"), json!("../../etc/passwd")] {
        let answer = app.embed(json!({"model": name, "input": "a"})).await;
        assert_eq!(answer.vectors(), expected);
        assert_eq!((&answer.json()["model"], answer.header("openai-model")), (&name, Some(M)));
    }
    for body in [json!({"input": "a"}), json!({"model": null, "input": "a"}), json!({"model": "", "input": "a"})] {
        let answer = app.embed(body).await;
        assert_eq!(answer.vectors(), expected);
        assert_eq!(answer.json()["model"], M);
    }
    // The switch does not invent models to list.
    app.get("/v1/models/text-embedding-3-small").await.refusal(404, Some("model_not_found"), Some("model"));
}

#[tokio::test]
async fn every_spelling_of_the_route_is_the_route() {
    let app = TestApp::start().await;
    let body = json!({"model": M, "input": "a"}).to_string();
    let expected = app.vectors(json!("a")).await;
    for path in
        ["/embeddings", "/v1/embeddings/", "//v1/embeddings", "/v1//embeddings//", "/v1/embeddings?api-version=1"]
    {
        let answer = app.post(path, &[], body.clone()).await;
        assert_eq!(answer.vectors(), expected, "{path}");
    }
}

// O-07
#[tokio::test]
async fn every_answer_carries_an_id_and_openais_headers() {
    let app = TestApp::start().await;
    let mut ids = HashSet::new();
    for answer in [
        app.embed(json!({"model": M, "input": "a"})).await,
        app.embed(json!({"model": M, "input": ""})).await,
        app.get("/v1/models").await,
        app.get("/v1/nothing").await,
    ] {
        let id = answer.header("x-request-id").unwrap();
        assert!(id.strip_prefix("req_").is_some_and(|hex| hex.len() == 32), "{id}");
        assert!(ids.insert(id.to_owned()));
        assert!(answer.header("openai-processing-ms").unwrap().parse::<u64>().is_ok());
        assert_eq!(answer.header("openai-version"), Some("2020-10-01"));
    }
    let body = json!({"model": M, "input": "a"}).to_string();
    for (sent, echoed) in [("my-id_1.2:3", true), ("a b", false), ("a/b", false), ("", false)] {
        let answer = app.post("/v1/embeddings", &[("x-request-id", sent)], body.clone()).await;
        assert_eq!(answer.header("x-request-id") == Some(sent), echoed, "{sent}");
    }
    for (n, echoed) in [(128, true), (129, false), (10_000, false)] {
        let sent = "x".repeat(n);
        let answer = app.post("/v1/embeddings", &[("x-request-id", &sent)], body.clone()).await;
        assert_eq!(answer.header("x-request-id") == Some(sent.as_str()), echoed, "{n}");
    }
}

// W-16: the answer as the official SDKs read it: `base64` into floats, `data` in order, both usage fields.
#[tokio::test]
async fn an_sdk_reads_what_was_meant() {
    let app = TestApp::start().await;
    let sdk = [("authorization", "Bearer anything"), ("x-stainless-lang", "python"), ("accept", "application/json")];
    let body = json!({"input": ["a", "b"], "model": M, "encoding_format": "base64"}).to_string();
    let answer = app.post("/v1/embeddings", &sdk, body).await.json();
    let data = answer["data"].as_array().unwrap();
    let vectors: Vec<Vec<f32>> = data.iter().map(|item| vector(&item["embedding"])).collect();
    assert_eq!(vectors, app.vectors(json!(["a", "b"])).await);
    assert_eq!(answer["usage"]["prompt_tokens"], answer["usage"]["total_tokens"]);
}
