//! What only a handler of our own can show: a panic inside a request.

use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;

use super::*;
use crate::catalog::{self, Names};
use crate::request::TokenArrays;

/// I-12, O-03.
#[tokio::test]
async fn a_panicking_handler_answers_500_and_nothing_else() {
    let http = http_config();
    let spec = catalog::resolve("dir:/nowhere/model", &[]).unwrap();
    let names = Names::new(vec![Arc::new(spec)], Vec::new(), 0, false).unwrap();
    let metrics = Metrics::new(&[]);
    let state = Arc::new(HttpState {
        engine: Arc::new(Engine::new(names, Arc::clone(&metrics))),
        requests: request_config(),
        keys: Arc::new(Keys::new(&[])),
        hosts: Hosts::Any,
        answers: AnswerBudget::new(&http),
        bodies: BodyBudget::new(&http),
        strangers: Strangers::default(),
        http,
    });
    let router = surrounded(Router::new().route("/panic", get(panicking)), state);
    let request = Request::get("/panic").body(Body::empty()).unwrap();
    let response = router.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert!(response.headers().contains_key("x-request-id"));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(
        &body[..],
        br#"{"error":{"message":"The server had an error while processing your request.","type":"server_error","param":null,"code":null},"detail":"The server had an error while processing your request."}"#
    );
    assert!(metrics.encode().contains("embedserve_panics_total{thread=\"http\"} 1\n"));
}

async fn panicking() {
    panic!("/secret/path at 0xdeadbeef");
}

fn http_config() -> HttpConfig {
    HttpConfig {
        host: "127.0.0.1".to_owned(),
        port: 0,
        api_keys: Vec::new(),
        insecure: false,
        cors_origins: Vec::new(),
        allowed_hosts: Vec::new(),
        max_body_bytes: 1024,
        max_bodies_bytes: 4096,
        max_answers_bytes: 4096,
        max_header_bytes: 1024,
        max_headers: 10,
        max_connections: 1,
        header_timeout: Duration::from_secs(1),
        idle_timeout: Duration::from_secs(1),
        body_timeout: Duration::from_secs(1),
        write_timeout: Duration::from_secs(1),
        answer_timeout: Duration::from_secs(1),
        metrics_public: false,
    }
}

fn request_config() -> RequestConfig {
    RequestConfig {
        max_inputs: 4,
        max_request_tokens: 100,
        max_input_bytes_per_token: 64,
        allow_empty_input: false,
        accept_any_model: false,
        token_arrays: TokenArrays::Auto,
        truncate: None,
        default_prompt: None,
        max_prompt_bytes: 64,
        allow_dimensions: false,
        request_timeout: Duration::from_secs(1),
    }
}
