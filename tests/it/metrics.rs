//! The metrics page: its format, what it counts, and that no client can make it grow.

use std::collections::BTreeSet;

use embedserve::observe::metrics::Metrics;
use serde_json::json;

use crate::support::app::{F, M, TestApp};

/// Series without their values.
fn series(app: &TestApp) -> BTreeSet<String> {
    let page = app.engine.metrics.encode();
    page.lines().filter(|line| !line.starts_with('#')).map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect()
}

// O-06
#[tokio::test]
async fn the_page_is_openmetrics_and_complete_from_the_start() {
    let app = TestApp::start().await;
    let answer = app.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/openmetrics-text; version=1.0.0; charset=utf-8"));
    assert!(answer.text.ends_with("# EOF\n"));
    let families: Vec<&str> = answer.text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let unique: BTreeSet<&str> = families.iter().map(|family| family.split(' ').next().unwrap()).collect();
    assert_eq!(families.len(), unique.len(), "a family is declared twice");
    for (name, labels) in [
        ("embedserve_http_requests_total", "route=\"/v1/embeddings\",method=\"POST\",status=\"200\""),
        ("embedserve_http_requests_total", "route=\"unmatched\",method=\"GET\",status=\"404\""),
        ("embedserve_http_request_duration_seconds_count", "route=\"/v1/embeddings\",status=\"503\""),
        ("embedserve_http_connections_refused_total", "reason=\"limit\""),
        ("embedserve_http_clients_gone_total", "route=\"/v1/embeddings\",stage=\"running\""),
        ("embedserve_http_retries_seen_total", "route=\"/v1/embeddings\""),
        ("embedserve_errors_total", "model=\"tiny/fixed\",code=\"context_length_exceeded\""),
        ("embedserve_errors_total", "model=\"unknown\",code=\"model_not_found\""),
        ("embedserve_auth_failures_total", "reason=\"wrong\""),
        ("embedserve_inputs_total", "model=\"tiny/fixed\""),
        ("embedserve_inputs_truncated_total", "model=\"tiny/fixed\""),
        ("embedserve_input_tokens_total", "route=\"/v1/embeddings\",model=\"tiny/fixed\""),
        ("embedserve_computed_tokens_total", "model=\"tiny/fixed\",device=\"cpu\""),
        ("embedserve_token_arrays_total", "model=\"tiny/fixed\",encoding=\"cl100k\""),
        ("embedserve_queue_refused_total", "model=\"tiny/fixed\",reason=\"full\""),
        ("embedserve_queue_expired_total", "model=\"tiny/fixed\""),
        ("embedserve_batches_total", "model=\"tiny/fixed\""),
        ("embedserve_batch_failures_total", "model=\"tiny/fixed\",device=\"cpu\",reason=\"oom\""),
        ("embedserve_rows_non_finite_total", "model=\"tiny/fixed\""),
        ("embedserve_stage_duration_seconds_count", "model=\"tiny/fixed\",stage=\"write\""),
        ("embedserve_panics_total", "thread=\"http\""),
    ] {
        app.check_metric(name, labels, 0.0);
    }
    app.check_metric("embedserve_queue_limit_rows", "model=\"tiny/fixed\"", 4096.0);
    app.check_metric("embedserve_model_info", "model=\"tiny/fixed\",revision=\"none\",architecture=\"bert\"", 1.0);
    for process in ["resident_memory_bytes", "cpu_seconds_total", "open_fds", "start_time_seconds", "threads"] {
        assert!(app.metric(&format!("process_{process}"), "") > 0.0, "{process}");
    }
}

// O-06
#[tokio::test]
async fn every_event_is_counted_once() {
    let app = TestApp::start().await;
    let route = "route=\"/v1/embeddings\"";
    let model = "route=\"/v1/embeddings\",model=\"tiny/matryoshka\"";
    let good = app.embed(json!({"model": M, "input": ["a", "b c"]})).await;
    let retried = json!({"model": M, "input": "a"}).to_string();
    let retried = app.post("/v1/embeddings", &[("x-stainless-retry-count", "1")], retried).await;
    app.embed(json!({"model": "nope", "input": "a"})).await;
    app.embed(json!({"model": M, "input": ""})).await;
    app.get("/nothing").await;
    let usage = |answer: &crate::support::app::Answer| answer.json()["usage"]["prompt_tokens"].as_f64().unwrap();
    app.until_metric("embedserve_http_requests_total", "route=\"unmatched\",method=\"GET\",status=\"404\"", 1.0).await;
    for (name, labels, value) in [
        ("embedserve_http_requests_total", format!("{route},method=\"POST\",status=\"200\""), 2.0),
        ("embedserve_http_requests_total", format!("{route},method=\"POST\",status=\"404\""), 1.0),
        ("embedserve_http_requests_total", format!("{route},method=\"POST\",status=\"400\""), 1.0),
        ("embedserve_http_request_duration_seconds_count", format!("{route},status=\"200\""), 2.0),
        ("embedserve_http_requests_in_flight", route.to_owned(), 0.0),
        ("embedserve_http_response_body_bytes_count", route.to_owned(), 4.0),
        ("embedserve_http_retries_seen_total", route.to_owned(), 1.0),
        ("embedserve_errors_total", format!("{route},model=\"unknown\",code=\"model_not_found\""), 1.0),
        ("embedserve_errors_total", format!("{model},code=\"none\""), 1.0),
        ("embedserve_inputs_total", model.to_owned(), 3.0),
        ("embedserve_input_tokens_total", model.to_owned(), usage(&good) + usage(&retried)),
        ("embedserve_input_row_tokens_count", "model=\"tiny/matryoshka\"".to_owned(), 3.0),
        ("embedserve_request_inputs_sum", route.to_owned(), 3.0),
        ("embedserve_computed_tokens_total", "model=\"tiny/matryoshka\",device=\"cpu\"".to_owned(), 10.0),
    ] {
        app.until_metric(name, &labels, value).await;
    }
    let sent = app.metric("embedserve_http_request_body_bytes_sum", route);
    assert!((100.0..400.0).contains(&sent), "{sent}");
}

// O-04: labels come from closed sets.
#[tokio::test]
async fn no_client_makes_the_page_grow() {
    let app = TestApp::start().await;
    let visit = async |i: usize| {
        let body = json!({"model": format!("m{i}"), "input": "a"}).to_string();
        app.post("/v1/embeddings", &[("user-agent", &format!("agent {i}"))], body).await;
        app.post("/v1/embeddings", &[("content-type", &format!("x/{i}"))], "{}").await;
        app.get(&format!("/path/{i}")).await;
        app.get(&format!("/v1/models/m{i}")).await;
        app.send(format!("BREW{i}").parse().unwrap(), "/v1/models", &[], Vec::new()).await;
    };
    visit(0).await;
    app.embed(json!({"model": F, "input": "a"})).await.vectors();
    app.until_metric("embedserve_http_requests_total", "route=\"/v1/models\",method=\"other\",status=\"405\"", 1.0)
        .await;
    let before = series(&app);
    for i in 1..300 {
        visit(i).await;
    }
    app.until_metric("embedserve_http_requests_total", "route=\"/v1/models\",method=\"other\",status=\"405\"", 300.0)
        .await;
    assert_eq!(series(&app), before);
}

/// Names of metrics, as they stand in a text.
fn named(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = text.split(|c| !is_part(c)).filter(|word| word.starts_with("embedserve_"));
    words.map(str::to_owned).collect()
}

// The rules that operators start from speak of metrics that exist.
#[test]
fn alert_rules_name_metrics_that_exist() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/alerts.yml");
    let rules = named(&std::fs::read_to_string(path).unwrap());
    let metrics = Metrics::new(&["m".to_owned()]);
    metrics.http().prepare("/v1/embeddings", &["POST"], &[500]);
    let exist = named(&metrics.encode());
    let missing: Vec<&String> = rules.difference(&exist).collect();
    assert!(rules.len() >= 8 && missing.is_empty(), "{missing:?}");
}
