//! API keys: who may use the private routes. Decided from the headers alone, before the body is read.
//!
//! Keys are kept and compared as digests of one size, in constant time and without an early exit, so that neither
//! their length nor their position can be measured. The ring of keys can be replaced while requests are served: each
//! request sees one ring, the old or the new.

use std::sync::{Arc, PoisonError, RwLock};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::Digest as _;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use crate::config::{ApiKey, KeyProof};
use crate::http::HttpState;
use crate::http::error::ApiError;
use crate::http::keys::Key;
use crate::observe::metrics::AuthFailure;
use crate::request::Flow;

/// The configured keys. Empty: everybody may pass, with any key or none.
#[derive(Debug)]
pub struct Keys(RwLock<Arc<Ring>>);

/// The key that a request brought; travels as an extension of the request.
#[derive(Debug, Clone)]
pub struct Caller(pub Arc<Key>);

/// The configured name of the key that was used; travels as a response extension, for the log.
#[derive(Debug, Clone)]
pub struct KeyName(pub Arc<str>);

/// The keys of one moment.
#[derive(Debug)]
struct Ring {
    entries: Vec<Entry>,
    /// Flows given out so far; 0 is nobody's.
    flows: u32,
}

#[derive(Debug)]
struct Entry {
    digest: Digest,
    key: Arc<Key>,
}

#[derive(Debug)]
enum Digest {
    Blake3([u8; 32]),
    Sha256([u8; 32]),
}

/// Lets a request pass if it brings a key.
pub async fn require_key(State(state): State<Arc<HttpState>>, mut request: Request, next: Next) -> Response {
    match state.keys.check(request.headers()) {
        Ok(None) => next.run(request).await,
        Ok(Some(key)) => {
            let name = KeyName(Arc::clone(&key.name));
            request.extensions_mut().insert(Caller(key));
            let mut response = next.run(request).await;
            response.extensions_mut().insert(name);
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

// === impl Keys ===

impl Keys {
    pub fn new(keys: &[ApiKey]) -> Self {
        Self(RwLock::new(Arc::new(Ring { entries: Vec::new(), flows: 0 }.replaced(keys))))
    }

    /// From now on these keys count and no others. A name that stays keeps what it has used.
    pub fn replace(&self, keys: &[ApiKey]) {
        let mut ring = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *ring = Arc::new(ring.replaced(keys));
    }

    /// The key that a request brings; `None` when no keys are configured.
    fn check(&self, headers: &HeaderMap) -> Result<Option<Arc<Key>>, ApiError> {
        let ring = Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner));
        if ring.entries.is_empty() {
            return Ok(None);
        }
        let presented = presented(headers);
        for key in &presented {
            if let Some(key) = ring.find(key, |a, b| a.ct_eq(b)) {
                return Ok(Some(Arc::clone(key)));
            }
        }
        match presented.first() {
            None => Err(ApiError::NoKey),
            Some(key) => Err(ApiError::WrongKey { shown: masked(key) }),
        }
    }
}

impl Ring {
    /// The ring of these keys; keys of the same name are the same caller as before.
    fn replaced(&self, keys: &[ApiKey]) -> Self {
        let mut flows = self.flows;
        let entry = |ApiKey { name, proof, policy }: &ApiKey| {
            let known = self.entries.iter().find(|entry| *entry.key.name == **name);
            let key = known.map_or_else(
                || {
                    flows = flows.wrapping_add(1);
                    Key::new(name, policy.clone(), Flow(flows))
                },
                |entry| entry.key.with_policy(policy.clone()),
            );
            Entry { digest: Digest::of(proof), key: Arc::new(key) }
        };
        let entries = keys.iter().map(entry).collect();
        Self { entries, flows }
    }

    /// Compares with every key, whichever matches.
    fn find(&self, key: &[u8], mut equal: impl FnMut(&[u8; 32], &[u8; 32]) -> Choice) -> Option<&Arc<Key>> {
        let (blake3, sha256): ([u8; 32], [u8; 32]) = (blake3::hash(key).into(), sha2::Sha256::digest(key).into());
        let mut found = u64::MAX;
        for (index, entry) in (0_u64..).zip(&self.entries) {
            let same = match &entry.digest {
                Digest::Blake3(digest) => equal(digest, &blake3),
                Digest::Sha256(digest) => equal(digest, &sha256),
            };
            found = u64::conditional_select(&found, &index, same);
        }
        self.entries.get(usize::try_from(found).ok()?).map(|entry| &entry.key)
    }
}

impl Digest {
    fn of(proof: &KeyProof) -> Self {
        match proof {
            KeyProof::Key(key) => Self::Blake3(blake3::hash(key.expose().as_bytes()).into()),
            KeyProof::Blake3(digest) => Self::Blake3(*digest),
            KeyProof::Sha256(digest) => Self::Sha256(*digest),
        }
    }
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
fn masked(key: &[u8]) -> String {
    match key.len().checked_sub(4).map(|start| &key[start..]) {
        Some(end) if key.len() >= 16 && end.is_ascii() => format!("****{}", String::from_utf8_lossy(end)),
        _ => "****".to_owned(),
    }
}

const BEARER: &[u8] = b"Bearer";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::KeyPolicy;
    use crate::observe::secret::Secret;

    fn keys(keys: &[&str]) -> Keys {
        let key = |key: &&str| ApiKey::unlimited(format!("name of {key}"), Secret::new((*key).to_owned()));
        Keys::new(&keys.iter().map(key).collect::<Vec<_>>())
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    // every key is compared with, whichever one matches and however it is kept.
    #[test]
    fn no_comparison_is_skipped() {
        let proofs = [
            KeyProof::Key(Secret::new("aaaa".to_owned())),
            KeyProof::Sha256(sha2::Sha256::digest(b"aaab").into()),
            KeyProof::Blake3(blake3::hash(b"bbbb").into()),
        ];
        let key =
            |(index, proof): (usize, KeyProof)| ApiKey { name: index.to_string(), proof, policy: KeyPolicy::default() };
        let keys = Keys::new(&proofs.into_iter().enumerate().map(key).collect::<Vec<_>>());
        let ring = Arc::clone(&keys.0.read().unwrap());
        let expected = [("aaaa", Some("0")), ("aaab", Some("1")), ("bbbb", Some("2")), ("aaac", None), ("", None)];
        for (tried, expected) in expected {
            let mut compared = 0;
            let found = ring.find(tried.as_bytes(), |a, b| {
                compared += 1;
                a.ct_eq(b)
            });
            assert_eq!(compared, 3);
            assert_eq!(found.map(|key| &*key.name), expected);
        }
    }

    // no prefix of a key, however long, and no key with more behind it.
    #[test]
    fn a_shared_beginning_is_worth_nothing() {
        let key = "sk-0123456789abcdef";
        let keys = keys(&[key, "other"]);
        let ring = Arc::clone(&keys.0.read().unwrap());
        for length in 0..key.len() {
            assert!(ring.find(&key.as_bytes()[..length], |a, b| a.ct_eq(b)).is_none(), "{length}");
            let other = format!("{}{}", &key[..length], "X".repeat(key.len() - length));
            assert!(ring.find(other.as_bytes(), |a, b| a.ct_eq(b)).is_none(), "{other}");
        }
        assert!(ring.find(format!("{key}0").as_bytes(), |a, b| a.ct_eq(b)).is_none());
        assert!(ring.find(key.as_bytes(), |a, b| a.ct_eq(b)).is_some());
    }

    // the old key stops, the new one works, and a caller under the same name is the same caller.
    #[test]
    fn a_replaced_ring_keeps_its_callers() {
        let named = |name: &str, key: &str| ApiKey::unlimited(name.to_owned(), Secret::new(key.to_owned()));
        let keys = Keys::new(&[named("a", "old-a"), named("b", "old-b")]);
        let flow = |keys: &Keys, key: &'static str| {
            keys.check(&headers(&[("api-key", key)])).ok().flatten().map(|key| key.flow)
        };
        let (a, b) = (flow(&keys, "old-a"), flow(&keys, "old-b"));
        assert!(a.is_some() && b.is_some() && a != b);
        keys.replace(&[named("c", "new-c"), named("a", "new-a")]);
        assert_eq!((flow(&keys, "old-a"), flow(&keys, "old-b"), flow(&keys, "new-a")), (None, None, a));
        assert!(![a, b, None, Some(Flow::default())].contains(&flow(&keys, "new-c")));
    }

    //
    #[test]
    fn only_an_exact_key_passes() {
        let keys = keys(&["sk-0123456789abcdef"]);
        let check = |pairs: &[(&'static str, &'static str)]| {
            keys.check(&headers(pairs)).map(|key| key.map(|key| key.name.to_string()))
        };
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
