//! The shape of a batch: what grids of kernels are made of, and what a recording of their launches is good for.
//!
//! Small batches are rounded up, so that few shapes have to be recorded: the tokens beyond a batch are a sequence of their
//! own, which is computed like any other and which nobody reads, and the tiles beyond it have no tokens. A row has the same
//! kernels whether their launches are recorded or not.

use std::collections::HashMap;

use crate::arch::packed::PackedBatch;
use crate::kernel::cuda::{CudaError, Device, Format, Recording};

/// The largest batch that is recorded, in tokens. Above, kernels take longer than their launches, and what rounding adds to
/// them costs more than a recording saves.
const LARGEST: usize = 256;
/// The smallest shape. Products have a plan for so many tokens at least.
const SMALLEST: usize = 16;
/// Recordings that are kept at most, each of a few hundred launches: more than there are shapes of usual batches.
const MOST: usize = 32;

/// Tokens, and tiles of queries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) tokens: usize,
    pub(super) tiles: usize,
}

/// What has been recorded of one encoder's launches.
#[derive(Debug, Default)]
pub(super) struct Recordings {
    /// Of shapes that were met; the first time their launches are asked for one by one.
    shapes: HashMap<Shape, Option<Recording>>,
    /// Where the numbers lie that the launches read.
    address: u64,
    /// Something could not be recorded, and nothing is any more.
    given_up: bool,
}

/// So many tokens in the shape of a small batch; as they are in that of a large one.
pub(super) const fn rounded(tokens: usize) -> usize {
    if tokens > LARGEST {
        tokens
    } else if tokens < SMALLEST {
        SMALLEST
    } else {
        tokens.next_power_of_two()
    }
}

impl Shape {
    /// Of just this batch.
    pub(super) fn of(batch: &PackedBatch, format: Format) -> Self {
        let tiles = batch.sequences().map(|row| row.len().div_ceil(format.tile_queries())).sum();
        Self { tokens: batch.n_tokens(), tiles }
    }

    /// One that this and many other batches fit, if it is that of a small one.
    pub(super) fn rounded(self, format: Format) -> Self {
        if !self.is_small() {
            return self;
        }
        let tokens = rounded(self.tokens);
        let beyond = (tokens - self.tokens).div_ceil(format.tile_queries());
        Self { tokens, tiles: (self.tiles + beyond).next_power_of_two().max(2) }
    }

    pub(super) const fn is_small(self) -> bool {
        self.tokens <= LARGEST
    }
}

impl Recordings {
    /// Forgets all of them: the memory that they work on goes.
    pub(super) fn forget(&mut self) {
        self.shapes.clear();
    }

    /// Asks for `launches` of a shape, with numbers that lie at this address: by a recording, if there is one or can be one.
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn ask(
        &mut self,
        device: &Device,
        shape: Shape,
        address: u64,
        launches: impl Fn(&Device) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        if self.address != address {
            self.forget();
            self.address = address;
        }
        match self.shapes.get(&shape) {
            Some(Some(recording)) => return recording.play(),
            Some(None) if !self.given_up => match device.record(&launches) {
                Ok(recording) => {
                    recording.play()?;
                    self.shapes.insert(shape, Some(recording));
                    return Ok(());
                }
                Err(error) => {
                    tracing::warn!(%error, "kernels of small batches are launched one by one: recording them failed");
                    self.given_up = true;
                }
            },
            None if self.shapes.len() < MOST => {
                self.shapes.insert(shape, None);
            }
            Some(None) | None => {}
        }
        launches(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_shapes_fit_all_small_batches() {
        for format in Format::ALL {
            let mut shapes = std::collections::HashSet::new();
            for row in 1..=300 {
                for rows in 1..=300 / row {
                    let ids = vec![5_u32; row];
                    let batch = PackedBatch::new(std::iter::repeat_n(ids.as_slice(), rows));
                    let exact = Shape::of(&batch, format);
                    let shape = exact.rounded(format);
                    if exact.is_small() {
                        assert!(shape.tokens >= exact.tokens && shape.tokens < 2 * exact.tokens.max(SMALLEST));
                        assert!(shape.tiles >= exact.tiles, "{exact:?}: {shape:?}");
                        shapes.insert(shape);
                    } else {
                        assert_eq!(shape, exact);
                    }
                }
            }
            assert!(shapes.len() <= MOST, "{format:?}: {}", shapes.len());
        }
    }
}
