//! Identifiers of answers and requests: 32 hex digits, unique, and of no use for guessing the next one.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// The process's own key. The hasher's random state stands in where the system refuses random bytes: an identifier
/// must be unique, it guards nothing.
static KEY: LazyLock<[u8; 32]> = LazyLock::new(|| {
    let mut key = [0; 32];
    if getrandom::fill(&mut key).is_err() {
        for (chunk, salt) in key.chunks_mut(8).zip(0_u64..) {
            chunk.copy_from_slice(&RandomState::new().hash_one(salt).to_le_bytes());
        }
    }
    key
});

static NEXT: AtomicU64 = AtomicU64::new(0);

/// `prefix` and 32 lower-case hex digits.
pub fn unique(prefix: &str) -> String {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let digest = blake3::keyed_hash(&KEY, &number.to_le_bytes()).to_hex();
    format!("{prefix}{}", &digest.as_str()[..32])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_have_their_form_and_differ() {
        let (a, b) = (unique("embd-"), unique("embd-"));
        assert_ne!(a, b);
        let digits = a.strip_prefix("embd-").unwrap();
        assert_eq!(digits.len(), 32);
        assert!(digits.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')));
    }
}
