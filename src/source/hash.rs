//! Hashes of files: SHA-256, and the two SHA-1 forms that entity tags of small files take.
//!
//! SHA-1 protects nothing against a forger; here it finds flipped bytes and truncation in files whose only published
//! hash is git's. Whatever matters for security is pinned by SHA-256.

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest as _, Sha256 as Sha256State};

use crate::catalog::id::{Etag, Sha256};
use crate::source::error::Cause;

/// The SHA-256 of a file, in lower-case hexadecimal; `stop` ends it early.
pub(super) fn sha256_file(path: &Path, stop: &AtomicBool) -> Result<String, Cause> {
    let mut state = Sha256State::new();
    each_block(path, stop, |block| state.update(block))?;
    Ok(hex(&state.finalize()))
}

/// What a blob's name, its entity tag, says about its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Declared {
    /// 64 digits: a file in large-file storage.
    Sha256(Sha256),
    /// 40 digits: git's hash of a small file, or, from mirrors, SHA-1 of its bytes.
    Sha1(String),
    /// Anything else promises nothing.
    Nothing,
}

impl Declared {
    pub(super) fn of(etag: &Etag) -> Self {
        let tag = etag.as_str();
        match Sha256::parse(tag) {
            Ok(hash) => Self::Sha256(hash),
            Err(_) if tag.len() == 40 && tag.bytes().all(|b| b.is_ascii_hexdigit()) => {
                Self::Sha1(tag.to_ascii_lowercase())
            }
            Err(_) => Self::Nothing,
        }
    }
}

/// Checks a file against what its entity tag declares and what the catalogue pins.
pub(super) fn check(
    path: &Path,
    file: &str,
    declared: &Declared,
    pinned: Option<&Sha256>,
    stop: &AtomicBool,
) -> Result<(), Cause> {
    let mismatch =
        |expected: &str, found: String| Cause::Hash { file: file.to_owned(), expected: expected.to_owned(), found };
    if let Declared::Sha1(expected) = declared {
        let found = git_sha1_file(path, stop)?;
        // A mirror may send the hash of the bytes alone.
        if found != *expected && sha1_file(path, stop)? != *expected {
            return Err(mismatch(expected, found));
        }
    }
    let expected: Vec<&Sha256> = match declared {
        Declared::Sha256(hash) => pinned.into_iter().chain([hash]).collect(),
        Declared::Sha1(_) | Declared::Nothing => pinned.into_iter().collect(),
    };
    if expected.is_empty() {
        return Ok(());
    }
    let found = sha256_file(path, stop)?;
    match expected.into_iter().find(|hash| hash.as_str() != found) {
        Some(hash) => Err(mismatch(hash.as_str(), found)),
        None => Ok(()),
    }
}

fn git_sha1_file(path: &Path, stop: &AtomicBool) -> Result<String, Cause> {
    let size = std::fs::metadata(path).map_err(Cause::io("read", path))?.len();
    let mut state = Sha1::new();
    state.update(format!("blob {size}\0").as_bytes());
    each_block(path, stop, |block| state.update(block))?;
    Ok(state.finish())
}

fn sha1_file(path: &Path, stop: &AtomicBool) -> Result<String, Cause> {
    let mut state = Sha1::new();
    each_block(path, stop, |block| state.update(block))?;
    Ok(state.finish())
}

fn each_block(path: &Path, stop: &AtomicBool, mut take: impl FnMut(&[u8])) -> Result<(), Cause> {
    let mut file = File::open(path).map_err(Cause::io("open", path))?;
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(Cause::Stopped);
        }
        match file.read(&mut block).map_err(Cause::io("read", path))? {
            0 => return Ok(()),
            n => take(&block[..n]),
        }
    }
}

/// Lower-case hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// SHA-1 as in FIPS 180-4, for a few hundred kilobytes: written to be read.
struct Sha1 {
    state: [u32; 5],
    pending: Vec<u8>,
    length: u64,
}

impl Sha1 {
    fn new() -> Self {
        Self {
            state: [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0],
            pending: Vec::new(),
            length: 0,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        self.pending.extend_from_slice(bytes);
        let pending = std::mem::take(&mut self.pending);
        let (blocks, rest) = pending.as_chunks::<64>();
        for block in blocks {
            self.compress(block);
        }
        self.pending = rest.to_vec();
    }

    fn finish(mut self) -> String {
        let bits = self.length * 8;
        let zeros = (119 - self.pending.len() % 64) % 64;
        let mut tail = vec![0x80];
        tail.resize(1 + zeros, 0);
        tail.extend_from_slice(&bits.to_be_bytes());
        self.update(&tail);
        let bytes: Vec<u8> = self.state.iter().flat_map(|word| word.to_be_bytes()).collect();
        hex(&bytes)
    }

    fn compress(&mut self, block: &[u8; 64]) {
        let mut words = [0_u32; 80];
        for (word, bytes) in words.iter_mut().zip(block.as_chunks::<4>().0) {
            *word = u32::from_be_bytes(*bytes);
        }
        for t in 16..80 {
            words[t] = (words[t - 3] ^ words[t - 8] ^ words[t - 14] ^ words[t - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = self.state;
        for (t, word) in words.iter().enumerate() {
            let (mix, constant) = match t / 20 {
                0 => ((b & c) | (!b & d), 0x5a82_7999),
                1 => (b ^ c ^ d, 0x6ed9_eba1),
                2 => ((b & c) | (b & d) | (c & d), 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6_u32),
            };
            let next = a.rotate_left(5).wrapping_add(mix).wrapping_add(e).wrapping_add(constant).wrapping_add(*word);
            (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
        }
        for (state, add) in self.state.iter_mut().zip([a, b, c, d, e]) {
            *state = state.wrapping_add(add);
        }
    }
}

/// Large enough that system calls cost nothing, small enough that `stop` is seen within milliseconds.
const BLOCK_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn sha1(bytes: &[u8], step: usize) -> String {
        let mut state = Sha1::new();
        bytes.chunks(step).for_each(|chunk| state.update(chunk));
        state.finish()
    }

    #[test]
    fn sha1_gives_the_standard_vectors_however_it_is_fed() {
        let million = vec![b'a'; 1_000_000];
        for step in [1, 3, 63, 64, 65, 1_000] {
            assert_eq!(sha1(b"abc", step), "a9993e364706816aba3e25717850c26c9cd0d89d");
            assert_eq!(sha1(&million, step), "34aa973cd4c4daa4f61eeb2bdbad27316534016f");
        }
        assert_eq!(sha1(b"", 1), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
    }

    #[test]
    fn padding_is_right_at_every_length_around_a_block() {
        // Every length's hash must differ from every other's, and 55, 56 and 64 are where padding changes shape.
        let known = [
            (55, "c1c8bbdc22796e28c0e15163d20899b65621d65a"),
            (56, "c2db330f6083854c99d4b5bfb6e8f29f201be699"),
            (64, "0098ba824b5c16427bd7a1122a5a442a25ec644d"),
        ];
        for (length, expected) in known {
            assert_eq!(sha1(&vec![b'a'; length], 7), expected, "{length}");
        }
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "a test's own file")]
    fn a_git_blob_hash_is_that_of_git() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        std::fs::write(&path, "hello\n").unwrap();
        // `echo hello | git hash-object --stdin`
        assert_eq!(git_sha1_file(&path, &AtomicBool::new(false)).unwrap(), "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}
