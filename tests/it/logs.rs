//! What the log says of a request, and what it never says.

use serde_json::{Value, json};

use crate::support::app::{Kind, M, TestApp};
use crate::support::evil::Evil;
use crate::support::log::Log;

// O-03
#[tokio::test]
async fn a_request_is_one_line() {
    let log = Log::capture();
    let app = TestApp::with(|setup| setup.key("sk-0123456789abcdef")).await;
    let key = ("authorization", "Bearer sk-0123456789abcdef");
    let body = json!({"model": "gpt-4o", "input": ["a", "x ".repeat(100)], "truncate": true}).to_string();
    let answer = app.post("/v1/embeddings", &[key, ("x-stainless-retry-count", "2")], body).await;
    app.get("/livez").await;
    app.get("/v1/models/nope").await;
    let lines = log.until_requests(3).await;
    let line = &lines[0];
    for (field, value) in [
        ("level", json!("INFO")),
        ("method", json!("POST")),
        ("route", json!("/v1/embeddings")),
        ("status", json!(200)),
        ("model", json!(M)),
        ("rows", json!(2)),
        ("tokens", answer.json()["usage"]["prompt_tokens"].clone()),
        ("truncated", json!(1)),
        ("key", json!("tester")),
        ("retry", json!(2)),
        ("request_id", json!(answer.header("x-request-id").unwrap())),
    ] {
        assert_eq!(line[field], value, "{field} in {line}");
    }
    for stage in ["took_ms", "parse_ms", "tokenize_ms", "queue_ms", "run_ms", "write_ms"] {
        assert!(line[stage].as_f64().unwrap() >= 0.0, "{stage} in {line}");
    }
    assert_eq!((&lines[1]["level"], &lines[1]["route"]), (&json!("DEBUG"), &json!("/livez")));
    assert_eq!((&lines[2]["status"], &lines[2]["code"]), (&json!(401), &json!("invalid_api_key")));
}

// O-02, and keys: every level, every way a request can end.
#[tokio::test]
async fn inputs_and_keys_are_never_logged() {
    const CANARY: &str = "zqcanaryqz";
    let log = Log::capture();
    let evil = Kind::Evil(Evil::default());
    let app = TestApp::with(|setup| {
        setup.only("evil", evil);
        setup.key("sk-0123456789abcdef");
        setup.requests.accept_any_model = true;
    })
    .await;
    let mut sent = 0;
    for body in [
        json!({"model": "evil", "input": CANARY}).to_string(),
        json!({"model": "evil", "input": [CANARY, "%"], "user": CANARY}).to_string(),
        json!({"model": "evil", "input": [CANARY, "$"]}).to_string(),
        json!({"model": "evil", "input": format!("{CANARY} ").repeat(100)}).to_string(),
        json!({"model": "evil", "input": CANARY.repeat(1000)}).to_string(),
        json!({"model": "evil", "input": [CANARY, 1]}).to_string(),
        format!("{{\"model\":\"evil\",\"input\":\"{CANARY}"),
        json!({"model": "other", "input": CANARY, "encoding_format": CANARY}).to_string(),
    ] {
        for key in ["sk-0123456789abcdef", "sk-0123456789abcdeX"] {
            app.post("/v1/embeddings", &[("authorization", &format!("Bearer {key}"))], body.clone()).await;
            sent += 1;
        }
    }
    log.until_requests(sent).await;
    let text = log.text();
    for secret in [CANARY, "0123456789abcde"] {
        let line = text.lines().find(|line| line.contains(secret) && line.contains("embedserve"));
        assert_eq!(line, None, "{secret}");
    }
}

// O-05
#[tokio::test]
async fn what_a_client_sends_cannot_break_a_line() {
    let log = Log::capture();
    let app = TestApp::with(|setup| setup.requests.accept_any_model = true).await;
    for name in ["\u{1b}[2J", "a\nb", &"m".repeat(512)] {
        app.embed(json!({"model": name, "input": "a"})).await.vectors();
    }
    let huge = app.embed(json!({"model": "m".repeat(1 << 20), "input": "a"})).await;
    huge.refusal(404, Some("model_not_found"), None);
    // Headers cannot carry a line feed; whatever else they carry is not logged as it comes.
    let long = "i".repeat(20_000);
    let body = json!({"model": M, "input": "a"}).to_string();
    for (name, value) in
        [("user-agent", "\t[2J\u{80}"), ("x-request-id", "a\tb"), ("user-agent", &long), ("x-request-id", &long)]
    {
        app.post("/v1/embeddings", &[(name, value)], body.clone()).await.vectors();
    }
    app.get("/%1b%5b2J%0aINFO%20forged").await.refusal(404, None, None);
    log.until_requests(9).await;
    let text = log.text();
    assert!(!text.contains('\u{1b}') && !text.contains(&long) && !text.contains("a\\tb"));
    assert!(!text.lines().any(|line| line.starts_with("INFO forged")), "{text}");
    // Every line is an event; the long name was cut.
    for line in text.lines().filter(|line| line.contains("\"target\":\"embedserve")) {
        serde_json::from_str::<Value>(line).unwrap();
        assert!(line.len() < 2000, "{} bytes", line.len());
    }
    let mapped = text.lines().filter(|line| line.contains("mapped to the default model")).count();
    assert_eq!(mapped, 3);
}
