//! Probes and what they tell.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use embedserve::app::{Alarm, End, Watch};
use embedserve::engine::SlotState;
use serde_json::json;
use tempfile::TempDir;

use crate::support::app::{F, Kind, M, TestApp};
use crate::support::evil::{Evil, Fault};
use crate::support::running::Process;
use crate::support::tiny_model::TinyModel;

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
        // In the words of TEI and of Azure's clients: the default model.
        assert_eq!((&body["model_id"], &body["model_name"]), (&json!(M), &json!(M)));
        assert_eq!(
            (&body["max_client_batch_size"], &body["model_provider_name"]),
            (&json!(2048), &json!("embedserve"))
        );
        assert_eq!(body["limits"]["max_inputs"], 2048);
        assert_eq!(body["limits"]["max_body_bytes"], 32 << 20);
        assert_eq!((&body["models"][1]["id"], &body["models"][1]["max_model_len"]), (&json!(F), &json!(64)));
    }
}

// I-07: a dead device thread is told.
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

/// A server of one evil model and its watchdog, which notices what takes longer than `stall`, and is alarmed soon after.
async fn watched(evil: &Evil, canary_interval: Duration, stall: Duration) -> (TestApp, Watch, Arc<Alarm>) {
    let kind = Kind::Evil(evil.clone());
    let app = TestApp::with(|setup| {
        setup.only("evil", kind);
        setup.requests.request_timeout = Duration::from_secs(1);
        setup.batch.device.heartbeat = stall;
        setup.batch.device.canary_interval = canary_interval;
    })
    .await;
    let alarm = Arc::new(Alarm::default());
    let watch = Watch::start(&app.engine, stall * 2, &alarm).unwrap();
    (app, watch, alarm)
}

const OFTEN: Duration = Duration::from_millis(5);
const SHORT: Duration = Duration::from_millis(25);

const NEVER: Duration = Duration::from_hours(1);
const SOON: Duration = Duration::from_secs(20);

/// Waits for `/readyz` to say `state` of the first model; returns its whole line.
async fn until_state(app: &TestApp, state: &str) -> serde_json::Value {
    let deadline = std::time::Instant::now() + SOON;
    loop {
        let answer = app.get("/readyz").await;
        let model = answer.json()["models"][0].clone();
        if model["state"] == state {
            assert_eq!(answer.status == 200, state == "ready", "{model}");
            return model;
        }
        assert!(std::time::Instant::now() < deadline, "{model}, expected {state}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

// I-06: a forward pass that never ends: not ready, its request gets 504 at its deadline, the process is told to end.
#[tokio::test(flavor = "multi_thread")]
async fn a_forward_pass_that_hangs_is_told_and_ends_the_process() {
    let evil = Evil::default();
    let (app, _watch, alarm) = watched(&evil, NEVER, SHORT).await;
    let (answer, ()) = tokio::join!(app.embed(json!({"model": "evil", "input": "&"})), async {
        let model = until_state(&app, "stalled").await;
        assert_eq!(model["reason"], "a forward pass takes too long");
    });
    answer.refusal(504, Some("deadline_exceeded"), None);
    let reason = tokio::time::timeout(SOON, alarm.raised()).await.unwrap();
    assert!(reason.starts_with("evil: a forward pass is overdue by "), "{reason}");
    app.check_metric("embedserve_model_state", "model=\"evil\",state=\"degraded\"", 1.0);
    // Live all the time; and ready again, should the pass end after all.
    assert_eq!(app.get("/livez").await.status, 200);
    evil.release();
    until_state(&app, "ready").await;
    app.until_metric("embedserve_model_state", "model=\"evil\",state=\"ready\"", 1.0).await;
    app.embed(json!({"model": "evil", "input": "a"})).await.vectors();
}

// I-06
#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_canary_is_told_and_ends_the_process() {
    let evil = Evil::default();
    let (app, _watch, alarm) = watched(&evil, OFTEN, NEVER).await;
    app.embed(json!({"model": "evil", "input": "a"})).await.vectors();
    evil.fault(Fault::Drift);
    let model = until_state(&app, "dead").await;
    assert_eq!(model["reason"], "a known text has another vector than before");
    app.embed(json!({"model": "evil", "input": "a"})).await.refusal(503, Some("model_unavailable"), None);
    let reason = tokio::time::timeout(SOON, alarm.raised()).await.unwrap();
    assert_eq!(reason, "evil: a known text has another vector than before");
    app.check_metric("embedserve_canary_total", "model=\"evil\",result=\"mismatch\"", 1.0);
}

// I-06
#[tokio::test(flavor = "multi_thread")]
async fn a_canary_that_hangs_is_told_and_ends_the_process() {
    let evil = Evil::default();
    let (app, _watch, alarm) = watched(&evil, OFTEN, SHORT).await;
    evil.fault(Fault::Hang);
    until_state(&app, "stalled").await;
    tokio::time::timeout(SOON, alarm.raised()).await.unwrap();
    app.until_metric("embedserve_canary_total", "model=\"evil\",result=\"timeout\"", 1.0).await;
    evil.release();
}

// I-09, I-08 on the wire
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_device_is_told_and_ends_the_process() {
    let (app, _watch, alarm) = watched(&Evil::default(), NEVER, NEVER).await;
    let too_big = app.embed(json!({"model": "evil", "input": ["a", "\'"]})).await;
    too_big.refusal(503, Some("server_is_overloaded"), None);
    app.embed(json!({"model": "evil", "input": "("})).await.refusal(503, Some("model_unavailable"), None);
    assert_eq!(until_state(&app, "dead").await["reason"], "the device is lost");
    let reason = tokio::time::timeout(SOON, alarm.raised()).await.unwrap();
    assert_eq!(reason, "evil: the device is lost");
}

/// Two tiny models, `a` and `b`, behind flags. After `retry`, a request may have one loaded again that was given up.
async fn two_models(flags: &[&str], retry: Duration) -> (TempDir, Process) {
    let root = tempfile::tempdir().unwrap();
    for (seed, name) in [(1, "a"), (2, "b")] {
        std::fs::create_dir(root.path().join(name)).unwrap();
        TinyModel { seed, ..TinyModel::default() }.write_to(&root.path().join(name));
    }
    let paths = [root.path().join("a"), root.path().join("b")];
    let paths: Vec<&Path> = paths.iter().map(std::path::PathBuf::as_path).collect();
    let process = Process::ready(&paths, flags, |config| {
        config.batch.device.restart_delay = Duration::from_millis(20);
        config.residency.retry_failed = retry;
    })
    .await;
    (root, process)
}

/// Ends a model's device thread, as a panic outside its guard does.
fn kill(process: &Process, model: &str) {
    let SlotState::Ready(served) = process.engine.slot(Some(model)).unwrap().state() else { panic!("not loaded") };
    served.queue.abort();
}

// I-07: a dead device thread is not ready; the model is loaded again once; the others serve on all the time.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_model_is_restarted_once_and_then_ends_the_process() {
    let (_folders, process) = two_models(&[], NEVER).await;
    let vectors = process.embed("a", "x y").await.vectors();
    kill(&process, "a");
    process.embed("b", "x").await.vectors();
    process.until_metric("embedserve_model_restarts_total", "model=\"a\"", 1.0).await;
    process.until_states(&["ready", "ready"]).await;
    assert_eq!(process.embed("a", "x y").await.vectors(), vectors);
    process.until_metric("embedserve_model_unloads_total", "model=\"a\",reason=\"died\"", 1.0).await;
    kill(&process, "a");
    let end = tokio::time::timeout(SOON, process.running.failed()).await.unwrap();
    assert_eq!(end, End::Device("a: its device thread died again".to_owned()));
    process.embed("b", "x").await.vectors();
    process.embed("a", "x").await.refusal(503, Some("model_unavailable"), None);
    let body = process.get("/readyz").await;
    assert_eq!((body.status, &body.json()["models"][0]["reason"]), (503, &json!("its device thread ended")));
    process.stop().await;
}

// I-07
#[tokio::test(flavor = "multi_thread")]
async fn keep_going_gives_up_the_dead_model_alone() {
    let (_folders, process) = two_models(&["--keep-going"], Duration::from_millis(20)).await;
    kill(&process, "a");
    process.until_metric("embedserve_model_restarts_total", "model=\"a\"", 1.0).await;
    process.until_states(&["ready", "ready"]).await;
    kill(&process, "a");
    process.until_states(&["failed", "ready"]).await;
    let ready = process.get("/readyz").await;
    assert_eq!(ready.status, 200, "{}", ready.text);
    assert!(tokio::time::timeout(Duration::from_millis(300), process.running.failed()).await.is_err());
    process.embed("b", "x").await.vectors();
    // A request may have it loaded again, when the back-off is over.
    let deadline = std::time::Instant::now() + SOON;
    while process.embed("a", "x").await.status != 200 {
        assert!(std::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    process.stop().await;
}

// I-07: a model that cannot be loaded again is not forgotten.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_model_that_cannot_be_loaded_again_ends_the_process() {
    let (folders, process) = two_models(&[], NEVER).await;
    std::fs::write(folders.path().join("a/config.json"), "{}").unwrap();
    kill(&process, "a");
    let end = tokio::time::timeout(SOON, process.running.failed()).await.unwrap();
    assert_eq!(end, End::Device("a: it died, and could not be loaded again".to_owned()));
    process.embed("b", "x").await.vectors();
    process.stop().await;
}

// M-05
#[tokio::test]
async fn models_beyond_the_memory_limit_are_refused_with_the_numbers() {
    let folder = TinyModel::default().write();
    let reason = |flags: &'static [&'static str]| {
        let path = folder.path();
        async move {
            let process = Process::start(&[path], flags, |_| {}).await;
            let outcome = process.running.ready().await;
            process.stop().await;
            outcome
        }
    };
    let refused = reason(&["--memory-limit", "60MiB"]).await.unwrap_err();
    assert!(
        refused.contains(" MiB are needed (weights 0, tokenizers ") && refused.contains("60 MiB may be used"),
        "{refused}"
    );
    // A queue that may hold more than the limit is refused as well.
    let refused = reason(&["--memory-limit", "400MiB", "--queue-tokens", "100000000"]).await.unwrap_err();
    assert!(refused.contains("queues 385, process 64"), "{refused}");
    assert_eq!(reason(&["--memory-limit", "0", "--queue-tokens", "100000000"]).await, Ok(()));
    assert_eq!(reason(&["--memory-limit", "100MiB"]).await, Ok(()));
}
