//! One model's computation on one device, with panics caught and failures sorted. The only caller of [`Encoder::submit`] and
//! [`Encoder::collect`].

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::arch::packed::PackedBatch;
use crate::arch::{Encoder, EncoderError, Submitted};
use crate::pool::{FiniteRow, Head, NonFinite};
use crate::request::RowShape;
use crate::threads::Turns;

/// One model's computation on one device: encoder and head, and whose turn it is there.
pub struct Computation {
    pub encoder: Box<dyn Encoder>,
    pub head: Head,
    pub turns: Arc<Turns>,
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
    /// The device is unusable from now on.
    Lost(String),
    Failed(EncoderError),
    Panicked(String),
}

impl BatchError {
    /// For those who test a model before it serves, and refuse it with the reason.
    pub fn into_reason(self) -> String {
        match self {
            Self::OutOfMemory => "out of memory".to_owned(),
            Self::Failed(error) => error.to_string(),
            Self::Lost(reason) | Self::Panicked(reason) => reason,
        }
    }
}

impl Computation {
    /// One forward pass over the rows, with panics caught. The caller holds the turn, so that waiting for it does not
    /// count as computing.
    ///
    /// # Errors
    /// The batch as a whole failed; which row is to blame is not known here.
    pub fn run(&mut self, rows: &[&[u32]], shapes: &[RowShape]) -> Result<Vectors, BatchError> {
        let submitted = self.submit(rows, shapes)?;
        self.collect(submitted, shapes)
    }

    /// As [`Self::run`], when its turn has come, and how long it took then. For models that do not serve yet: two passes at
    /// once could each hold threads that the other one's team waits for.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn run_in_turn(&mut self, rows: &[&[u32]], shapes: &[RowShape]) -> Result<(Vectors, Duration), BatchError> {
        let turns = Arc::clone(&self.turns);
        let _turn = turns.take();
        let start = Instant::now();
        let vectors = self.run(rows, shapes)?;
        Ok((vectors, start.elapsed()))
    }

    /// The first half of [`Self::run`]: begins the pass.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn submit(&mut self, rows: &[&[u32]], shapes: &[RowShape]) -> Result<Submitted, BatchError> {
        let Self { encoder, head, turns: _ } = self;
        guarded(|| {
            let batch = PackedBatch::new(rows.iter().copied());
            let skips: Vec<usize> = shapes.iter().map(|shape| shape.skip).collect();
            encoder.submit(&batch, &head.ways(), &skips)
        })
    }

    /// The second half: waits for the pass, and does the head's work.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn collect(&mut self, submitted: Submitted, shapes: &[RowShape]) -> Result<Vectors, BatchError> {
        let Self { encoder, head, turns: _ } = self;
        guarded(|| Ok(head.finish(encoder.collect(submitted)?, shapes)?))
    }
}

/// Catches panics, and sorts failures.
fn guarded<T>(part: impl FnOnce() -> Result<T, EncoderError>) -> Result<T, BatchError> {
    match catch_unwind(AssertUnwindSafe(part)) {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(EncoderError::OutOfMemory)) => Err(BatchError::OutOfMemory),
        Ok(Err(EncoderError::Lost { reason })) => Err(BatchError::Lost(reason)),
        Ok(Err(error @ EncoderError::Compute(_))) => Err(BatchError::Failed(error)),
        Err(panic) => Err(BatchError::Panicked(panic_text(panic.as_ref()))),
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
