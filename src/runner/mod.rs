//! The device thread of one model, seen from outside: start it, ask how it is.
//!
//! The thread owns the encoder; nothing else ever calls it, so there is no lock to poison and a panic costs one row.

pub mod isolate;
pub mod thread;
pub mod warmup;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::batch::Queue;

pub use thread::{Computation, Runner, spawn};

/// What a model's device thread is like now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// A forward pass succeeded at start-up and none is overdue.
    Ready,
    /// One batch has been computing for longer than the stall limit.
    Stalled { since: Duration },
    /// The thread has ended.
    Dead,
}

/// A model's device thread, as the rest of the process knows it.
#[derive(Debug, Clone)]
pub struct RunnerInfo {
    queue: Queue,
    stall_limit: Duration,
    dead: Arc<AtomicBool>,
}

impl RunnerInfo {
    /// Read without touching the device thread: health never waits behind work.
    pub fn health(&self) -> Health {
        if self.dead.load(Ordering::Acquire) {
            return Health::Dead;
        }
        match self.queue.computing_since().map(|since| since.elapsed()) {
            Some(since) if since > self.stall_limit => Health::Stalled { since },
            _ => Health::Ready,
        }
    }
}
