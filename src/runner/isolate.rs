//! When a batch fails, find the rows to blame: halves are tried again until only the poisoned rows fail.
//!
//! One poisoned row among n costs at most 2·log₂(n) + 1 further forward passes. A row that fails only in company
//! succeeds alone. Non-finite rows need none of this: the finite check fails them one by one.

use crate::batch::RowFailure;
use crate::pool::FiniteRow;
use crate::request::RowShape;
use crate::runner::thread::{BatchError, Vectors};

/// One result per row, in order. `forward` computes any subset of the rows.
pub fn run(
    rows: &[&[u32]],
    shapes: &[RowShape],
    mut forward: impl FnMut(&[&[u32]], &[RowShape]) -> Result<Vectors, BatchError>,
) -> Vec<Result<FiniteRow, RowFailure>> {
    let mut results = Vec::with_capacity(rows.len());
    bisect(rows, shapes, &mut forward, &mut results);
    results
}

fn bisect(
    rows: &[&[u32]],
    shapes: &[RowShape],
    forward: &mut impl FnMut(&[&[u32]], &[RowShape]) -> Result<Vectors, BatchError>,
    results: &mut Vec<Result<FiniteRow, RowFailure>>,
) {
    match forward(rows, shapes) {
        Ok(vectors) if vectors.len() == rows.len() => {
            results.extend(vectors.into_iter().map(|vector| vector.map_err(|_| RowFailure::NonFinite)));
        }
        // A device that returns too few rows cannot say which ones are missing.
        Ok(_) => results.extend(rows.iter().map(|_| Err(RowFailure::Failed))),
        Err(error) if rows.len() <= 1 => {
            let failure = match error {
                BatchError::OutOfMemory | BatchError::Failed(_) => RowFailure::Failed,
                BatchError::Panicked(_) => RowFailure::Panicked,
            };
            results.extend(rows.iter().map(|_| Err(failure)));
        }
        Err(_) => {
            let half = rows.len() / 2;
            bisect(&rows[..half], &shapes[..half], forward, results);
            bisect(&rows[half..], &shapes[half..], forward, results);
        }
    }
}
