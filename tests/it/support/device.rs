//! A queue and a device thread around an [`Evil`] encoder, without tokenizer or HTTP.

use std::sync::Arc;
use std::time::{Duration, Instant};

use embedserve::arch::Encoder;
use embedserve::batch::plan::Budget;
use embedserve::batch::{Client, Queue, QueueLimits, RowFailure, SubmitError, Tickets};
use embedserve::observe::metrics::Metrics;
use embedserve::pool::{Head, PoolingMode};
use embedserve::request::{Dimensions, Flow, Prompts, RequestLimits, TokenArrays, TokenRow};
use embedserve::runner::{self, Computation, Device, Limits, RunnerInfo, warmup};
use embedserve::threads::Turns;

use super::evil::{Evil, HIDDEN};

pub const MODEL: &str = "evil";

/// One model's queue and thread.
pub struct TestDevice {
    pub evil: Evil,
    pub queue: Queue,
    pub runner: RunnerInfo,
    pub metrics: Arc<Metrics>,
}

/// Limits that no test meets by accident.
pub fn limits() -> QueueLimits {
    let batch = Budget { rows: 64, tokens: 1024 };
    QueueLimits { rows: 256, tokens: 4096, timeout: Duration::from_secs(30), batch }
}

/// Bounds of a device thread that no test meets by accident.
pub fn bounds() -> Limits {
    Limits {
        canary_interval: Duration::from_hours(1),
        heartbeat: Duration::from_secs(30),
        longest_row: 1,
        isolation_passes_per_second: 1000,
    }
}

impl TestDevice {
    pub fn start(limits: QueueLimits) -> Self {
        Self::start_with(limits, Duration::from_secs(30))
    }

    /// A forward pass may be overdue by `heartbeat`.
    pub fn start_with(limits: QueueLimits, heartbeat: Duration) -> Self {
        Self::start_on(limits, Limits { heartbeat, ..bounds() }, Arc::default())
    }

    /// With these bounds of its thread.
    pub fn start_within(bounds: Limits) -> Self {
        Self::start_on(limits(), bounds, Arc::default())
    }

    /// In turns that it takes with others.
    pub fn start_on(limits: QueueLimits, bounds: Limits, turns: Arc<Turns>) -> Self {
        let evil = Evil::default();
        let encoder = evil.encoder();
        Self::start_around((evil, encoder), (limits, bounds), turns)
    }

    /// With an encoder that overlaps passes.
    pub fn start_overlapping(limits: QueueLimits, bounds: Limits, turns: Arc<Turns>) -> Self {
        let evil = Evil::default();
        let encoder = evil.overlapping();
        Self::start_around((evil, encoder), (limits, bounds), turns)
    }

    fn start_around(
        (evil, encoder): (Evil, Box<dyn Encoder>),
        (limits, bounds): (QueueLimits, Limits),
        turns: Arc<Turns>,
    ) -> Self {
        let metrics = Metrics::new(&[MODEL.to_owned()]);
        let queue = Queue::new(limits, metrics.model(MODEL));
        let head = Head { pooling: vec![PoolingMode::Mean], steps: Vec::new() };
        let mut computation = Computation { encoder, head, turns };
        let canary = warmup::self_test(&mut computation, &[1, 2], native()).unwrap();
        evil.forget();
        let (model, device) = (MODEL.to_owned(), "cpu".to_owned());
        let device = Device { model, device, computation, canary, queue: queue.clone(), limits: bounds };
        let runner = runner::spawn(device, &metrics).unwrap();
        Self { evil, queue, runner: runner.info, metrics }
    }

    /// The value of a series of this device's metrics.
    pub fn metric(&self, series: &str) -> f64 {
        let page = self.metrics.encode();
        let line = page.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("no {series} in\n{page}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    pub fn submit(&self, rows: &[&[u32]]) -> Result<Tickets, SubmitError> {
        self.submit_until(soon(), rows)
    }

    /// For a client that waits until then.
    pub fn submit_until(&self, deadline: Instant, rows: &[&[u32]]) -> Result<Tickets, SubmitError> {
        let rows = rows.iter().map(|row| TokenRow::from(row.to_vec())).collect();
        self.queue.submit(rows, native(), Client { flow: Flow::default(), deadline })
    }

    /// What such a client would be told whatever its rows hold.
    pub fn check_until(&self, deadline: Instant, n_rows: usize) -> Result<(), SubmitError> {
        self.queue.check(n_rows, Client { flow: Flow::default(), deadline })
    }

    /// Submits and waits; vectors or failures in row order.
    pub async fn run(&self, rows: &[&[u32]]) -> Vec<Result<Vec<f32>, RowFailure>> {
        let tickets = self.submit(rows).expect("accepted");
        let answered = tickets.join(soon()).await.expect("answered in time");
        answered.rows.into_iter().map(|row| row.map(|row| row.vector.as_slice().to_vec())).collect()
    }
}

/// A deadline that only a hang misses.
pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(30)
}

pub fn native() -> Dimensions {
    Dimensions::native(&RequestLimits {
        max_tokens: 64,
        dimensions: HIDDEN,
        matryoshka: false,
        max_inputs: 64,
        max_request_tokens: 1024,
        max_input_bytes: 4096,
        allow_empty_input: false,
        token_arrays: TokenArrays::Auto,
        truncate: None,
        prompts: Prompts::default(),
        max_prompt_bytes: 64,
    })
}

/// Waits until `condition` holds; the only kind of waiting that tests do.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let deadline = soon();
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
