//! API keys: who may use the private routes. Decided from the headers alone, before the body is read.
//!
//! Keys are kept and compared as digests of one size, in constant time and without an early exit, so that neither
//! their length nor their position can be measured.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::config::ApiKey;
use crate::http::HttpState;
use crate::http::error::ApiError;
use crate::observe::metrics::AuthFailure;

/// The configured keys. Empty: everybody may pass, with any key or none.
#[derive(Debug)]
pub struct Keys(Vec<Digest>);

/// The configured name of the key that was used; travels as a response extension, for the log.
#[derive(Debug, Clone)]
pub struct KeyName(pub Arc<str>);

#[derive(Debug)]
struct Digest {
    name: Arc<str>,
    hash: [u8; 32],
}

/// Lets a request pass if it brings a key.
pub async fn require_key(State(state): State<Arc<HttpState>>, request: Request, next: Next) -> Response {
    match state.keys.check(request.headers()) {
        Ok(None) => next.run(request).await,
        Ok(Some(name)) => {
            let mut response = next.run(request).await;
            response.extensions_mut().insert(KeyName(name));
            response
        }
        Err(error) => {
            let missing = error == ApiError::NoKey;
            let reason = if missing { AuthFailure::Missing } else { AuthFailure::Wrong };
            state.engine.metrics.http().auth_failed(reason);
            error.into_response()
        }
    }
}

impl Keys {
    pub fn new(keys: &[ApiKey]) -> Self {
        let digest = |key: &ApiKey| Digest { name: key.name.as_str().into(), hash: hash(key.key.expose().as_bytes()) };
        Self(keys.iter().map(digest).collect())
    }

    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The name of the key a request brings; `None` when no keys are configured.
    fn check(&self, headers: &HeaderMap) -> Result<Option<Arc<str>>, ApiError> {
        if self.is_empty() {
            return Ok(None);
        }
        let presented = presented(headers);
        for key in &presented {
            if let Some(digest) = self.find(key, |a, b| a.ct_eq(b)) {
                return Ok(Some(Arc::clone(&digest.name)));
            }
        }
        match presented.first() {
            None => Err(ApiError::NoKey),
            Some(key) => Err(ApiError::WrongKey { shown: shown(key) }),
        }
    }

    /// Compares with every key, whichever matches.
    fn find(&self, key: &[u8], mut equal: impl FnMut(&[u8; 32], &[u8; 32]) -> Choice) -> Option<&Digest> {
        let hash = hash(key);
        let mut found = u64::MAX;
        for (index, digest) in (0_u64..).zip(&self.0) {
            found = u64::conditional_select(&found, &index, equal(&digest.hash, &hash));
        }
        self.0.get(usize::try_from(found).ok()?)
    }
}

fn hash(key: &[u8]) -> [u8; 32] {
    blake3::hash(key).into()
}

/// The keys in the headers that may carry one. A header that occurs twice says nothing: two readers could see two
/// different keys in it.
fn presented(headers: &HeaderMap) -> Vec<&[u8]> {
    let once = |name: &str| {
        let mut values = headers.get_all(name).iter();
        values.next().filter(|_| values.next().is_none()).map(|value| value.as_bytes().trim_ascii())
    };
    let bearer = once(header::AUTHORIZATION.as_str()).and_then(bearer);
    [bearer, once("api-key"), once("x-api-key")].into_iter().flatten().filter(|key| !key.is_empty()).collect()
}

/// The token of `Bearer TOKEN`; the scheme's case does not matter.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(BEARER.len())?;
    (scheme.eq_ignore_ascii_case(BEARER) && token.first() == Some(&b' ')).then(|| token.trim_ascii())
}

/// What an error message may show of a wrong key: its end, if that is a small part of it.
fn shown(key: &[u8]) -> String {
    match key.len().checked_sub(4).map(|start| &key[start..]) {
        Some(end) if key.len() >= 16 && end.is_ascii() => format!("****{}", String::from_utf8_lossy(end)),
        _ => "****".to_owned(),
    }
}

const BEARER: &[u8] = b"Bearer";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::secret::Secret;

    fn keys(keys: &[&str]) -> Keys {
        let key = |key: &&str| ApiKey { name: format!("name of {key}"), key: Secret::new((*key).to_owned()) };
        Keys::new(&keys.iter().map(key).collect::<Vec<_>>())
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    // every key is compared with, whichever one matches.
    #[test]
    fn no_comparison_is_skipped() {
        let keys = keys(&["aaaa", "aaab", "bbbb"]);
        for (tried, expected) in [("aaaa", Some("name of aaaa")), ("bbbb", Some("name of bbbb")), ("aaac", None)] {
            let mut compared = 0;
            let found = keys.find(tried.as_bytes(), |a, b| {
                compared += 1;
                a.ct_eq(b)
            });
            assert_eq!(compared, 3);
            assert_eq!(found.map(|digest| &*digest.name), expected);
        }
    }

    //
    #[test]
    fn only_an_exact_key_passes() {
        let keys = keys(&["sk-0123456789abcdef"]);
        let check = |pairs: &[(&'static str, &'static str)]| keys.check(&headers(pairs));
        for right in [
            ("authorization", "Bearer sk-0123456789abcdef"),
            ("authorization", "bearer sk-0123456789abcdef"),
            ("api-key", "sk-0123456789abcdef"),
            ("x-api-key", "sk-0123456789abcdef"),
        ] {
            assert!(check(&[right]).unwrap().is_some(), "{right:?}");
        }
        for none in [("authorization", "Basic c2s="), ("authorization", "Bearer"), ("authorization", "Bearer   ")] {
            assert_eq!(check(&[none]), Err(ApiError::NoKey), "{none:?}");
        }
        assert_eq!(check(&[]), Err(ApiError::NoKey));
        let twice = ("authorization", "Bearer sk-0123456789abcdef");
        assert_eq!(check(&[twice, twice]), Err(ApiError::NoKey));
        let wrong = |shown: &str| Err(ApiError::WrongKey { shown: shown.to_owned() });
        assert_eq!(check(&[("authorization", "Bearer sk-0123456789abcdeF")]), wrong("****cdeF"));
        assert_eq!(check(&[("authorization", "Bearer sk-0123456789abcde")]), wrong("****bcde"));
        assert_eq!(check(&[("authorization", "Bearersk-0123456789abcdef")]), Err(ApiError::NoKey));
        assert_eq!(check(&[("api-key", "short")]), wrong("****"));
    }
}
