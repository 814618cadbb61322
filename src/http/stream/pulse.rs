//! The clock of one connection. Its stream and its service say what is going on; its task waits for what is overdue.
//!
//! All of it happens within one task, so whoever changes the phase does so while that task runs, and the clock is read
//! again before it sleeps.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

/// What a connection has been doing for too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// Nothing: it is open and unused.
    Idle,
    /// Sending the head of a request.
    Head,
    /// Taking an answer.
    Answer,
}

/// How long each phase may last.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    pub head: Duration,
    pub answer: Duration,
    pub idle: Duration,
}

/// The clock.
#[derive(Debug)]
pub struct Pulse {
    patience: Patience,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// Progress through [`LENGTH`] in what arrives.
    matched: usize,
    has_seen_length: bool,
    lingers: bool,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Waiting for the first byte of a request; a client that has just connected has less patience to expect.
    Idle { until: Instant },
    /// The head is arriving.
    Head { until: Instant },
    /// Others watch: the body's clock, the request's deadline.
    Busy,
    /// The client takes its answer. Each slice has the write timeout, which alone would let it go on for hours.
    Answer { until: Instant },
}

/// The header that must not stand beside `Transfer-Encoding`.
const LENGTH: &[u8] = b"content-length";

impl Pulse {
    /// A new connection must begin its request as fast as it must send its head.
    pub fn new(patience: Patience) -> Arc<Self> {
        let phase = Phase::Head { until: Instant::now() + patience.head };
        let state = Mutex::new(State { phase, matched: 0, has_seen_length: false, lingers: false });
        Arc::new(Self { patience, state })
    }

    /// Bytes came in.
    pub(super) fn received(&self, bytes: &[u8]) {
        let mut state = self.lock();
        if let Phase::Idle { .. } = state.phase
            && !bytes.is_empty()
        {
            state.phase = Phase::Head { until: Instant::now() + self.patience.head };
        }
        state.look_for_length(bytes);
    }

    /// A request is complete enough to be answered.
    pub fn answering(&self) {
        self.lock().phase = Phase::Busy;
    }

    /// The connection is on its way out, and others bound how long that may take. A head that has begun to arrive keeps its
    /// clock: nobody else bounds it.
    pub fn leave(&self) {
        let mut state = self.lock();
        if let Phase::Idle { .. } = state.phase {
            state.phase = Phase::Busy;
        }
    }

    /// The last answer was sent although the client was still sending: the end must be patient.
    pub fn linger(&self) {
        self.lock().lingers = true;
    }

    pub(super) fn lingers(&self) -> bool {
        self.lock().lingers
    }

    /// Whether a `Content-Length` has ever come in, in whatever place. Bodies count too: what this guards against
    /// must not depend on where one message ends and the next begins.
    pub fn has_seen_length(&self) -> bool {
        self.lock().has_seen_length
    }

    /// Whether the client has asked for nothing for so long.
    pub fn is_idle_since(&self, time: Duration) -> bool {
        let Phase::Idle { until } = self.lock().phase else { return false };
        until.saturating_duration_since(Instant::now()) + time <= self.patience.idle
    }

    /// Returns when a phase has lasted too long.
    pub async fn expired(&self) -> Expired {
        let mut sleep: Option<Pin<Box<Sleep>>> = None;
        poll_fn(|context| self.poll_expired(context, &mut sleep)).await
    }

    fn poll_expired(&self, context: &mut Context<'_>, sleep: &mut Option<Pin<Box<Sleep>>>) -> Poll<Expired> {
        let (until, expired) = match self.lock().phase {
            Phase::Idle { until } => (until, Expired::Idle),
            Phase::Head { until } => (until, Expired::Head),
            Phase::Answer { until } => (until, Expired::Answer),
            Phase::Busy => return Poll::Pending,
        };
        let sleep = sleep.get_or_insert_with(|| Box::pin(sleep_until(until)));
        if sleep.deadline() != until {
            sleep.as_mut().reset(until);
        }
        sleep.as_mut().poll(context).map(|()| expired)
    }

    /// The response's body, which must be taken in time, and after which the connection is idle again.
    pub fn until_sent(self: Arc<Self>, body: Body) -> UntilSent {
        self.lock().phase = Phase::Answer { until: Instant::now() + self.patience.answer };
        UntilSent { body, pulse: self }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn look_for_length(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.has_seen_length {
                return;
            }
            // The first letter occurs nowhere else in the word, so a mismatch can only begin it anew.
            let byte = byte.to_ascii_lowercase();
            self.matched = match LENGTH.get(self.matched) {
                Some(expected) if *expected == byte => self.matched + 1,
                _ => usize::from(LENGTH.first() == Some(&byte)),
            };
            self.has_seen_length = self.matched == LENGTH.len();
        }
    }
}

/// A response body that starts the idle clock when it is gone.
#[derive(Debug)]
pub struct UntilSent {
    body: Body,
    pulse: Arc<Pulse>,
}

impl Drop for UntilSent {
    fn drop(&mut self) {
        let until = Instant::now() + self.pulse.patience.idle;
        self.pulse.lock().phase = Phase::Idle { until };
    }
}

impl HttpBody for UntilSent {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pulse() -> Arc<Pulse> {
        let (head, answer, idle) = (Duration::from_secs(10), Duration::from_mins(5), Duration::from_mins(1));
        Pulse::new(Patience { head, answer, idle })
    }

    async fn expires(pulse: &Pulse) -> (Expired, u64) {
        let start = Instant::now();
        let expired = pulse.expired().await;
        (expired, start.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn each_phase_has_its_own_clock() {
        let pulse = pulse();
        assert_eq!(expires(&pulse).await, (Expired::Head, 10));
        pulse.answering();
        assert!(tokio::time::timeout(Duration::from_hours(1), pulse.expired()).await.is_err());
        let answer = Arc::clone(&pulse).until_sent(Body::empty());
        assert_eq!(expires(&pulse).await, (Expired::Answer, 300));
        pulse.leave();
        assert_eq!(pulse.expired().await, Expired::Answer);
        drop(answer);
        assert_eq!(expires(&pulse).await, (Expired::Idle, 60));
        drop(Arc::clone(&pulse).until_sent(Body::empty()));
        pulse.leave();
        assert!(tokio::time::timeout(Duration::from_hours(1), pulse.expired()).await.is_err());
        drop(Arc::clone(&pulse).until_sent(Body::empty()));
        pulse.received(b"P");
        assert_eq!(expires(&pulse).await, (Expired::Head, 10));
        pulse.leave();
        assert_eq!(pulse.expired().await, Expired::Head);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_after_its_answer_only() {
        let (pulse, second) = (pulse(), Duration::from_secs(1));
        tokio::time::advance(second).await;
        assert!(!pulse.is_idle_since(second), "its first request is due");
        pulse.answering();
        tokio::time::advance(second).await;
        assert!(!pulse.is_idle_since(second));
        drop(Arc::clone(&pulse).until_sent(Body::empty()));
        assert!(!pulse.is_idle_since(second));
        tokio::time::advance(second).await;
        assert!(pulse.is_idle_since(second));
        pulse.received(b"P");
        assert!(!pulse.is_idle_since(second));
    }

    #[tokio::test]
    async fn a_length_is_found_however_it_arrives() {
        let pulse = pulse();
        for part in ["cContent-L", "engt", "content-lengt "] {
            pulse.received(part.as_bytes());
            assert!(!pulse.has_seen_length());
        }
        pulse.received(b"CONTENT-lengtH: 5");
        assert!(pulse.has_seen_length());
    }
}
