//! `GET /v1/models` and what it lists.

use embedserve::catalog::ModelSpec;
use serde_json::{Value, json};

use crate::support::app::{DIMENSIONS, F, Kind, M, MAX_TOKENS, TestApp};

#[tokio::test]
async fn every_name_is_listed_with_its_root_and_its_limits() {
    let app = TestApp::start().await;
    let answer = app.get("/v1/models").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let body = answer.json();
    assert_eq!(body["object"], "list");
    let data = body["data"].as_array().unwrap();
    for model in data {
        assert_eq!((&model["object"], &model["owned_by"]), (&json!("model"), &json!("tiny")));
        assert!(model["created"].is_u64(), "{model}");
        assert_eq!((&model["max_model_len"], &model["dimensions"]), (&json!(MAX_TOKENS), &json!(DIMENSIONS)));
    }
    let names: Vec<(&str, &str)> =
        data.iter().map(|model| (model["id"].as_str().unwrap(), model["root"].as_str().unwrap())).collect();
    assert_eq!(names[..2], [(M, M), (F, F)]);
    assert!(names.contains(&("gpt-4o", M)) && names.contains(&("fixed", F)), "{names:?}");
    assert_eq!(app.get("/v1/models").await.text, answer.text);
    assert_eq!(app.get("/models").await.text, answer.text);
}

#[tokio::test]
async fn one_model_is_found_by_any_of_its_names() {
    let app = TestApp::start().await;
    let list = app.get("/v1/models").await.json();
    let entry = |id: &str| list["data"].as_array().unwrap().iter().find(|model| model["id"] == id).unwrap().clone();
    for path in [
        "/v1/models/tiny%2Fmatryoshka",
        "/v1/models/tiny%2fmatryoshka",
        "/v1/models/tiny/matryoshka",
        "/models/tiny/matryoshka/",
        "/v1/models/TINY/Matryoshka",
    ] {
        let answer = app.get(path).await;
        assert_eq!((answer.status, answer.json()), (200, entry(M)), "{path}");
    }
    assert_eq!(app.get("/v1/models/gpt-4o").await.json(), entry("gpt-4o"));
    for unknown in ["nope", "tiny/none", "..%2f..%2fetc%2fpasswd", "%00", "%ff"] {
        let answer = app.get(&format!("/v1/models/{unknown}")).await;
        let message = answer.refusal(404, Some("model_not_found"), Some("model"));
        assert!(message.starts_with("The model '") && message.ends_with("' does not exist"), "{message}");
    }
}

#[tokio::test]
async fn a_loading_model_is_listed_with_what_its_entry_promises() {
    let app = TestApp::with(|setup| {
        setup.only("plain", Kind::Loading);
        let spec = &mut setup.models[0].spec;
        *spec = ModelSpec { dimensions: Some(384), created: 1_706_486_400, ..spec.clone() };
    })
    .await;
    let expected: Value = json!({"object": "list", "data": [{"id": "plain", "object": "model", "created": 1_706_486_400,
        "owned_by": "embedserve", "root": "plain", "state": "loading", "dimensions": 384, "dtype": "f32"}]});
    assert_eq!(app.get("/v1/models").await.json(), expected);
}

// Azure's clients name the model in the path, and not always in the body.
#[tokio::test]
async fn a_deployment_in_the_path_is_the_model() {
    let app = TestApp::start().await;
    let path =
        |model: &str| format!("/openai/deployments/{}/embeddings?api-version=2024-10-21", model.replace('/', "%2F"));
    let answer = app.post(&path(M), &[], r#"{"input": "x"}"#).await;
    assert_eq!((answer.status, &answer.json()["model"]), (200, &json!(M)), "{answer:?}");
    let other = app.post(&path(M), &[], r#"{"input": "x", "model": "text-embedding-3-small"}"#).await;
    assert_eq!(other.json()["data"], answer.json()["data"], "the path decides");
    app.post(&path("nobody"), &[], r#"{"input": "x"}"#).await.refusal(404, Some("model_not_found"), None);
    app.post("/openai/v1/embeddings", &[], json!({"model": M, "input": "x"}).to_string()).await.vectors();
    assert_eq!(app.get("/openai/v1/models").await.json(), app.get("/v1/models").await.json());
}
