//! `tokenizer.json`, or `vocab.txt` in its place, under suspicion: size, panics, vocabulary, and the frame of special
//! tokens around a text. [`Settings`] says what the files beside it make of it.

use std::borrow::Cow;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use thiserror::Error;
use tokenizers::normalizers::{Lowercase, Sequence};
use tokenizers::{ModelWrapper, NormalizerWrapper, Tokenizer};

use super::settings::Settings;
use super::unigram::Unigram;
use super::word_list;
use crate::excerpt::excerpt;
use crate::small_file;

/// The largest real tokenizer (XLM-R) has 17 MB; 64 MiB bounds what a hostile file can make us parse.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// SentencePiece makes pieces of at most 16 characters unless told otherwise.
const MAX_PIECE_BYTES: usize = 1024;
/// The 250,002 pieces of XLM-R have 2 MB.
const MAX_PIECES_BYTES: usize = 8 << 20;
/// Every known model has 100.
const MAX_WORD_CHARS: usize = 1000;
/// BERT's vocabulary, where there is no `tokenizer.json`.
const WORD_LIST: &str = "vocab.txt";

/// Why a tokenizer cannot be used.
#[derive(Debug, Error)]
pub enum TokenizerLoadError {
    #[error("cannot read {path}: {reason}")]
    Read { path: PathBuf, reason: String },
    #[error("{path} has {size} bytes, the limit is {MAX_FILE_BYTES}")]
    TooLarge { path: PathBuf, size: u64 },
    #[error("{path} is not a usable tokenizer: {reason}")]
    Format { path: PathBuf, reason: String },
    #[error("{path} knows token id {id}, the embedding table has {rows} rows")]
    Vocabulary { path: PathBuf, id: u32, rows: usize },
}

/// The special tokens that the tokenizer puts around a single text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frame {
    pub prefix: Vec<u32>,
    pub suffix: Vec<u32>,
}

impl Frame {
    pub const fn len(&self) -> usize {
        self.prefix.len() + self.suffix.len()
    }

    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the frame can be recognised in a token array: something before and something after.
    pub fn encloses(&self, ids: &[u32]) -> bool {
        !self.prefix.is_empty()
            && !self.suffix.is_empty()
            && ids.len() >= self.len()
            && ids.starts_with(&self.prefix)
            && ids.ends_with(&self.suffix)
    }
}

/// A tokenizer that is ready to read texts.
#[derive(Debug)]
pub struct Loaded {
    pub library: Tokenizer,
    pub frame: Frame,
    /// Its model, where that is of a kind that we read ourselves and the library was given none.
    pub unigram: Option<Unigram>,
}

/// Reads the tokenizer at `path`, or the word list beside it, as the library reads it, and finds its frame. The truncation
/// and padding that files carry are switched off: the length is ours to judge, and nothing is ever padded.
///
/// # Errors
/// See [`TokenizerLoadError`]. A file that makes the library panic is an error like any other.
pub fn load(path: &Path, vocab_rows: usize) -> Result<(Tokenizer, Frame), TokenizerLoadError> {
    let Loaded { library, frame, .. } = read(path, vocab_rows, |_| None)?;
    Ok((library, frame))
}

/// As [`load`], for a server: with our own model in place of the library's where that takes a twentieth of its memory.
///
/// # Errors
/// As [`load`].
pub fn load_to_serve(path: &Path, vocab_rows: usize) -> Result<Loaded, TokenizerLoadError> {
    let mut loaded = read(path, vocab_rows, Unigram::of)?;
    if loaded.unigram.is_some() {
        // Its words have given the added tokens their ids; now nobody asks for them.
        loaded.library.with_model(Unigram::placeholder());
    }
    Ok(loaded)
}

/// `own` takes the model out of a file.
fn read(
    path: &Path,
    vocab_rows: usize,
    own: impl Fn(&[u8]) -> Option<(Unigram, Vec<u8>)>,
) -> Result<Loaded, TokenizerLoadError> {
    let words = path.with_file_name(WORD_LIST);
    let is_word_list = !path.exists() && words.exists();
    let path = if is_word_list { &words } else { path };
    let read = |error: std::io::Error| TokenizerLoadError::Read { path: path.to_owned(), reason: error.to_string() };
    let size = std::fs::metadata(path).map_err(read)?.len();
    if size > MAX_FILE_BYTES {
        return Err(TokenizerLoadError::TooLarge { path: path.to_owned(), size });
    }
    let bytes = small_file::read(path, MAX_FILE_BYTES).map_err(read)?;
    // The library may quote the file: on one line, and not all of it.
    let format = |reason: String| TokenizerLoadError::Format { path: path.to_owned(), reason: excerpt(&reason) };
    let settings = Settings::read(path.parent().unwrap_or(path)).map_err(format)?;
    let loaded = catch_unwind(AssertUnwindSafe(|| -> Result<Loaded, String> {
        let in_words = |error: tokenizers::Error| error.to_string();
        let bytes = if is_word_list {
            let words = String::from_utf8(bytes).map_err(|error| error.to_string())?;
            word_list::tokenizer_json(&words, &settings)?
        } else {
            check_sizes(&bytes)?;
            bytes
        };
        let (unigram, bytes) = match own(&bytes) {
            Some((unigram, rest)) => (Some(unigram), rest),
            None => (None, bytes),
        };
        let mut tokenizer = Tokenizer::from_bytes(&bytes).map_err(in_words)?;
        bound_words(&mut tokenizer)?;
        tokenizer.with_truncation(None).map_err(in_words)?;
        tokenizer.with_padding(None);
        settings.apply(&mut tokenizer, unigram.is_some(), vocab_rows)?;
        let frame = find_frame(&tokenizer)?;
        Ok(Loaded { library: tokenizer, frame, unigram })
    }));
    let loaded = loaded.unwrap_or_else(|_| Err("the tokenizer library panicked on it".to_owned())).map_err(format)?;
    // A post-processor has ids of its own, which no vocabulary needs to know.
    let special = loaded.frame.prefix.iter().chain(&loaded.frame.suffix).copied();
    match loaded.library.get_vocab(true).into_values().chain(special).max() {
        Some(id) if id as usize >= vocab_rows => {
            Err(TokenizerLoadError::Vocabulary { path: path.to_owned(), id, rows: vocab_rows })
        }
        _ => Ok(loaded),
    }
}

/// What words may cost, in time and in memory that lasts.
fn bound_words(tokenizer: &mut Tokenizer) -> Result<(), String> {
    match tokenizer.get_model() {
        ModelWrapper::BPE(model) => {
            // Its cache is one of each thread, outlives the model, and holds words of any length by the ten thousand.
            let mut model = model.clone();
            model.resize_cache(0);
            tokenizer.with_model(model);
        }
        // Every piece of a word is looked for, from every start.
        ModelWrapper::WordPiece(model) if model.max_input_chars_per_word > MAX_WORD_CHARS => {
            return Err(format!(
                "max_input_chars_per_word is {}, at most {MAX_WORD_CHARS}",
                model.max_input_chars_per_word
            ));
        }
        ModelWrapper::WordPiece(_) | ModelWrapper::WordLevel(_) | ModelWrapper::Unigram(_) => {}
    }
    Ok(())
}

/// The tokenizer with sentence-transformers' own `do_lower_case`: all but special tokens is lower-cased first, whatever
/// follows.
///
/// # Errors
/// Whatever the library says.
pub fn lower_cased(mut tokenizer: Tokenizer, path: &Path) -> Result<Tokenizer, TokenizerLoadError> {
    let own = tokenizer.get_normalizer().cloned();
    if own.as_ref().is_some_and(is_lower_casing) {
        return Ok(tokenizer);
    }
    let normalizers = [Some(Lowercase.into()), own].into_iter().flatten().collect();
    let format =
        |error: tokenizers::Error| TokenizerLoadError::Format { path: path.to_owned(), reason: error.to_string() };
    tokenizer.with_normalizer(Some(Sequence::new(normalizers))).map_err(format)?;
    Ok(tokenizer)
}

/// Whether lower-casing before this normalizer changes nothing. BERT's lower-cases character by character, too.
fn is_lower_casing(normalizer: &NormalizerWrapper) -> bool {
    if let NormalizerWrapper::Sequence(parts) = normalizer {
        return parts.as_ref().iter().any(|part| matches!(part, NormalizerWrapper::Lowercase(_)));
    }
    let is_own = matches!(normalizer, NormalizerWrapper::BertNormalizer(normalizer) if normalizer.lowercase);
    is_own || matches!(normalizer, NormalizerWrapper::Lowercase(_))
}

/// What of a tokenizer is looked at before the library reads it.
#[derive(Deserialize)]
struct Peek {
    normalizer: Option<Value>,
    model: Option<PeekModel>,
}

#[derive(Deserialize)]
struct PeekModel {
    #[serde(default)]
    vocab: UnigramPieces,
}

/// The bytes of a list of pieces, all of them and the longest. Other vocabularies are not lists.
#[derive(Debug, Default)]
struct UnigramPieces {
    all_bytes: usize,
    longest_bytes: usize,
}

#[derive(Deserialize)]
struct Piece<'p>(#[serde(borrow)] Cow<'p, str>, IgnoredAny);

impl<'de> Deserialize<'de> for UnigramPieces {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pieces;

        impl<'de> Visitor<'de> for Pieces {
            type Value = UnigramPieces;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<UnigramPieces, A::Error> {
                let mut pieces = UnigramPieces::default();
                while let Some(Piece(piece, _)) = list.next_element()? {
                    pieces.all_bytes += piece.len();
                    pieces.longest_bytes = pieces.longest_bytes.max(piece.len());
                }
                Ok(pieces)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UnigramPieces, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(UnigramPieces::default())
            }

            fn visit_unit<E>(self) -> Result<UnigramPieces, E> {
                Ok(UnigramPieces::default())
            }
        }

        deserializer.deserialize_any(Pieces)
    }
}

/// What would cost gigabytes, or end the process, before the library has seen that anything is wrong.
///
/// A SentencePiece table begins with the length of its trie, for which the library reserves memory: it may not be longer than
/// the table. A list of pieces becomes a tree with a table for every byte, several hundred bytes each, which is taken down by
/// recursion.
fn check_sizes(bytes: &[u8]) -> Result<(), String> {
    let peek: Peek = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let UnigramPieces { all_bytes, longest_bytes } =
        peek.model.unwrap_or(PeekModel { vocab: UnigramPieces::default() }).vocab;
    if longest_bytes > MAX_PIECE_BYTES {
        return Err(format!("a piece of its vocabulary has {longest_bytes} bytes, at most {MAX_PIECE_BYTES}"));
    }
    if all_bytes > MAX_PIECES_BYTES {
        return Err(format!("the pieces of its vocabulary have {all_bytes} bytes, at most {MAX_PIECES_BYTES}"));
    }
    peek.normalizer.as_ref().map_or(Ok(()), check_charsmap)
}

fn check_charsmap(value: &Value) -> Result<(), String> {
    match value {
        Value::Array(values) => values.iter().try_for_each(check_charsmap),
        Value::Object(fields) => fields.iter().try_for_each(|(name, value)| match value.as_str() {
            Some(table) if name == "precompiled_charsmap" => {
                let table = STANDARD.decode(table).map_err(|error| format!("precompiled_charsmap: {error}"))?;
                let trie = table.first_chunk::<4>().map(|bytes| u64::from(u32::from_le_bytes(*bytes)));
                match trie {
                    Some(trie) if trie + 4 > table.len() as u64 => {
                        Err("precompiled_charsmap: its trie is longer than the table".to_owned())
                    }
                    _ => Ok(()),
                }
            }
            _ => check_charsmap(value),
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

/// Tokenises a probe with and without special tokens; what surrounds the bare ids is the frame. A second probe must
/// agree, so that a post-processor which does more than framing is refused instead of misread.
fn find_frame(tokenizer: &Tokenizer) -> Result<Frame, String> {
    let frames = ["a b", "the 1"].map(|probe| frame_of(tokenizer, probe));
    let [first, second] = frames;
    let (first, second) = (first?, second?);
    if first == second { Ok(first) } else { Err("its post-processor does more than add special tokens".to_owned()) }
}

fn frame_of(tokenizer: &Tokenizer, probe: &str) -> Result<Frame, String> {
    let bare = ids(tokenizer, probe, false)?;
    let framed = ids(tokenizer, probe, true)?;
    if bare.is_empty() {
        return Err("it gives no tokens for plain text".to_owned());
    }
    let start = framed.windows(bare.len()).position(|window| window == bare);
    let start = start.ok_or("its post-processor does more than add special tokens")?;
    Ok(Frame { prefix: framed[..start].to_vec(), suffix: framed[start + bare.len()..].to_vec() })
}

/// Token ids without offsets, which embeddings do not need.
///
/// # Errors
/// Whatever the library says.
pub fn ids(tokenizer: &Tokenizer, text: &str, special: bool) -> Result<Vec<u32>, String> {
    tokenizer.encode_fast(text, special).map(|encoding| encoding.get_ids().to_vec()).map_err(|error| error.to_string())
}
