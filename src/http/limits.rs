//! What a request body must be before anyone parses it: plain JSON bytes, not too many, not too slow; and how
//! much of bodies and of large answers is held at once.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::config::HttpConfig;
use crate::http::error::{ApiError, RetryAfter};

/// The bound on all request bodies held at once.
#[derive(Debug, Clone)]
pub struct BodyBudget {
    permits: Arc<Semaphore>,
    max_body_bytes: usize,
    timeout: Duration,
}

/// The bound on all large answers held at once, from before they are computed until their clients have taken them.
#[derive(Debug, Clone)]
pub struct AnswerBudget {
    permits: Arc<Semaphore>,
    all: u32,
}

/// A body in memory, and its share of the budget.
#[derive(Debug)]
pub struct HeldBody {
    pub bytes: Vec<u8>,
    share: Option<OwnedSemaphorePermit>,
}

/// Refuses what cannot be plain JSON, from the headers alone.
///
/// # Errors
/// 415 for any content coding, and for a media type or charset that is not ours.
pub fn check_headers(headers: &HeaderMap) -> Result<(), ApiError> {
    let show = |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let coded = |coding: &str| !coding.is_empty() && !coding.eq_ignore_ascii_case("identity");
        if !value.to_str().is_ok_and(|value| !value.split(',').any(|coding| coded(coding.trim()))) {
            return Err(ApiError::ContentEncoding { given: show(value) });
        }
    }
    match headers.get(header::CONTENT_TYPE) {
        Some(value) if !value.to_str().is_ok_and(is_json_like) => Err(ApiError::MediaType { given: show(value) }),
        _ => Ok(()),
    }
}

/// `curl -d` says form, some clients say text or nothing: all of them send JSON.
fn is_json_like(value: &str) -> bool {
    let mut parts = value.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default();
    let known = ["", "application/json", "text/plain", "application/x-www-form-urlencoded"];
    let charset = |part: &str| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"').to_ascii_lowercase())
    };
    known.iter().any(|known| media_type.eq_ignore_ascii_case(known))
        && parts.filter_map(charset).all(|charset| ["utf-8", "utf8", "us-ascii"].contains(&charset.as_str()))
}

// === impl HeldBody ===

impl HeldBody {
    /// Its share of the budget, for what was read out of it; the bytes themselves are gone.
    pub fn into_share(self) -> Option<OwnedSemaphorePermit> {
        self.share
    }
}

// === impl BodyBudget ===

impl BodyBudget {
    pub fn new(config: &HttpConfig) -> Self {
        Self {
            permits: Arc::new(Semaphore::new(units(config.max_bodies_bytes) as usize)),
            max_body_bytes: config.max_body_bytes,
            timeout: config.body_timeout,
        }
    }

    /// Reads a body under the size limit, the budget and the clock. A length that is announced is judged before a
    /// byte is read; without one the body is cut off at the limit.
    ///
    /// # Errors
    /// 408, 413, 503 when the budget stays exhausted, or a body that breaks off.
    pub async fn read(&self, mut body: Body) -> Result<HeldBody, ApiError> {
        let too_large = || ApiError::BodyTooLarge { limit: self.max_body_bytes };
        let announced = body.size_hint().exact().map(|length| usize::try_from(length).unwrap_or(usize::MAX));
        if announced.is_some_and(|length| length > self.max_body_bytes) {
            return Err(too_large());
        }
        let deadline = Instant::now() + self.timeout;
        let mut held = HeldBody { bytes: Vec::new(), share: None };
        loop {
            let frame = timeout_at(deadline, body.frame()).await;
            let frame = frame.map_err(|_| ApiError::BodyTimeout { limit: self.timeout })?;
            let Some(frame) = frame else { return Ok(held) };
            let Ok(data) = frame.map_err(|_| ApiError::BodyBroken)?.into_data() else { continue };
            let length = held.bytes.len() + data.len();
            if length > self.max_body_bytes {
                return Err(too_large());
            }
            // What has arrived counts, not what was announced: a promise must not keep others waiting.
            let room = length.next_multiple_of(STEP_BYTES).min(announced.unwrap_or(self.max_body_bytes)).max(length);
            self.reserve(&mut held, room, deadline).await?;
            held.bytes.extend_from_slice(&data);
        }
    }

    /// The share for `size_bytes`, if that is more than it is: what has been read out of a body can be larger than the body.
    /// Nobody waits for it, as others would for the share that is held already.
    ///
    /// # Errors
    /// 503 when the budget is exhausted.
    pub fn hold(
        &self,
        share: Option<OwnedSemaphorePermit>,
        size_bytes: usize,
    ) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        let have = share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = units(size_bytes).saturating_sub(u32::try_from(have).unwrap_or(u32::MAX));
        if missing == 0 {
            return Ok(share);
        }
        let more = Arc::clone(&self.permits).try_acquire_many_owned(missing);
        let more = more.map_err(|_| ApiError::Overloaded { retry: RetryAfter::of(Duration::from_secs(1)) })?;
        Ok(Some(match share {
            Some(mut share) => {
                share.merge(more);
                share
            }
            None => more,
        }))
    }

    /// Takes the permits for `room` bytes. Only a body that holds none yet may wait for them: if holders waited for
    /// each other, all of them would run into their timeouts.
    async fn reserve(&self, held: &mut HeldBody, room: usize, deadline: Instant) -> Result<(), ApiError> {
        let have = held.share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let missing = units(room).saturating_sub(u32::try_from(have).unwrap_or(u32::MAX));
        if missing == 0 {
            return Ok(());
        }
        let permits = Arc::clone(&self.permits);
        let more = match &held.share {
            None => timeout_at(deadline, permits.acquire_many_owned(missing)).await.ok().and_then(Result::ok),
            Some(_) => permits.try_acquire_many_owned(missing).ok(),
        };
        let more = more.ok_or_else(|| ApiError::Overloaded { retry: RetryAfter::of(Duration::from_secs(1)) })?;
        match &mut held.share {
            Some(share) => share.merge(more),
            none => *none = Some(more),
        }
        held.bytes.reserve(room - held.bytes.len());
        Ok(())
    }
}

// === impl AnswerBudget ===

impl AnswerBudget {
    pub fn new(config: &HttpConfig) -> Self {
        let all = units(config.max_answers_bytes);
        Self { permits: Arc::new(Semaphore::new(all as usize)), all }
    }

    /// Room for an answer of about so many bytes, waited for until the deadline; small ones need none. Whoever holds it
    /// waits for no other room, so it is given back as fast as answers are computed and taken.
    ///
    /// # Errors
    /// 503 when the budget stays exhausted.
    pub async fn reserve(
        &self,
        size_bytes: usize,
        deadline: std::time::Instant,
    ) -> Result<Option<OwnedSemaphorePermit>, ApiError> {
        if size_bytes <= SMALL_ANSWER_BYTES {
            return Ok(None);
        }
        // One that is larger than the budget goes alone.
        let room = Arc::clone(&self.permits).acquire_many_owned(units(size_bytes).min(self.all));
        let room = timeout_at(deadline.into(), room).await.ok().and_then(Result::ok);
        room.map(Some).ok_or_else(|| ApiError::Overloaded { retry: RetryAfter::of(Duration::from_secs(1)) })
    }
}

/// As much for every connection is little, and queries must not wait behind large answers that nobody takes.
const SMALL_ANSWER_BYTES: usize = 128 * 1024;

/// Bytes as permits: one for each KiB begun.
fn units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

const STEP_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pairs: &[(&'static str, &'static str)]) -> Result<(), ApiError> {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        check_headers(&headers)
    }

    #[test]
    fn what_may_be_json_passes() {
        assert_eq!(check(&[]), Ok(()));
        for fine in ["", "application/json", "Application/JSON; charset=UTF-8", "text/plain; charset=us-ascii; x=1"] {
            assert_eq!(check(&[("content-type", fine)]), Ok(()), "{fine}");
        }
        for wrong in
            ["multipart/form-data", "application/xml", "application/json; charset=\"utf-16\"", "application/json5"]
        {
            assert_eq!(check(&[("content-type", wrong)]), Err(ApiError::MediaType { given: wrong.to_owned() }));
        }
        assert_eq!(check(&[("content-encoding", "identity")]), Ok(()));
        for wrong in ["gzip", "br", "identity, zstd"] {
            let given = wrong.to_owned();
            assert_eq!(check(&[("content-encoding", wrong)]), Err(ApiError::ContentEncoding { given }));
        }
    }
}
