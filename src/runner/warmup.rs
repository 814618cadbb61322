//! The self-test before a model is called ready: the packed forward pass must give finite vectors, and the same bits
//! for a row alone and in company. Runs on the loading thread, before the computation moves to its device thread.

use std::time::Duration;

use thiserror::Error;

use crate::arch::EncoderError;
use crate::batch::plan::Budget;
use crate::pool::FiniteRow;
use crate::request::{Dimensions, RowShape};
use crate::runner::Canary;
use crate::runner::computation::Computation;

/// Why a loaded model may not serve.
#[derive(Debug, Error)]
pub enum WarmupError {
    #[error("the first forward pass failed: {0}")]
    Failed(String),
    #[error("the first forward pass gave a non-finite vector: the weights are damaged")]
    NonFinite,
    #[error("the same row has two vectors: the kernels or the memory of this machine are broken")]
    NotRepeatable,
    #[error("a row's vector changes with its neighbours (by {difference:e}): the kernels are broken on this machine")]
    NotInvariant { difference: f32 },
    #[error("two devices give a known text vectors that differ by {difference:e}: one of them is broken")]
    DevicesDiffer { difference: f32 },
    #[error(
        "the device has no memory for one text of {tokens} tokens: lower --max-model-len, or serve fewer models there"
    )]
    NoRoom { tokens: usize },
}

/// Computes `probe` twice alone and once between copies of its own prefixes, where it may move as far as the encoder's
/// [`company_bound`](crate::arch::Encoder::company_bound); what comes out is what the device thread has
/// to compute again and again.
///
/// # Errors
/// See [`WarmupError`].
pub fn self_test(computation: &mut Computation, probe: &[u32], dimensions: Dimensions) -> Result<Canary, WarmupError> {
    let (alone, _) = run(computation, &[probe], dimensions)?;
    let (again, took) = run(computation, &[probe], dimensions)?;
    if alone != again {
        return Err(WarmupError::NotRepeatable);
    }
    let prefix = probe.get(..probe.len().div_ceil(2)).unwrap_or(probe);
    let (packed, _) = run(computation, &[prefix, probe, prefix, prefix], dimensions)?;
    match (alone.into_iter().next(), packed.get(1)) {
        (Some(alone), Some(packed)) => {
            let pairs = alone.as_slice().iter().zip(packed.as_slice());
            let difference = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            let largest = alone.as_slice().iter().map(|a| a.abs()).fold(0.0, f32::max);
            if alone != *packed && difference > computation.encoder.company_bound() * largest {
                return Err(WarmupError::NotInvariant { difference });
            }
            Ok(Canary::new(probe, dimensions, alone, took))
        }
        _ => Err(WarmupError::Failed("no vector came back".to_owned())),
    }
}

/// Whether two devices compute the same: a row may move as far as it may with its company.
///
/// # Errors
/// [`WarmupError::DevicesDiffer`].
pub fn compare(first: &Canary, other: &Canary, company_bound: f32) -> Result<(), WarmupError> {
    let (difference, largest) = first.apart(other);
    // Written so that a NaN, which compares with nothing, is refused.
    if difference <= company_bound * largest { Ok(()) } else { Err(WarmupError::DevicesDiffer { difference }) }
}

/// Takes the device's memory for the largest batch, and lowers the budget until there is enough: halves of it, and never less
/// than the longest row. What is taken stays, so that a busy device does not find out later.
///
/// # Errors
/// [`WarmupError::NoRoom`], or the device failed.
pub fn fit(computation: &mut Computation, budget: Budget, longest_row: usize) -> Result<Budget, WarmupError> {
    let mut tokens = budget.tokens;
    loop {
        match computation.encoder.reserve(tokens, budget.rows.min(tokens)) {
            Ok(()) => return Ok(Budget { tokens, ..budget }),
            Err(EncoderError::OutOfMemory) if tokens > longest_row => tokens = (tokens / 2).max(longest_row),
            Err(EncoderError::OutOfMemory) => return Err(WarmupError::NoRoom { tokens }),
            Err(error) => return Err(WarmupError::Failed(error.to_string())),
        }
    }
}

fn run(
    computation: &mut Computation,
    rows: &[&[u32]],
    dimensions: Dimensions,
) -> Result<(Vec<FiniteRow>, Duration), WarmupError> {
    let shapes = vec![RowShape::whole(dimensions); rows.len()];
    let found = computation.run_in_turn(rows, &shapes);
    let (vectors, took) = found.map_err(|error| WarmupError::Failed(error.into_reason()))?;
    let vectors = vectors.into_iter().collect::<Result<_, _>>().map_err(|_| WarmupError::NonFinite)?;
    Ok((vectors, took))
}
