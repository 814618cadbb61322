//! A bounded pool of tokenising threads, shared by every model. Tokenising is CPU work and never runs on an
//! asynchronous thread; a panic inside one task costs the request that brought it and nothing else.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use crate::observe::metrics::{Metrics, PanicThread};

/// Tasks waiting for a thread. A task is at most a few dozen texts, so the queue holds little; when it is full,
/// requests wait here, under their own deadline.
const WAITING_TASKS: usize = 256;

type Task = Box<dyn FnOnce() + Send>;

/// The pool. Its threads end when the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Workers {
    tasks: mpsc::Sender<Task>,
}

/// A task gave no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a tokenising task panicked or its thread ended")]
pub struct WorkerFailed;

impl Workers {
    /// Starts `n_threads` threads named `tokenize-N`.
    ///
    /// # Errors
    /// The operating system refused a thread.
    pub fn new(n_threads: usize, metrics: &Arc<Metrics>) -> std::io::Result<Self> {
        let (tasks, receiver) = mpsc::channel::<Task>(WAITING_TASKS);
        let receiver = Arc::new(Mutex::new(receiver));
        for index in 0..n_threads.max(1) {
            let (receiver, metrics) = (Arc::clone(&receiver), Arc::clone(metrics));
            let run = move || {
                // One idle thread waits in the channel, the others wait for the lock.
                while let Some(task) = { receiver.lock().unwrap_or_else(PoisonError::into_inner).blocking_recv() } {
                    if catch_unwind(AssertUnwindSafe(task)).is_err() {
                        metrics.panicked(PanicThread::Tokenizer);
                        tracing::error!("a tokenising task panicked; its request failed");
                    }
                }
            };
            std::thread::Builder::new().name(format!("tokenize-{index}")).spawn(run)?;
        }
        Ok(Self { tasks })
    }

    /// Runs `work` on a worker. A task whose caller has gone is skipped.
    ///
    /// # Errors
    /// The task panicked.
    pub async fn run<R: Send + 'static>(&self, work: impl FnOnce() -> R + Send + 'static) -> Result<R, WorkerFailed> {
        let (answer, answered) = oneshot::channel();
        let task: Task = Box::new(move || {
            if !answer.is_closed() {
                // The caller may leave while we work; then nobody needs the result.
                let _ = answer.send(work());
            }
        });
        self.tasks.send(task).await.map_err(|_| WorkerFailed)?;
        answered.await.map_err(|_| WorkerFailed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // V-10: a panicking task fails alone, and the pool keeps its size.
    #[tokio::test]
    async fn a_panicking_task_fails_alone() {
        let metrics = Metrics::new(&[]);
        let workers = Workers::new(1, &metrics).unwrap();
        assert_eq!(workers.run(|| panic!("crafted text")).await, Err::<(), _>(WorkerFailed));
        assert_eq!(workers.run(|| 7).await, Ok(7));
    }
}
