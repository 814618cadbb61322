//! The loop of the device thread: take a batch, compute, answer; prove that it still works when there has been no
//! success for a while.
//!
//! Where the encoder overlaps passes, one batch is begun behind the one that is computed. What that one does to itself, it
//! does to itself alone: it has an outcome of its own, rows to blame are looked for in passes of their own, and its clock
//! begins when the batch before it is done. Only the loss of the device is common to both.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use crate::arch::Submitted;
use crate::batch::{Job, Next, Queue, RowFailure};
use crate::observe::metrics::{BatchFailure, CanaryResult, Metrics, ModelMetrics, PanicThread, Split};
use crate::request::RowShape;
use crate::runner::computation::{BatchError, Computation};
use crate::runner::isolate::{Isolated, Isolation, healthy};
use crate::runner::pulse::{Pulse, Purpose};
use crate::runner::shift::Shift;
use crate::runner::{Breakage, Canary, Limits, RunnerInfo};

/// What one device thread owns.
#[derive(Debug)]
pub struct Device {
    /// The model's name in logs and metrics.
    pub model: String,
    /// The device's own name.
    pub device: String,
    pub computation: Computation,
    pub canary: Canary,
    /// For this device: its number there is its number in the metrics.
    pub queue: Queue,
    pub limits: Limits,
}

/// A running device thread.
#[derive(Debug)]
pub struct Runner {
    pub info: RunnerInfo,
    pub thread: JoinHandle<()>,
}

/// Starts the device thread; it runs until the queue is closed and empty, or until the device breaks.
///
/// # Errors
/// The operating system refused the thread.
pub fn spawn(device: Device, metrics: &Arc<Metrics>) -> std::io::Result<Runner> {
    let pulse = Arc::new(Pulse::new(device.limits, device.canary.pace()));
    let info = RunnerInfo { pulses: vec![(device.device.clone(), Arc::clone(&pulse))] };
    let end = End { pulse: Arc::clone(&pulse), queue: device.queue.clone() };
    let isolation = Isolation::new(device.limits.isolation_passes_per_second);
    let (own, metrics) = (metrics.model(&device.model), Arc::clone(metrics));
    let mut served = Serving { device, pulse, isolation, metrics, own };
    let thread = std::thread::Builder::new().name("device".to_owned()).spawn(move || {
        let end = end;
        if let Err(breakage) = served.run() {
            end.pulse.broke(breakage);
        }
    })?;
    Ok(Runner { info, thread })
}

/// However the thread ends, its queue says so and everything in it is answered.
struct End {
    pulse: Arc<Pulse>,
    queue: Queue,
}

impl Drop for End {
    fn drop(&mut self) {
        self.pulse.ended();
        self.queue.abort();
    }
}

/// A batch on its way.
struct Batch {
    jobs: Vec<Job>,
    /// Its rows that are not computed, having failed lately.
    known: Vec<Option<RowFailure>>,
    /// Its first pass, where the encoder overlaps passes.
    first: Option<Result<Submitted, BatchError>>,
    /// When the device turned to it.
    start: Instant,
}

/// A device thread at work.
struct Serving {
    device: Device,
    pulse: Arc<Pulse>,
    isolation: Isolation,
    metrics: Arc<Metrics>,
    own: Arc<ModelMetrics>,
}

impl Serving {
    fn run(&mut self) -> Result<(), Breakage> {
        loop {
            // Also between batches of which none succeeds: it is not known then whether the rows are to blame.
            if self.pulse.canary_due() <= Instant::now() {
                self.check()?;
            }
            match self.device.queue.next_batch(self.pulse.canary_due()) {
                Next::Batch(jobs) => self.serve(jobs)?,
                Next::Idle => {}
                Next::Closed => return Ok(()),
            }
        }
    }

    /// Computes the canary.
    fn check(&mut self) -> Result<(), Breakage> {
        let Device { model, device, computation, canary, .. } = &mut self.device;
        let turns = Arc::clone(&computation.turns);
        let work = self.pulse.begin();
        let _turn = turns.take();
        work.compute(canary.n_tokens(), Purpose::Canary);
        let result = canary.check(computation);
        self.own.canary(match result {
            Ok(()) => CanaryResult::Ok,
            Err(Breakage::CanaryMismatch) => CanaryResult::Mismatch,
            Err(Breakage::CanaryFailed | Breakage::DeviceLost) => CanaryResult::Error,
        });
        match result {
            Ok(()) => {
                self.pulse.succeeded();
                self.own.success_now();
            }
            Err(breakage) => {
                tracing::error!(model, device, reason = breakage.describe(), "the device cannot be trusted");
            }
        }
        result
    }

    /// Computes one batch, and those that the device takes behind it.
    fn serve(&mut self, jobs: Vec<Job>) -> Result<(), Breakage> {
        let (pulse, turns) = (Arc::clone(&self.pulse), Arc::clone(&self.device.computation.turns));
        let mut shift = Shift::new(&pulse, &turns);
        let mut batch = self.begin(jobs, &mut shift);
        loop {
            let next = self.ahead(&batch);
            let mut next = next.map(|jobs| self.begin(jobs, &mut shift));
            self.finish(batch, next.as_mut(), &mut shift)?;
            match next {
                Some(next) => batch = next,
                None => return Ok(()),
            }
        }
    }

    /// What the device may take behind this batch. Nothing while another model waits for its turn there, or when the canary
    /// is due.
    fn ahead(&self, batch: &Batch) -> Option<Vec<Job>> {
        let Device { computation, queue, .. } = &self.device;
        let may = batch.is_under_way() && !computation.turns.is_wanted() && self.pulse.canary_due() > Instant::now();
        if may { queue.next_ahead() } else { None }
    }

    /// Takes a batch up, and begins its first pass where that does not wait for others to end.
    fn begin(&mut self, jobs: Vec<Job>, shift: &mut Shift<'_>) -> Batch {
        let start = Instant::now();
        let rows: Vec<&[u32]> = jobs.iter().map(Job::ids).collect();
        let known = self.isolation.known(&rows);
        let computation = &mut self.device.computation;
        let mut first = None;
        if computation.encoder.overlaps() {
            let shapes: Vec<RowShape> = jobs.iter().map(Job::shape).collect();
            let (rows, shapes) = healthy(&rows, &shapes, &known);
            if !rows.is_empty() {
                if !shift.is_held() {
                    shift.begin(tokens(&rows));
                }
                first = Some(computation.submit(&rows, &shapes));
            }
        }
        Batch { jobs, known, first, start }
    }

    /// Computes what is left of a batch, while the device goes on to the next one, and answers its rows.
    fn finish(&mut self, batch: Batch, next: Option<&mut Batch>, shift: &mut Shift<'_>) -> Result<(), Breakage> {
        let Self { device, pulse, isolation, metrics, own } = self;
        let Device { model, device, computation, queue, limits, canary: _ } = device;
        let number = queue.device();
        let Batch { jobs, known, mut first, start } = batch;
        let rows: Vec<&[u32]> = jobs.iter().map(Job::ids).collect();
        let shapes: Vec<RowShape> = jobs.iter().map(Job::shape).collect();
        let (n_rows, n_tokens) = (rows.len(), tokens(&rows));
        let next = next.filter(|next| next.is_under_way());
        // The device comes to a pass that is begun now when it has computed that.
        let ahead = next.as_ref().map_or(0, |next| next.n_tokens());
        let failures = FailureLog { model, device, number, metrics, own };
        let mut lost: Option<String> = None;
        let Isolated { rows: results, refused, quarantined } = isolation.run(&rows, &shapes, known, |rows, shapes| {
            if let Some(reason) = &lost {
                return Err(BatchError::Lost(reason.clone()));
            }
            let result = if let Some(first) = first.take() {
                first.and_then(|submitted| computation.collect(submitted, shapes))
            } else {
                shift.begin(tokens(rows) + ahead);
                computation.run(rows, shapes)
            };
            result.inspect_err(|error| {
                failures.report(error, rows.len());
                match error {
                    BatchError::Lost(reason) => lost = Some(reason.clone()),
                    BatchError::OutOfMemory => queue.lower_batch_tokens((tokens(rows) / 2).max(limits.longest_row)),
                    BatchError::Failed(_) | BatchError::Panicked(_) => {}
                }
            })
        });
        let took = start.elapsed();
        if let Some(next) = next {
            // Before, it waited for this one.
            next.start = Instant::now();
            shift.go_on(ahead);
        } else {
            shift.end();
        }
        if lost.is_some() {
            // Before anybody is answered: whoever comes back finds the model dead.
            pulse.broke(Breakage::DeviceLost);
        }
        queue.batch_done(n_tokens, took);
        own.batch_done(number, n_rows, n_tokens, took);
        own.ran(took);
        if results.iter().any(Result::is_ok) {
            pulse.succeeded();
            own.success_now();
        }
        if refused {
            own.isolation_refused();
            tracing::warn!(model, rows = n_rows, "a batch failed as a whole: too many have failed lately");
        }
        if quarantined > 0 {
            own.rows_quarantined(quarantined);
        }
        for (job, result) in jobs.into_iter().zip(results) {
            if result == Err(RowFailure::NonFinite) {
                own.row_non_finite();
            }
            job.answer(result, took);
        }
        if lost.is_some() { Err(Breakage::DeviceLost) } else { Ok(()) }
    }
}

impl Batch {
    /// Whether the device has begun it.
    const fn is_under_way(&self) -> bool {
        matches!(self.first, Some(Ok(_)))
    }

    fn n_tokens(&self) -> usize {
        self.jobs.iter().map(|job| job.ids().len()).sum()
    }
}

fn tokens(rows: &[&[u32]]) -> usize {
    rows.iter().map(|row| row.len()).sum()
}

/// Where the failures of one device are logged and counted: once, where they are handled, and never with the input.
struct FailureLog<'a> {
    model: &'a str,
    device: &'a str,
    /// The device's, in the metrics.
    number: usize,
    metrics: &'a Metrics,
    own: &'a ModelMetrics,
}

impl FailureLog<'_> {
    /// A pass over so many rows failed.
    fn report(&self, error: &BatchError, rows: usize) {
        let Self { model, device, number, metrics, own } = *self;
        match error {
            BatchError::OutOfMemory => {
                own.batch_split(Split::Oom);
                own.batch_failed(number, BatchFailure::Oom);
                tracing::warn!(
                    model,
                    device,
                    rows,
                    "out of device memory; splitting the batch, and smaller ones from now on"
                );
            }
            BatchError::Lost(reason) => {
                own.batch_failed(number, BatchFailure::Device);
                tracing::error!(model, device, rows, reason, "the device is lost");
            }
            BatchError::Failed(error) => {
                own.batch_split(Split::Isolate);
                own.batch_failed(number, BatchFailure::Device);
                tracing::error!(model, device, rows, %error, "forward pass failed; isolating the row");
            }
            // The message may quote the input: the place of the panic is in the log already.
            BatchError::Panicked(_) => {
                own.batch_split(Split::Isolate);
                metrics.panicked(PanicThread::Runner);
                own.batch_failed(number, BatchFailure::Panic);
                tracing::error!(model, device, rows, "forward pass panicked; isolating the row");
            }
        }
    }
}
