//! Tiles without any instruction set: every processor, and the order of sums that the others are tested against.

use half::bf16;

use super::{LINE, PANEL, STEP, Tile};
use crate::kernel::Precision;

/// # Safety
/// See [`super::run`].
pub(super) unsafe fn run(precision: Precision, rows: usize, tile: &Tile) {
    for row in 0..rows {
        let mut sums = [0.0_f32; PANEL];
        let mut integers = [0_i32; PANEL];
        if precision == Precision::Int8 {
            // SAFETY: the caller promises one value per column.
            integers = unsafe { tile.scales.start.cast::<[i32; PANEL]>().read_unaligned() };
        }
        for step in 0..tile.steps {
            // SAFETY: the caller promises all steps of every row.
            let a = unsafe { group(tile.a, row * tile.a_stride + step * STEP) };
            for column in 0..PANEL {
                // SAFETY: the caller promises one panel of all steps.
                let b = unsafe { group(tile.b, step * LINE + column * STEP) };
                match precision {
                    Precision::F32 => sums[column] += f32::from_le_bytes(a) * f32::from_le_bytes(b),
                    Precision::Bf16 => sums[column] = add_pair(sums[column], a, b),
                    Precision::F16 => unreachable!("no matrix holds float16"),
                    Precision::Int8 => integers[column] += fours(a, b),
                }
            }
        }
        if precision == Precision::Int8 {
            // SAFETY: the caller promises one value per row.
            let scale = unsafe { tile.scales.rows.wrapping_add(row).read() };
            // SAFETY: the caller promises one value per column.
            let columns = unsafe { tile.scales.columns.cast::<[f32; PANEL]>().read_unaligned() };
            for ((sum, integer), column) in sums.iter_mut().zip(integers).zip(columns) {
                *sum = integer as f32 * (scale * column);
            }
        }
        // SAFETY: passed on from the caller.
        unsafe { store(tile, row, &sums) };
    }
}

/// The four bytes at an offset.
///
/// # Safety
/// They can be read.
unsafe fn group(start: *const u8, offset: usize) -> [u8; STEP] {
    // SAFETY: the caller promises that they can be read.
    unsafe { start.wrapping_add(offset).cast::<[u8; STEP]>().read_unaligned() }
}

/// Two products of bf16 values, each exact in f32, added one after the other, the second of the pair first, as the
/// processors' own instruction does.
fn add_pair(sum: f32, a: [u8; STEP], b: [u8; STEP]) -> f32 {
    let value =
        |bytes: [u8; STEP], index: usize| bf16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32();
    (sum + value(a, 1) * value(b, 1)) + value(a, 0) * value(b, 0)
}

/// Four products of an unsigned and a signed byte.
fn fours(a: [u8; STEP], b: [u8; STEP]) -> i32 {
    a.iter().zip(b).map(|(a, b)| i32::from(*a) * i32::from(b.cast_signed())).sum()
}

/// # Safety
/// See [`super::run`].
unsafe fn store(tile: &Tile, row: usize, sums: &[f32; PANEL]) {
    for (column, sum) in sums.iter().enumerate() {
        let mut value = *sum;
        if !tile.bias.is_null() {
            // SAFETY: the caller promises one value per column.
            value += unsafe { tile.bias.wrapping_add(column).read() };
        }
        // SAFETY: the caller promises the whole row of the tile.
        let c = unsafe { &mut *tile.c.wrapping_add(row * tile.c_stride + column) };
        *c = if tile.add { value + *c } else { value };
    }
}
