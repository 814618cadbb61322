//! Batches that are begun behind the one that is computed, on a device that computes beside its thread: when that happens,
//! when it does not, and that no batch has anything to do with what becomes of its neighbour.

use std::sync::Arc;
use std::time::{Duration, Instant};

use embedserve::batch::plan::Budget;
use embedserve::batch::{Client, Next, Queue, QueueLimits, RowFailure, Tickets};
use embedserve::observe::metrics::Metrics;
use embedserve::request::{Flow, TokenRow};
use embedserve::runner::{Breakage, Health, Limits};
use embedserve::threads::Turns;

use crate::support::device::{MODEL, TestDevice, bounds, limits, native, soon, until};
use crate::support::evil::Step::{self, Collect, Submit};
use crate::support::evil::{BLOCK, ERROR, LOST, NAN, PANIC, TOO_BIG, expected};

/// Batches of so many rows.
fn batches_of(rows: usize) -> QueueLimits {
    QueueLimits { batch: Budget { rows, tokens: 1024 }, ..limits() }
}

fn start(rows: usize) -> TestDevice {
    TestDevice::start_overlapping(batches_of(rows), Limits { longest_row: 4, ..bounds() }, Arc::default())
}

/// Vectors or failures, in row order.
async fn answers(tickets: Tickets) -> Vec<Result<Vec<f32>, RowFailure>> {
    let answered = tickets.join(soon()).await.expect("answered in time");
    answered.rows.into_iter().map(|row| row.map(|row| row.vector.as_slice().to_vec())).collect()
}

/// Rows of one id each.
fn rows(ids: &[u32]) -> Vec<&[u32]> {
    ids.chunks(1).collect()
}

/// A request of these ids waits while the device computes another one; what then happens, and the answers.
async fn behind_another(device: &TestDevice, ids: &[u32]) -> Vec<Result<Vec<f32>, RowFailure>> {
    let blocker = device.submit(&[&[BLOCK]]).unwrap();
    until("the first batch is computing", || device.evil.batches().len() == 1).await;
    let tickets = device.submit(&rows(ids)).unwrap();
    device.evil.release();
    assert_eq!(answers(blocker).await, [Ok(expected(&[BLOCK]))]);
    answers(tickets).await
}

// The thread goes on to a batch of which everything is there; a lone one is waited for at once.
#[tokio::test]
async fn a_whole_batch_is_begun_behind_the_one_that_is_computed() {
    let table: [(usize, &[u32], &[Step]); 3] = [
        (2, &[20, 21, 22, 23, 24, 25], &[Submit(20), Submit(22), Collect(20), Submit(24), Collect(22), Collect(24)]),
        // What does not fill a batch waits for company until the device is free.
        (4, &[20, 21, 22, 23, 24, 25], &[Submit(20), Collect(20), Submit(24), Collect(24)]),
        (1, &[20], &[Submit(20), Collect(20)]),
    ];
    for (rows, ids, steps) in table {
        let device = start(rows);
        let found = behind_another(&device, ids).await;
        assert_eq!(found, ids.iter().map(|id| Ok(expected(&[*id]))).collect::<Vec<_>>());
        assert_eq!(device.evil.steps(), [&[Submit(BLOCK), Collect(BLOCK)], steps].concat(), "batches of {rows}");
    }
}

// I-01, I-02, I-03, I-08: with a batch behind the one that fails, or before it.
#[tokio::test]
async fn a_batch_that_fails_has_nothing_to_do_with_its_neighbours() {
    for (poison, failure) in [
        (ERROR, RowFailure::Failed),
        (PANIC, RowFailure::Panicked),
        (NAN, RowFailure::NonFinite),
        (TOO_BIG, RowFailure::OutOfMemory),
    ] {
        for place in 0..8 {
            let device = start(2);
            let mut ids: Vec<u32> = (20..28).collect();
            ids[place] = poison;
            let found = behind_another(&device, &ids).await;
            for (index, (found, id)) in found.iter().zip(&ids).enumerate() {
                let wanted = if index == place { Err(failure) } else { Ok(expected(&[*id])) };
                assert_eq!(*found, wanted, "row {index}, with {failure:?} at {place}");
            }
            assert_eq!(device.run(&[&[5, 6]]).await, [Ok(expected(&[5, 6]))]);
        }
    }
}

// I-05: what is known to fail is not begun either.
#[tokio::test]
async fn a_repeated_poison_is_not_computed_in_a_batch_behind() {
    let device = start(2);
    assert_eq!(device.run(&[&[ERROR]]).await, [Err(RowFailure::Failed)]);
    device.evil.forget();
    let found = behind_another(&device, &[20, 21, ERROR, ERROR, 22, ERROR]).await;
    let failed = || Err(RowFailure::Failed);
    assert_eq!(found, [Ok(expected(&[20])), Ok(expected(&[21])), failed(), failed(), Ok(expected(&[22])), failed()],);
    assert!(device.evil.batches().iter().flatten().all(|row| !row.contains(&ERROR)));
}

// I-09: nothing that lies behind the loss is computed, and everything is answered.
#[tokio::test]
async fn a_lost_device_loses_the_batch_behind_as_well() {
    let device = start(2);
    let found = behind_another(&device, &[LOST, 21, 22, 23, 24, 25]).await;
    assert_eq!(found, vec![Err(RowFailure::Dropped); 6]);
    assert_eq!(device.runner.health(), Health::Broken(Breakage::DeviceLost));
    assert_eq!(device.evil.steps()[2..], [Submit(LOST), Submit(22), Collect(LOST)]);
    until("the queue is closed", || device.submit(&[&[1]]).is_err()).await;
}

// I-06: the clock of the batch that is computed runs while another one is begun, and on.
#[tokio::test]
async fn a_batch_that_hangs_is_a_stall_whatever_is_behind_it() {
    let heartbeat = Duration::from_millis(20);
    let device = TestDevice::start_overlapping(batches_of(2), Limits { heartbeat, ..bounds() }, Arc::default());
    let tickets = device.submit(&rows(&[BLOCK, 21, 22, 23, 24, 25])).unwrap();
    until("the stall", || matches!(device.runner.health(), Health::Stalled { canary: false, .. })).await;
    assert_eq!(device.evil.steps(), [Submit(BLOCK), Submit(22), Collect(BLOCK)]);
    device.evil.release();
    assert!(answers(tickets).await.iter().all(Result::is_ok));
    until("all is well", || device.runner.health() == Health::Ready).await;
}

// Another model on the same device waits for two batches at most.
#[tokio::test]
async fn nothing_is_begun_behind_a_batch_while_another_model_waits() {
    let turns: Arc<Turns> = Arc::default();
    let device = TestDevice::start_overlapping(batches_of(2), bounds(), Arc::clone(&turns));
    let tickets = device.submit(&rows(&[BLOCK, 21, 22, 23, 24, 25, 26, 27])).unwrap();
    until("the first batch is computing", || device.evil.batches().len() == 1).await;
    let steps = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let _turn = turns.take();
            device.evil.steps()
        });
        let deadline = Instant::now() + Duration::from_secs(30);
        while !turns.is_wanted() {
            assert!(Instant::now() < deadline, "nobody waits");
            std::thread::yield_now();
        }
        device.evil.release();
        other.join().unwrap()
    });
    assert_eq!(steps, [Submit(BLOCK), Submit(22), Collect(BLOCK), Collect(22)]);
    assert!(answers(tickets).await.iter().all(Result::is_ok));
    let then = [Submit(24), Submit(26), Collect(24), Collect(26)];
    assert_eq!(device.evil.steps()[4..], then);
}

// I-06: where every batch fails, the canary's time comes all the same.
#[tokio::test]
async fn batches_that_only_fail_do_not_keep_the_canary_away() {
    let bounds = Limits { canary_interval: Duration::from_millis(1), ..bounds() };
    let device = TestDevice::start_overlapping(batches_of(1), bounds, Arc::default());
    let sung = || device.metric("embedserve_canary_total{model=\"evil\",result=\"ok\"}");
    let deadline = soon();
    while sung() < 3.0 {
        assert!(Instant::now() < deadline);
        assert_eq!(device.run(&rows(&[NAN; 20])).await, vec![Err(RowFailure::NonFinite); 20]);
    }
    assert_eq!(device.runner.health(), Health::Ready);
}

// Whoever has nothing to do begins a batch sooner than whoever would put it behind another one.
#[test]
fn a_batch_goes_to_an_idle_device_first() {
    let metrics = Metrics::new(&[MODEL.to_owned()]);
    let queue = Queue::new(batches_of(2), metrics.model(MODEL));
    let [first, second] = [0, 1].map(|number| queue.for_device(number));
    let rows = (20..30).map(|id| TokenRow::from(vec![id])).collect();
    let _tickets = queue.submit(rows, native(), Client { flow: Flow::default(), deadline: soon() }).unwrap();
    let batch = |next: Next| match next {
        Next::Batch(jobs) => jobs.iter().map(|job| job.ids()[0]).collect::<Vec<_>>(),
        Next::Idle | Next::Closed => Vec::new(),
    };
    assert_eq!(batch(first.next_batch(soon())), [20, 21]);
    assert!(first.next_ahead().is_none(), "the other one has nothing to do");
    assert_eq!(batch(second.next_batch(soon())), [22, 23]);
    let ahead = first.next_ahead().expect("a whole batch waits, and nobody is idle");
    assert_eq!(ahead.iter().map(|job| job.ids()[0]).collect::<Vec<_>>(), [24, 25]);
    // What is begun and not done counts as before.
    first.batch_done(2, Duration::from_secs(1));
    assert!(queue.is_busy());
    assert_eq!(batch(first.next_batch(soon())), [26, 27]);
    drop(second.next_ahead().expect("the last two rows"));
    assert!(first.next_ahead().is_none(), "nothing waits");
}
