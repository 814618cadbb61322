//! The device threads of one model, seen from outside: start them, ask how they are. There is one for each device that the
//! model computes on, and all of them take their batches from the same queue.
//!
//! A thread owns its encoder. Loading has tested it, on its own thread; from then on nothing else calls it, so there is no
//! lock to poison and a panic costs one row. It
//! proves that it works: whenever no forward pass has succeeded for a while, it computes its [`canary`], so a thread
//! that is called ready has given a right vector a moment ago.
//!
//! Where the device computes beside its thread, a GPU, the thread begins the next batch before it waits for the present one,
//! if a whole one waits: the device goes from one to the other at once, and the thread answers the first while it computes
//! the second.
//!
//! A model is what its worst device is: one that fails takes the model with it, and is named. Going on with the others
//! would hide that a part of the machine is gone.

pub mod canary;
pub mod computation;
pub mod isolate;
mod pulse;
mod shift;
pub mod thread;
pub mod warmup;

use std::sync::Arc;
use std::time::Duration;

use pulse::Pulse;

pub use canary::Canary;
pub use computation::Computation;
pub use thread::{Device, Runner, spawn};

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

/// What a model's device thread is like now, from the best to the worst.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// A forward pass succeeded lately and none is overdue.
    Ready,
    /// A forward pass, the canary's or another, should have ended this long ago.
    Stalled { overdue: Duration, canary: bool },
    /// The thread has ended.
    Dead,
    /// What it computes cannot be trusted any more; the process has to end.
    Broken(Breakage),
}

/// Why a device cannot be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Breakage {
    /// The canary has another vector than when the model was loaded.
    CanaryMismatch,
    /// The canary has no vector any more.
    CanaryFailed,
    /// The device says itself that it is unusable.
    DeviceLost,
}

/// A model's device threads, as the rest of the process knows them: at least one.
#[derive(Debug, Clone)]
pub struct RunnerInfo {
    /// Each with its device's name.
    pulses: Vec<(String, Arc<Pulse>)>,
}

impl RunnerInfo {
    /// The threads of both.
    #[must_use]
    pub fn beside(mut self, other: Self) -> Self {
        self.pulses.extend(other.pulses);
        self
    }

    /// The worst of all devices. Read without touching the device threads: health never waits behind work.
    pub fn health(&self) -> Health {
        self.pulses.iter().map(|(_, pulse)| pulse.health()).max().unwrap_or(Health::Dead)
    }

    /// Every device by its name.
    pub fn devices(&self) -> impl Iterator<Item = (&str, Health)> {
        self.pulses.iter().map(|(device, pulse)| (device.as_str(), pulse.health()))
    }

    /// The device that [`Self::health`] speaks of.
    pub fn worst(&self) -> &str {
        self.pulses.iter().max_by_key(|(_, pulse)| pulse.health()).map_or("", |(device, _)| device.as_str())
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
