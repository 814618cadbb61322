//! One spelling per path: doubled and trailing slashes are dropped before a request is routed, never redirected.
//!
//! Clients join a base URL and a route in every way there is. Dot segments and percent-encoded slashes stay as they
//! are and match nothing: what they mean differs between servers, and a key must not depend on it.

use axum::extract::Request;
use axum::http::Uri;
use axum::http::uri::PathAndQuery;
use percent_encoding::percent_decode_str;

/// Rewrites the path of a request that needs it.
pub fn normalise(mut request: Request) -> Request {
    if let Some(uri) = normalised(request.uri()) {
        *request.uri_mut() = uri;
    }
    request
}

/// `None` when the path is fine as it is.
fn normalised(uri: &Uri) -> Option<Uri> {
    let path = uri.path();
    if !path.contains("//") && (path.len() < 2 || !path.ends_with('/')) {
        return None;
    }
    let segments = path.split('/').filter(|segment| !segment.is_empty());
    let mut plain = segments.fold(String::with_capacity(path.len()), |path, segment| path + "/" + segment);
    if plain.is_empty() {
        plain.push('/');
    }
    if let Some(query) = uri.query() {
        plain.push('?');
        plain.push_str(query);
    }
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(plain).ok()?);
    Uri::from_parts(parts).ok()
}

/// The model that a path names, as Azure's clients write it: `/openai/deployments/{deployment}/embeddings`.
pub fn deployment(uri: &Uri) -> Option<String> {
    let name = uri.path().strip_prefix("/openai/deployments/")?.strip_suffix("/embeddings")?;
    Some(percent_decode_str(name).decode_utf8_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slashes_are_counted_once() {
        for (from, to) in [
            ("/v1/embeddings/", "/v1/embeddings"),
            ("//v1///embeddings//", "/v1/embeddings"),
            ("http://h//v1/models/?a=//", "http://h/v1/models?a=//"),
            ("//", "/"),
        ] {
            assert_eq!(normalised(&from.parse().unwrap()), Some(to.parse().unwrap()), "{from}");
        }
        for same in ["/", "/v1/models/BAAI%2Fbge-m3", "/v1/../v1/models", "/v1/embeddings?x=a//b/"] {
            assert_eq!(normalised(&same.parse().unwrap()), None, "{same}");
        }
    }

    #[test]
    fn a_path_may_name_the_model() {
        let named = |path: &str| deployment(&path.parse().unwrap());
        assert_eq!(named("/openai/deployments/a/embeddings?api-version=1").as_deref(), Some("a"));
        assert_eq!(named("/openai/deployments/BAAI%2Fbge-m3/embeddings").as_deref(), Some("BAAI/bge-m3"));
        assert_eq!(named("/v1/embeddings"), None);
    }
}
