//! The self-test of float16, which ends at 65,504: known texts go through the model before it serves, and one whose vector is
//! not finite refuses it. Nothing is computed in another format instead: whoever wants one has to say so.
//!
//! What overflows with texts that are not among these fails later as a row of its own. The kernels see to it that an
//! overflow reaches the vector. Runs on the loading thread.

use thiserror::Error;

use crate::request::{Dimensions, RowShape};
use crate::runner::Computation;

/// Why a model may not serve in float16.
#[derive(Debug, Error)]
pub enum OverflowError {
    #[error(
        "float16 overflows in this model: {infinite} of {texts} known texts have a vector that is not finite; use dtype = bf16 \
         or f32"
    )]
    Refused { infinite: usize, texts: usize },
    #[error("the f16 encoder failed on one of the texts that it is tested with: {0}")]
    Failed(String),
}

/// Computes `rows` one by one, so that memory stays small.
///
/// # Errors
/// [`OverflowError::Refused`] if any vector is not finite; a forward pass that failed.
pub fn check(computation: &mut Computation, rows: &[Vec<u32>], dimensions: Dimensions) -> Result<(), OverflowError> {
    let mut infinite = 0;
    for row in rows {
        let found = computation.run_in_turn(&[row], &[RowShape::whole(dimensions)]);
        let (vectors, _) = found.map_err(|error| OverflowError::Failed(error.into_reason()))?;
        infinite += vectors.iter().filter(|vector| vector.is_err()).count();
    }
    if infinite == 0 { Ok(()) } else { Err(OverflowError::Refused { infinite, texts: rows.len() }) }
}
