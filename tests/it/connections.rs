//! Connections over time: kept alive, idle, abandoned, drained, and too many.

use std::time::{Duration, Instant};

use embedserve::http::server::ServeReport;
use serde_json::json;

use crate::support::app::{Kind, M, TestApp};
use crate::support::evil::Evil;
use crate::support::raw::{get, post};

fn request() -> String {
    post(&json!({"model": M, "input": "a"}).to_string())
}

fn blocked_request() -> String {
    post(&json!({"model": "evil", "input": "&"}).to_string())
}

async fn evil_app() -> (TestApp, Evil) {
    let evil = Evil::default();
    let kind = Kind::Evil(evil.clone());
    (TestApp::with(|setup| setup.only("evil", kind)).await, evil)
}

// Case 89
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed_cleanly_and_a_used_one_kept() {
    let app = TestApp::with(|setup| {
        setup.http.idle_timeout = Duration::from_millis(400);
        setup.http.header_timeout = Duration::from_secs(10);
    })
    .await;
    let mut raw = app.raw();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(150));
        raw.send(request());
        assert_eq!(raw.answer().unwrap().status, 200);
    }
    let open = raw.time_to_close();
    assert!((300..5000).contains(&open.as_millis()), "{open:?}");
    // One more request on the dead connection gets nothing, never half an answer.
    raw.send(request());
    assert_eq!(raw.answer(), None);
}

// W-10
#[tokio::test(flavor = "multi_thread")]
async fn pipelined_requests_are_answered_in_order() {
    let app = TestApp::start().await;
    let mut raw = app.raw();
    let paths: Vec<String> = (0..10_000).map(|i| format!("/v1/models/m{i}")).collect();
    // Sent by another thread: the answers of so many do not fit between the two.
    let mut sender = raw.sender();
    let requests = paths.iter().map(|path| get(path)).collect::<String>();
    let sending = std::thread::spawn(move || sender.send(requests));
    for index in 0..paths.len() {
        let answer = raw.answer().unwrap();
        assert!(answer.body.contains(&format!("'m{index}'")), "{}", answer.body);
    }
    assert!(sending.join().unwrap());
    // A client that closes its half gets its answer or a clean end.
    raw.send(get("/livez"));
    raw.half_close();
    if let Some(answer) = raw.answer() {
        assert_eq!(answer.status, 200);
    }
    assert!(raw.is_closed());
}

// Case 88, I-10: the row of a client that leaves is forgotten, and nothing is logged as an error.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_stops_costing() {
    let (app, evil) = evil_app().await;
    let mut first = app.raw();
    first.send(blocked_request());
    app.until_metric("embedserve_stage_duration_seconds_count", "model=\"evil\",stage=\"queue\"", 1.0).await;
    let mut second = app.raw();
    second.send(post(&json!({"model": "evil", "input": ["a", "b"]}).to_string()));
    app.until_metric("embedserve_queue_rows", "model=\"evil\"", 2.0).await;
    drop(second);
    app.until_metric("embedserve_http_clients_gone_total", "route=\"/v1/embeddings\",stage=\"running\"", 1.0).await;
    evil.release();
    assert_eq!(first.answer().unwrap().status, 200);
    app.embed(json!({"model": "evil", "input": "c"})).await.vectors();
    app.until_metric("embedserve_queue_cancelled_total", "model=\"evil\"", 2.0).await;
    assert_eq!(evil.batches().iter().flatten().count(), 2, "the abandoned rows were computed");
    app.check_metric("embedserve_http_requests_in_flight", "route=\"/v1/embeddings\"", 0.0);
}

// I-11: an answer that nobody reads does not stay for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_is_given_up() {
    let app = TestApp::with(|setup| setup.http.write_timeout = Duration::from_millis(300)).await;
    let mut raw = app.raw();
    // Answers of several megabytes each: far more than the sockets' buffers take.
    let large = post(&json!({"model": M, "input": vec!["x"; 2048]}).to_string());
    raw.send(large.repeat(12));
    app.until_metric("embedserve_http_clients_gone_total", "route=\"/v1/embeddings\",stage=\"writing\"", 1.0).await;
    app.until_metric("embedserve_http_connections", "", 0.0).await;
    drop(raw);
}

// W-11: a connection too many waits; it is served when another ends.
#[tokio::test(flavor = "multi_thread")]
async fn connections_are_limited_before_they_are_accepted() {
    let app = TestApp::with(|setup| setup.http.max_connections = 2).await;
    let (mut first, mut second, mut third) = (app.raw(), app.raw(), app.raw());
    for raw in [&mut first, &mut second] {
        raw.send(get("/livez"));
        assert_eq!(raw.answer().unwrap().status, 200);
    }
    third.send(get("/livez"));
    app.until_metric("embedserve_http_connections_refused_total", "reason=\"limit\"", 1.0).await;
    app.check_metric("embedserve_http_connections", "", 2.0);
    drop(first);
    assert_eq!(third.answer().unwrap().status, 200);
}

// Case 111, L-01: what was accepted is finished, what is new is refused, idle connections end at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_finishes_what_was_accepted() {
    let (app, evil) = evil_app().await;
    let (mut busy, mut idle) = (app.raw(), app.raw());
    idle.send(get("/livez"));
    assert_eq!(idle.answer().unwrap().status, 200);
    busy.send(blocked_request());
    app.until_metric("embedserve_stage_duration_seconds_count", "model=\"evil\",stage=\"queue\"", 1.0).await;
    app.begin_stop();
    assert!(idle.is_closed());
    let refused = Instant::now() + Duration::from_secs(10);
    while std::net::TcpStream::connect(app.address).is_ok() {
        assert!(Instant::now() < refused, "the listener is still open");
    }
    evil.release();
    let answer = busy.answer().unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert!(busy.is_closed());
    let ServeReport { accepted, cut } = app.stop().await;
    assert!(accepted >= 2 && cut == 0, "{accepted} accepted, {cut} cut");
}

// L-02: the grace period ends a connection that does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_ends_when_its_grace_does() {
    let evil = Evil::default();
    let kind = Kind::Evil(evil.clone());
    let app = TestApp::with(|setup| {
        setup.only("evil", kind);
        setup.grace = Duration::from_millis(300);
    })
    .await;
    let mut busy = app.raw();
    busy.send(blocked_request());
    app.until_metric("embedserve_stage_duration_seconds_count", "model=\"evil\",stage=\"queue\"", 1.0).await;
    let start = Instant::now();
    assert_eq!(app.stop().await.cut, 1);
    assert!(start.elapsed() < Duration::from_secs(5));
    assert_eq!(busy.answer(), None);
    evil.release();
}

// Case 111: a request on a connection that was open before the drain.
#[tokio::test]
async fn new_work_is_refused_while_draining() {
    let app = TestApp::start().await;
    app.engine.drain();
    let answer = app.embed(json!({"model": M, "input": "a"})).await;
    let message = answer.refusal(503, Some("shutting_down"), None);
    assert!(message.starts_with("The server is shutting down. Please try again in "), "{message}");
    assert_eq!(answer.header("connection"), Some("close"));
}
