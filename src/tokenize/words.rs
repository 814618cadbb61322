//! Words that a tokenizer knows as a whole, for texts whose number of tokens is known beforehand.

/// Entries of a vocabulary that are one token each, wherever they stand in a text, and the special tokens around a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WholeWords {
    /// In the order of their ids.
    pub words: Vec<String>,
    /// Special tokens of every text.
    pub frame: usize,
}

/// Enough for texts of which no two look alike, and quickly found.
const MAX_WORDS: usize = 4000;

/// Lower-case ASCII words of two letters or more, which no normaliser changes, of a vocabulary; `ids` reads a text, around
/// which there will be `frame` special tokens.
pub(super) fn find(
    mut entries: Vec<(u32, String)>,
    frame: usize,
    ids: impl Fn(&str) -> Result<Vec<u32>, String>,
) -> WholeWords {
    entries.sort_unstable();
    let whole = |(_, entry): (u32, String)| {
        // WordPiece writes a word as it is, SentencePiece and byte-level BPE with a sign for the space before it.
        let word = entry.trim_start_matches(['\u{2581}', '\u{120}']);
        let plain = word.len() >= 2 && word.bytes().all(|byte| byte.is_ascii_lowercase());
        // As the first word of a text and as a later one.
        let whole = plain && ids(&format!("{word} {word}")).is_ok_and(|ids| ids.len() == 2);
        whole.then(|| word.to_owned())
    };
    let words = entries.into_iter().filter_map(whole).take(MAX_WORDS).collect();
    WholeWords { words, frame }
}
