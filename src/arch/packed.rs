//! A packed batch: the token ids of all rows end to end, and where each row begins.
//!
//! There is no padding and no mask anywhere: linear layers see one matrix of all tokens, attention and pooling work
//! between offsets.

use std::sync::Arc;

/// What a forward pass reads. Built once per batch.
#[derive(Debug, Clone)]
pub struct PackedBatch {
    ids: Vec<u32>,
    /// `cu_seqlens`: n + 1 offsets into `ids`, the first 0, the last the number of tokens.
    offsets: Arc<[usize]>,
}

impl PackedBatch {
    /// Lays rows end to end, in order.
    pub fn new<'a>(rows: impl IntoIterator<Item = &'a [u32]>) -> Self {
        let (mut ids, mut offsets) = (Vec::new(), vec![0]);
        for row in rows {
            ids.extend_from_slice(row);
            offsets.push(ids.len());
        }
        Self { ids, offsets: offsets.into() }
    }

    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The token ids of every row, in order.
    pub fn sequences(&self) -> impl Iterator<Item = &[u32]> {
        self.offsets.windows(2).map(|span| &self.ids[span[0]..span[1]])
    }

    pub const fn offsets(&self) -> &Arc<[usize]> {
        &self.offsets
    }

    pub fn n_rows(&self) -> usize {
        self.offsets.len() - 1
    }

    pub const fn n_tokens(&self) -> usize {
        self.ids.len()
    }

    /// The token ids of one row.
    pub fn row(&self, index: usize) -> &[u32] {
        &self.ids[self.offsets[index]..self.offsets[index + 1]]
    }
}
