//! Sizes and clocks of a request on the wire, with exact bytes.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::app::{Kind, M, TestApp};
use crate::support::evil::Evil;
use crate::support::raw::{RawClient, get, post};

fn embed_body() -> String {
    json!({"model": M, "input": "a"}).to_string()
}

/// A request whose body has exactly `n` bytes.
fn padded(n: usize) -> String {
    let body = embed_body();
    format!("{body}{}", " ".repeat(n - body.len()))
}

fn chunked(body: &str, chunk: usize) -> String {
    let head = "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n";
    let chunks = body.as_bytes().chunks(chunk).map(|piece| std::str::from_utf8(piece).unwrap());
    let chunks: Vec<String> = chunks.map(|piece| format!("{:x}\r\n{piece}\r\n", piece.len())).collect();
    format!("{head}{}0\r\n\r\n", chunks.concat())
}

async fn small_bodies() -> TestApp {
    TestApp::with(|setup| setup.http.max_body_bytes = 10_000).await
}

// W-03
#[tokio::test(flavor = "multi_thread")]
async fn a_body_may_be_as_large_as_the_limit() {
    let app = small_bodies().await;
    let mut raw = app.raw();
    for request in [post(&padded(10_000)), chunked(&padded(10_000), 1000), chunked(&embed_body(), 1)] {
        raw.send(request);
        assert_eq!(raw.answer().unwrap().status, 200);
        // A chunked request on a connection that has also announced lengths is its last.
        raw = app.raw();
    }
    for request in [post(&padded(10_001)), chunked(&padded(10_001), 1000)] {
        let mut raw = app.raw();
        raw.send(request);
        let answer = raw.answer().unwrap();
        assert_eq!((answer.status, answer.code().as_deref()), (413, Some("request_too_large")));
        assert!(answer.body.contains("Maximum request body size 10000 bytes exceeded."));
        assert_eq!(answer.header("connection"), Some("close"));
        raw.half_close();
        assert!(raw.is_closed());
    }
    // A length that is announced is refused before a byte of the body arrives.
    let mut raw = app.raw();
    raw.send("POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10001\r\n\r\n");
    assert_eq!(raw.answer().unwrap().status, 413);
}

// With the limits of a release: the client sees its 413 although it sends 33 MiB first.
#[tokio::test]
async fn thirty_three_mebibytes_are_too_many() {
    let app = TestApp::start().await;
    let answer = app.post("/v1/embeddings", &[], padded(33 << 20)).await;
    let message = answer.refusal(413, Some("request_too_large"), None);
    assert_eq!(message, "Maximum request body size 33554432 bytes exceeded.");
    app.vectors(json!("a")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expect_100_continue_is_answered_before_the_body() {
    let app = TestApp::start().await;
    let body = padded(1_500_000);
    let head = |key: &str, length: usize| {
        format!(
            "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\n{key}expect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let mut raw = app.raw();
    raw.send(head("", body.len()));
    assert_eq!(raw.answer().unwrap().status, 100);
    raw.send(&body);
    assert_eq!(raw.answer().unwrap().status, 200);
    // What is refused anyway is refused at once.
    raw.send(head("content-encoding: gzip\r\n", body.len()));
    assert_eq!(raw.answer().unwrap().status, 415);
}

// W-05
#[tokio::test(flavor = "multi_thread")]
async fn heads_have_a_limit_and_an_error_of_their_own() {
    let app = TestApp::start().await;
    let with_header =
        |bytes: usize| format!("GET /livez HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(bytes));
    let mut raw = app.raw();
    raw.send(with_header(60 << 10));
    assert_eq!(raw.answer().unwrap().status, 200);
    let headers = |n: usize| (0..n).map(|i| format!("x-{i}: y\r\n")).collect::<Vec<_>>().concat();
    let (many, few) = (headers(10_000), headers(101));
    for (what, request) in [
        ("70 KiB", with_header(70 << 10)),
        ("8 MiB", with_header(8 << 20)),
        ("101 headers", format!("GET /livez HTTP/1.1\r\n{few}\r\n")),
        ("10,000 headers", format!("GET /livez HTTP/1.1\r\n{many}\r\n")),
        ("1 MB URL", get(&format!("/{}", "x".repeat(1 << 20)))),
    ] {
        let mut raw = app.raw();
        raw.send(&request);
        let answer = raw.answer().unwrap_or_else(|| panic!("{what}: no answer"));
        assert!([414, 431].contains(&answer.status), "{what}: {}", answer.status);
        assert_eq!(answer.code().as_deref(), Some("request_too_large"), "{what}: {}", answer.body);
        assert!(answer.body.contains("Request headers exceed 65536 bytes, or are more than 100."), "{what}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert!(answer.header("x-request-id").is_some());
        raw.half_close();
        assert!(raw.is_closed(), "{what}");
    }
    app.until_metric("embedserve_http_connections_refused_total", "reason=\"malformed\"", 5.0).await;
}

// W-08
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_body_is_given_up() {
    let app = TestApp::with(|setup| {
        setup.http.body_timeout = Duration::from_millis(300);
        // One body fills the budget: if its share were not returned, the next request would wait for ever.
        setup.http.max_bodies_bytes = 1024;
        setup.http.max_body_bytes = 1024;
    })
    .await;
    let mut raw = app.raw();
    raw.send("POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n");
    let start = Instant::now();
    let answer = raw.answer().unwrap();
    assert_eq!((answer.status, answer.code().as_deref()), (408, Some("request_timeout")));
    assert!(answer.body.contains("The request body was not received within 0.3 s."), "{}", answer.body);
    assert!(start.elapsed() < Duration::from_secs(5));
    raw.half_close();
    assert!(raw.is_closed());
    app.vectors(json!("a")).await;
}

// Bodies together are bounded: one that finds no room waits for it, then is refused with a delay.
#[tokio::test(flavor = "multi_thread")]
async fn bodies_share_a_budget() {
    let evil = Evil::default();
    let kind = Kind::Evil(evil.clone());
    let app = TestApp::with(|setup| {
        setup.only("evil", kind);
        setup.http.max_body_bytes = 64 << 10;
        setup.http.max_bodies_bytes = 64 << 10;
        setup.http.body_timeout = Duration::from_millis(300);
    })
    .await;
    let blocked = json!({"model": "evil", "input": "&"}).to_string();
    let mut holder = app.raw();
    holder.send(post(&format!("{blocked}{}", " ".repeat((64 << 10) - blocked.len()))));
    app.until_metric("embedserve_stage_duration_seconds_count", "model=\"evil\",stage=\"queue\"", 1.0).await;
    let small = json!({"model": "evil", "input": "a"});
    let refused = app.embed(small.clone()).await;
    refused.refusal(503, Some("server_is_overloaded"), None);
    assert!(["1", "2"].contains(&refused.header("retry-after").unwrap()));
    let (waiting, ()) = tokio::join!(app.embed(small), async { evil.release() });
    waiting.vectors();
    assert_eq!(holder.answer().unwrap().status, 200);
}

// P9: ids take four times the room of their digits.
#[tokio::test]
async fn token_arrays_take_the_room_that_they_need() {
    let app = TestApp::with(|setup| setup.http.max_bodies_bytes = 64 << 10).await;
    let ids = |n: usize| json!({"model": M, "input": [vec![0; n]]});
    app.embed(ids(12_000)).await.refusal(503, Some("server_is_overloaded"), None);
    assert_ne!(app.embed(ids(4_000)).await.status, 503);
}

// A request with too many tokens is not read to its end to find that out.
#[tokio::test]
async fn a_request_ends_as_soon_as_it_has_too_many_tokens() {
    let app = TestApp::with(|setup| setup.requests.max_request_tokens = 1000).await;
    let answer = app.embed(json!({"model": M, "input": vec!["a b c d e f g h i j"; 2048], "truncate": true})).await;
    let message = answer.refusal(400, Some("max_tokens_per_request"), Some("input"));
    let counted: usize = message.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(counted > 1000 && counted < 2048 * 12, "{message}");
}

// W-09
#[tokio::test(flavor = "multi_thread")]
async fn one_request_never_becomes_two() {
    let app = TestApp::start().await;
    let body = embed_body();
    let smuggled = "GET /v1/models HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let two_lengths = format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\ncontent-length: 5\r\n\r\n{body}",
        body.len()
    );
    let space_before_colon =
        format!("POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length : {}\r\n\r\n{body}", body.len());
    let folded = format!(
        "POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\nx: a\r\n b\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let negative = format!("POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n{body}");
    let not_chunked_last =
        format!("POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked, x\r\n\r\n{body}");
    for (what, request) in [
        ("two lengths", two_lengths),
        ("space before colon", space_before_colon),
        ("folded header", folded),
        ("negative length", negative),
        ("another coding last", not_chunked_last),
    ] {
        let mut raw = app.raw();
        raw.send(request + smuggled);
        if let Some(answer) = raw.answer() {
            assert_eq!(answer.status, 400, "{what}");
            assert!(answer.body.contains("The request is not valid HTTP/1.1."), "{what}: {}", answer.body);
        }
        raw.half_close();
        assert!(raw.is_closed(), "{what}");
    }
    // Length and chunks in one head, in either order: chunks count, and nothing after them is read as a request.
    for lengths in
        ["content-length: 4\r\ntransfer-encoding: chunked", "transfer-encoding: chunked\r\ncontent-length: 4"]
    {
        let mut raw = app.raw();
        let head = format!("POST /v1/embeddings HTTP/1.1\r\nhost: localhost\r\n{lengths}\r\n\r\n");
        raw.send(format!("{head}{:x}\r\n{body}\r\n0\r\n\r\n{smuggled}", body.len()));
        let answer = raw.answer().unwrap();
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")));
        raw.half_close();
        assert!(raw.is_closed());
    }
    // Bare line feeds are read as line ends; it stays one request.
    let mut raw = app.raw();
    raw.send("GET /livez HTTP/1.1\nhost: localhost\n\n");
    if let Some(answer) = raw.answer() {
        assert!([200, 400].contains(&answer.status));
    }
    raw.half_close();
    assert!(raw.is_closed());
}

// W-12: what is no request for a resource
#[tokio::test(flavor = "multi_thread")]
async fn connect_and_foreign_protocols_are_refused() {
    let app = TestApp::start().await;
    let mut raw = app.raw();
    raw.send("CONNECT localhost:443 HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let answer = raw.answer().unwrap();
    assert!([404, 405].contains(&answer.status), "{}", answer.status);
    for nonsense in
        ["\u{16}\u{3}\u{1}\u{0}\u{a5}\u{1}\r\n\r\n", "hello\r\n\r\n", "GET /livez\r\n\r\n", "GET  HTTP/1.1\r\n\r\n"]
    {
        let mut raw = app.raw();
        raw.send(nonsense);
        if let Some(answer) = raw.answer() {
            assert_eq!(answer.status, 400, "{nonsense:?}");
            assert_eq!(answer.header("content-type"), Some("application/json"), "{nonsense:?}");
        }
        raw.half_close();
        assert!(raw.is_closed());
    }
    let mut raw = app.raw();
    raw.send("GET /livez HTTP/1.0\r\n\r\n");
    assert_eq!(raw.answer().unwrap().status, 200);
    assert!(raw.is_closed());
}

/// Sends a byte now and then until the server closes.
fn drip(raw: &mut RawClient, bytes: &[u8], pause: Duration) {
    for byte in bytes.iter().cycle() {
        std::thread::sleep(pause);
        if !raw.send([*byte]) {
            return;
        }
    }
}

// W-04: twenty slow clients of three kinds, and real ones beside them.
#[tokio::test(flavor = "multi_thread")]
async fn slow_heads_are_closed_and_hold_up_nobody() {
    let app = TestApp::with(|setup| setup.http.header_timeout = Duration::from_millis(400)).await;
    std::thread::scope(|scope| {
        for kind in 0..20 {
            let start = Instant::now();
            let mut raw = app.raw();
            scope.spawn(move || {
                match kind % 3 {
                    0 => drip(&mut raw, b"GET /livez HTTP/1.1\r\nx: xxxxxxxxxxxxxxxxx", Duration::from_millis(20)),
                    1 => {
                        raw.send("GET /livez HTTP/1.1\r\n");
                        assert!(raw.is_closed());
                    }
                    _ => assert!(raw.is_closed()),
                }
                let open = start.elapsed();
                assert!((400..5000).contains(&open.as_millis()), "kind {kind} was open for {open:?}");
            });
        }
        let mut probes: Vec<Duration> = (0..20)
            .map(|_| {
                let start = Instant::now();
                let mut raw = app.raw();
                raw.send(get("/livez"));
                assert_eq!(raw.answer().unwrap().status, 200);
                start.elapsed()
            })
            .collect();
        probes.sort_unstable();
        assert!(probes[10] < Duration::from_millis(300), "{probes:?}");
    });
    app.until_metric("embedserve_http_connections_refused_total", "reason=\"header_timeout\"", 20.0).await;
}
