//! The device thread of one model, seen from outside: start it, ask how it is.
//!
//! The thread owns the encoder; nothing else ever calls it, so there is no lock to poison and a panic costs one row. It
//! proves that it works: whenever no forward pass has succeeded for a while, it computes its [`canary`], so a thread
//! that is called ready has given a right vector a moment ago.

pub mod canary;
pub mod isolate;
mod pulse;
pub mod thread;
pub mod warmup;

use std::sync::Arc;
use std::time::Duration;

use pulse::Pulse;

pub use canary::Canary;
pub use thread::{Computation, Device, Runner, spawn};

/// Bounds of one device thread.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// After this long without a successful forward pass, the canary is computed.
    pub canary_interval: Duration,
    /// A forward pass may be this much longer than expected, and the thread may rest this much longer than told, before
    /// the model is not ready.
    pub heartbeat: Duration,
    /// Tokens of the longest row that the model takes: a device that runs out of memory gets smaller batches, never less.
    pub longest_row: usize,
    /// Forward passes per second that may be spent on finding the rows to blame for failed ones.
    pub isolation_passes_per_second: u32,
}

/// What a model's device thread is like now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// A forward pass succeeded lately and none is overdue.
    Ready,
    /// A forward pass, the canary's or another, should have ended this long ago.
    Stalled { overdue: Duration, canary: bool },
    /// What it computes cannot be trusted any more; the process has to end.
    Broken(Breakage),
    /// The thread has ended.
    Dead,
}

/// Why a device cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Breakage {
    /// The canary has another vector than when the model was loaded.
    CanaryMismatch,
    /// The canary has no vector any more.
    CanaryFailed,
    /// The device says itself that it is unusable.
    DeviceLost,
}

/// A model's device thread, as the rest of the process knows it.
#[derive(Debug, Clone)]
pub struct RunnerInfo {
    pulse: Arc<Pulse>,
}

impl RunnerInfo {
    /// Read without touching the device thread: health never waits behind work.
    pub fn health(&self) -> Health {
        self.pulse.health()
    }
}

impl Breakage {
    /// In as many words as a public answer may have.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::CanaryMismatch => "a known text has another vector than before",
            Self::CanaryFailed => "a known text has no vector any more",
            Self::DeviceLost => "the device is lost",
        }
    }
}
