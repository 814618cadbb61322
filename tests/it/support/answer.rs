//! A received answer, read as clients read it, and checked against the envelope of errors.

use reqwest::header::HeaderMap;
use serde_json::{Value, json};

/// A received answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {}", self.text))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The vectors of a 200, in order.
    #[track_caller]
    pub fn vectors(&self) -> Vec<Vec<f32>> {
        assert_eq!(self.status, 200, "{}", self.text);
        let body = self.json();
        let data = body["data"].as_array().unwrap();
        for (index, item) in data.iter().enumerate() {
            assert_eq!((&item["object"], &item["index"]), (&json!("embedding"), &json!(index)));
        }
        data.iter().map(|item| vector(&item["embedding"])).collect()
    }

    /// Checks the envelope: exactly four keys, the types of each, JSON, a request id.
    #[track_caller]
    pub fn error(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        assert!(self.header("x-request-id").is_some());
        let body = self.json();
        assert_eq!(body.as_object().unwrap().len(), 2, "{body}");
        let error = body["error"].clone();
        assert_eq!(body["detail"], error["message"], "{body}");
        let keys: Vec<&String> = error.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["code", "message", "param", "type"], "{body}");
        assert!(error["message"].is_string() && error["type"].is_string(), "{body}");
        for name in ["param", "code"] {
            assert!(error[name].is_string() || error[name].is_null(), "{body}");
        }
        // LiteLLM would read these words as rate limiting, LangChain.js as a reason never to try again.
        if self.status != 429 {
            let text = self.text.to_ascii_lowercase();
            for word in ["rate limit", "rate_limit", "rate-limit", "request too large", "quota", "billing"] {
                assert!(!text.contains(word), "{word} in {text}");
            }
        }
        error
    }

    /// Checks status, code and param of an error and returns its message.
    #[track_caller]
    pub fn refusal(&self, status: u16, code: Option<&str>, param: Option<&str>) -> String {
        assert_eq!(self.status, status, "{}", self.text);
        let error = self.error();
        assert_eq!((error["code"].as_str(), error["param"].as_str()), (code, param), "{error}");
        error["message"].as_str().unwrap().to_owned()
    }
}

/// A vector as the SDKs read it: numbers, or base64 of little-endian floats.
#[track_caller]
pub fn vector(value: &Value) -> Vec<f32> {
    match value {
        Value::String(text) => base64_floats(text),
        // Through the text, not through f64: what counts is the f32 that the digits stand for.
        Value::Array(numbers) => numbers.iter().map(|number| number.to_string().parse().unwrap()).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => panic!("not a vector: {value}"),
    }
}

fn base64_floats(text: &str) -> Vec<f32> {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

/// `n` words of one token each.
pub fn words(n: usize) -> String {
    vec!["x"; n].join(" ")
}

pub fn length(vector: &[f32]) -> f64 {
    vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt()
}
