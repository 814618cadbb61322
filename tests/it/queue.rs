//! The queue's promises: refusal at once when full, all rows or none, cancellation, deadlines, exactly one answer.

use std::time::{Duration, Instant};

use embedserve::batch::plan::Budget;
use embedserve::batch::{JoinError, QueueLimits, RowFailure, SubmitError, Tickets};
use embedserve::config::BatchConfig;
use embedserve::load::{self, Settings};
use embedserve::observe::progress::LoadProgress;
use embedserve::runner::Health;

use crate::support::device::{MODEL, TestDevice, limits, soon, until};
use crate::support::evil::{BLOCK, Fault, expected};
use crate::support::served::{batches, obtained, requests, shared, spec};
use crate::support::tiny_model::TinyModel;

/// A device that is busy until released.
async fn busy(limits: QueueLimits) -> (TestDevice, embedserve::batch::Tickets) {
    let device = TestDevice::start(limits);
    let blocker = device.submit(&[&[BLOCK]]).unwrap();
    until("the first batch is computing", || device.evil.batches().len() == 1).await;
    (device, blocker)
}

//
#[tokio::test]
async fn a_full_queue_refuses_at_once_and_takes_all_rows_or_none() {
    let (device, blocker) = busy(QueueLimits { rows: 4, tokens: 100, ..limits() }).await;
    let waiting = device.submit(&[&[1], &[2], &[3]]).unwrap();
    let start = Instant::now();
    for _ in 0..1000 {
        assert!(matches!(device.submit(&[&[4], &[5]]), Err(SubmitError::Full { .. })));
    }
    assert!(matches!(device.check_until(soon(), 2), Err(SubmitError::Full { .. })));
    assert_eq!(device.check_until(soon(), 1), Ok(()));
    assert!(start.elapsed() < Duration::from_secs(5), "1,000 refusals took {:?}", start.elapsed());
    let last = device.submit(&[&[6]]).expect("the refused request left no rows behind");
    device.evil.release();
    for tickets in [blocker, waiting, last] {
        assert!(tickets.join(soon()).await.unwrap().rows.iter().all(Result::is_ok));
    }
    assert_eq!(device.run(&[[50].as_slice(); 4]).await, vec![Ok(expected(&[50])); 4], "all permits are back");
}

#[tokio::test]
async fn the_token_limit_is_enforced_beside_the_row_limit() {
    let (device, _blocker) = busy(QueueLimits { rows: 100, tokens: 10, ..limits() }).await;
    let _waiting = device.submit(&[&[1; 8]]).unwrap();
    assert!(matches!(device.submit(&[&[1; 3]]), Err(SubmitError::Full { .. })));
    assert!(device.submit(&[&[1; 2]]).is_ok());
    device.evil.release();
}

// The delay is what waits over what was measured.
#[tokio::test]
async fn a_full_queue_says_how_long_it_takes() {
    let (device, _blocker) = busy(QueueLimits { rows: 100, tokens: 4000, ..limits() }).await;
    let _waiting = device.submit(&[[1; 1000].as_slice(); 4]).unwrap();
    let delay_ms = || match device.submit(&[&[1]]) {
        Err(SubmitError::Full { retry_after }) => retry_after.as_secs_f64() * 1000.0,
        other => panic!("{other:?}"),
    };
    assert!((delay_ms() - 1000.0).abs() < 1.0, "nothing was measured yet");
    // The last one is slower, but was not full: it says nothing of what the device can do.
    for (tokens, expected_ms) in [(1000, 4001.0), (2000, 2000.5), (10, 2000.5)] {
        device.queue.batch_done(tokens, Duration::from_secs(1));
        assert!((delay_ms() - expected_ms).abs() < 0.1, "{} after {tokens} tokens", delay_ms());
    }
    device.evil.release();
}

// Q-01, P5: what could not start or end in time is refused at once, not given up when the time is over.
#[tokio::test]
async fn what_would_be_late_is_refused_at_once() {
    // 1,000 tokens per second; one row may wait 10 s, of which 8 are promised.
    let batch = Budget { rows: 64, tokens: 1024 };
    let limits = QueueLimits { rows: 4096, tokens: 1_000_000, timeout: Duration::from_secs(10), batch };
    let (device, _blocker) = busy(limits).await;
    device.queue.expect_pace(1000, Duration::from_secs(1));
    // Dropped tickets would make room again.
    let mut accepted: Vec<Tickets> = Vec::new();
    let mut late = |result: Result<Tickets, SubmitError>| match result {
        Err(SubmitError::Late { retry_after }) => Some(retry_after.as_secs_f64()),
        other => {
            accepted.push(other.expect("room"));
            None
        }
    };
    let minutes = |n| Instant::now() + Duration::from_mins(n);
    let row = |n_tokens: usize| vec![100; n_tokens];
    // A request of many rows waits until its deadline and not for its first row, and shares with the short ones.
    let bulk: Vec<Vec<u32>> = vec![row(1000); 100];
    let bulk: Vec<&[u32]> = bulk.iter().map(Vec::as_slice).collect();
    assert_eq!(late(device.submit_until(minutes(1), &bulk)), None, "nothing waits before it: it is tried");
    assert!(late(device.submit_until(minutes(2), &bulk)).is_some_and(|seconds| (199.0..202.0).contains(&seconds)));
    assert_eq!(late(device.submit_until(minutes(5), &bulk)), None);
    // Half of the device's time is theirs: 4,000 tokens of short requests are 8 s.
    for _ in 0..4 {
        assert_eq!(late(device.submit_until(minutes(1), &[&row(1000)])), None);
    }
    let wait = late(device.submit_until(minutes(1), &[&[100]])).expect("the fifth would wait too long");
    assert!((8.0..8.1).contains(&wait), "{wait}");
    // Known before its text is read; of several rows it is not known which lane they will wait in, and the other one's
    // request of 100 rows ends in time.
    assert!(matches!(device.check_until(minutes(1), 1), Err(SubmitError::Late { .. })));
    assert_eq!(device.check_until(minutes(5), 10), Ok(()));
    let counted = device.metric("embedserve_queue_refused_total{model=\"evil\",reason=\"late\"}");
    assert!((counted - 3.0).abs() < 0.5, "{counted}");
    device.evil.release();
}

//
#[tokio::test]
async fn what_can_never_fit_is_refused_for_good() {
    let batch = Budget { rows: 8, tokens: 16 };
    let device = TestDevice::start(QueueLimits { rows: 4, tokens: 40, batch, ..limits() });
    assert_eq!(device.submit(&[&[1; 17]]).unwrap_err(), SubmitError::NeverFits { tokens: 17, limit: 16 });
    assert_eq!(device.submit(&[[1; 15].as_slice(); 3]).unwrap_err(), SubmitError::NeverFits { tokens: 45, limit: 40 });
    assert_eq!(device.submit(&[[1].as_slice(); 5]).unwrap_err(), SubmitError::NeverFitsRows { limit: 4 });
    assert_eq!(device.run(&[&[1; 16]]).await.len(), 1, "a row of exactly the budget is computed");
}

// a longest text that no batch could hold is no matter for the first client that sends it.
#[test]
fn a_batch_below_the_longest_text_is_refused_at_start() {
    let folder = TinyModel::default().write();
    let load = |tokens: usize| {
        let batch = BatchConfig { max_batch_tokens: Some(tokens), ..batches() };
        let settings = Settings { requests: &requests(), batch: &batch };
        let (spec, folder) = (spec(folder.path()), obtained(folder.path()));
        let loaded = load::load(&spec, &folder, settings, shared(), &LoadProgress::default());
        loaded.map(|_| ()).map_err(|error| error.to_string())
    };
    let error = load(63).unwrap_err();
    assert!(error.contains("64") && error.contains("63"), "{error}");
    assert_eq!(load(64), Ok(()));
}

// the batches really keep the budget.
#[tokio::test]
async fn batches_stay_within_their_budget() {
    let (device, blocker) = busy(QueueLimits { batch: Budget { rows: 3, tokens: 10 }, ..limits() }).await;
    let rows: Vec<Vec<u32>> = (0..40).map(|i| vec![100; 1 + i % 7]).collect();
    let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
    let tickets = device.submit(&rows).unwrap();
    device.evil.release();
    drop(blocker);
    let answers = tickets.join(soon()).await.unwrap().rows;
    assert!(answers.iter().zip(&rows).all(|(answer, row)| answer.as_ref().unwrap().tokens == row.len()));
    for batch in &device.evil.batches()[1..] {
        assert!(batch.len() <= 3 && batch.iter().map(Vec::len).sum::<usize>() <= 10, "{batch:?}");
    }
}

// I-10, Q-08
#[tokio::test]
async fn rows_of_a_client_that_left_are_never_computed() {
    let (device, blocker) = busy(limits()).await;
    let gone = device.submit(&[&[200], &[201]]).unwrap();
    let stays = device.submit(&[&[202]]).unwrap();
    drop(gone);
    device.evil.release();
    assert!(stays.join(soon()).await.unwrap().rows[0].is_ok());
    assert!(blocker.join(soon()).await.unwrap().rows[0].is_ok());
    let computed: Vec<u32> = device.evil.batches().into_iter().flatten().flatten().collect();
    assert_eq!(computed, [BLOCK, 202]);
    let metrics = device.metrics.encode();
    let counted = |line: &&str| line.starts_with("embedserve_queue_cancelled_total") && line.contains(MODEL);
    assert!(metrics.lines().find(counted).is_some_and(|line| line.ends_with(" 2")), "{metrics}");
}

// I-10: and they make room at once, not when the device gets round to them.
#[tokio::test]
async fn rows_of_a_client_that_left_make_room_in_a_full_queue() {
    let (device, _blocker) = busy(QueueLimits { rows: 2, ..limits() }).await;
    let gone = device.submit(&[&[200], &[201]]).unwrap();
    assert!(device.submit(&[&[202]]).is_err());
    drop(gone);
    assert!(device.submit(&[&[202]]).is_ok());
    device.evil.release();
}

// refused when the time is over, not when the device gets round to it.
#[tokio::test]
async fn a_request_that_waits_too_long_expires_in_the_queue() {
    let (device, _blocker) = busy(QueueLimits { timeout: Duration::from_millis(50), ..limits() }).await;
    let late = device.submit(&[&[200]]).unwrap();
    assert_eq!(late.join(soon()).await.unwrap_err(), JoinError::Deadline { stage: "queued" });
    device.evil.release();
    // Nobody waits for it meanwhile, so it does not expire, however late the device thread is.
    let next = device.submit(&[&[201]]).unwrap();
    until("the next row is computed", || device.evil.batches().len() == 2).await;
    assert!(next.join(soon()).await.unwrap().rows[0].is_ok());
    let computed: Vec<u32> = device.evil.batches().into_iter().flatten().flatten().collect();
    assert_eq!(computed, [BLOCK, 201], "the expired row was never computed");
}

//
#[tokio::test]
async fn a_deadline_during_compute_ends_the_request_and_not_the_device() {
    let (device, blocker) = busy(limits()).await;
    let error = blocker.join(Instant::now() + Duration::from_millis(20)).await.unwrap_err();
    assert_eq!(error, JoinError::Deadline { stage: "computing" });
    device.evil.release();
    assert_eq!(device.run(&[&[201]]).await, [Ok(expected(&[201]))]);
}

// dropped at every point of its life, every ticket leaves the queue empty.
#[tokio::test]
async fn tickets_dropped_anywhere_leave_nothing_behind() {
    let (device, blocker) = busy(QueueLimits { rows: 3, ..limits() }).await;
    for _ in 0..50 {
        // Before it is waited for.
        drop(device.submit(&[&[200], &[201], &[202]]).unwrap());
        // While it is waited for.
        let waiting = device.submit(&[&[200], &[201], &[202]]).unwrap().join(soon());
        assert!(tokio::time::timeout(Duration::from_millis(1), waiting).await.is_err());
    }
    device.evil.release();
    assert!(blocker.join(soon()).await.unwrap().rows[0].is_ok());
    assert_eq!(device.run(&[&[1], &[2], &[3]]).await.len(), 3);
    let computed: Vec<u32> = device.evil.batches().into_iter().flatten().flatten().collect();
    assert_eq!(computed, [BLOCK, 1, 2, 3]);
}

//
#[tokio::test]
async fn a_single_row_overtakes_a_large_request() {
    let (device, blocker) = busy(QueueLimits { batch: Budget { rows: 8, tokens: 1024 }, ..limits() }).await;
    let large = device.submit(&[[100].as_slice(); 200]).unwrap();
    let single = device.submit(&[&[101]]).unwrap();
    device.evil.release();
    drop(blocker);
    assert!(single.join(soon()).await.unwrap().rows[0].is_ok());
    assert!(large.join(soon()).await.unwrap().rows.iter().all(Result::is_ok));
    let position = device.evil.batches().iter().position(|batch| batch.contains(&vec![101])).unwrap();
    assert!(position <= 2, "the single row rode in batch {position}");
}

// Q-07 at full size, and for texts of every kind of request: each is in one of the two batches after its arrival.
#[tokio::test]
async fn single_rows_overtake_several_requests_of_2048() {
    let batch = Budget { rows: usize::MAX, tokens: 64 };
    let (device, blocker) = busy(QueueLimits { rows: 10_000, tokens: 100_000, batch, ..limits() }).await;
    let large: Vec<_> = (0..3).map(|_| device.submit(&vec![[100; 4].as_slice(); 2048]).unwrap()).collect();
    let singles: Vec<_> = (0..6).map(|id| device.submit(&[&[200 + id; 8]]).unwrap()).collect();
    let few = device.submit(&[&[300; 8], &[301; 8]]).unwrap();
    device.evil.release();
    drop(blocker);
    for tickets in singles.into_iter().chain([few]) {
        assert!(tickets.join(soon()).await.unwrap().rows.iter().all(Result::is_ok));
    }
    let batches = device.evil.batches();
    for id in (200..206).chain([300, 301]) {
        let position = batches.iter().position(|batch| batch.contains(&vec![id; 8])).unwrap();
        assert!((1..=2).contains(&position), "row {id} rode in batch {position}");
    }
    let shares = |batch: &Vec<Vec<u32>>| batch.iter().filter(|row| row[0] == 100).count();
    assert!(batches[1..3].iter().all(|batch| shares(batch) == 8), "the large ones have their half all the while");
    for tickets in large {
        assert!(tickets.join(soon()).await.unwrap().rows.iter().all(Result::is_ok));
    }
}

// while somebody sends single texts beside bulk work, batches are short; without such a text they are whole.
#[tokio::test]
async fn batches_beside_single_texts_are_short() {
    let batch = Budget { rows: usize::MAX, tokens: 2048 };
    let device = TestDevice::start(QueueLimits { rows: 10_000, tokens: 100_000, batch, ..limits() });
    // At this pace a short batch has fewer than the 512 tokens that the kernels need.
    device.evil.fault(Fault::Paced(Duration::from_micros(100)));
    let sizes = || device.evil.batches().iter().map(|batch| batch.iter().map(Vec::len).sum()).collect::<Vec<usize>>();
    for with_single in [false, true] {
        device.evil.forget();
        let mut tickets = vec![device.submit(&vec![[100; 60].as_slice(); 60]).unwrap()];
        if with_single {
            tickets.push(device.submit(&[&[200; 60]]).unwrap());
        }
        for tickets in tickets {
            assert!(tickets.join(soon()).await.unwrap().rows.iter().all(Result::is_ok));
        }
        // The first one may have started before the single text came.
        let sizes = &sizes()[1..];
        if with_single {
            assert!(sizes.len() >= 3 && sizes.iter().all(|size| *size <= 540), "{sizes:?}");
        } else {
            assert_eq!(sizes, [1560]);
        }
    }
}

// I-06
#[tokio::test]
async fn a_device_that_hangs_is_not_ready() {
    let device = TestDevice::start_with(limits(), Duration::from_millis(20));
    assert_eq!(device.runner.health(), Health::Ready);
    let blocker = device.submit(&[&[BLOCK]]).unwrap();
    until("the stall is noticed", || matches!(device.runner.health(), Health::Stalled { .. })).await;
    device.evil.release();
    assert!(blocker.join(soon()).await.is_ok());
    until("the device has recovered", || device.runner.health() == Health::Ready).await;
}

// I-07: what is queued when the device thread ends is answered, and later requests are refused.
#[tokio::test]
async fn an_aborted_queue_answers_everything() {
    let (device, blocker) = busy(limits()).await;
    let waiting = device.submit(&[&[1], &[2]]).unwrap();
    device.queue.abort();
    let rows = waiting.join(soon()).await.unwrap().rows;
    assert!(rows.iter().all(|row| row.as_ref().unwrap_err() == &RowFailure::Dropped));
    assert_eq!(device.submit(&[&[3]]).unwrap_err(), SubmitError::Closed);
    device.evil.release();
    assert!(blocker.join(soon()).await.unwrap().rows[0].is_ok());
    until("the thread has ended", || device.runner.health() == Health::Dead).await;
}

// L-01: closing computes what is queued.
#[tokio::test]
async fn a_closed_queue_finishes_what_it_accepted() {
    let (device, blocker) = busy(limits()).await;
    let waiting = device.submit(&[&[1], &[2]]).unwrap();
    device.queue.close();
    assert_eq!(device.submit(&[&[3]]).unwrap_err(), SubmitError::Closed);
    device.evil.release();
    assert!(blocker.join(soon()).await.unwrap().rows[0].is_ok());
    assert!(waiting.join(soon()).await.unwrap().rows.iter().all(Result::is_ok));
}
