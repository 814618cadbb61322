//! What keys may do: models, requests, tokens, requests at the same time, and turns beside others; what a refusal
//! says, and what it costs.

use embedserve::config::KeyPolicy;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::overload::delay;
use crate::support::app::{Answer, F, Kind, M, Setup, TestApp, TestModel, words};
use crate::support::evil::Evil;

const A: &str = "sk-a-0123456789abcdef";
const B: &str = "sk-b-0123456789abcdef";

async fn embed(app: &TestApp, key: &str, body: Value) -> Answer {
    app.post("/v1/embeddings", &[("api-key", key)], body.to_string()).await
}

async fn list(app: &TestApp, key: &str, path: &str) -> Answer {
    app.send(reqwest::Method::GET, path, &[("api-key", key)], Vec::new()).await
}

fn requests(limit: u64) -> KeyPolicy {
    KeyPolicy { requests_per_minute: Some(limit), ..KeyPolicy::default() }
}

fn tokens(limit: u64) -> KeyPolicy {
    KeyPolicy { tokens_per_minute: Some(limit), ..KeyPolicy::default() }
}

/// The headers of one limit: limit, remaining, reset.
fn limits(answer: &Answer, kind: &str) -> Option<(u64, u64, String)> {
    let header = |name: &str| answer.header(&format!("x-ratelimit-{name}-{kind}")).map(str::to_owned);
    let number = |name: &str| header(name).map(|text| text.parse::<u64>().unwrap());
    Some((number("limit")?, number("remaining")?, header("reset")?))
}

// What is beyond the limit of a key is refused with the truth, and nobody else notices.
#[tokio::test]
async fn requests_beyond_the_limit_of_a_key_are_refused() {
    let app = TestApp::with(|setup| {
        setup.limited_key("a", A, KeyPolicy { tokens_per_minute: Some(60_000), ..requests(3) });
        setup.limited_key("b", B, KeyPolicy::default());
    })
    .await;
    let body = json!({"model": M, "input": "x"});
    for left in [2, 1, 0] {
        let answer = embed(&app, A, body.clone()).await;
        answer.vectors();
        let (limit, remaining, reset) = limits(&answer, "requests").unwrap();
        assert_eq!((limit, remaining), (3, left));
        let minutes_and_seconds = reset.trim_end_matches('s').replace('m', "");
        assert!(reset.ends_with('s') && minutes_and_seconds.parse::<u64>().is_ok(), "{reset}");
        let (limit, remaining, _) = limits(&answer, "tokens").unwrap();
        assert!(limit == 60_000 && (59_990..=60_000).contains(&remaining), "{remaining}");
    }
    let refused = embed(&app, A, body.clone()).await;
    let message = refused.refusal(429, Some("rate_limit_exceeded"), None);
    let text = format!(
        "Rate limit reached for model {M} on requests per min (RPM): Limit 3, Used 3, Requested 1. Please try again in "
    );
    assert!(message.starts_with(&text), "{message}");
    assert_eq!(refused.json()["error"]["type"], "requests");
    assert_eq!(refused.header("openai-model"), Some(M));
    assert_eq!(limits(&refused, "requests").unwrap().1, 0);
    // A twentieth of a minute for each, and up to a fifth more.
    assert!((15..=24).contains(&delay(&refused)), "{}", delay(&refused));
    // What costs nothing is never refused, and other keys have limits of their own, or none.
    assert_eq!(list(&app, A, "/v1/models").await.status, 200);
    let free = embed(&app, B, body).await;
    free.vectors();
    assert!(free.headers.keys().all(|name| !name.as_str().starts_with("x-ratelimit")), "{:?}", free.headers);
    app.check_metric("embedserve_limited_total", "key=\"a\",kind=\"requests\"", 1.0);
    app.check_metric("embedserve_limited_total", "key=\"b\"", 0.0);
    let code = "code=\"rate_limit_exceeded\"";
    app.until_metric("embedserve_errors_total", &format!("model=\"{M}\",{code}"), 1.0).await;
}

#[tokio::test]
async fn tokens_are_charged_as_they_were_read() {
    let app = TestApp::with(|setup| {
        setup.limited_key("a", A, tokens(100));
        setup.limited_key("b", B, tokens(10));
    })
    .await;
    let rows = |n: usize| json!({"model": M, "input": vec![words(20); n]});
    let remaining = |answer: &Answer| limits(answer, "tokens").unwrap().1;
    let first = embed(&app, A, rows(3)).await;
    assert_eq!(first.json()["usage"]["prompt_tokens"], 66);
    // The refill of the time that it took is on top.
    assert!((34..60).contains(&remaining(&first)), "{}", remaining(&first));
    let refused = embed(&app, A, rows(6)).await;
    let message = refused.refusal(429, Some("rate_limit_exceeded"), None);
    let text = format!("Rate limit reached for model {M} on tokens per min (TPM): Limit 100, Used ");
    assert!(message.starts_with(&text) && message.contains(", Requested 72. "), "{message}");
    assert_eq!(refused.json()["error"]["type"], "tokens");
    delay(&refused);
    assert_eq!(limits(&refused, "requests"), None, "there is no such limit");
    // A request that fails costs nothing.
    let failed = embed(&app, B, json!({"model": M, "input": words(100)})).await;
    failed.refusal(400, Some("context_length_exceeded"), Some("input"));
    assert_eq!(remaining(&failed), 10);
    // What is larger than everything passes once, and is waited for.
    let large = embed(&app, B, rows(3)).await;
    assert_eq!((large.vectors().len(), remaining(&large)), (3, 0));
    let refused = embed(&app, B, json!({"model": M, "input": "x"})).await;
    refused.refusal(429, Some("rate_limit_exceeded"), None);
    assert_eq!(delay(&refused), 59);
    app.check_metric("embedserve_limited_total", "key=\"b\",kind=\"tokens\"", 1.0);
}

fn evil(setup: &mut Setup, evil: &Evil) {
    setup.only("evil", Kind::Evil(evil.clone()));
}

#[tokio::test]
async fn requests_at_the_same_time_have_a_limit() {
    let control = Evil::default();
    let app = TestApp::with(|setup| {
        evil(setup, &control);
        setup.limited_key("a", A, KeyPolicy { max_concurrent: Some(1), ..KeyPolicy::default() });
    })
    .await;
    let first = embed(&app, A, json!({"model": "evil", "input": "&"}));
    let second = async {
        app.until_metric("embedserve_stage_duration_seconds_count", "model=\"evil\",stage=\"queue\"", 1.0).await;
        let second = embed(&app, A, json!({"model": "evil", "input": "x"})).await;
        control.release();
        second
    };
    let (first, second) = tokio::join!(first, second);
    first.vectors();
    let message = second.refusal(429, Some("rate_limit_exceeded"), None);
    let text = "Rate limit reached for model evil on concurrent requests: Limit 1, Used 1, Requested 1. ";
    assert!(message.starts_with(text), "{message}");
    delay(&second);
    app.check_metric("embedserve_limited_total", "key=\"a\",kind=\"concurrency\"", 1.0);
    for _ in 0..3 {
        embed(&app, A, json!({"model": "evil", "input": "x"})).await.vectors();
    }
}

#[tokio::test]
async fn a_key_sees_and_uses_its_models_alone() {
    let app = TestApp::with(|setup| {
        let models = Some(vec![F.to_owned()]);
        setup.limited_key("a", A, KeyPolicy { models, ..KeyPolicy::default() });
        setup.limited_key("b", B, KeyPolicy::default());
    })
    .await;
    for name in [M, "matryoshka", "gpt-4o", "TINY/Matryoshka"] {
        let refused = embed(&app, A, json!({"model": name, "input": "x"})).await;
        let message = refused.refusal(403, Some("model_not_found"), None);
        assert_eq!(message, format!("This API key does not have access to model `{name}`."));
        embed(&app, B, json!({"model": name, "input": "x"})).await.vectors();
    }
    embed(&app, A, json!({"model": F, "input": "x"})).await.vectors();
    embed(&app, A, json!({"model": "nobody", "input": "x"})).await.refusal(404, Some("model_not_found"), None);
    let names = |answer: &Answer| -> Vec<String> {
        let body = answer.json();
        body["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&list(&app, A, "/v1/models").await), [F, "fixed"]);
    assert!(names(&list(&app, B, "/v1/models").await).contains(&M.to_owned()));
    list(&app, A, "/v1/models/tiny/matryoshka").await.refusal(404, Some("model_not_found"), Some("model"));
    assert_eq!(list(&app, A, "/v1/models/fixed").await.status, 200);
    // The other pages tell it no more; what is about the whole server is not for it.
    let version = |body: Value| -> Vec<String> {
        body["models"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    };
    for path in ["/version", "/info"] {
        let (own, all) = (list(&app, A, path).await, list(&app, B, path).await);
        assert_eq!((version(own.json()), version(all.json())), (vec![F.to_owned()], vec![M.to_owned(), F.to_owned()]));
        assert!(!own.text.contains("matryoshka"), "{}", own.text);
    }
    for path in ["/metrics", "/v1/metrics"] {
        let message = list(&app, A, path).await.refusal(403, None, None);
        assert_eq!(message, "This API key is limited to some models and does not have access to /metrics.");
        assert_eq!(list(&app, B, path).await.status, 200);
    }
    let app = TestApp::with(|setup| {
        let models = Some(vec![F.to_owned()]);
        setup.limited_key("a", A, KeyPolicy { models, ..KeyPolicy::default() });
        setup.http.metrics_public = true;
    })
    .await;
    assert_eq!(list(&app, A, "/metrics").await.status, 200);
}

#[tokio::test]
async fn a_key_has_a_role_where_its_request_has_none() {
    let app = TestApp::with(|setup| {
        let prompt = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        setup.models[0].spec.prompts = vec![prompt("query", "quick "), prompt("passage", "lazy ")];
        setup.limited_key("a", A, KeyPolicy { default_role: Some("query"), ..KeyPolicy::default() });
        setup.limited_key("b", B, KeyPolicy::default());
    })
    .await;
    let with = |fields: Value| {
        let mut body = json!({"model": M, "input": "dog"});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    };
    for (fields, literal) in [
        (json!({}), "quick dog"),
        (json!({"input_type": "passage"}), "lazy dog"),
        (json!({"task": "retrieval.passage"}), "lazy dog"),
        (json!({"prompt": ""}), "dog"),
        (json!({"prompt_name": "passage"}), "lazy dog"),
        (json!({"model": format!("{M}@passage")}), "lazy dog"),
    ] {
        let found = embed(&app, A, with(fields.clone())).await.vectors();
        let expected = embed(&app, B, json!({"model": M, "input": literal})).await.vectors();
        assert_eq!(found, expected, "{fields}");
    }
}

// one key floods; it is refused beyond its limit, and what was accepted of it takes turns with the others.
#[tokio::test]
async fn a_key_that_floods_holds_up_nobody_else() {
    let control = Evil::default();
    let app = TestApp::with(|setup| {
        evil(setup, &control);
        setup.batch.max_batch_rows = 2;
        setup.limited_key("flood", A, requests(9));
        setup.limited_key("calm", B, KeyPolicy::default());
    })
    .await;
    let rows = async |n: f64| app.until_metric("embedserve_queue_rows", "model=\"evil\"", n).await;
    let blocker = embed(&app, A, json!({"model": "evil", "input": "&"}));
    let flood = async {
        app.until_metric("embedserve_stage_duration_seconds_count", "model=\"evil\",stage=\"queue\"", 1.0).await;
        join_all((0..20).map(|_| embed(&app, A, json!({"model": "evil", "input": "x"})))).await
    };
    let calm = async {
        rows(8.0).await;
        embed(&app, B, json!({"model": "evil", "input": "x x"})).await
    };
    let release = async {
        rows(9.0).await;
        control.release();
    };
    let (blocker, flood, calm, ()) = tokio::join!(blocker, flood, calm, release);
    blocker.vectors();
    calm.vectors();
    let refused: Vec<&Answer> = flood.iter().filter(|answer| answer.status == 429).collect();
    assert_eq!((refused.len(), flood.iter().filter(|answer| answer.status == 200).count()), (12, 8));
    for answer in refused {
        assert!(delay(answer) > 0);
    }
    // Two rows fit a batch: the calm one is in the first that was planned after it came.
    let batches = control.batches();
    let position = batches.iter().position(|batch| batch.iter().any(|row| row.len() == 4)).unwrap();
    assert_eq!(position, 1, "{batches:?}");
    app.check_metric("embedserve_limited_total", "key=\"flood\",kind=\"requests\"", 12.0);
}

// one model floods; it is refused for that model alone.
#[tokio::test]
async fn a_model_that_is_flooded_holds_up_no_other() {
    let (busy, free) = (Evil::default(), Evil::default());
    let app = TestApp::with(|setup| {
        setup.only("busy", Kind::Evil(busy.clone()));
        let mut spec = setup.models[0].spec.clone();
        "free".clone_into(&mut spec.id);
        setup.models.push(TestModel { spec, kind: Kind::Evil(free.clone()) });
        setup.batch.queue_rows = 2;
    })
    .await;
    let ask = |model: &str, text: &str| app.embed(json!({"model": model, "input": text}));
    let blocker = ask("busy", "&");
    let waiting = async {
        app.until_metric("embedserve_stage_duration_seconds_count", "model=\"busy\",stage=\"queue\"", 1.0).await;
        tokio::join!(ask("busy", "x"), ask("busy", "x"))
    };
    let others = async {
        app.until_metric("embedserve_queue_rows", "model=\"busy\"", 2.0).await;
        for n in 1..=10 {
            let refused = ask("busy", "x").await;
            refused.refusal(503, Some("server_is_overloaded"), None);
            delay(&refused);
            ask("free", "x").await.vectors();
            assert_eq!(free.batches().len(), n, "each in a batch of its own, at once");
        }
        busy.release();
    };
    let (blocker, (first, second), ()) = tokio::join!(blocker, waiting, others);
    for answer in [blocker, first, second] {
        answer.vectors();
    }
}
