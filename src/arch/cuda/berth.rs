//! What a batch has to itself while it is on a device: the numbers that the kernels read, the vectors that they leave, and
//! the locked memory that both go through. There are two, so that one batch arrives while the one before is computed; all
//! else, activations above all, the kernels of one batch leave to those of the next.

use super::shape::Shape;
use crate::arch::packed::PackedBatch;
use crate::arch::position;
use crate::arch::spec::FirstPosition;
use crate::kernel::cuda::launch::Places;
use crate::kernel::cuda::{Buffer, CudaError, Device, Format, Pinned};

/// The place of one batch.
#[derive(Debug)]
pub(super) struct Berth {
    /// Before the buffers: dropped first, they wait for their copies.
    sent: Pinned,
    received: Pinned,
    numbers: Buffer,
    pub(super) pooled: Buffer,
    pub(super) state: State,
}

/// What is in a berth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing, and the device has nothing to do there.
    Free,
    /// A batch that failed before all of it was asked for: kernels and copies of it may still be to come.
    Unsettled,
    /// A batch whose vectors, so many values, are on their way back.
    UnderWay { values: usize },
}

/// The numbers of a batch in their buffer: ids, positions and places of as many tokens as its shape has, the tiles, and from
/// here on those of which there are as many as rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    pub(super) shape: Shape,
    offsets: usize,
    skips: usize,
}

impl Berth {
    /// # Errors
    /// Out of memory.
    pub(super) fn new(device: &Device) -> Result<Self, CudaError> {
        let (sent, received) = (device.pinned(), device.pinned());
        Ok(Self { sent, received, numbers: device.allocate(0)?, pooled: device.allocate(0)?, state: State::Free })
    }

    /// Room for batches of so many numbers and values.
    ///
    /// # Errors
    /// Out of memory.
    pub(super) fn grow(&mut self, device: &Device, n_numbers: usize, n_values: usize) -> Result<(), CudaError> {
        device.grow(&mut self.numbers, n_numbers * size_of::<u32>())?;
        self.sent.grow(n_numbers * size_of::<u32>())?;
        device.grow(&mut self.pooled, n_values * size_of::<f32>())?;
        self.received.grow(n_values * size_of::<f32>())
    }

    /// All numbers of a batch that kernels read, as [`lay_out`] gives them, in one upload.
    ///
    /// # Errors
    /// Out of memory, or the device failed.
    pub(super) fn send(&mut self, device: &Device, numbers: &[u32]) -> Result<(), CudaError> {
        self.state = State::Unsettled;
        device.grow(&mut self.numbers, size_of_val(numbers))?;
        self.sent.send(numbers, &mut self.numbers)
    }

    /// The numbers that were sent last.
    pub(super) const fn places(&self, layout: Layout) -> Places<'_> {
        let Layout { shape: Shape { tokens, tiles: n_tiles }, offsets, skips } = layout;
        let (positions, places, tiles) = (tokens, 2 * tokens, 3 * tokens);
        Places { buffer: &self.numbers, ids: 0, positions, places, offsets, skips, tiles, n_tiles }
    }

    /// Where the numbers lie.
    pub(super) const fn address(&self) -> u64 {
        self.numbers.address()
    }

    /// Asks for the vectors.
    ///
    /// # Errors
    /// The device failed.
    pub(super) fn fetch(&mut self, values: usize) -> Result<(), CudaError> {
        self.received.fetch(&self.pooled, values)?;
        self.state = State::UnderWay { values };
        Ok(())
    }

    /// The vectors, once they are here.
    ///
    /// # Errors
    /// The device failed, now or while it computed.
    pub(super) fn arrived(&mut self, values: usize) -> Result<Vec<f32>, CudaError> {
        self.state = State::Unsettled;
        let vectors = self.received.arrived(values)?;
        self.state = State::Free;
        Ok(vectors)
    }
}

/// How many numbers a batch of so many tokens and rows may have, whatever its shape.
pub(super) fn most_numbers(tokens: usize, rows: usize, format: Format) -> usize {
    // Three for each tile, of which every row may have a short one, and what lies beyond the batch another one.
    let n_tiles = (rows + tokens / format.tile_queries() + 1).next_power_of_two();
    3 * tokens + 3 * n_tiles + 2 * rows + 1
}

/// The numbers of a batch, in a shape that it fits, and where they lie.
pub(super) fn lay_out(
    batch: &PackedBatch,
    skips: &[usize],
    shape: Shape,
    first_position: FirstPosition,
    format: Format,
) -> (Vec<u32>, Layout) {
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let Shape { tokens, tiles } = shape;
    let mut numbers: Vec<u32> = Vec::with_capacity(3 * (tokens + tiles) + 2 * batch.n_rows() + 1);
    // Of a token beyond the batch all three are 0, which every table has.
    numbers.extend_from_slice(batch.ids());
    numbers.resize(tokens, 0);
    numbers.extend(position::rows(first_position, batch));
    numbers.resize(2 * tokens, 0);
    numbers.extend(batch.sequences().flat_map(|row| (0..).take(row.len())));
    numbers.resize(3 * tokens, 0);
    let beyond = (batch.n_tokens(), tokens);
    for (start, end) in batch.offsets().windows(2).map(|span| (span[0], span[1])).chain([beyond]) {
        let queries = (0..end - start).step_by(format.tile_queries());
        numbers.extend(queries.flat_map(|query| [start, end - start, query].map(number)));
    }
    while numbers.len() < 3 * (tokens + tiles) {
        numbers.extend(EMPTY_TILE);
    }
    let offsets = numbers.len();
    numbers.extend(batch.offsets().iter().copied().map(number));
    let first_skip = numbers.len();
    numbers.extend(skips.iter().copied().map(number));
    (numbers, Layout { shape, offsets, skips: first_skip })
}

/// A tile without tokens: it looks at the row before its first one before it finds nothing to do, so there has to be one.
const EMPTY_TILE: [u32; 3] = [1, 0, 0];
