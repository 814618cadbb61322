//! Token arrays: `OpenAI`'s encodings, the model's own ids, and where nobody can tell. Numbers are the cases of the
//! wire contract.

use embedserve::request::TokenArrays;
use serde_json::{Value, json};

use crate::support::app::{M, TestApp};
use crate::support::tiny_model::vocabulary;

/// The tiny model's ids: specials in front and behind, whole words, letters.
fn id(token: &str) -> usize {
    vocabulary().iter().position(|known| known == token).unwrap()
}

fn framed(tokens: &[&str]) -> Vec<usize> {
    let tokens = tokens.iter().map(|token| id(token));
    std::iter::once(id("[CLS]")).chain(tokens).chain([id("[SEP]")]).collect()
}

async fn message(app: &TestApp, input: Value, code: &str) -> String {
    let answer = app.embed(json!({"model": M, "input": input})).await;
    answer.refusal(400, Some(code), Some("input"))
}

#[tokio::test]
async fn arrays_are_openai_text_unless_they_prove_otherwise() {
    let app = TestApp::start().await;
    for (ids, texts) in [
        (json!([15339, 1917]), json!("hello world")),
        (json!([[15339, 1917], [8134]]), json!(["hello world", "foo"])),
        (json!([[71, 19010, 385, 91416, 73958, 17161]]), json!("héllo 😀 中文")),
        (json!([[71, 76460]]), json!("h")),
        (json!([[222, 71]]), json!("h")),
        (json!([[222]]), json!("\u{fffd}")),
        (json!([[100_257]]), json!("<|endoftext|>")),
    ] {
        assert_eq!(app.vectors(ids.clone()).await, app.vectors(texts).await, "{ids}");
    }
    let o200k = app.embed(json!({"model": "gpt-4o", "input": [[24912, 2375]]})).await;
    assert_eq!(o200k.vectors(), app.vectors(json!("hello world")).await);
    let asked = app.embed(json!({"model": M, "input": [[24912, 2375]], "token_encoding": "o200k_base"})).await;
    assert_eq!(asked.vectors(), o200k.vectors());
    app.until_metric("embedserve_token_arrays_total", "encoding=\"o200k\"", 2.0).await;
}

// V-04
#[tokio::test]
async fn ids_that_do_not_exist_are_named() {
    let app = TestApp::start().await;
    for bad in [100_256, 100_277, -1, 4_294_967_296_i64, i64::MAX] {
        let text = message(&app, json!([[71], [71, bad]]), "invalid_token_id").await;
        assert!(
            text.starts_with(&format!("Invalid 'input[1][1]': {bad} is not a valid token id (cl100k_base).")),
            "{text}"
        );
        assert!(text.contains("\"token_encoding\": \"model\""), "{text}");
    }
    let flat = message(&app, json!([71, 100_256]), "invalid_token_id").await;
    assert!(flat.starts_with("Invalid 'input[1]': 100256 "), "{flat}");
    let huge = message(&app, json!([[serde_json::Number::from_f64(1e300).unwrap()]]), "invalid_token_id").await;
    assert!(huge.starts_with("Invalid 'input[0][0]': 9223372036854775807 "), "{huge}");
    let too_large = app.post("/v1/embeddings", &[], format!(r#"{{"model":"{M}","input":[[1e400]]}}"#)).await;
    too_large.refusal(400, None, None);
    let digits = "9".repeat(400);
    let long = app.post("/v1/embeddings", &[], format!(r#"{{"model":"{M}","input":[[{digits}]]}}"#)).await;
    assert_eq!(long.status, 400);
}

// Beside another array each is read for itself.
#[tokio::test]
async fn a_frame_that_is_no_text_is_the_models_own() {
    let app = TestApp::start().await;
    let own = framed(&["hello", "world"]);
    let expected = app.vectors(json!("hello world")).await;
    assert_eq!(app.vectors(json!([own])).await, expected);
    let both = app.vectors(json!([own, [15339, 1917], [8134]])).await;
    assert_eq!(both, [&expected[..], &expected[..], &app.vectors(json!("foo")).await[..]].concat());
}

#[tokio::test]
async fn ids_that_fit_both_readings_are_never_guessed() {
    let app = TestApp::start().await;
    let both_ways = framed(&["h"]);
    let text = message(&app, json!([both_ways]), "ambiguous_token_ids").await;
    assert_eq!(
        text,
        "Invalid 'input[0]': these token ids read both as cl100k_base text and as this model's own ids. Set \
         \"token_encoding\" to \"cl100k_base\" or \"model\"."
    );
    let read_as = |encoding: &str| json!({"model": M, "input": [both_ways], "token_encoding": encoding});
    // cl100k's first 94 ids are the printable characters in order.
    let as_text: String = both_ways.iter().map(|id| char::from(b'!' + u8::try_from(*id).unwrap())).collect();
    assert_eq!(app.embed(read_as("cl100k_base")).await.vectors(), app.vectors(json!(as_text)).await);
    assert_eq!(app.embed(read_as("model")).await.vectors(), app.vectors(json!("h")).await);
    let unknown = app.embed(read_as("p50k_base")).await;
    unknown.refusal(400, Some("invalid_value"), Some("token_encoding"));
}

// An id of OpenAI's can stand for a hundred bytes and more.
#[tokio::test]
async fn an_array_of_more_ids_than_a_request_may_have_is_not_decoded() {
    let app = TestApp::with(|setup| setup.requests.max_request_tokens = 20).await;
    // The last id does not exist, which a decoder would have noticed.
    let ids = |n: usize| json!({"model": M, "input": [vec![100_300; n]], "token_encoding": "cl100k_base"});
    app.embed(ids(21)).await.refusal(400, Some("max_tokens_per_request"), Some("input"));
    app.embed(ids(20)).await.refusal(400, Some("invalid_token_id"), Some("input"));
}

#[tokio::test]
async fn a_model_may_read_every_array_as_its_own_or_none() {
    let app = TestApp::with(|setup| setup.requests.token_arrays = TokenArrays::Model).await;
    let expected = app.vectors(json!("h a")).await;
    assert_eq!(app.vectors(json!([framed(&["h", "a"])])).await, expected);
    assert_eq!(app.vectors(json!([id("h"), id("a")])).await, expected);
    let text = message(&app, json!([[id("h"), vocabulary().len()]]), "invalid_token_id").await;
    assert!(text.starts_with("Invalid 'input[0][1]': ") && text.contains(M), "{text}");

    let app = TestApp::with(|setup| setup.requests.token_arrays = TokenArrays::Reject).await;
    for body in
        [json!({"model": M, "input": [15339]}), json!({"model": M, "input": [[15339]], "token_encoding": "model"})]
    {
        app.embed(body).await.refusal(400, Some("token_arrays_not_supported"), Some("input"));
    }
    assert_eq!(app.vectors(json!("a")).await.len(), 1);
}

// 300,000 ids received are within the limit, whatever they become here.
#[tokio::test]
async fn received_ids_are_what_counts() {
    let app = TestApp::with(|setup| setup.requests.max_request_tokens = 3000).await;
    // One id each for " hello" becomes three of ours with the frame; 1,000 inputs of 3 received ids.
    let arrays = vec![vec![15339; 3]; 1000];
    let answer = app.embed(json!({"model": M, "input": arrays, "truncate": true})).await;
    assert_eq!(answer.vectors().len(), 1000);
    let over = app.embed(json!({"model": M, "input": [vec![15339; 3001]], "truncate": true})).await;
    let message = over.refusal(400, Some("max_tokens_per_request"), Some("input"));
    assert_eq!(message, "Requested 3001 tokens, max 3000 tokens per request");
    // More than is ever stored is refused with its true number.
    let flood = app.embed(json!({"model": M, "input": vec![15339; 100_000], "truncate": true})).await;
    let message = flood.refusal(400, Some("max_tokens_per_request"), Some("input"));
    assert_eq!(message, "Requested 100000 tokens, max 3000 tokens per request");
}

// 1.78 MB of JSON integers with the limits of a release.
#[tokio::test]
async fn langchains_largest_request_is_accepted() {
    let app = TestApp::start().await;
    let arrays = vec![vec![15339; 1000]; 300];
    let answer = app.embed(json!({"model": M, "input": arrays, "truncate": true})).await;
    assert_eq!(answer.vectors().len(), 300);
    assert_eq!(answer.header("x-truncated-inputs"), Some("300"));
}
