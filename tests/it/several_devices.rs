//! One model on several devices: one queue in front of all of them, and a device that fails is never hidden by the others.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use embedserve::batch::plan::Budget;
use embedserve::batch::{Client, Queue, QueueLimits, RowFailure, SubmitError, Tickets};
use embedserve::observe::metrics::{Metrics, ModelInfo};
use embedserve::pool::{Head, PoolingMode};
use embedserve::request::{Flow, TokenRow};
use embedserve::runner::warmup::{self, WarmupError};
use embedserve::runner::{self, Breakage, Computation, Device, Health, Limits, RunnerInfo};

use crate::support::device::{MODEL, bounds, limits, native, soon, until};
use crate::support::evil::{BLOCK, DIE, Evil, Fault, LOST, expected};

/// A queue with a device thread for each of these encoders, `device:0` and so on.
struct Devices {
    evils: Vec<Evil>,
    queue: Queue,
    runner: RunnerInfo,
    threads: Vec<JoinHandle<()>>,
    metrics: Arc<Metrics>,
}

impl Devices {
    fn start(limits: QueueLimits, bounds: Limits) -> Self {
        let metrics = Metrics::new(&[MODEL.to_owned()]);
        let queue = Queue::new(limits, metrics.model(MODEL));
        let (evils, names) = ([Evil::default(), Evil::default()], ["device:0", "device:1"].map(str::to_owned));
        metrics.model(MODEL).set_info(&ModelInfo {
            revision: "none".to_owned(),
            architecture: "evil".to_owned(),
            dtype: "f32".to_owned(),
            devices: names.to_vec(),
            pooling: "mean".to_owned(),
            dimensions: 8,
        });
        let (mut infos, mut threads) = (Vec::new(), Vec::new());
        for (number, (evil, name)) in evils.iter().zip(names).enumerate() {
            let (mut computation, canary) = computation(evil);
            computation.turns = Arc::default();
            let (model, queue) = (MODEL.to_owned(), queue.for_device(number));
            let device = Device { model, device: name, computation, canary, queue, limits: bounds };
            let runner = runner::spawn(device, &metrics).unwrap();
            infos.push(runner.info);
            threads.push(runner.thread);
        }
        let runner = infos.into_iter().reduce(RunnerInfo::beside).unwrap();
        Self { evils: evils.to_vec(), queue, runner, threads, metrics }
    }

    fn submit(&self, rows: &[&[u32]]) -> Result<Tickets, SubmitError> {
        let rows = rows.iter().map(|row| TokenRow::from(row.to_vec())).collect();
        self.queue.submit(rows, native(), Client { flow: Flow::default(), deadline: soon() })
    }

    async fn vectors(tickets: Tickets) -> Vec<Result<Vec<f32>, RowFailure>> {
        let answered = tickets.join(soon()).await.expect("answered in time");
        answered.rows.into_iter().map(|row| row.map(|row| row.vector.as_slice().to_vec())).collect()
    }

    fn batches(&self) -> [usize; 2] {
        [0, 1].map(|index: usize| self.evils[index].batches().len())
    }

    /// The state of every device by its name.
    fn states(&self) -> Vec<(String, Health)> {
        self.runner.devices().map(|(device, health)| (device.to_owned(), health)).collect()
    }
}

fn computation(evil: &Evil) -> (Computation, runner::Canary) {
    let head = Head { pooling: vec![PoolingMode::Mean], steps: Vec::new() };
    let mut computation = Computation { encoder: evil.encoder(), head, turns: Arc::default() };
    let canary = warmup::self_test(&mut computation, &[1, 2], native()).unwrap();
    evil.forget();
    (computation, canary)
}

// A device that is busy with a long batch holds up nobody.
#[tokio::test]
async fn a_batch_goes_to_whichever_device_is_free() {
    let devices = Devices::start(limits(), bounds());
    let blocker = devices.submit(&[&[BLOCK]]).unwrap();
    until("one device computes", || devices.batches().iter().sum::<usize>() == 1).await;
    for id in 20..40 {
        let tickets = devices.submit(&[&[id]]).unwrap();
        assert_eq!(Devices::vectors(tickets).await, [Ok(expected(&[id]))]);
    }
    let mut batches = devices.batches();
    batches.sort_unstable();
    assert_eq!(batches, [1, 20]);
    assert!(devices.queue.is_busy());
    devices.evils.iter().for_each(Evil::release);
    assert_eq!(Devices::vectors(blocker).await, [Ok(expected(&[BLOCK]))]);
    until("nothing runs any more", || !devices.queue.is_busy()).await;
}

// What does not fit one batch wakes the other device, and answers come in the order of the inputs.
#[tokio::test]
async fn a_large_request_is_computed_by_all_devices() {
    let batch = Budget { rows: 4, tokens: 1024 };
    let devices = Devices::start(QueueLimits { batch, ..limits() }, bounds());
    for evil in &devices.evils {
        evil.fault(Fault::Slow(Duration::from_millis(50)));
    }
    let rows: Vec<Vec<u32>> = (20..60).map(|id| vec![id, id + 100]).collect();
    let tickets = devices.submit(&rows.iter().map(Vec::as_slice).collect::<Vec<_>>()).unwrap();
    let found = Devices::vectors(tickets).await;
    assert_eq!(found, rows.iter().map(|row| Ok(expected(row))).collect::<Vec<_>>());
    let [first, second] = devices.batches();
    assert!(first >= 1 && second >= 1 && first + second == 10, "{first} and {second} batches");
    // Each device counts for itself.
    let page = devices.metrics.encode();
    for (device, batches) in [("device:0", first), ("device:1", second)] {
        let line = page.lines().find(|line| line.contains("_batches_total") && line.contains(device)).unwrap();
        assert!(line.ends_with(&format!(" {batches}")) || line.ends_with(&format!(" {batches}.0")), "{line}");
    }
}

// P5: two devices do twice as much in the same time.
#[tokio::test]
async fn what_waits_is_predicted_from_all_devices() {
    let devices = Devices::start(QueueLimits { tokens: 4000, ..limits() }, bounds());
    devices.queue.expect_pace(1000, Duration::from_secs(1));
    let _first = devices.submit(&[&[BLOCK]]).unwrap();
    until("one device computes", || devices.batches().iter().sum::<usize>() == 1).await;
    let _second = devices.submit(&[&[BLOCK]]).unwrap();
    until("both devices compute", || devices.batches() == [1, 1]).await;
    let _waiting = devices.submit(&[[20; 1000].as_slice(); 4]).unwrap();
    let Err(SubmitError::Full { retry_after }) = devices.submit(&[&[20]]) else { panic!("there was room") };
    assert!((retry_after.as_secs_f64() - 2.001).abs() < 1e-6, "{retry_after:?}");
    devices.evils.iter().for_each(Evil::release);
}

// I-09: the device that is lost is named, and the other one does not hide it.
#[tokio::test]
async fn a_lost_device_is_named_and_takes_the_model_with_it() {
    let devices = Devices::start(limits(), bounds());
    assert_eq!(devices.runner.health(), Health::Ready);
    let blocker = devices.submit(&[&[BLOCK]]).unwrap();
    until("one device computes", || devices.batches().iter().sum::<usize>() == 1).await;
    let lost = usize::from(devices.batches() == [1, 0]);
    let failed = Devices::vectors(devices.submit(&[&[LOST]]).unwrap()).await;
    assert_eq!(failed, [Err(RowFailure::Dropped)]);
    assert_eq!(devices.runner.health(), Health::Broken(Breakage::DeviceLost));
    assert_eq!(devices.runner.worst(), format!("device:{lost}"));
    assert_eq!(devices.states()[1 - lost].1, Health::Ready, "the other one still computes");
    until("nothing more is accepted", || matches!(devices.submit(&[&[20]]), Err(SubmitError::Closed))).await;
    // What the other one has begun is answered; then it ends as well.
    devices.evils.iter().for_each(Evil::release);
    assert_eq!(Devices::vectors(blocker).await, [Ok(expected(&[BLOCK]))]);
    let (runner, threads) = (devices.runner.clone(), devices.threads);
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(runner.health(), Health::Broken(Breakage::DeviceLost), "it stays what it was");
}

// I-07: a device thread that dies does not leave a model that is half there.
#[tokio::test]
async fn the_death_of_one_thread_is_that_of_the_model() {
    let devices = Devices::start(limits(), bounds());
    let tickets = devices.submit(&[&[DIE]]).unwrap();
    assert_eq!(Devices::vectors(tickets).await, [Err(RowFailure::Dropped)]);
    let runner = devices.runner.clone();
    // Both threads end, one of them by its panic.
    let panics = devices.threads.into_iter().filter_map(|thread| thread.join().err()).count();
    assert_eq!((panics, runner.health()), (1, Health::Dead));
}

// Each device proves for itself that it is right.
#[tokio::test]
async fn every_device_computes_its_own_known_text() {
    let often = Limits { canary_interval: Duration::from_millis(5), ..bounds() };
    let devices = Devices::start(limits(), often);
    until("both have computed it", || devices.batches().iter().all(|batches| *batches > 0)).await;
    assert_eq!(devices.runner.health(), Health::Ready);
    devices.evils[1].fault(Fault::Drift);
    until("the drift is seen", || devices.runner.health() == Health::Broken(Breakage::CanaryMismatch)).await;
    assert_eq!(devices.runner.worst(), "device:1");
}

// I-08: a device with less memory gets smaller batches; the other one keeps its own.
#[tokio::test]
async fn a_smaller_device_gets_smaller_batches() {
    let batch = Budget { rows: 64, tokens: 64 };
    let devices = Devices::start(QueueLimits { batch, ..limits() }, bounds());
    assert_eq!(devices.queue.batch_tokens(), 64);
    // The first one is held, so that the other one gets the batch that does not fit.
    let blocker = devices.submit(&[&[BLOCK]]).unwrap();
    until("one device computes", || devices.batches().iter().sum::<usize>() == 1).await;
    let small = usize::from(devices.batches() == [1, 0]);
    devices.evils[small].fault(Fault::Small(16));
    let rows: Vec<[u32; 8]> = (20..28).map(|id| [id; 8]).collect();
    let tickets = devices.submit(&rows.iter().map(<[u32; 8]>::as_slice).collect::<Vec<_>>()).unwrap();
    assert!(Devices::vectors(tickets).await.iter().all(Result::is_ok));
    assert_eq!(devices.queue.batch_tokens(), 16);
    devices.evils[small].forget();
    let tickets = devices.submit(&rows.iter().map(<[u32; 8]>::as_slice).collect::<Vec<_>>()).unwrap();
    assert!(Devices::vectors(tickets).await.iter().all(Result::is_ok));
    let sizes: Vec<usize> = devices.evils[small].batches().iter().map(Vec::len).collect();
    assert_eq!(sizes, [2; 4]);
    devices.evils.iter().for_each(Evil::release);
    assert!(Devices::vectors(blocker).await[0].is_ok());
    // The other one alone, once it is free: whole batches.
    until("nothing runs any more", || !devices.queue.is_busy()).await;
    assert_eq!(devices.queue.for_device(1 - small).batch_tokens(), 16, "what is told is the least");
}

#[test]
fn devices_that_do_not_agree_are_refused() {
    let (first, second) = (computation(&Evil::default()).1, Evil::default());
    assert!(warmup::compare(&first, &computation(&second).1, 0.0).is_ok());
    second.fault(Fault::Drift);
    let drifted = computation(&second).1;
    let error = warmup::compare(&first, &drifted, 0.0).unwrap_err();
    assert!(matches!(error, WarmupError::DevicesDiffer { .. }), "{error}");
    assert!(warmup::compare(&first, &drifted, 1e-3).is_ok(), "as far as company may move a row");
}
