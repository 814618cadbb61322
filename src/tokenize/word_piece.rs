//! BERT's tokenizer on plain text, without the library: the library keeps a normalised copy of the text with the origin of
//! every byte, a split and a string per word, and a string per token; ids need none of it.
//!
//! The ids are the library's own, always. [`WordPiece::of`] recognises the one combination that is read here
//! (`BertNormalizer`, `BertPreTokenizer`, `WordPiece`) and compares both readings of some probes before it agrees. In it
//! words between white space do not touch each other and letters are normalised one by one. Read here are ASCII and the
//! letters of which the library was asked at load (the alphabets of Europe and its neighbours, the usual typographic
//! marks). Words with anything else are normalised and divided by the library, and a text that may hold an added token is,
//! whole; what words consist of is always looked up here. The library tries every piece of a word for every start, with an
//! allocation each: a hundred rare letters cost it half a millisecond.
//!
//! `benches/tokenise.rs` times both.

mod pieces;

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokenizers::normalizers::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{
    ModelWrapper, NormalizedString, Normalizer, NormalizerWrapper, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, PreTokenizerWrapper, Tokenizer,
};

use super::load;
use pieces::{KEY_BYTES, Pieces};

/// A vocabulary, arranged for looking up the pieces of words.
#[derive(Debug)]
pub struct WordPiece {
    /// Pieces that begin a word.
    first: Pieces,
    /// Pieces that go on with it, without the prefix that marks them.
    next: Pieces,
    unknown: u32,
    /// Longer words are unknown.
    max_word_chars: usize,
    kinds: [Kind; 256],
    /// Every byte as the vocabulary has it: in lower case, where the model wants that.
    folded: [u8; 256],
    /// What becomes of the characters in [`LETTERS`], one range behind the other.
    letters: Box<[Letter]>,
    /// Tokens that are recognised before words are.
    added: Vec<Box<[u8]>>,
}

/// What a byte is to the tokenizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Space,
    /// A part of a word.
    Word,
    /// Punctuation: a word of its own.
    Mark,
    /// Punctuation that an added token begins with.
    Added,
    /// For the library, unless it is a [`Letter`]: control characters, and every byte of what is not ASCII.
    Foreign,
}

/// A character that is not ASCII, normalised.
#[derive(Debug, Clone, Copy, Default)]
struct Letter {
    /// As many of them as it has bytes; none for a character that is left to the library.
    bytes: [u8; LETTER_BYTES],
    length: usize,
    /// Punctuation: a word of its own.
    is_mark: bool,
}

/// A word as far as it has been read.
struct Word {
    bytes: [u8; ROOM],
    length: usize,
    /// May be more than are kept: such a word is unknown, whatever it goes on with.
    chars: usize,
}

/// How the reading of one run of words ended.
enum Chunk {
    /// White space or the end of the text lies here.
    End(usize),
    Foreign,
    Added,
}

/// The library's word limit that we have room for; every known model has 100.
const MAX_WORD_CHARS: usize = 112;
/// Of those in [`LETTERS`].
const LETTER_BYTES: usize = 3;
/// Of any character.
const CHAR_BYTES: usize = 4;
/// Room for a word and for a whole [`KEY_BYTES`] from each of its bytes on.
const ROOM: usize = MAX_WORD_CHARS * CHAR_BYTES + KEY_BYTES;
/// Latin to Arabic, and the marks of typography: what UTF-8 writes in two bytes, and a block that it writes in three.
const LETTERS: [std::ops::Range<u32>; 2] = [0x80..0x800, 0x2000..0x2100];

/// Read in both ways before ours is used.
const PROBES: [&str; 6] = [
    "The quick brown fox, unquestionably, jumps over 13 lazy dogs. WORLD-WIDE tokenization costs $5 & counting!",
    " \t\r\n leading\u{a0}and trailing (don't) [x] <y> {z} a.b.c \u{7f} \u{1}\u{2} end\u{b}of it ",
    "Schlüssel größer naïve Ångström 北京 and 東京タワー не спеши, then ASCII; \u{301}e\u{301} a\u{fffd}b \u{200b}",
    "[CLS] [SEP] [MASK] [PAD] [UNK] <s> </s> <mask> <pad> <unk> ##ing #hash",
    "pneumonoultramicroscopicsilicovolcanoconiosis zqxjkvbwzqxjkvbw 0123456789 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "",
];

impl WordPiece {
    /// The fast reading of a tokenizer, if it is one that this module reads. The library's own truncation and padding
    /// must be off.
    pub fn of(library: &Tokenizer) -> Option<Self> {
        let Some(NormalizerWrapper::BertNormalizer(normalizer)) = library.get_normalizer() else { return None };
        let Some(PreTokenizerWrapper::BertPreTokenizer(_)) = library.get_pre_tokenizer() else { return None };
        let ModelWrapper::WordPiece(model) = library.get_model() else { return None };
        if !normalizer.clean_text {
            // Words could hold control characters, which our pieces cannot.
            return None;
        }
        let max_word_chars = model.max_input_chars_per_word;
        if !(1..=MAX_WORD_CHARS).contains(&max_word_chars) {
            return None;
        }
        let tokens = library.get_added_tokens_decoder();
        let added: Vec<Box<[u8]>> = tokens.values().map(|token| token.content.bytes().collect()).collect();
        // Such a token is also spelt with letters that are no ASCII before they are normalised.
        let letters = if tokens.values().any(|token| token.normalized) { Box::default() } else { letters(*normalizer) };
        // Anything else could match inside a word or across white space.
        let is_plain = |token: &[u8]| {
            token.first().is_some_and(u8::is_ascii_punctuation) && token.iter().all(u8::is_ascii_graphic)
        };
        if !added.iter().all(|token| is_plain(token)) {
            return None;
        }
        let vocabulary = tokenizers::Model::get_vocab(model);
        let prefix = model.continuing_subword_prefix.as_str();
        let pieces = || vocabulary.iter().map(|(piece, id)| (piece.as_str(), *id));
        let next = pieces().filter_map(|(piece, id)| Some((piece.strip_prefix(prefix)?, id)));
        let words = Self {
            first: Pieces::new(pieces()),
            next: Pieces::new(next),
            unknown: *vocabulary.get(&model.unk_token)?,
            max_word_chars,
            letters,
            kinds: std::array::from_fn(|byte| kind(byte, &added)),
            folded: std::array::from_fn(|byte| fold(byte, normalizer.lowercase)),
            added,
        };
        words.agrees(library).then_some(words)
    }

    fn agrees(&self, library: &Tokenizer) -> bool {
        let same = |text: &&str| self.ids(library, text) == load::ids(library, text, false);
        // A library that panics on a probe is no judge.
        let agrees = catch_unwind(AssertUnwindSafe(|| PROBES.iter().all(same))).unwrap_or(false);
        if !agrees {
            tracing::info!("this tokenizer is read by its library alone: our own reading gives other ids");
        }
        agrees
    }

    /// The ids of a text, without special tokens around it. `library` is the one of [`Self::of`].
    ///
    /// # Errors
    /// Whatever the library says.
    pub fn ids(&self, library: &Tokenizer, text: &str) -> Result<Vec<u32>, String> {
        let bytes = text.as_bytes();
        let mut ids = Vec::with_capacity(bytes.len() / TYPICAL_TOKEN_BYTES + 1);
        let mut word = Word { bytes: [0; ROOM], length: 0, chars: 0 };
        let mut at = 0;
        while let Some(byte) = bytes.get(at) {
            if self.kind(*byte) == Kind::Space {
                at += 1;
                continue;
            }
            let before = ids.len();
            match self.chunk(bytes, at, &mut word, &mut ids) {
                Chunk::End(end) => at = end,
                Chunk::Foreign => {
                    ids.truncate(before);
                    let Some(end) = self.foreign_end(bytes, at) else {
                        ids.clear();
                        self.divided(library, text, &mut word, &mut ids)?;
                        return Ok(ids);
                    };
                    // White space is ASCII: both ends lie between characters.
                    self.divided(library, &text[at..end], &mut word, &mut ids)?;
                    at = end;
                }
                Chunk::Added => {
                    ids.clear();
                    self.divided(library, text, &mut word, &mut ids)?;
                    return Ok(ids);
                }
            }
        }
        Ok(ids)
    }

    /// Reads a text that the library has normalised and divided into words and added tokens.
    fn divided(&self, library: &Tokenizer, text: &str, word: &mut Word, ids: &mut Vec<u32>) -> Result<(), String> {
        let mut divided = library.get_added_vocabulary().extract_and_normalize(library.get_normalizer(), text);
        BertPreTokenizer.pre_tokenize(&mut divided).map_err(|error| error.to_string())?;
        for (text, _, tokens) in divided.get_splits(OffsetReferential::Original, OffsetType::None) {
            if let Some(tokens) = tokens {
                ids.extend(tokens.iter().map(|token| token.id));
                continue;
            }
            let mut room = [0; CHAR_BYTES];
            (word.length, word.chars) = (0, 0);
            for character in text.chars() {
                word.push(character.encode_utf8(&mut room).as_bytes());
            }
            if word.chars > 0 {
                self.finish(word, ids);
            }
        }
        Ok(())
    }

    fn kind(&self, byte: u8) -> Kind {
        self.kinds[usize::from(byte)]
    }

    /// Reads from `start`, which is no white space, to the next white space.
    fn chunk(&self, bytes: &[u8], start: usize, word: &mut Word, ids: &mut Vec<u32>) -> Chunk {
        (word.length, word.chars) = (0, 0);
        let mut at = start;
        while let Some(byte) = bytes.get(at) {
            match self.kind(*byte) {
                Kind::Word => {
                    word.push(&[self.folded[usize::from(*byte)]]);
                    at += 1;
                }
                Kind::Space => break,
                Kind::Added if self.may_be_added(&bytes[at..]) => return Chunk::Added,
                Kind::Mark | Kind::Added => {
                    self.finish(word, ids);
                    word.push(&[*byte]);
                    self.finish(word, ids);
                    at += 1;
                }
                Kind::Foreign => {
                    let Some((width, letter)) = self.letter(&bytes[at..]) else { return Chunk::Foreign };
                    let letter_bytes = &letter.bytes[..letter.length];
                    if letter.is_mark {
                        self.finish(word, ids);
                        word.push(letter_bytes);
                        self.finish(word, ids);
                    } else {
                        word.push(letter_bytes);
                    }
                    at += width;
                }
            }
        }
        self.finish(word, ids);
        Chunk::End(at)
    }

    /// The character that begins here, and how many bytes the text has for it.
    fn letter(&self, bytes: &[u8]) -> Option<(usize, Letter)> {
        let (code, width) = match *bytes {
            [a @ 0xC2..=0xDF, b, ..] => (u32::from(a & 0x1F) << 6 | u32::from(b & 0x3F), 2),
            [0xE2, b @ 0x80..=0x83, c, ..] => (0x2000 | u32::from(b & 0x3F) << 6 | u32::from(c & 0x3F), 3),
            _ => return None,
        };
        let [low, high] = LETTERS;
        let place = if high.contains(&code) { code - high.start + low.end - low.start } else { code - low.start };
        let letter = self.letters.get(place as usize)?;
        (letter.length > 0).then_some((width, *letter))
    }

    /// Whether an added token begins here, whatever the case of its letters.
    fn may_be_added(&self, bytes: &[u8]) -> bool {
        self.added.iter().any(|token| bytes.get(..token.len()).is_some_and(|bytes| bytes.eq_ignore_ascii_case(token)))
    }

    /// Where the run of words that are not plain ends, the first of which begins at `start`; none if they may hold an added
    /// token.
    fn foreign_end(&self, bytes: &[u8], start: usize) -> Option<usize> {
        let (mut end, mut at) = (start, start);
        for word in bytes[start..].split(|byte| self.kind(*byte) == Kind::Space) {
            let mut begins = (at..).zip(word).filter(|(_, byte)| self.kind(**byte) == Kind::Added);
            if begins.any(|(place, _)| self.may_be_added(&bytes[place..])) {
                return None;
            }
            at += word.len();
            if word.iter().any(|byte| self.kind(*byte) == Kind::Foreign) {
                end = at;
            } else if !word.is_empty() {
                break;
            }
            // The white space behind it.
            at += 1;
        }
        Some(end)
    }

    /// Ends a word: the longest piece from its start, and so on from there; one that does not divide so is unknown.
    fn finish(&self, word: &mut Word, ids: &mut Vec<u32>) {
        let (length, chars) = (std::mem::take(&mut word.length), std::mem::take(&mut word.chars));
        if chars > self.max_word_chars {
            return ids.push(self.unknown);
        }
        let before = ids.len();
        let (mut pieces, mut start) = (&self.first, 0);
        while start < length {
            let Some((n, id)) = pieces.longest(&word.bytes[start..], length - start) else {
                ids.truncate(before);
                return ids.push(self.unknown);
            };
            ids.push(id);
            start += n;
            pieces = &self.next;
        }
    }
}

impl Word {
    /// Adds one character.
    fn push(&mut self, bytes: &[u8]) {
        self.chars += 1;
        if self.chars <= MAX_WORD_CHARS {
            self.bytes[self.length..self.length + bytes.len()].copy_from_slice(bytes);
            self.length += bytes.len();
        }
    }
}

/// English has about five; more tokens than this expects cost one more allocation.
const TYPICAL_TOKEN_BYTES: usize = 4;

fn kind(byte: usize, added: &[Box<[u8]>]) -> Kind {
    match u8::try_from(byte) {
        Ok(b' ' | b'\t' | b'\n' | b'\r') => Kind::Space,
        Ok(byte) if byte.is_ascii_alphanumeric() => Kind::Word,
        Ok(byte) if added.iter().any(|token| token.first() == Some(&byte)) => Kind::Added,
        Ok(byte) if byte.is_ascii_punctuation() => Kind::Mark,
        Ok(_) | Err(_) => Kind::Foreign,
    }
}

/// Asks the library what it makes of every character in [`LETTERS`].
fn letters(normalizer: BertNormalizer) -> Box<[Letter]> {
    let letter = |code| {
        let mut normalized = NormalizedString::from(char::from_u32(code)?.to_string());
        normalizer.normalize(&mut normalized).ok()?;
        let text = normalized.get();
        // One that disappears or becomes several, such as a mark above a letter, may matter to its neighbours.
        if text.chars().count() != 1 {
            return None;
        }
        let mut between = PreTokenizedString::from(format!("a{text}a"));
        BertPreTokenizer.pre_tokenize(&mut between).ok()?;
        let is_mark = match between.get_splits(OffsetReferential::Original, OffsetType::None).len() {
            1 => false,
            3 => true,
            // White space.
            _ => return None,
        };
        let mut bytes = [0; LETTER_BYTES];
        bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(Letter { bytes, length: text.len(), is_mark })
    };
    LETTERS.into_iter().flatten().map(|code| letter(code).unwrap_or_default()).collect()
}

fn fold(byte: usize, lower_case: bool) -> u8 {
    let byte = u8::try_from(byte).unwrap_or_default();
    if lower_case { byte.to_ascii_lowercase() } else { byte }
}

#[cfg(test)]
mod tests;
