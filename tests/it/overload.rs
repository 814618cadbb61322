//! More than the server can do: refused at once, with a delay that every SDK obeys; and answers that come too late.

use std::time::Duration;

use serde_json::json;

use crate::support::app::{Answer, Kind, TestApp};
use crate::support::evil::Evil;
use crate::support::raw::post;

/// The delay that an answer asks for, the same in both headers and in its text.
#[track_caller]
pub fn delay(answer: &Answer) -> u64 {
    let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=59).contains(&seconds));
    assert_eq!(answer.header("retry-after-ms"), Some((seconds * 1000).to_string().as_str()));
    let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
    assert!(message.ends_with(&format!("Please try again in {seconds}s.")), "{message}");
    seconds
}

//
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_at_once_and_entirely() {
    let evil = Evil::default();
    let kind = Kind::Evil(evil.clone());
    let app = TestApp::with(|setup| {
        setup.only("evil", kind);
        setup.batch.queue_rows = 3;
    })
    .await;
    let mut busy = app.raw();
    busy.send(post(&json!({"model": "evil", "input": "&"}).to_string()));
    app.until_metric("embedserve_stage_duration_seconds_count", "model=\"evil\",stage=\"queue\"", 1.0).await;
    let mut waiting = app.raw();
    waiting.send(post(&json!({"model": "evil", "input": ["a", "b"]}).to_string()));
    app.until_metric("embedserve_queue_rows", "model=\"evil\"", 2.0).await;
    let answer = app.embed(json!({"model": "evil", "input": ["c", "d"]})).await;
    let message = answer.refusal(503, Some("server_is_overloaded"), None);
    assert!(message.starts_with("The server is overloaded. "), "{message}");
    delay(&answer);
    assert_eq!(answer.header("openai-model"), Some("evil"));
    // Nothing of the refused request stayed behind: one row still fits.
    app.check_metric("embedserve_queue_rows", "model=\"evil\"", 2.0);
    app.check_metric("embedserve_queue_refused_total", "model=\"evil\",reason=\"full\"", 1.0);
    // Nor was it tokenised: a flood that is refused costs no more than reading it.
    app.check_metric("embedserve_stage_duration_seconds_count", "model=\"evil\",stage=\"tokenize\"", 2.0);
    let last = app.embed(json!({"model": "evil", "input": "c"}));
    let release = async {
        app.until_metric("embedserve_queue_rows", "model=\"evil\"", 3.0).await;
        evil.release();
    };
    let (last, ()) = tokio::join!(last, release);
    last.vectors();
    assert_eq!((busy.answer().unwrap().status, waiting.answer().unwrap().status), (200, 200));
    // A request that could never fit is not told to come back.
    let never = app.embed(json!({"model": "evil", "input": ["a", "b", "c", "d"]})).await;
    never.refusal(400, None, Some("input"));
}

#[tokio::test(flavor = "multi_thread")]
async fn late_work_is_given_up_with_a_504() {
    let evil = Evil::default();
    let kind = Kind::Evil(evil.clone());
    let app = TestApp::with(|setup| {
        setup.only("evil", kind);
        setup.requests.request_timeout = Duration::from_secs(2);
        setup.batch.queue_timeout = Duration::from_millis(300);
    })
    .await;
    let computing = app.embed(json!({"model": "evil", "input": "&"}));
    let queued = async {
        app.until_metric("embedserve_stage_duration_seconds_count", "model=\"evil\",stage=\"queue\"", 1.0).await;
        app.embed(json!({"model": "evil", "input": "a"})).await
    };
    let (computing, queued) = tokio::join!(computing, queued);
    let message = computing.refusal(504, Some("deadline_exceeded"), None);
    assert!(message.starts_with("The request was not finished within 2"), "{message}");
    assert_eq!(computing.header("retry-after"), None);
    let message = queued.refusal(504, Some("deadline_exceeded"), None);
    assert!(message.starts_with("The request was not finished within 0."), "{message}");
    assert_eq!((queued.header("retry-after"), queued.header("retry-after-ms")), (Some("1"), Some("1000")));
    evil.release();
}

#[tokio::test]
async fn a_loading_model_says_when_to_come_back() {
    let app = TestApp::with(|setup| setup.only("slow", Kind::Loading)).await;
    let answer = app.embed(json!({"model": "slow", "input": "a"})).await;
    let message = answer.refusal(503, Some("model_loading"), None);
    assert!(message.starts_with("The model `slow` is still loading. "), "{message}");
    delay(&answer);
    // What is wrong without knowing the model is told before.
    app.embed(json!({"model": "slow", "input": 5})).await.refusal(400, Some("invalid_type"), Some("input"));
    app.embed(json!({"model": "fast", "input": "a"})).await.refusal(404, Some("model_not_found"), None);
}
