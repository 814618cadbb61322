//! The queue and its planner without a model: rows in, batches out, answers back:
//! `cargo bench --bench compute -- planner`. Each line is one JSON object.

use std::time::{Duration, Instant};

use embedserve::batch::plan::Budget;
use embedserve::batch::{Client, Next, Queue, QueueLimits};
use embedserve::observe::metrics::Metrics;
use embedserve::pool::FiniteRow;
use embedserve::request::{Dimensions, Flow, TokenRow};
use serde_json::json;

use crate::support::texts::{FORWARD_128, SERVER_SHARE};
use crate::support::{in_turn, median, rounds};

/// Rows that each measurement moves.
const ROWS: usize = 2048;
const ROW_TOKENS: usize = 128;
const DIMENSIONS: usize = 384;

pub fn run() {
    let metrics = Metrics::new(&["model".to_owned()]);
    let batch = Budget { rows: usize::MAX, tokens: 2048 };
    let limits = QueueLimits { rows: 4096, tokens: 1_000_000, timeout: Duration::from_mins(1), batch };
    let queue = Queue::new(limits, metrics.model("model"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    for (name, rows, flows) in
        [("1 row", 1, 1), ("1 row, 64 callers", 1, 64), ("16 rows", 16, 1), ("2,048 rows", ROWS, 1)]
    {
        let times = in_turn(rounds(), &mut [&mut || turnover(&queue, &runtime, (rows, flows))]);
        let per_row = median(&times[0]).as_secs_f64() / ROWS as f64;
        let shares = FORWARD_128.map(|(_, seconds)| (1e3 * per_row / (seconds * SERVER_SHARE)).round() / 10.0);
        let figures = json!({
            "bench": "planner", "requests": name, "rows_per_s": (1.0 / per_row).round(),
            "ns_per_row": (per_row * 1e9).round(), "percent_of_budget": {"f32": shares[0], "int8": shares[1]},
        });
        println!("{figures}");
    }
}

/// Submits requests of `rows` rows until [`ROWS`] wait, takes all batches, answers them, and collects.
#[inline(never)]
fn turnover(queue: &Queue, runtime: &tokio::runtime::Runtime, (rows, flows): (usize, u32)) {
    let vector = FiniteRow::new(vec![0.5; DIMENSIONS]).expect("finite");
    let row = || TokenRow::from(vec![7; ROW_TOKENS]);
    let deadline = Instant::now() + Duration::from_mins(1);
    let submit = |request: usize| {
        let client = Client { flow: Flow(request as u32 % flows), deadline };
        let rows = (0..rows).map(|_| row()).collect();
        queue.submit(rows, Dimensions::unlimited(), client).expect("room")
    };
    let tickets: Vec<_> = (0..ROWS / rows).map(submit).collect();
    while let Next::Batch(jobs) = queue.next_batch(Instant::now()) {
        for job in jobs {
            job.answer(Ok(vector.clone()), Duration::ZERO);
        }
    }
    runtime.block_on(async {
        for tickets in tickets {
            std::hint::black_box(tickets.join(deadline).await.expect("answers"));
        }
    });
}
