//! Requests made of arbitrary parts to the whole router, with and without a key in front. W-12, W-15, A-02, A-03, A-09
//!
//! The bytes are `METHOD uri`, header lines, an empty line, and the body. Refused: whatever is answered with an error.

use axum::Router;
use axum::body::Body;
use embedserve::http::routes;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use serde_json::Value;
use tower::ServiceExt as _;

use super::Verdict;
use super::request_json::envelope;
use super::server::{self, Serving};

/// What the table of errors allows where nothing is overloaded, loading or broken.
const STATUSES: [u16; 11] = [200, 400, 401, 403, 404, 405, 408, 413, 414, 415, 431];

/// An answer in memory.
struct Answer {
    status: u16,
    headers: http::HeaderMap,
    body: String,
}

pub fn check(data: &[u8]) -> Verdict {
    let Some(parts) = Parts::parse(data) else { return Err("not a request".to_owned()) };
    let serving = server::serving();
    let answer = ask(serving, &serving.locked, parts.request());
    let verdict = judge(&answer, &parts, data);
    if verdict.is_ok() {
        let path = parts.uri.path().split('/').filter(|part| !part.is_empty());
        let path = format!("/{}", path.collect::<Vec<_>>().join("/"));
        let public = routes(&serving.locked_config).any(|route| !route.needs_key && route.pattern == path);
        assert!(public, "without a key: {} {}", parts.method, parts.uri);
    }
    let answer = ask(serving, &serving.open, parts.request());
    assert_ne!(answer.status, 401, "nobody asked for a key");
    judge(&answer, &parts, data)
}

fn ask(serving: &Serving, router: &Router, request: Request<Body>) -> Answer {
    serving.runtime.block_on(async {
        let response = router.clone().oneshot(request).await.expect("a router answers");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = axum::body::to_bytes(response.into_body(), 16 << 20).await.expect("a bounded body");
        Answer { status, headers, body: String::from_utf8(body.to_vec()).expect("text") }
    })
}

fn judge(answer: &Answer, parts: &Parts, data: &[u8]) -> Verdict {
    let Answer { status, headers, body } = answer;
    assert!(STATUSES.contains(status), "{status}: {body}");
    assert!(headers.contains_key("x-request-id"), "{headers:?}");
    let is_bare = parts.method == Method::HEAD || parts.method == Method::CONNECT;
    if *status != 200 {
        if is_bare && body.is_empty() {
            return Err(format!("{status}"));
        }
        assert_eq!(headers["content-type"], "application/json");
        assert_eq!(*status == 405, headers.contains_key("allow"), "{status} {headers:?}");
        return Err(envelope(body, data));
    }
    let of_embeddings = parts.method == Method::POST;
    if of_embeddings {
        vectors(body);
    }
    Ok(())
}

/// A good answer: finite numbers of one length, in order, and what they cost.
fn vectors(body: &str) {
    let answer: Value = serde_json::from_str(body).expect("JSON");
    let data = answer["data"].as_array().expect("a list of vectors");
    assert!((1..=32).contains(&data.len()), "{} vectors", data.len());
    for (index, item) in data.iter().enumerate() {
        assert_eq!(item["index"], index);
        let embedding = &item["embedding"];
        if let Some(values) = embedding.as_array() {
            let length: f64 = values.iter().map(|x| x.as_f64().expect("a number").powi(2)).sum::<f64>().sqrt();
            assert!(values.len() == 32 && (length - 1.0).abs() < 1e-4, "{} values, {length} long", values.len());
        } else {
            assert_eq!(embedding.as_str().map(str::len), Some(172), "base64 of 32 values");
        }
    }
    let usage = &answer["usage"];
    assert!(usage["prompt_tokens"].as_u64().is_some_and(|n| n > 0) && usage["prompt_tokens"] == usage["total_tokens"]);
}

/// A request that can be sent as often as needed.
struct Parts {
    method: Method,
    uri: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Vec<u8>,
}

impl Parts {
    fn parse(data: &[u8]) -> Option<Self> {
        let split = data.windows(2).position(|window| window == b"\n\n").unwrap_or(data.len());
        let body = data.get(split + 2..).unwrap_or_default().to_vec();
        let mut lines = data[..split].split(|byte| *byte == b'\n');
        let mut first = lines.next()?.splitn(2, |byte| *byte == b' ');
        let method = Method::from_bytes(first.next()?).ok()?;
        let uri = Uri::try_from(first.next()?).ok()?;
        let header = |line: &[u8]| {
            let colon = line.iter().position(|byte| *byte == b':')?;
            let name = HeaderName::from_bytes(&line[..colon]).ok()?;
            Some((name, HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).ok()?))
        };
        let headers = lines.map(header).collect::<Option<_>>()?;
        Some(Self { method, uri, headers, body })
    }

    fn request(&self) -> Request<Body> {
        let mut request = Request::new(Body::from(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        for (name, value) in &self.headers {
            request.headers_mut().append(name, value.clone());
        }
        request
    }
}
