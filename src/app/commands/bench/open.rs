//! Requests that come by the clock, as those of many people do: a slow answer does not keep the next one from coming.
//!
//! Arrivals are Poisson. Latency counts from the moment a request should have been sent, so that waiting for a
//! client that is late counts like any other waiting.

use std::cell::RefCell;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::mpsc;

use crate::app::commands::bench::Subject;
use crate::app::commands::bench::client::{Answer, ClientError, Connection, EMBEDDINGS};
use crate::app::commands::bench::meter::{CLOCK_THREAD, Usage};
use crate::app::commands::bench::samples::Percentiles;
use crate::app::commands::bench::texts::{Payload, Random};

/// Connections at most, as many as a server takes by default. What is due while all of them wait for an answer is not sent:
/// it would say how long this client queues, and nothing of the server.
const MAX_CONNECTIONS: usize = 1024;

/// Requests per second, and for how long.
#[derive(Debug)]
pub(super) struct Plan<'p> {
    pub(super) payloads: &'p [Payload],
    pub(super) per_second: f64,
    pub(super) time: Duration,
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Open {
    /// Requests per second that were meant to be sent.
    pub(super) offered: f64,
    pub(super) sent: usize,
    /// Due while every connection waited for an answer, and not sent.
    pub(super) held_back: usize,
    /// Answered with vectors while requests still came, per second: what the server carries.
    pub(super) goodput: f64,
    /// Answered with vectors.
    pub(super) good: Option<Percentiles>,
    pub(super) refused_429: usize,
    pub(super) refused_503: usize,
    /// Of both.
    pub(super) refused: Option<Percentiles>,
    /// Answered otherwise, or not at all.
    pub(super) failed: usize,
    pub(super) first_failure: Option<String>,
    /// Given up when everything should long have been answered.
    pub(super) unanswered: usize,
    /// How late the client itself was, 99th percentile, in seconds.
    pub(super) client_lag: f64,
    pub(super) usage: Option<Usage>,
}

/// When each request is to be sent: exponential gaps until the time is over, one request at least.
pub(super) fn poisson(per_second: f64, time: Duration, random: &mut Random) -> Vec<Duration> {
    let (mut at, mut schedule) = (0.0, Vec::new());
    loop {
        at += -random.unit().ln() / per_second;
        // A gap that is no time at all cannot be waited for.
        let Ok(arrival) = Duration::try_from_secs_f64(at) else { return schedule };
        if arrival >= time && !schedule.is_empty() {
            return schedule;
        }
        schedule.push(arrival.min(time));
    }
}

/// Sends every request at its time and waits for the answers, also those that come after the last one was sent.
///
/// # Errors
/// The clock's thread could not be started.
pub(super) async fn run(subject: &Subject, plan: &Plan<'_>) -> std::io::Result<Open> {
    let schedule = poisson(plan.per_second, plan.time, &mut Random::new(plan.payloads.len() as u64));
    let (n, before) = (schedule.len(), subject.meter.read(&subject.target).await);
    let start = Instant::now();
    let mut arrivals = Clock::start(schedule, start)?;
    let pool = Pool::new(subject);
    let (mut in_flight, mut lags, mut outcomes) = (FuturesUnordered::new(), Vec::new(), Vec::with_capacity(n));
    // Twice the load takes twice the time; what is not answered long after that never will be.
    let patience = tokio::time::sleep(3 * plan.time + Duration::from_secs(10));
    tokio::pin!(patience);
    let (mut due, mut held_back) = (0, 0);
    while due < n || !in_flight.is_empty() {
        tokio::select! {
            biased;
            // First, so that a connection whose answer lies there is not taken for one that waits.
            Some(outcome) = in_flight.next(), if !in_flight.is_empty() => outcomes.push(outcome),
            Some(scheduled) = arrivals.recv(), if due < n => {
                lags.push(scheduled.elapsed());
                match plan.payloads.get(due % plan.payloads.len().max(1)) {
                    Some(payload) if in_flight.len() < MAX_CONNECTIONS => in_flight.push(pool.embed(payload, scheduled)),
                    _ => held_back += 1,
                }
                due += 1;
            }
            () = &mut patience => break,
        }
    }
    let unanswered = in_flight.len();
    // A server takes so many connections and no more: ours may be all of them, and the meter needs one.
    drop(in_flight);
    drop(pool);
    let after = subject.meter.read(&subject.target).await;
    let sent = due - held_back;
    let mut open =
        Open { offered: plan.per_second, sent, held_back, unanswered, usage: after.since(&before), ..Open::default() };
    open.client_lag = Percentiles::of(&lags).map_or(0.0, |lag| lag.p99);
    let (mut good, mut refused, mut in_time) = (Vec::new(), Vec::new(), 0_usize);
    for Outcome { answer, took, at } in outcomes {
        match answer {
            Ok(Answer { status: 200, .. }) => {
                in_time += usize::from(at.saturating_duration_since(start) <= plan.time);
                good.push(took);
            }
            Ok(Answer { status: 429, .. }) => {
                open.refused_429 += 1;
                refused.push(took);
            }
            Ok(Answer { status: 503, .. }) => {
                open.refused_503 += 1;
                refused.push(took);
            }
            Ok(Answer { status, .. }) => open.fails(format!("answered with {status}")),
            Err(error) => open.fails(error.to_string()),
        }
    }
    open.goodput = in_time as f64 / plan.time.as_secs_f64();
    (open.good, open.refused) = (Percentiles::of(&good), Percentiles::of(&refused));
    Ok(open)
}

impl Open {
    fn fails(&mut self, reason: String) {
        self.failed += 1;
        self.first_failure.get_or_insert(reason);
    }
}

/// One request's end.
struct Outcome {
    answer: Result<Answer, ClientError>,
    /// Since it should have been sent.
    took: Duration,
    at: Instant,
}

/// Kept-alive connections; a request takes the one that was used last, or opens another.
struct Pool<'s> {
    subject: &'s Subject,
    idle: RefCell<Vec<Connection<'s>>>,
}

impl<'s> Pool<'s> {
    const fn new(subject: &'s Subject) -> Self {
        Self { subject, idle: RefCell::new(Vec::new()) }
    }

    async fn embed(&self, payload: &Payload, scheduled: Instant) -> Outcome {
        let idle = self.idle.borrow_mut().pop();
        let mut connection = idle.unwrap_or_else(|| Connection::new(&self.subject.target));
        let answer = connection.exchange(EMBEDDINGS, Some(payload.body.clone())).await;
        let at = Instant::now();
        self.idle.borrow_mut().push(connection);
        Outcome { answer, took: at.saturating_duration_since(scheduled), at }
    }
}

/// A thread that says when each request is to be sent: the runtime's own timer has steps of a millisecond, which is as
/// long as a small model takes.
struct Clock;

impl Clock {
    fn start(schedule: Vec<Duration>, start: Instant) -> std::io::Result<mpsc::Receiver<Instant>> {
        let (sender, arrivals) = mpsc::channel(schedule.len().max(1));
        std::thread::Builder::new().name(CLOCK_THREAD.to_owned()).spawn(move || {
            // Nothing ever comes through this one: waiting for it is waiting for the time.
            let (_bell, silence) = sync_channel::<()>(0);
            for scheduled in schedule.into_iter().map(|arrival| start + arrival) {
                while scheduled > Instant::now() {
                    let left = scheduled.saturating_duration_since(Instant::now());
                    if silence.recv_timeout(left) == Err(RecvTimeoutError::Disconnected) {
                        return;
                    }
                }
                // The measurement was given up.
                if sender.is_closed() || sender.blocking_send(scheduled).is_err() {
                    return;
                }
            }
        })?;
        Ok(arrivals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_poisson() {
        let time = Duration::from_secs(1000);
        let schedule = poisson(20.0, time, &mut Random::new(1));
        // 20,000 are expected, give or take 141.
        assert!((19_500..20_500).contains(&schedule.len()), "{}", schedule.len());
        assert!(schedule.is_sorted() && *schedule.last().unwrap() < time);
        let gaps: Vec<f64> = schedule.windows(2).map(|pair| pair[1].as_secs_f64() - pair[0].as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        // An exponential gap's deviation is its mean; 1/e of the gaps are longer than the mean.
        assert!((variance.sqrt() / mean - 1.0).abs() < 0.05, "{}", variance.sqrt() / mean);
        let longer = gaps.iter().filter(|gap| **gap > mean).count() as f64 / gaps.len() as f64;
        assert!((longer - (-1.0_f64).exp()).abs() < 0.02, "{longer}");
        assert_eq!(schedule, poisson(20.0, time, &mut Random::new(1)));
    }

    #[test]
    fn one_request_is_sent_however_rare_they_are() {
        let time = Duration::from_secs(1);
        assert_eq!(poisson(1e-6, time, &mut Random::new(1)), [time]);
        assert!(poisson(0.0, time, &mut Random::new(1)).is_empty());
    }

    #[test]
    fn the_clock_says_each_time_when_it_has_come() {
        let start = Instant::now();
        let schedule = [0, 3, 5].map(Duration::from_millis);
        let mut arrivals = Clock::start(schedule.to_vec(), start).unwrap();
        for arrival in schedule {
            assert_eq!(arrivals.blocking_recv(), Some(start + arrival));
            assert!(start.elapsed() >= arrival);
        }
        assert_eq!(arrivals.blocking_recv(), None);
    }
}
