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

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_connection_is_closed_cleanly_and_a_used_one_kept() {
    let app = TestApp::with(|setup| {
        setup.http.idle_timeout = Duration::from_secs(1);
        setup.http.header_timeout = Duration::from_secs(10);
    })
    .await;
    let mut raw = app.raw();
    let mut last = Instant::now();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(150));
        last = Instant::now();
        raw.send(request());
        assert_eq!(raw.answer().unwrap().status, 200);
    }
    raw.wait_for_end();
    let open = last.elapsed();
    assert!((1_000..10_000).contains(&open.as_millis()), "{open:?}");
    // One more request on the dead connection gets nothing, never half an answer.
    raw.send(request());
    assert_eq!(raw.answer(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unused_connection_makes_room_for_a_new_one() {
    // The idle time that is allowed is a minute.
    let app = TestApp::with(|setup| setup.http.max_connections = 1).await;
    let mut first = app.raw();
    first.send(request());
    assert_eq!(first.answer().unwrap().status, 200);
    let mut second = app.raw();
    second.send(request());
    assert_eq!(second.answer().unwrap().status, 200);
    assert!(first.is_closed());
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

// I-10: the row of a client that leaves is forgotten, and nothing is logged as an error.
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

// W-03: Java's clients offer another protocol with every request over plain HTTP. A refusal that comes before their body is
// read reaches them all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_reaches_a_client_that_offers_http_2() {
    let app = TestApp::with(|setup| setup.http.max_body_bytes = 1024).await;
    let body = "x".repeat(8 << 20);
    let head = format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n\
         http2-settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    for _ in 0..5 {
        let mut raw = app.raw();
        let mut sender = raw.sender();
        let (head, body) = (head.clone(), body.clone());
        let sending = std::thread::spawn(move || {
            // As a client does that reads only when everything is sent, and gives up where sending fails.
            sender.send(head) && sender.send(body)
        });
        tokio::task::spawn_blocking(move || {
            assert!(sending.join().unwrap(), "the connection was reset");
            assert_eq!(raw.answer().expect("no reset").status, 413);
        })
        .await
        .unwrap();
    }
    let mut raw = app.raw();
    let small = json!({"model": M, "input": "x"}).to_string();
    raw.send(format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nconnection: Upgrade\r\nupgrade: h2c\r\ncontent-length: {}\r\n\r\n{small}",
        small.len()
    ));
    assert_eq!(raw.answer().unwrap().status, 200);
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

/// Asks for a dozen large answers and takes `n_bytes` of them ten times a second, for a minute at most; waits until the
/// server has had enough.
async fn read_until_given_up(app: &TestApp, n_bytes: usize) {
    let mut raw = app.raw();
    raw.send(post(&json!({"model": M, "input": vec!["x"; 2048]}).to_string()).repeat(12));
    let reader = std::thread::spawn(move || {
        for _ in 0..600 {
            if !raw.read_some(n_bytes) {
                break;
            }
            #[expect(clippy::disallowed_methods, reason = "reading slowly is what is tested")]
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    app.until_metric("embedserve_http_clients_gone_total", "route=\"/v1/embeddings\",stage=\"writing\"", 1.0).await;
    app.until_metric("embedserve_http_connections", "", 0.0).await;
    drop(reader);
}

// I-11: nor does one of which a little is read now and then.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_a_little_is_given_up() {
    let app = TestApp::with(|setup| setup.http.write_timeout = Duration::from_secs(1)).await;
    read_until_given_up(&app, 8 << 10).await;
}

// I-11: nor does one that is taken slice by slice, each in good time, for longer than a whole answer may take.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_for_too_long_is_given_up() {
    let app = TestApp::with(|setup| setup.http.answer_timeout = Duration::from_secs(1)).await;
    read_until_given_up(&app, 128 << 10).await;
}

// P9, I-11: answers that nobody takes are bounded together; small ones are not held up by them.
#[tokio::test(flavor = "multi_thread")]
async fn answers_share_a_budget() {
    let app = TestApp::with(|setup| {
        setup.http.max_answers_bytes = 256 << 10;
        setup.requests.request_timeout = Duration::from_secs(3);
    })
    .await;
    let large = json!({"model": M, "input": vec!["x"; 2048], "encoding_format": "float"});
    // It asks for more than the sockets' buffers take, and reads nothing.
    let mut raw = app.raw();
    raw.send(post(&large.to_string()).repeat(12));
    let refused = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            let answer = app.embed(large.clone()).await;
            if answer.status == 503 {
                break answer;
            }
        }
    });
    let message = refused.await.unwrap().refusal(503, Some("server_is_overloaded"), None);
    assert!(message.starts_with("The server is overloaded. "), "{message}");
    app.embed(json!({"model": M, "input": vec!["x"; 16]})).await.vectors();
    drop(raw);
    tokio::time::timeout(Duration::from_secs(20), async { while app.embed(large.clone()).await.status != 200 {} })
        .await
        .unwrap();
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

// L-01: a request whose body is still on its way is in flight.
#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_arrives_during_a_drain_is_answered() {
    let app = TestApp::start().await;
    let body = json!({"model": M, "input": "a"}).to_string();
    let length = body.len();
    let mut raw = app.raw();
    raw.send(format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
    ));
    assert_eq!(raw.answer().unwrap().status, 100);
    app.begin_stop();
    raw.send(body);
    let answer = raw.answer().unwrap();
    assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
    assert_eq!(app.stop().await.cut, 0);
}

// L-01, W-04: half a head has its own clock, also on the way out.
#[tokio::test(flavor = "multi_thread")]
async fn half_a_head_does_not_hold_up_a_drain() {
    let app = TestApp::with(|setup| {
        setup.http.header_timeout = Duration::from_millis(500);
        setup.grace = Duration::from_mins(1);
    })
    .await;
    let mut raw = app.raw();
    // On a connection that has been used, hyper waits for the rest of what has begun.
    raw.send(get("/livez"));
    assert_eq!(raw.answer().unwrap().status, 200);
    raw.send("GET /livez HT");
    let mut fresh = app.raw();
    fresh.send("G");
    app.until_metric("embedserve_http_connections", "", 2.0).await;
    app.begin_stop();
    assert!(raw.is_closed() && fresh.is_closed());
    assert_eq!(app.stop().await.cut, 0);
}

// L-01: what was accepted is finished, what is new is refused, idle connections end at once.
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

// A request on a connection that was open before the drain.
#[tokio::test]
async fn new_work_is_refused_while_draining() {
    let app = TestApp::start().await;
    app.engine.drain();
    let answer = app.embed(json!({"model": M, "input": "a"})).await;
    let message = answer.refusal(503, Some("shutting_down"), None);
    assert!(message.starts_with("The server is shutting down. Please try again in "), "{message}");
    assert_eq!(answer.header("connection"), Some("close"));
}

// L-01, L-11: while a server is on its way out, its answers send their clients elsewhere; those that offer another
// protocol are let be, since hyper cuts what it has not written when it closes under such an offer.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_leaving_ends_connections_with_their_answers() {
    let app = TestApp::start().await;
    let ask = |more: &str| format!("GET /livez HTTP/1.1\r\nhost: localhost\r\n{more}\r\n");
    let mut kept = app.raw();
    kept.send(ask(""));
    assert_eq!(kept.answer().unwrap().header("connection"), None);
    app.engine.leave();
    kept.send(ask(""));
    let last = kept.answer().unwrap();
    assert_eq!((last.status, last.header("connection")), (200, Some("close")));
    assert!(kept.is_closed());
    let mut offering = app.raw();
    offering.send(ask("connection: upgrade\r\nupgrade: h2c\r\n"));
    assert_ne!(offering.answer().unwrap().header("connection"), Some("close"));
}
