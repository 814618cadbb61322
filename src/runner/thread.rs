//! The loop of the device thread: take a batch, compute, answer. The only caller of [`Encoder::forward`].

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::arch::packed::PackedBatch;
use crate::arch::{Encoder, EncoderError};
use crate::batch::{Job, Queue, RowFailure};
use crate::observe::metrics::{BatchFailure, Metrics, ModelMetrics, PanicThread};
use crate::pool::{FiniteRow, Head, NonFinite};
use crate::request::RowShape;
use crate::runner::{RunnerInfo, isolate};
use crate::threads::Threads;

/// One model's computation: encoder and head, and the CPU budget they run on.
pub struct Computation {
    pub encoder: Box<dyn Encoder>,
    pub head: Head,
    pub threads: Arc<Threads>,
}

impl std::fmt::Debug for Computation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Computation").field("head", &self.head).finish_non_exhaustive()
    }
}

/// One vector per row of a batch, or the row's own failure.
pub type Vectors = Vec<Result<FiniteRow, NonFinite>>;

/// Why a whole batch gave nothing.
#[derive(Debug)]
pub enum BatchError {
    OutOfMemory,
    Failed(EncoderError),
    Panicked(String),
}

impl Computation {
    /// One forward pass over the rows, with panics caught. The caller holds the turn, so that waiting for it does not
    /// count as computing.
    ///
    /// # Errors
    /// The batch as a whole failed; which row is to blame is not known here.
    pub fn run(&mut self, rows: &[&[u32]], shapes: &[RowShape]) -> Result<Vectors, BatchError> {
        let batch = PackedBatch::new(rows.iter().copied());
        let Self { encoder, head, threads } = self;
        let forward = || -> Result<Vectors, EncoderError> {
            let hidden = encoder.forward(&batch)?;
            Ok(head.finish(&hidden, &batch, shapes)?)
        };
        match catch_unwind(AssertUnwindSafe(|| threads.beside(forward))) {
            Ok(Ok(vectors)) => Ok(vectors),
            Ok(Err(EncoderError::OutOfMemory)) => Err(BatchError::OutOfMemory),
            Ok(Err(error)) => Err(BatchError::Failed(error)),
            Err(panic) => Err(BatchError::Panicked(panic_text(panic.as_ref()))),
        }
    }
}

/// A running device thread.
#[derive(Debug)]
pub struct Runner {
    pub info: RunnerInfo,
    pub thread: JoinHandle<()>,
}

/// Starts the device thread named after `model`; it runs until the queue is closed and empty.
///
/// # Errors
/// The operating system refused the thread.
pub fn spawn(
    model: &str,
    mut computation: Computation,
    queue: Queue,
    stall_limit: Duration,
    metrics: &Arc<Metrics>,
) -> std::io::Result<Runner> {
    let dead = Arc::new(AtomicBool::new(false));
    let info = RunnerInfo { queue: queue.clone(), stall_limit, dead: Arc::clone(&dead) };
    let (metrics, model_metrics, model) = (Arc::clone(metrics), metrics.model(model), model.to_owned());
    let thread = std::thread::Builder::new().name("device".to_owned()).spawn(move || {
        let _end = End { dead, queue: queue.clone() };
        while let Some(jobs) = queue.next_batch() {
            compute(&model, &mut computation, jobs, &queue, (&metrics, &model_metrics));
        }
    })?;
    Ok(Runner { info, thread })
}

/// However the thread ends, its queue says so and everything in it is answered.
struct End {
    dead: Arc<AtomicBool>,
    queue: Queue,
}

impl Drop for End {
    fn drop(&mut self) {
        self.dead.store(true, Ordering::Release);
        self.queue.abort();
    }
}

fn compute(
    model: &str,
    computation: &mut Computation,
    jobs: Vec<Job>,
    queue: &Queue,
    (metrics, model_metrics): (&Metrics, &ModelMetrics),
) {
    let rows: Vec<&[u32]> = jobs.iter().map(Job::ids).collect();
    let shapes: Vec<RowShape> = jobs.iter().map(Job::shape).collect();
    let (n_rows, n_tokens) = (rows.len(), rows.iter().map(|row| row.len()).sum());
    let start = Instant::now();
    let threads = Arc::clone(&computation.threads);
    let results = isolate::run(&rows, &shapes, |rows, shapes| {
        let _turn = threads.take_turn();
        // The stall limit is for a forward pass, not for the batches of other models before it.
        let _pass = queue.computing();
        computation.run(rows, shapes).inspect_err(|error| report(model, error, rows.len(), (metrics, model_metrics)))
    });
    let took = start.elapsed();
    queue.batch_done(n_tokens, took);
    model_metrics.batch_done(n_rows, n_tokens, took);
    model_metrics.ran(took);
    if results.iter().any(Result::is_ok) {
        model_metrics.success_now();
    }
    for (job, result) in jobs.into_iter().zip(results) {
        if result == Err(RowFailure::NonFinite) {
            model_metrics.row_non_finite();
        }
        job.answer(result, took);
    }
}

/// Logged once, here, where the failure is handled; never the input.
fn report(model: &str, error: &BatchError, rows: usize, (metrics, model_metrics): (&Metrics, &ModelMetrics)) {
    model_metrics.batch_split();
    match error {
        BatchError::OutOfMemory => {
            model_metrics.batch_failed(BatchFailure::Oom);
            tracing::warn!(model, rows, "out of device memory; splitting the batch");
        }
        BatchError::Failed(error) => {
            model_metrics.batch_failed(BatchFailure::Device);
            tracing::error!(model, rows, %error, "forward pass failed; isolating the row");
        }
        // The message may quote the input: the place of the panic is in the log already.
        BatchError::Panicked(_) => {
            metrics.panicked(PanicThread::Runner);
            model_metrics.batch_failed(BatchFailure::Panic);
            tracing::error!(model, rows, "forward pass panicked; isolating the row");
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
