//! A row-major f32 matrix that several threads write, each its own rectangle.

/// An address and a shape. Copying it copies no values.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows {
    start: *mut f32,
    /// Values from one row to the next.
    stride: usize,
}

// SAFETY: an address; whoever reads or writes through it promises that no other thread writes there.
unsafe impl Send for Rows {}
// SAFETY: as above.
unsafe impl Sync for Rows {}

impl Rows {
    pub(super) const fn new(values: &mut [f32], stride: usize) -> Self {
        Self { start: values.as_mut_ptr(), stride }
    }

    /// Rows that are only read: what is reached through them must not be written.
    pub(super) const fn read_only(values: &[f32], stride: usize) -> Self {
        Self { start: values.as_ptr().cast_mut(), stride }
    }

    pub(super) const fn stride(self) -> usize {
        self.stride
    }

    /// The matrix that begins at a place inside this one. Nothing is read.
    pub(super) const fn at(self, row: usize, column: usize) -> Self {
        Self { start: self.start.wrapping_add(row * self.stride + column), stride: self.stride }
    }

    pub(super) const fn as_ptr(self) -> *mut f32 {
        self.start
    }

    /// # Safety
    /// The values lie inside the allocation and nobody writes them meanwhile.
    pub(super) const unsafe fn row<'a>(self, row: usize, width: usize) -> &'a [f32] {
        // SAFETY: passed on from the caller.
        unsafe { std::slice::from_raw_parts(self.start.wrapping_add(row * self.stride), width) }
    }

    /// # Safety
    /// The values lie inside the allocation and nobody else reads or writes them meanwhile.
    pub(super) const unsafe fn row_mut<'a>(self, row: usize, width: usize) -> &'a mut [f32] {
        // SAFETY: passed on from the caller.
        unsafe { std::slice::from_raw_parts_mut(self.start.wrapping_add(row * self.stride), width) }
    }
}

/// The first values of the first rows of a matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rectangle {
    pub(super) rows: Rows,
    pub(super) n_rows: usize,
    /// Values of each row.
    pub(super) width: usize,
}

/// A row stride for `width` values: whole cache lines, an odd number of them. Rows whose distance is a multiple of 4,096
/// bytes would all compete for the same few lines of the first-level cache.
pub(super) const fn padded(width: usize) -> usize {
    const LINE: usize = 16;
    (width.div_ceil(LINE) | 1) * LINE
}
