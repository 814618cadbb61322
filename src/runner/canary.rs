//! A row whose vector is known, computed on the thread that serves whenever that has had no success for a while.
//!
//! The vector is the one of the self-test, and on the CPU it has to come out again bit for bit: whatever makes it differ,
//! from a flipped bit in the weights to a broken kernel, makes every other vector wrong as well.

use std::time::Duration;

use crate::pool::FiniteRow;
use crate::request::{Dimensions, RowShape};
use crate::runner::Breakage;
use crate::runner::computation::{BatchError, Computation};

/// A row and its vector.
#[derive(Debug, Clone)]
pub struct Canary {
    probe: Vec<u32>,
    dimensions: Dimensions,
    golden: FiniteRow,
    took: Duration,
}

impl Canary {
    /// `golden` is what `probe` gave when it was last known to be right, in a pass that `took` so long.
    pub(super) fn new(probe: &[u32], dimensions: Dimensions, golden: FiniteRow, took: Duration) -> Self {
        Self { probe: probe.to_vec(), dimensions, golden, took }
    }

    /// Time of a forward pass over the probe alone.
    pub fn took(&self) -> Duration {
        self.took
    }

    pub fn n_tokens(&self) -> usize {
        self.probe.len()
    }

    /// How far the vector is from that of the same probe elsewhere: the largest difference of one value, and the largest value.
    pub(super) fn apart(&self, other: &Self) -> (f32, f32) {
        let pairs = self.golden.as_slice().iter().zip(other.golden.as_slice());
        let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        (difference, self.golden.as_slice().iter().map(|a| a.abs()).fold(0.0, f32::max))
    }

    /// Time of a forward pass, per token.
    pub(super) fn pace(&self) -> Duration {
        let n_tokens = u32::try_from(self.probe.len()).unwrap_or(u32::MAX).max(1);
        self.took / n_tokens
    }

    /// Computes the probe and compares.
    pub(super) fn check(&self, computation: &mut Computation) -> Result<(), Breakage> {
        let vectors = computation.run(&[&self.probe], &[RowShape::whole(self.dimensions)]).map_err(|error| {
            let reason = match error {
                BatchError::Lost(reason) => {
                    tracing::error!(reason, "the canary found the device lost");
                    return Breakage::DeviceLost;
                }
                BatchError::OutOfMemory => "out of device memory".to_owned(),
                BatchError::Failed(error) => error.to_string(),
                BatchError::Panicked(_) => "it panicked".to_owned(),
            };
            tracing::error!(reason, "the canary failed");
            Breakage::CanaryFailed
        })?;
        let bits = |row: &FiniteRow| row.as_slice().iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        match vectors.into_iter().next() {
            Some(Ok(vector)) if bits(&vector) == bits(&self.golden) => Ok(()),
            Some(_) => Err(Breakage::CanaryMismatch),
            None => Err(Breakage::CanaryFailed),
        }
    }
}
