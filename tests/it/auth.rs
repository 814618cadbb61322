//! Keys, names and origins: who may use what. Every route is walked.

use embedserve::http;
use reqwest::Method;
use serde_json::json;

use crate::support::app::{M, Setup, TestApp};
use crate::support::raw::get;

const KEY: &str = "sk-test-0123456789abcdef";
const BEARER: (&str, &str) = ("authorization", "Bearer sk-test-0123456789abcdef");

const NONE: &str = "Incorrect API key provided: none. You didn't provide an API key; send it in an Authorization header \
                    as 'Bearer YOUR_KEY'.";

async fn guarded() -> TestApp {
    TestApp::with(|setup| setup.key(KEY)).await
}

//
#[tokio::test]
async fn only_an_exact_key_passes() {
    let app = guarded().await;
    let body = json!({"model": M, "input": "a"}).to_string();
    let post = |headers: Vec<(&'static str, &'static str)>| app.post("/v1/embeddings", headers.leak(), body.clone());
    for right in [BEARER, ("authorization", "bearer sk-test-0123456789abcdef"), ("api-key", KEY), ("x-api-key", KEY)] {
        post(vec![right]).await.vectors();
    }
    for (headers, message) in [
        (vec![], NONE),
        (vec![("authorization", "")], NONE),
        (vec![("authorization", "Bearer")], NONE),
        (vec![("authorization", "Bearer ")], NONE),
        (vec![("authorization", "Basic c2stdGVzdA==")], NONE),
        (vec![("authorization", KEY)], NONE),
        (vec![BEARER, BEARER], NONE),
        (vec![("api-key", "")], NONE),
        (vec![("authorization", "Bearer sk-test-0123456789abcdeX")], "Incorrect API key provided: ****cdeX."),
        (vec![("authorization", "Bearer wrong")], "Incorrect API key provided: ****."),
        (vec![("x-api-key", "sk-test-0123456789abcde")], "Incorrect API key provided: ****bcde."),
    ] {
        let answer = post(headers.clone()).await;
        assert_eq!(answer.refusal(401, Some("invalid_api_key"), None), message, "{headers:?}");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        assert!(!answer.text.contains("0123456789"), "{}", answer.text);
    }
    app.until_metric("embedserve_auth_failures_total", "reason=\"missing\"", 8.0).await;
    app.until_metric("embedserve_auth_failures_total", "reason=\"wrong\"", 3.0).await;
}

#[tokio::test]
async fn without_keys_any_key_passes() {
    let app = TestApp::start().await;
    let body = json!({"model": M, "input": "a"}).to_string();
    app.post("/v1/embeddings", &[("authorization", "Bearer anything")], body.clone()).await.vectors();
    app.post("/v1/embeddings", &[("authorization", "Basic x")], body).await.vectors();
}

//
#[tokio::test]
async fn every_route_is_private_but_the_probes() {
    let app = guarded().await;
    let config = Setup::default().http;
    let mut public = Vec::new();
    for route in http::routes(&config) {
        let path = route.pattern.replace("{*id}", "tiny/fixed");
        let method: Method = route.allow.split(',').next().unwrap().parse().unwrap();
        for method in [method, Method::OPTIONS, Method::DELETE] {
            let answer = app.send(method.clone(), &path, &[], Vec::new()).await;
            assert_eq!(answer.status == 401, route.needs_key, "{method} {path}: {}", answer.status);
        }
        if !route.needs_key {
            public.push(route.pattern);
        }
    }
    assert_eq!(
        public,
        ["/", "/livez", "/healthz", "/v1/health/live", "/readyz", "/health", "/ready", "/ping", "/v1/health/ready"]
    );
    // Whether a route exists is nobody's business without a key.
    app.post("/v1/foo", &[], "{}").await.refusal(401, Some("invalid_api_key"), None);
    app.post("/v1/foo", &[BEARER], "{}").await.refusal(404, None, None);
    let open = TestApp::with(|setup| {
        setup.key(KEY);
        setup.http.metrics_public = true;
    })
    .await;
    assert_eq!(open.get("/metrics").await.status, 200);
    assert_eq!(open.get("/version").await.status, 401);
}

//
#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_a_path_gets_around_the_key() {
    let app = guarded().await;
    for path in [
        "/v1/models",
        "//v1/models",
        "/v1/models/",
        "/v1/../v1/models",
        "/livez/../v1/models",
        "/V1/models",
        "/v1%2fmodels",
        "/%76%31/models",
        "/livez%2f..%2fv1/models",
        "/livez/v1/models",
        "http://localhost/v1/models",
        "http://localhost//v1/models",
        "/v1/models?/livez",
        "/v1/models#/livez",
        "*",
    ] {
        let mut raw = app.raw();
        raw.send(get(path));
        let answer = raw.answer().expect(path);
        assert!([400, 401].contains(&answer.status), "{path}: {}", answer.status);
        assert!(!answer.body.contains("tiny"), "{path}: {}", answer.body);
    }
    for host in ["a/?x", "livez", "evil.example"] {
        let mut raw = app.raw();
        raw.send(format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\n\r\n"));
        assert_eq!(raw.answer().unwrap().status, 401, "{host}");
    }
    let with_key = app.send(Method::GET, "//v1/models/", &[BEARER], Vec::new()).await;
    assert_eq!(with_key.status, 200);
    let dots = app.send(Method::GET, "/v1%2fmodels", &[BEARER], Vec::new()).await;
    dots.refusal(404, None, None);
}

// the refusal comes although the body never does.
#[tokio::test(flavor = "multi_thread")]
async fn a_bad_key_is_refused_before_the_body_is_read() {
    let app = guarded().await;
    let mut raw = app.raw();
    raw.send("POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nauthorization: Bearer no\r\ncontent-length: 4194304\r\n\r\n{");
    let answer = raw.answer().unwrap();
    assert_eq!((answer.status, answer.code().as_deref()), (401, Some("invalid_api_key")));
    assert_eq!(answer.header("connection"), Some("close"));
    raw.half_close();
    assert!(raw.is_closed());
    // The body that is sent all the same does not cost the client its answer.
    let body = format!("{{\"input\":\"{}\"}}", "x".repeat(4 << 20));
    let answer = app.post("/v1/embeddings", &[("authorization", "Bearer no")], body).await;
    answer.refusal(401, Some("invalid_api_key"), None);
    app.until_metric("embedserve_http_request_body_bytes_sum", "route=\"/v1/embeddings\"", 0.0).await;
}

//
#[tokio::test]
async fn browsers_are_answered_for_listed_origins_alone() {
    let ask = |origin: &'static str| {
        [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,x-stainless-os"),
        ]
    };
    let app = TestApp::start().await;
    let none = app.send(Method::OPTIONS, "/v1/embeddings", &ask("https://app.example"), Vec::new()).await;
    assert_eq!(none.status, 403);
    let cross = |answer: &crate::support::app::Answer| {
        answer.headers.keys().filter(|name| name.as_str().starts_with("access-control")).count()
    };
    assert_eq!(cross(&none), 0);

    let app = TestApp::with(|setup| {
        setup.key(KEY);
        setup.http.cors_origins = vec!["https://app.example".to_owned()];
    })
    .await;
    let allowed = app.send(Method::OPTIONS, "/v1/embeddings", &ask("https://app.example"), Vec::new()).await;
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(allowed.header("access-control-allow-headers"), Some("authorization,x-stainless-os"));
    assert_eq!(allowed.header("access-control-allow-credentials"), None);
    for foreign in ["https://evil.example", "https://app.example.evil.example", "http://app.example", "null"] {
        let answer = app.send(Method::OPTIONS, "/v1/embeddings", &ask(foreign), Vec::new()).await;
        assert_eq!(answer.header("access-control-allow-origin"), None, "{foreign}");
    }
    let body = json!({"model": M, "input": "a"}).to_string();
    let answer = app.post("/v1/embeddings", &[BEARER, ("origin", "https://app.example")], body.clone()).await;
    assert_eq!(answer.vectors().len(), 1);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
    assert!(answer.header("access-control-expose-headers").unwrap().contains("x-request-id"));
    // A refusal can be read by the page as well, or its author would be told nothing.
    let refused = app.post("/v1/embeddings", &[("origin", "https://app.example")], body).await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some("https://app.example")));
}

// what a browser sends without asking first is not computed for pages from elsewhere.
#[tokio::test]
async fn without_keys_a_foreign_page_is_refused() {
    let app = TestApp::with(|setup| setup.http.cors_origins = vec!["https://app.example".to_owned()]).await;
    let body = json!({"model": M, "input": "a"}).to_string();
    let ask = |origin: &'static str| [("content-type", "text/plain"), ("origin", origin)];
    for foreign in ["https://evil.example", "http://app.example", "null"] {
        let answer = app.post("/v1/embeddings", &ask(foreign), body.clone()).await;
        let message = answer.refusal(403, Some("origin_not_allowed"), None);
        assert!(message.starts_with(&format!("Pages from '{foreign}' are not allowed. ")), "{message}");
    }
    app.until_metric("embedserve_batches_total", "", 0.0).await;
    for ours in ["https://app.example", "http://localhost:3000", "app://notes"] {
        assert_eq!(app.post("/v1/embeddings", &ask(ours), body.clone()).await.vectors().len(), 1, "{ours}");
    }
}

//
#[tokio::test]
async fn a_foreign_host_is_refused_on_loopback_without_keys() {
    let app = TestApp::start().await;
    for host in ["evil.example", "127.0.0.1.evil.example", "a/?x"] {
        for path in ["/v1/models", "/livez"] {
            let answer = app.send(Method::GET, path, &[("host", host)], Vec::new()).await;
            let message = answer.refusal(403, Some("host_not_allowed"), None);
            assert!(message.starts_with(&format!("Host '{host}' is not allowed. ")), "{message}");
            assert!(message.contains("--api-key"), "{message}");
        }
    }
    for host in ["localhost", "localhost:9999", "127.0.0.1", "[::1]:80"] {
        assert_eq!(app.send(Method::GET, "/v1/models", &[("host", host)], Vec::new()).await.status, 200, "{host}");
    }
    let allowing = TestApp::with(|setup| setup.http.allowed_hosts = vec!["embed.lan".to_owned()]).await;
    let answer = allowing.send(Method::GET, "/v1/models", &[("host", "Embed.lan:8080")], Vec::new()).await;
    assert_eq!(answer.status, 200);
    let app = guarded().await;
    let answer = app.send(Method::GET, "/v1/models", &[BEARER, ("host", "api.example")], Vec::new()).await;
    assert_eq!(answer.status, 200);
}
