//! Embedding lookup: `norm(word[id] + token_type[0] + position[p])` per token, gathered and normalised in one pass. Each
//! part but the words is optional. The order of the sum is that of the reference implementation (transformers'
//! `BertEmbeddings`).

use super::norm::{Norm, normalise};
use super::{Isa, dispatch};

/// The tables, all `[rows, width]` row-major.
#[derive(Debug, Clone, Copy)]
pub struct Tables<'a> {
    pub width: usize,
    pub word: &'a [f32],
    pub position: Option<&'a [f32]>,
    pub token_type: Option<&'a [f32]>,
    pub norm: Option<&'a Norm>,
}

/// One token: its id and its row of the position table, both inside their tables.
pub(super) fn embed_row(isa: Isa, out: &mut [f32], tables: &Tables<'_>, id: u32, position: u32) {
    dispatch!(isa, gather(out: &mut [f32], tables: &Tables<'_>, id: u32, position: u32));
}

#[inline(always)]
fn gather<const FUSED: bool>(out: &mut [f32], tables: &Tables<'_>, id: u32, position: u32) {
    let width = out.len();
    out.copy_from_slice(&tables.word[id as usize * width..][..width]);
    if let Some(token_type) = tables.token_type {
        for (x, token_type) in out.iter_mut().zip(token_type) {
            *x += token_type;
        }
    }
    if let Some(table) = tables.position {
        for (x, position) in out.iter_mut().zip(&table[position as usize * width..][..width]) {
            *x += position;
        }
    }
    if let Some(norm) = tables.norm {
        normalise::<FUSED>(out, norm);
    }
}
