//! What a key may do: which models, and how much of them. Checked once the model is known and before anything is
//! computed; what a request really read is settled when its answer is there.
//!
//! All limits of a request are taken together or not at all, under one short lock and on the monotonic clock.

mod bucket;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::config::KeyPolicy;
use crate::http::error::{Limited, RetryAfter};
use crate::observe::metrics::LimitKind;
use crate::request::{Flow, RawInputs};
use bucket::Bucket;

/// A configured key, as far as requests are concerned. It outlives its entry in the ring while requests use it.
#[derive(Debug)]
pub struct Key {
    pub name: Arc<str>,
    pub policy: KeyPolicy,
    pub flow: Flow,
    meter: Arc<Meter>,
}

/// What a key has used. Survives a reload.
#[derive(Debug)]
struct Meter(Mutex<Counts>);

#[derive(Debug)]
struct Counts {
    requests: Bucket,
    tokens: Bucket,
    running: u64,
    /// How long a request of this key takes, smoothed.
    typical: Duration,
}

/// A request that was admitted. Dropping it ends it; tokens that were never settled stay charged as estimated, so
/// that leaving early is no way around a limit.
#[derive(Debug)]
pub struct Permit {
    key: Arc<Key>,
    reserved: u64,
    since: Instant,
}

/// Tokens of a request before it is tokenised: about four bytes of text each, and the special tokens around it.
pub fn estimate(inputs: &RawInputs, max_row_tokens: Option<usize>) -> u64 {
    let cap = max_row_tokens.unwrap_or(usize::MAX);
    let rows: usize = match inputs {
        RawInputs::Texts { texts, .. } => texts.iter().map(|text| (text.len().div_ceil(4) + 2).min(cap)).sum(),
        RawInputs::Tokens { arrays, .. } => arrays.iter().map(|ids| ids.len().min(cap)).sum(),
    };
    rows as u64
}

// === impl Key ===

impl Key {
    /// A key that has not been used.
    pub(super) fn new(name: &str, policy: KeyPolicy, flow: Flow) -> Self {
        let (now, typical) = (Instant::now(), Duration::ZERO);
        let counts = Counts { requests: Bucket::new(now), tokens: Bucket::new(now), running: 0, typical };
        Self { name: name.into(), policy, flow, meter: Arc::new(Meter(Mutex::new(counts))) }
    }

    /// The same caller under a new policy: what it has used stays used.
    pub(super) fn with_policy(&self, policy: KeyPolicy) -> Self {
        Self { name: Arc::clone(&self.name), policy, flow: self.flow, meter: Arc::clone(&self.meter) }
    }

    /// Whether it may use the model with this canonical id.
    pub fn may_use(&self, id: &str) -> bool {
        self.policy.models.as_ref().is_none_or(|models| models.iter().any(|model| model == id))
    }

    /// Takes one request, and the tokens that it is estimated to have.
    ///
    /// # Errors
    /// The limit that is in the way; nothing was taken.
    pub fn admit(self: &Arc<Self>, tokens: u64) -> Result<Permit, Limited> {
        self.admit_at(tokens, Instant::now())
    }

    fn admit_at(self: &Arc<Self>, tokens: u64, now: Instant) -> Result<Permit, Limited> {
        let KeyPolicy { requests_per_minute, tokens_per_minute, max_concurrent, .. } = self.policy;
        let mut counts = self.meter.lock();
        let refused = |kind, (limit, used, requested), wait| {
            Err(Limited { kind, limit, used, requested, retry: RetryAfter::of(wait) })
        };
        if let Some(limit) = max_concurrent
            && counts.running >= limit
        {
            // One of `limit` requests ends about this often.
            let wait = counts.typical.div_f64(limit as f64);
            return refused(LimitKind::Concurrency, (limit, counts.running, 1), wait);
        }
        if let Some(limit) = requests_per_minute
            && let Some(wait) = counts.requests.wait(1, limit, now)
        {
            return refused(LimitKind::Requests, (limit, counts.requests.used(), 1), wait);
        }
        if let Some(limit) = tokens_per_minute
            && let Some(wait) = counts.tokens.wait(tokens, limit, now)
        {
            return refused(LimitKind::Tokens, (limit, counts.tokens.used(), tokens), wait);
        }
        counts.running += 1;
        counts.requests.take(1);
        counts.tokens.take(tokens);
        drop(counts);
        Ok(Permit { key: Arc::clone(self), reserved: tokens, since: now })
    }

    /// Writes `x-ratelimit-*` for the limits that this key has.
    pub fn write_headers(&self, headers: &mut HeaderMap) {
        let now = Instant::now();
        let mut counts = self.meter.lock();
        let KeyPolicy { requests_per_minute, tokens_per_minute, .. } = self.policy;
        let levels = [
            requests_per_minute.map(|limit| (REQUESTS, limit, counts.requests.level(limit, now))),
            tokens_per_minute.map(|limit| (TOKENS, limit, counts.tokens.level(limit, now))),
        ];
        drop(counts);
        for (names, limit, level) in levels.into_iter().flatten() {
            let [limit_name, remaining_name, reset_name] = names.map(HeaderName::from_static);
            headers.insert(limit_name, limit.into());
            headers.insert(remaining_name, level.remaining.into());
            if let Ok(reset) = HeaderValue::from_str(&go_duration(level.reset)) {
                headers.insert(reset_name, reset);
            }
        }
    }
}

impl Meter {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        // No code that can panic runs under this lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Permit ===

impl Permit {
    /// Charges what was really read in place of the estimate.
    pub fn settle(&mut self, tokens: u64) {
        let mut counts = self.key.meter.lock();
        if tokens > self.reserved {
            counts.tokens.take(tokens - self.reserved);
        } else {
            counts.tokens.give_back(self.reserved - tokens);
        }
        self.reserved = tokens;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let took = self.since.elapsed();
        let mut counts = self.key.meter.lock();
        counts.running -= 1;
        let old = counts.typical;
        counts.typical = if old.is_zero() { took } else { old.mul_f64(0.8) + took.mul_f64(0.2) };
    }
}

/// `0s`, `12ms`, `7s`, `6m0s`, `1h0m5s`: what Go's parser of durations reads. Never less than the truth.
fn go_duration(duration: Duration) -> String {
    let millis = duration.as_micros().div_ceil(1000);
    if millis < 1000 {
        return if millis == 0 { "0s".to_owned() } else { format!("{millis}ms") };
    }
    let seconds = millis.div_ceil(1000);
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

const REQUESTS: [&str; 3] =
    ["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"];
const TOKENS: [&str; 3] = ["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"];

#[cfg(test)]
mod tests {
    use super::*;

    fn key(policy: KeyPolicy) -> Arc<Key> {
        Arc::new(Key::new("k", policy, Flow(1)))
    }

    #[test]
    fn a_refused_request_takes_nothing() {
        let policy = KeyPolicy {
            requests_per_minute: Some(10),
            tokens_per_minute: Some(100),
            max_concurrent: Some(2),
            ..KeyPolicy::default()
        };
        let (key, now) = (key(policy), Instant::now());
        let refusal = |tokens| {
            let limited = key.admit_at(tokens, now).map(|_| ()).unwrap_err();
            (limited.kind, limited.limit, limited.used, limited.requested)
        };
        let first = key.admit_at(60, now).unwrap();
        assert_eq!(refusal(41), (LimitKind::Tokens, 100, 60, 41));
        let second = key.admit_at(40, now).unwrap();
        assert_eq!(refusal(0), (LimitKind::Concurrency, 2, 2, 1));
        drop(first);
        assert_eq!(refusal(1), (LimitKind::Tokens, 100, 100, 1));
        drop(second);
        for _ in 0..8 {
            drop(key.admit_at(0, now).unwrap());
        }
        assert_eq!(refusal(0), (LimitKind::Requests, 10, 10, 1));
    }

    #[test]
    fn what_was_read_is_charged_in_place_of_the_estimate() {
        let policy = KeyPolicy { tokens_per_minute: Some(100), ..KeyPolicy::default() };
        let (key, now) = (key(policy), Instant::now());
        let used = || key.meter.lock().tokens.used();
        for (estimate, read, expected) in [(10, 4, 4), (10, 16, 20), (50, 0, 20), (10, 10, 30)] {
            let mut permit = key.admit_at(estimate, now).unwrap();
            permit.settle(read);
            drop(permit);
            assert_eq!(used(), expected);
        }
        drop(key.admit_at(30, now).unwrap());
        assert_eq!(used(), 60, "whoever leaves pays the estimate");
        // The next policy finds what was used under the last one.
        let tighter = key.with_policy(KeyPolicy { tokens_per_minute: Some(60), ..KeyPolicy::default() });
        assert_eq!(Arc::new(tighter).admit_at(1, now).map(|_| ()).unwrap_err().used, 60);
    }

    #[test]
    fn resets_are_durations_of_go() {
        for (millis, text) in [
            (0, "0s"),
            (12, "12ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1001, "2s"),
            (59_999, "1m0s"),
            (360_000, "6m0s"),
            (3_605_000, "1h0m5s"),
        ] {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(go_duration(Duration::from_micros(1)), "1ms");
    }

    #[test]
    fn estimates_follow_the_size_of_the_inputs() {
        let texts = |texts: &[&str]| RawInputs::Texts {
            single: false,
            texts: texts.iter().map(|text| (*text).to_owned()).collect(),
        };
        assert_eq!(estimate(&texts(&["", "abcde", &"x".repeat(400)]), Some(64)), 2 + 4 + 64);
        let arrays = RawInputs::Tokens { single: false, arrays: vec![vec![1; 7], vec![1; 100]] };
        assert_eq!(estimate(&arrays, Some(64)), 7 + 64);
        assert_eq!(estimate(&arrays, None), 107);
    }
}
