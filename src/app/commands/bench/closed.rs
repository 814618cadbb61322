//! Clients that send their next request when they have the answer to the last one.

use std::cell::{Cell, RefCell};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::app::commands::bench::Subject;
use crate::app::commands::bench::client::{ClientError, Connection, EMBEDDINGS};
use crate::app::commands::bench::meter::Usage;
use crate::app::commands::bench::samples::Percentiles;
use crate::app::commands::bench::texts::Payload;

/// What is sent, and by how many.
#[derive(Debug)]
pub(super) struct Plan<'p> {
    pub(super) payloads: &'p [Payload],
    pub(super) clients: usize,
    pub(super) time: Duration,
}

/// What came of it.
#[derive(Debug)]
pub(super) struct Closed {
    pub(super) clients: usize,
    /// From the first counted request to the last counted answer.
    pub(super) seconds: f64,
    pub(super) texts: usize,
    pub(super) tokens: usize,
    pub(super) flops: Option<f64>,
    pub(super) latency: Percentiles,
    pub(super) usage: Option<Usage>,
}

impl Closed {
    pub(super) fn requests_per_second(&self) -> f64 {
        self.latency.n as f64 / self.seconds
    }
}

/// Answers at least, however long they take.
const MIN_ANSWERS: usize = 5;

/// Sends until the time is over. Counting begins when every client has had its first answer, so that connections are
/// open and the server is as loaded as it will be; or after half of the time, where answers take long.
///
/// # Errors
/// A request failed or was refused: such a measurement would say nothing.
pub(super) async fn run(subject: &Subject, plan: &Plan<'_>) -> Result<Closed, ClientError> {
    let tally = Tally::default();
    let before = subject.meter.read(&subject.target).await;
    let mut clients: FuturesUnordered<_> = (0..plan.clients).map(|_| client(subject, plan, &tally)).collect();
    // The first client that sees that the time is over ends the measurement; what the others wait for is given up.
    clients.next().await.transpose()?;
    drop(clients);
    let after = subject.meter.read(&subject.target).await;
    let counted = tally.counted.take();
    let start = tally.start.get().unwrap_or(before.at);
    let flops = counted.iter().map(|(payload, _)| payload.flops).sum();
    let latencies: Vec<Duration> = counted.iter().map(|(_, took)| *took).collect();
    // There is at least one, see `client`.
    let nothing = Percentiles { n: 0, p50: f64::NAN, p95: f64::NAN, p99: f64::NAN, max: f64::NAN };
    Ok(Closed {
        clients: plan.clients,
        seconds: tally.end.get().unwrap_or(after.at).saturating_duration_since(start).as_secs_f64(),
        texts: counted.iter().map(|(payload, _)| payload.n_texts).sum(),
        tokens: counted.iter().map(|(payload, _)| payload.n_tokens).sum(),
        flops,
        latency: Percentiles::of(&latencies).unwrap_or(nothing),
        usage: after.since(&before),
    })
}

/// What all clients of one measurement share; they run on one thread.
#[derive(Debug, Default)]
struct Tally<'p> {
    /// Of the next payload.
    next: Cell<usize>,
    /// Clients with an answer.
    warm: Cell<usize>,
    start: Cell<Option<Instant>>,
    end: Cell<Option<Instant>>,
    counted: RefCell<Vec<(&'p Payload, Duration)>>,
}

impl<'p> Tally<'p> {
    fn payload(&self, payloads: &'p [Payload]) -> Option<&'p Payload> {
        let index = self.next.get();
        self.next.set(index + 1);
        payloads.get(index % payloads.len().max(1))
    }

    /// Counts an answer; whether it is the last one that counts.
    fn count(&self, payload: &'p Payload, took: Duration, time: Duration) -> bool {
        let Some(start) = self.start.get() else { return false };
        let mut counted = self.counted.borrow_mut();
        counted.push((payload, took));
        let enough = counted.len() >= MIN_ANSWERS;
        let now = Instant::now();
        self.end.set(Some(now));
        enough && now.saturating_duration_since(start) >= time
    }
}

async fn client<'p>(subject: &Subject, plan: &Plan<'p>, tally: &Tally<'p>) -> Result<(), ClientError> {
    let mut connection = Connection::new(&subject.target);
    let (begun, mut first) = (Instant::now(), true);
    while let Some(payload) = tally.payload(plan.payloads) {
        let sent = Instant::now();
        connection.expect(EMBEDDINGS, Some(payload.body.clone())).await?;
        let last = tally.count(payload, sent.elapsed(), plan.time);
        if last {
            break;
        }
        tally.warm.set(tally.warm.get() + usize::from(std::mem::take(&mut first)));
        let warm = tally.warm.get() == plan.clients || begun.elapsed() >= plan.time / 2;
        if warm && tally.start.get().is_none() {
            tally.start.set(Some(Instant::now()));
        }
    }
    Ok(())
}
