//! Probes and what they tell.

use serde_json::json;

use crate::support::app::{F, Kind, M, TestApp};

const LIVE: [&str; 4] = ["/livez", "/healthz", "/v1/health/live", "/"];
const READY: [&str; 5] = ["/readyz", "/health", "/ready", "/ping", "/v1/health/ready"];

#[tokio::test]
async fn a_serving_process_is_live_and_ready() {
    let app = TestApp::with(|setup| setup.key("k")).await;
    for path in LIVE {
        let answer = app.get(path).await;
        assert_eq!((answer.status, answer.json()), (200, json!({"status": "live"})), "{path}");
        let head = app.send(reqwest::Method::HEAD, path, &[], Vec::new()).await;
        assert_eq!((head.status, head.text.as_str()), (200, ""), "{path}");
    }
    let model = |id: &str| json!({"id": id, "ready": true, "state": "ready"});
    let default = json!({"id": M, "ready": true, "state": "ready", "default": true});
    for path in READY {
        let answer = app.get(path).await;
        let expected =
            json!({"object": "health.response", "message": "ready", "ready": true, "models": [default, model(F)]});
        assert_eq!((answer.status, answer.json()), (200, expected), "{path}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("openai-version"), None);
    }
}

// L-06: before the model is there, the process is live and not ready, and tells how far it is.
#[tokio::test]
async fn a_loading_process_is_live_and_not_ready() {
    let app = TestApp::with(|setup| {
        let slow = crate::support::app::Setup::default().models.remove(0);
        setup.models = vec![slow];
        setup.models[0].kind = Kind::Loading;
        setup.aliases.clear();
    })
    .await;
    app.engine.slots()[0].progress.enter("downloading model.safetensors".to_owned(), 200);
    app.engine.slots()[0].progress.done(50);
    assert_eq!(app.get("/livez").await.status, 200);
    let answer = app.get("/readyz").await;
    assert_eq!(answer.status, 503);
    let expected = json!({"object": "health.response", "message": "loading", "ready": false, "models":
        [{"id": M, "ready": false, "state": "loading", "default": true, "progress": "downloading model.safetensors (25%)"}]});
    assert_eq!(answer.json(), expected);
}

#[tokio::test]
async fn a_failed_model_and_a_leaving_process_are_not_ready() {
    let app = TestApp::with(|setup| setup.only("broken", Kind::Failed)).await;
    let body = app.get("/readyz").await.json();
    assert_eq!((&body["message"], &body["models"][0]["state"]), (&json!("not ready"), &json!("failed")));
    // The reason is general: probes need no key.
    assert_eq!(body["models"][0]["reason"], "its files could not be loaded");
    let app = TestApp::start().await;
    app.engine.leave();
    let answer = app.get("/readyz").await;
    assert_eq!((answer.status, &answer.json()["message"]), (503, &json!("draining")));
    assert_eq!(app.get("/livez").await.status, 200);
    // Leaving is told to balancers; requests are still served.
    app.vectors(json!("a")).await;
}

#[tokio::test]
async fn the_version_names_the_limits_in_force() {
    let app = TestApp::start().await;
    for path in ["/version", "/info", "/v1/version", "/v1/metadata"] {
        let body = app.get(path).await.json();
        assert_eq!((&body["name"], &body["version"]), (&json!("embedserve"), &json!(env!("CARGO_PKG_VERSION"))));
        assert_eq!(body["limits"]["max_inputs"], 2048);
        assert_eq!(body["limits"]["max_body_bytes"], 32 << 20);
        assert_eq!((&body["models"][1]["id"], &body["models"][1]["max_model_len"]), (&json!(F), &json!(64)));
    }
}

// V-06: probes do not wait for tokenisers, and a dead device thread is told.
#[tokio::test]
async fn a_dead_device_thread_is_not_ready() {
    let app = TestApp::start().await;
    let embedserve::engine::SlotState::Ready(served) = app.engine.slots()[0].state() else { panic!("not ready") };
    served.queue.close();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while app.get("/readyz").await.status == 200 {
        assert!(std::time::Instant::now() < deadline, "the thread's end was not noticed");
    }
    assert_eq!(app.get("/readyz").await.json()["models"][0]["state"], "dead");
    let answer = app.embed(json!({"model": M, "input": "a"})).await;
    answer.refusal(503, Some("model_unavailable"), None);
    // The other model serves on.
    app.embed(json!({"model": F, "input": "a"})).await.vectors();
}
