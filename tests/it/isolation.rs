//! One row's failure is its own: errors, panics, NaN, several poisoned rows, rows that fail only in company. And what the
//! device itself can do to us: run out of memory, get lost, die, hang, drift.

use std::sync::Arc;
use std::time::{Duration, Instant};

use embedserve::batch::{RowFailure, SubmitError};
use embedserve::pool::{Head, PoolingMode};
use embedserve::runner::warmup::{self, WarmupError};
use embedserve::runner::{Breakage, Computation, Health, Limits};

use crate::support::device::{TestDevice, bounds, limits, native, soon, until};
use crate::support::evil::{BLOCK, COMPANION, DIE, ERROR, Evil, Fault, LOST, NAN, PANIC, SHY, TOO_BIG, expected};

/// Rows of healthy ids, with `poison` in the middle of the one at `place`.
fn rows_with(n: usize, place: usize, poison: u32) -> Vec<Vec<u32>> {
    let row = |index: usize| {
        let id = u32::try_from(100 + index).unwrap();
        if index == place { vec![id, poison, id] } else { vec![id, id + 1] }
    };
    (0..n).map(row).collect()
}

async fn check_one_poisoned_row(poison: u32, failure: RowFailure, max_passes: usize) {
    for (n, place) in [(1, 0), (2, 1), (16, 0), (16, 9), (33, 32)] {
        let device = TestDevice::start(limits());
        let rows = rows_with(n, place, poison);
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let answers = device.run(&rows).await;
        for (index, (answer, row)) in answers.iter().zip(&rows).enumerate() {
            let wanted = if index == place { Err(failure) } else { Ok(expected(row)) };
            assert_eq!(answer, &wanted, "row {index} of {n}");
        }
        let passes = device.evil.batches().len();
        let levels = usize::try_from(n.next_power_of_two().ilog2()).unwrap();
        assert!(passes <= 1 + max_passes * levels, "{passes} forward passes for {n} rows");
        // The thread lives on.
        assert_eq!(device.run(&[&[5, 6]]).await, [Ok(expected(&[5, 6]))]);
    }
}

// I-01
#[tokio::test]
async fn an_error_is_bisected_to_its_row() {
    check_one_poisoned_row(ERROR, RowFailure::Failed, 2).await;
}

// I-02
#[tokio::test]
async fn a_panicking_row_fails_alone() {
    check_one_poisoned_row(PANIC, RowFailure::Panicked, 2).await;
}

// I-03
#[tokio::test]
async fn a_nan_row_fails_alone_without_a_second_pass() {
    check_one_poisoned_row(NAN, RowFailure::NonFinite, 0).await;
}

// I-04
#[tokio::test]
async fn several_poisoned_rows_are_each_isolated() {
    let device = TestDevice::start(limits());
    let answers = device.run(&[&[100], &[ERROR], &[101], &[PANIC], &[NAN], &[102]]).await;
    assert_eq!(
        answers,
        [
            Ok(expected(&[100])),
            Err(RowFailure::Failed),
            Ok(expected(&[101])),
            Err(RowFailure::Panicked),
            Err(RowFailure::NonFinite),
            Ok(expected(&[102])),
        ]
    );
    let all = device.run(&[&[ERROR], &[PANIC], &[ERROR]]).await;
    assert!(all.iter().all(Result::is_err));
}

// I-04
#[tokio::test]
async fn a_row_that_fails_only_in_company_succeeds_alone() {
    let device = TestDevice::start(limits());
    let answers = device.run(&[&[100], &[SHY], &[COMPANION], &[101]]).await;
    assert_eq!(answers, [&[100], &[SHY], &[COMPANION], &[101]].map(|row| Ok(expected(row))));
}

// I-01 across requests: the neighbour belongs to somebody else.
#[tokio::test]
async fn a_poisoned_request_does_not_fail_another_request_of_its_batch() {
    let device = TestDevice::start(limits());
    let blocker = device.submit(&[&[BLOCK]]).unwrap();
    until("the first batch is computing", || device.evil.batches().len() == 1).await;
    let poisoned = device.submit(&[&[PANIC], &[1]]).unwrap();
    let healthy = device.submit(&[&[100, 101]]).unwrap();
    device.evil.release();
    let soon = crate::support::device::soon();
    assert!(blocker.join(soon).await.unwrap().rows[0].is_ok());
    let healthy = healthy.join(soon).await.unwrap().rows.remove(0).unwrap();
    assert_eq!(healthy.vector.as_slice(), expected(&[100, 101]));
    let poisoned = poisoned.join(soon).await.unwrap().rows;
    assert_eq!(poisoned[0].as_ref().unwrap_err(), &RowFailure::Panicked);
    assert!(poisoned[1].is_ok());
    assert_eq!(device.evil.batches()[1].len(), 3, "both requests rode in one batch");
}

// I-05: the same poison again and again: its row is remembered, and costs nobody anything any more.
#[tokio::test]
async fn a_repeated_poison_is_computed_once() {
    let device = TestDevice::start(limits());
    let n_requests: u32 = 1000;
    for round in 1000..1000 + n_requests {
        let poisoned = device.submit(&[&[ERROR, 1], &[PANIC, 1]]).unwrap();
        let healthy = device.submit(&[&[100, round]]).unwrap();
        let healthy = healthy.join(soon()).await.unwrap().rows.remove(0).unwrap();
        assert_eq!(healthy.vector.as_slice(), expected(&[100, round]));
        let failures: Vec<_> =
            poisoned.join(soon()).await.unwrap().rows.into_iter().map(|row| row.unwrap_err()).collect();
        assert_eq!(failures, [RowFailure::Failed, RowFailure::Panicked]);
    }
    let passes = device.evil.batches().len();
    assert!(passes <= 1000 + 10, "{passes} forward passes for {n_requests} healthy rows");
    assert!(device.metric("embedserve_rows_quarantined_total{model=\"evil\"}") >= 1990.0);
}

// I-05: poison that is new each time is looked for within a budget; beyond it, its batch fails as a whole.
#[tokio::test]
async fn isolation_has_a_budget_of_passes() {
    let device = TestDevice::start_within(Limits { isolation_passes_per_second: 1, ..bounds() });
    let start = Instant::now();
    let mut innocent_failures = 0;
    for round in 0..200 {
        let rows: Vec<Vec<u32>> =
            (0..8).map(|i| if i == 3 { vec![ERROR, 1000 + round] } else { vec![100 + i] }).collect();
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let answers = device.run(&rows).await;
        assert_eq!(answers[3], Err(RowFailure::Failed));
        innocent_failures += answers.iter().filter(|answer| answer.is_err()).count() - 1;
    }
    // Ten seconds' worth may be saved up.
    let budget = 10 + usize::try_from(start.elapsed().as_secs()).unwrap() + 1;
    let passes = device.evil.batches().len();
    assert!(passes <= 200 + budget, "{passes} forward passes");
    assert!(innocent_failures > 0, "the budget was never used up");
    assert!(device.metric("embedserve_batch_isolations_refused_total{model=\"evil\"}") > 0.0);
    // Who sends no poison does not notice.
    assert_eq!(device.run(&[&[100], &[101]]).await, [Ok(expected(&[100])), Ok(expected(&[101]))]);
}

// I-08
#[tokio::test]
async fn out_of_memory_splits_the_batch_and_lowers_the_ceiling() {
    let device = TestDevice::start_within(Limits { longest_row: 4, ..bounds() });
    assert!((device.metric("embedserve_batch_limit_tokens{model=\"evil\"}") - 1024.0).abs() < 1e-9);
    device.evil.fault(Fault::Small(8));
    let rows = [[100, 101, 102, 103].as_slice(); 8];
    assert_eq!(device.run(&rows).await, vec![Ok(expected(rows[0])); 8]);
    assert!((device.metric("embedserve_batch_limit_tokens{model=\"evil\"}") - 8.0).abs() < 1e-9);
    let splits = || device.metric("embedserve_batch_splits_total{model=\"evil\",reason=\"oom\"}");
    let before = splits();
    assert!(before >= 1.0);
    // From now on batches are small enough from the start.
    device.evil.forget();
    assert_eq!(device.run(&rows).await, vec![Ok(expected(rows[0])); 8]);
    assert!((splits() - before).abs() < 1e-9);
    assert!(device.evil.batches().iter().all(|batch| batch.iter().map(Vec::len).sum::<usize>() <= 8));
}

// I-08: a row that is too big alone gets its error after one try; its neighbours are computed.
#[tokio::test]
async fn a_row_too_big_for_the_device_fails_alone_and_at_once() {
    let device = TestDevice::start_within(Limits { longest_row: 4, ..bounds() });
    let answers = device.run(&[&[100], &[TOO_BIG, 1]]).await;
    assert_eq!(answers, [Ok(expected(&[100])), Err(RowFailure::OutOfMemory)]);
    assert_eq!(device.evil.batches().len(), 3);
    device.evil.forget();
    assert_eq!(device.run(&[&[TOO_BIG, 1]]).await, [Err(RowFailure::OutOfMemory)]);
    assert_eq!(device.evil.batches().len(), 1, "tried again each time: the memory may be free by now");
    assert_eq!(device.run(&[&[100, 101, 102, 103]]).await, [Ok(expected(&[100, 101, 102, 103]))]);
}

// I-09: a lost device computes nothing more, and answers everything.
#[tokio::test]
async fn a_lost_device_is_never_used_again() {
    let device = TestDevice::start(limits());
    let blocker = device.submit(&[&[BLOCK]]).unwrap();
    until("the first batch is computing", || device.evil.batches().len() == 1).await;
    let lost = device.submit(&[&[LOST], &[100], &[101]]).unwrap();
    device.evil.release();
    assert!(blocker.join(soon()).await.unwrap().rows[0].is_ok());
    let rows = lost.join(soon()).await.unwrap().rows;
    assert!(rows.iter().all(|row| row.as_ref().unwrap_err() == &RowFailure::Dropped), "{rows:?}");
    assert_eq!(device.runner.health(), Health::Broken(Breakage::DeviceLost));
    assert_eq!(device.evil.batches().len(), 2, "the batch was not tried again");
    until("the queue is closed", || device.submit(&[&[1]]).is_err()).await;
}

// I-07: a death that no guard around the forward pass prevents still answers everybody.
#[tokio::test]
async fn a_thread_that_dies_outside_the_guard_answers_its_rows() {
    let device = TestDevice::start(limits());
    let blocker = device.submit(&[&[BLOCK]]).unwrap();
    until("the first batch is computing", || device.evil.batches().len() == 1).await;
    let dying = device.submit(&[&[DIE], &[100]]).unwrap();
    device.evil.release();
    assert!(blocker.join(soon()).await.unwrap().rows[0].is_ok());
    let rows = dying.join(soon()).await.unwrap().rows;
    assert!(rows.iter().all(|row| row.as_ref().unwrap_err() == &RowFailure::Dropped), "{rows:?}");
    until("the thread has ended", || device.runner.health() == Health::Dead).await;
    assert!(matches!(device.submit(&[&[1]]), Err(SubmitError::Closed)));
}

// I-06: an idle device proves that it works, on the thread that serves.
#[tokio::test]
async fn an_idle_device_computes_its_canary() {
    let device = TestDevice::start_within(Limits { canary_interval: Duration::from_millis(5), ..bounds() });
    let sung = || device.metric("embedserve_canary_total{model=\"evil\",result=\"ok\"}");
    until("three canaries", || sung() >= 3.0).await;
    assert_eq!(device.runner.health(), Health::Ready);
    assert!(device.evil.batches().iter().all(|batch| *batch == [[1, 2]]));
}

// I-06: when every batch fails, the canary tells whether the rows or the device are to blame.
#[tokio::test]
async fn a_device_that_only_fails_computes_its_canary_between_batches() {
    let device = TestDevice::start_within(Limits { canary_interval: Duration::from_millis(1), ..bounds() });
    let sung = || device.metric("embedserve_canary_total{model=\"evil\",result=\"ok\"}");
    let deadline = soon();
    while sung() < 3.0 {
        assert!(Instant::now() < deadline);
        assert_eq!(device.run(&[&[NAN]]).await, [Err(RowFailure::NonFinite)]);
    }
    assert_eq!(device.runner.health(), Health::Ready);
}

// I-06
#[tokio::test]
async fn a_wrong_canary_ends_the_thread_before_another_row_is_computed() {
    for (fault, breakage, result) in
        [(Fault::Drift, Breakage::CanaryMismatch, "mismatch"), (Fault::Error, Breakage::CanaryFailed, "error")]
    {
        let device = TestDevice::start_within(Limits { canary_interval: Duration::from_millis(5), ..bounds() });
        device.evil.fault(fault);
        until("the canary's end", || device.runner.health() == Health::Broken(breakage)).await;
        until("the queue is closed", || device.submit(&[&[1]]).is_err()).await;
        let counted = device.metric(&format!("embedserve_canary_total{{model=\"evil\",result=\"{result}\"}}"));
        assert!((counted - 1.0).abs() < 1e-9);
    }
}

// I-06
#[tokio::test]
async fn a_canary_that_hangs_is_a_stall() {
    let (canary_interval, heartbeat) = (Duration::from_millis(5), Duration::from_millis(20));
    let device = TestDevice::start_within(Limits { canary_interval, heartbeat, ..bounds() });
    device.evil.fault(Fault::Hang);
    until("the stall", || matches!(device.runner.health(), Health::Stalled { canary: true, .. })).await;
    device.evil.fault(Fault::None);
    device.evil.release();
    assert_eq!(device.run(&[&[100]]).await, [Ok(expected(&[100]))]);
}

// L-05
#[test]
fn a_device_that_fails_its_self_test_never_serves() {
    type Is = fn(&WarmupError) -> bool;
    let table: [(Fault, &[u32], Is); 5] = [
        (Fault::Flicker, &[1, 2], |error| matches!(error, WarmupError::NotRepeatable)),
        (Fault::Crowd, &[1, 2], |error| matches!(error, WarmupError::NotInvariant { .. })),
        (Fault::Error, &[1, 2], |error| matches!(error, WarmupError::Failed(_))),
        (Fault::None, &[1, PANIC], |error| matches!(error, WarmupError::Failed(_))),
        (Fault::None, &[1, NAN], |error| matches!(error, WarmupError::NonFinite)),
    ];
    for (index, (fault, probe, is_expected)) in table.into_iter().enumerate() {
        let evil = Evil::default();
        evil.fault(fault);
        let head = Head { pooling: vec![PoolingMode::Mean], steps: Vec::new() };
        let mut computation = Computation { encoder: evil.encoder(), head, turns: Arc::default() };
        let error = warmup::self_test(&mut computation, probe, native()).unwrap_err();
        assert!(is_expected(&error), "case {index}: {error}");
    }
}
