//! Pieces of words by their bytes: what is the longest one that some bytes begin with?

use std::collections::HashMap;

/// An open-addressed table of the pieces that fit a number, and the few that do not.
#[derive(Debug)]
pub(super) struct Pieces {
    /// One byte of each piece's hash, 0 where there is none: small enough to stay in the cache, and what most look-ups of
    /// pieces that do not exist end at.
    tags: Box<[u8]>,
    entries: Box<[Entry]>,
    /// By how far a hash is shifted to become a place.
    shift: u32,
    long: HashMap<Box<[u8]>, u32>,
    longest: usize,
}

/// Pieces of at most this many bytes are compared as one number.
pub(super) const KEY_BYTES: usize = 16;

#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    key: [u64; 2],
    id: u32,
}

impl Pieces {
    pub(super) fn new<'a>(pieces: impl Iterator<Item = (&'a str, u32)>) -> Self {
        // Others cannot stand in a word that is read here.
        let pieces: Vec<(&[u8], u32)> = pieces
            .map(|(piece, id)| (piece.as_bytes(), id))
            .filter(|(piece, _)| {
                !piece.is_empty() && !piece.iter().any(|byte| *byte <= b' ' || byte.is_ascii_control())
            })
            .collect();
        let bits = (2 * pieces.len()).next_power_of_two().max(2).ilog2();
        let (tags, entries) = (vec![0; 1 << bits].into(), vec![Entry::default(); 1 << bits].into());
        let longest = pieces.iter().map(|(piece, _)| piece.len()).max().unwrap_or(0);
        let mut table = Self { tags, entries, shift: u64::BITS - bits, long: HashMap::new(), longest };
        for (piece, id) in pieces {
            if piece.len() > KEY_BYTES {
                table.long.insert(piece.into(), id);
            } else {
                let mut room = [0; KEY_BYTES];
                room[..piece.len()].copy_from_slice(piece);
                table.insert(halves(u128::from_le_bytes(room)), id);
            }
        }
        table
    }

    fn insert(&mut self, key: [u64; 2], id: u32) {
        let (mut place, tag) = self.place(key);
        while self.tags[place] != 0 {
            place = (place + 1) & (self.tags.len() - 1);
        }
        self.tags[place] = tag;
        self.entries[place] = Entry { key, id };
    }

    /// The longest piece that the first `length` bytes of `rest` begin with: its length and its id. There are at least
    /// [`KEY_BYTES`] of them, whatever they are behind `length`.
    pub(super) fn longest(&self, rest: &[u8], length: usize) -> Option<(usize, u32)> {
        let length = length.min(self.longest);
        let long = (KEY_BYTES + 1..=length).rev().find_map(|n| Some((n, *self.long.get(rest.get(..n)?)?)));
        if long.is_some() {
            return long;
        }
        let key = u128::from_le_bytes(*rest.first_chunk()?);
        (1..=length.min(KEY_BYTES))
            .rev()
            .find_map(|n| Some((n, self.find(halves(key & (u128::MAX >> (128 - 8 * n))))?)))
    }

    fn find(&self, key: [u64; 2]) -> Option<u32> {
        let (mut place, tag) = self.place(key);
        // At least half of the places are empty, so this ends.
        loop {
            let found = self.tags[place];
            if found == tag && self.entries[place].key == key {
                return Some(self.entries[place].id);
            }
            if found == 0 {
                return None;
            }
            place = (place + 1) & (self.tags.len() - 1);
        }
    }

    /// Where a key belongs, and its tag.
    #[expect(clippy::cast_possible_truncation, reason = "the upper bits become a place, eight lower ones a tag")]
    fn place(&self, [low, high]: [u64; 2]) -> (usize, u8) {
        let mixed = low.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ high.wrapping_mul(0xC2B2_AE3D_27D4_EB4F);
        let mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        ((mixed >> self.shift) as usize, (mixed >> 24) as u8 | 1)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "that is what halves are")]
const fn halves(key: u128) -> [u64; 2] {
    [key as u64, (key >> 64) as u64]
}
