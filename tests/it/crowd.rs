//! Everybody at once: more than the device can do, clients of every kind together, and futures dropped wherever they
//! happen to be. What is counted in is counted out.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use embedserve::batch::plan::Budget;
use embedserve::batch::{QueueLimits, SubmitError};
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::app::{Kind, M, TestApp, words};
use crate::support::device::{TestDevice, limits, soon, until};
use crate::support::evil::{Evil, Fault};
use crate::support::random::Random;
use crate::support::raw::post;
use crate::support::served::{embed, shared_with, try_load_with};
use crate::support::tiny_model::TinyModel;

/// Rows per second that a device answers while as many wait as one batch takes, three batches deep.
async fn peak(device: &TestDevice) -> u64 {
    let (start, done) = (Instant::now(), AtomicUsize::new(0));
    join_all((0..12).map(|_| async {
        while start.elapsed() < Duration::from_millis(400) {
            device.run(&[&[50]]).await;
            done.fetch_add(1, Ordering::Relaxed);
        }
    }))
    .await;
    per_second(done.into_inner(), start.elapsed())
}

fn per_second(rows: usize, took: Duration) -> u64 {
    rows as u64 * 1000 / u64::try_from(took.as_millis()).unwrap()
}

// ten times what the device can do, sent whether it keeps up or not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_times_the_capacity_is_refused_quickly_and_costs_no_throughput() {
    let batch = Budget { rows: 4, tokens: 64 };
    let device = Arc::new(TestDevice::start(QueueLimits { rows: 40, tokens: 4000, batch, ..limits() }));
    device.evil.fault(Fault::Slow(Duration::from_millis(4)));
    let mut found = Vec::new();
    // Other tests and programs take processor time as they please: one undisturbed round of ten has to be good.
    for _ in 0..10 {
        let peak = peak(&device).await;
        let answered = Arc::new(AtomicUsize::new(0));
        let (start, mut refusals, mut waiting) = (Instant::now(), Vec::new(), Vec::new());
        let mut ticks = tokio::time::interval(Duration::from_millis(1));
        while start.elapsed() < Duration::from_millis(600) {
            ticks.tick().await;
            for _ in 0..peak.div_ceil(100) {
                let asked = Instant::now();
                match device.submit(&[&[50]]) {
                    Ok(tickets) => {
                        let answered = Arc::clone(&answered);
                        waiting.push(tokio::spawn(async move {
                            assert!(tickets.join(soon()).await.unwrap().rows[0].is_ok());
                            answered.fetch_add(1, Ordering::Relaxed);
                        }));
                    }
                    Err(SubmitError::Full { retry_after }) => {
                        assert!(retry_after > Duration::ZERO);
                        refusals.push(asked.elapsed());
                    }
                    Err(other) => panic!("{other:?}"),
                }
            }
        }
        let goodput = per_second(answered.load(Ordering::Relaxed), start.elapsed());
        let sent = refusals.len() + waiting.len();
        for task in waiting {
            task.await.unwrap();
        }
        refusals.sort();
        let Some(slowest) = refusals.get(refusals.len() * 99 / 100).copied() else { continue };
        found.push((goodput as f64 / peak as f64, slowest, refusals.len() as f64 / sent as f64));
        if let Some((share, slowest, refused)) = found.last()
            && *share >= 0.9
            && *slowest < Duration::from_millis(5)
            && *refused > 0.8
        {
            return;
        }
    }
    panic!("goodput in shares of the peak, 99 % of the refusals within, share of refusals: {found:?}");
}

/// What is left to wait for after so many polls.
async fn dropped_after(polls: usize, future: impl Future) {
    let mut future = pin!(future);
    for _ in 0..polls {
        if poll_fn(|context| Poll::Ready(future.as_mut().poll(context).is_ready())).await {
            return;
        }
        tokio::time::sleep(Duration::from_micros(200)).await;
    }
}

// a request from its parsing to its answer, dropped after every number of polls that it can take.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_dropped_at_any_point_leave_nothing_behind() {
    let shared = shared_with(1, embedserve::kernel::Isa::detect());
    let folder = TinyModel::default().write();
    let served = try_load_with(folder.path(), &shared).unwrap().served;
    let text = words(40);
    let texts = vec![text.as_str(); 30];
    let expected = embed(&served, &texts).await.unwrap().rows;
    for polls in 0..60 {
        dropped_after(polls, embed(&served, &texts)).await;
    }
    until("the queue is empty", || !served.queue.is_busy()).await;
    let page = shared.metrics.encode();
    let waiting = page.lines().filter(|line| line.starts_with("embedserve_queue_rows{"));
    let waiting: Vec<f64> = waiting.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(!waiting.is_empty() && waiting.iter().all(|rows| *rows < 0.5), "{waiting:?} in\n{page}");
    let again = embed(&served, &texts).await.unwrap().rows;
    let vectors = |rows: &[embedserve::engine::EmbeddedRow]| {
        rows.iter().map(|row| row.vector.as_slice().to_vec()).collect::<Vec<_>>()
    };
    assert_eq!(vectors(&again), vectors(&expected));
}

/// One client of the crowd: what it sends, and what it may get. Whether it stayed for an answer.
async fn visit(app: &TestApp, random: &mut Random, expected: &[Vec<f32>]) -> bool {
    let embed = |input: Value| app.embed(json!({"model": M, "input": input}));
    match random.below(9) {
        0 => embed(json!([words(3), "%"])).await.refusal(500, Some("non_finite"), Some("input")),
        1 => embed(json!(["a", "$"])).await.refusal(500, None, None),
        2 => embed(json!(["#"])).await.refusal(500, None, None),
        3 => embed(json!(words(200))).await.refusal(400, Some("context_length_exceeded"), Some("input")),
        4 => app.post("/v1/embeddings", &[], "{\"model\":").await.refusal(400, None, None),
        5 => {
            let mut raw = app.raw();
            raw.send(post(&json!({"model": M, "input": vec!["x"; 20]}).to_string()));
            return false;
        }
        _ => {
            let order: Vec<usize> = (0..=random.below(5)).map(|_| random.below(expected.len())).collect();
            let texts: Vec<String> = order.iter().map(|index| words(index + 1)).collect();
            let vectors = embed(json!(texts)).await.vectors();
            assert!(vectors.iter().zip(&order).all(|(vector, index)| vector == &expected[*index]));
            String::new()
        }
    };
    true
}

// M-07 in small, and O-06: nobody gets a wrong answer, and every request is in the counts once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mixed_crowd_gets_right_answers_or_clear_refusals() {
    let evil = Evil::default();
    let kind = Kind::Evil(evil.clone());
    let app = TestApp::with(|setup| {
        setup.only(M, kind);
        setup.batch.device.isolation_passes_per_second = 1_000_000;
    })
    .await;
    let mut expected = Vec::new();
    for n in 1..=12 {
        expected.push(app.vectors(json!(words(n))).await.remove(0));
    }
    let (clients, visits) = (16_u64, 30_u64);
    let stayed = AtomicUsize::new(expected.len());
    join_all((0..clients).map(|seed| {
        let (app, expected, stayed) = (&app, &expected, &stayed);
        async move {
            let mut random = Random::new(seed);
            for _ in 0..visits {
                stayed.fetch_add(usize::from(visit(app, &mut random, expected).await), Ordering::Relaxed);
            }
        }
    }))
    .await;
    let route = "route=\"/v1/embeddings\"";
    let (sent, stayed) = ((expected.len() as u64 + clients * visits) as f64, stayed.into_inner() as f64);
    assert!(stayed < sent, "nobody left");
    // Who leaves while an answer is written has been answered; who leaves before has not.
    let counted = || {
        let gone =
            |stage: &str| app.metric("embedserve_http_clients_gone_total", &format!("{route},stage=\"{stage}\""));
        (app.metric("embedserve_http_requests_total", route), gone("running") + gone("reading"))
    };
    until("every request has ended", || counted().0 >= stayed).await;
    app.until_metric("embedserve_http_requests_in_flight", route, 0.0).await;
    for empty in ["embedserve_queue_rows", "embedserve_queue_tokens"] {
        app.until_metric(empty, "", 0.0).await;
    }
    let (answered, gone) = counted();
    let refused = app.metric("embedserve_errors_total", route);
    let good = app.metric("embedserve_http_requests_total", "status=\"200\"");
    assert!((good + refused - answered).abs() < 1e-9, "{good} good and {refused} refused of {answered}");
    // One that has left before its request was looked at is no request at all.
    assert!(
        (stayed..=sent).contains(&(answered + gone)),
        "{answered} answered and {gone} gone, {stayed} to {sent} sent"
    );
    assert!(app.metric("embedserve_batch_splits_total", "") > 0.0, "nothing had to be isolated");
}
