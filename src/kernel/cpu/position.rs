//! What attention knows of places: rotations of queries and keys, and biases by distance.

/// Cosines and sines of rotary position embedding for every position of a model.
///
/// Formula: value pairs `(x[i], x[i + d/2])` of a head of size d turn by the angle `position·base^(−2i/d)/divisor` (Su et al.,
/// RoFormer; the halves-apart layout of transformers' `rotate_half`). Frequencies and angles are rounded to f32 where
/// the reference rounds them: at position 8,191 one unit in the last place of a frequency is visible in a vector.
#[derive(Debug)]
pub struct Rotary {
    /// `[positions, d/2]`.
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
}

impl Rotary {
    /// # Panics
    /// Never; an odd `head_size` leaves its last value out and is refused by `arch`.
    #[expect(clippy::cast_possible_truncation, reason = "the reference computes in f32")]
    pub fn new(base: f32, divisor: f32, head_size: usize, positions: usize) -> Self {
        let half = head_size / 2;
        let power = |i: usize| f64::from(base).powf(f64::from((2 * i) as f32 / head_size as f32)) as f32;
        let frequencies: Vec<f32> = (0..half).map(|i| 1.0 / power(i) / divisor).collect();
        let angles =
            || (0..positions).flat_map(|position| frequencies.iter().map(move |f| f64::from(position as f32 * f)));
        Self {
            cos: angles().map(|angle| angle.cos() as f32).collect(),
            sin: angles().map(|angle| angle.sin() as f32).collect(),
            half,
        }
    }

    /// Positions in the table.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }

    /// Cosines and sines, `[positions, head size / 2]`.
    pub fn parts(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }

    /// Memory held, in bytes.
    pub fn size_bytes(&self) -> usize {
        (self.cos.len() + self.sin.len()) * size_of::<f32>()
    }

    /// Writes `x`, one head of one token, turned by its position, through `put(index, value)`.
    #[inline]
    pub(super) fn turn(&self, position: usize, x: &[f32], mut put: impl FnMut(usize, f32)) {
        let row = position * self.half..(position + 1) * self.half;
        let (low, high) = x.split_at(self.half);
        let factors = self.cos[row.clone()].iter().zip(&self.sin[row]);
        for (i, ((a, b), (cos, sin))) in low.iter().zip(high).zip(factors).enumerate() {
            put(i, a * cos - b * sin);
            put(i + self.half, b * cos + a * sin);
        }
    }
}

/// An additive attention bias that depends on the head and on `key − query` alone.
#[derive(Debug)]
pub struct DistanceBias {
    /// `[heads, 2·reach + 1]`, from distance −reach on.
    values: Vec<f32>,
    reach: usize,
}

impl DistanceBias {
    /// `value(head, distance)` for distances up to `reach` either way; what is farther has the value at `reach`.
    pub fn new(n_heads: usize, reach: usize, value: impl Fn(usize, isize) -> f32) -> Self {
        let values = (0..n_heads).flat_map(|head| (0..=2 * reach).map(move |index| (head, index)));
        let distance = |index: usize| index.cast_signed() - reach.cast_signed();
        Self { values: values.map(|(head, index)| value(head, distance(index))).collect(), reach }
    }

    /// The bias of one head for rows of `n` tokens, `[2n − 1]` from distance −(n − 1) on.
    pub(super) fn expand(&self, head: usize, n: usize, out: &mut Vec<f32>) {
        let row = &self.values[head * (2 * self.reach + 1)..][..=2 * self.reach];
        let reach = self.reach.cast_signed();
        out.clear();
        out.extend((1 - n.cast_signed()..n.cast_signed()).map(|distance| {
            // Not negative after the clamp.
            row[(distance.clamp(-reach, reach) + reach).unsigned_abs()]
        }));
    }

    /// The values `[heads, 2·reach + 1]` from distance −reach on, and the reach.
    pub fn parts(&self) -> (&[f32], usize) {
        (&self.values, self.reach)
    }

    /// Memory held, in bytes.
    pub const fn size_bytes(&self) -> usize {
        self.values.len() * size_of::<f32>()
    }
}
