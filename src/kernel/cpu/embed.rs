//! Embedding lookup: `norm(word[id] + token_type[0] + position[p])` per token, gathered and normalised in one pass. Each
//! part but the words is optional. The order of the sum is that of the reference implementation (transformers'
//! `BertEmbeddings`).

use candle_core::Result;
use rayon::prelude::*;

use super::norm::{Norm, normalise};
use super::{Isa, dispatch};

/// The tables, all `[rows, width]` row-major.
#[derive(Debug)]
pub struct Tables<'a> {
    pub width: usize,
    pub word: &'a [f32],
    pub position: Option<&'a [f32]>,
    pub token_type: Option<&'a [f32]>,
    pub norm: Option<&'a Norm>,
}

/// One row per token; `ids` and `positions` are of equal length.
///
/// # Errors
/// An id or position outside its table.
pub fn embed(isa: Isa, tables: &Tables<'_>, ids: &[u32], positions: &[u32]) -> Result<Vec<f32>> {
    let width = tables.width;
    check("token id", ids, tables.word.len() / width)?;
    if let Some(position) = tables.position {
        check("position", positions, position.len() / width)?;
    }
    let mut out = vec![0.0; ids.len() * width];
    out.par_chunks_mut(width).zip(ids.par_iter().zip(positions)).for_each(|(out, (&id, &position))| {
        dispatch!(isa, embed_row(out: &mut [f32], tables: &Tables<'_>, id: u32, position: u32));
    });
    Ok(out)
}

fn check(what: &str, indices: &[u32], rows: usize) -> Result<()> {
    match indices.iter().find(|&&index| index as usize >= rows) {
        Some(index) => candle_core::bail!("{what} {index} is outside a table of {rows} rows"),
        None => Ok(()),
    }
}

#[inline(always)]
fn embed_row<const FUSED: bool>(out: &mut [f32], tables: &Tables<'_>, id: u32, position: u32) {
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
