//! SentencePiece's Unigram without the library's model: that keeps a hash table for every byte of every piece, some 350 MB
//! for the 250,002 pieces of XLM-R, and a string for every token it finds. Here pieces are a tree in three arrays, a
//! twentieth of that, and ids are all that is written.
//!
//! The ids are the library's own, always. It still normalises, divides and finds added tokens; only its model is left out
//! of the file that it is given ([`Unigram::of`]), with a list of the same words in its place so that ids stay what they
//! are. The path through a text is the one of its `encode_optimized`: the best sum of scores from left to right, of equal
//! ones the first found.

use std::collections::{BTreeMap, HashMap, VecDeque};

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;
use tokenizers::models::wordlevel::WordLevel;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizer, Tokenizer};

/// What an unknown character costs more than the worst piece.
const UNKNOWN_PENALTY: f64 = 10.0;
/// A node that ends no piece.
const NO_PIECE: u32 = u32::MAX;

/// Pieces and their scores.
#[derive(Debug)]
pub struct Unigram {
    pieces: Pieces,
    /// By id.
    scores: Box<[f64]>,
    unknown: Option<u32>,
    unknown_score: f64,
    /// The piece of every byte, where unknown characters are spelt with them.
    bytes: Option<Box<[u32]>>,
}

/// A tree of pieces, its nodes in breadth-first order: the children of a node lie side by side, by their bytes.
#[derive(Debug, Default)]
struct Pieces {
    /// The first child of each node; one more entry than there are nodes.
    first_child: Vec<u32>,
    /// The byte that leads to a node.
    byte: Vec<u8>,
    /// The piece that ends at a node.
    piece: Vec<u32>,
}

/// The best way to a place in a text.
#[derive(Debug, Clone, Copy)]
struct Best {
    score: f64,
    id: u32,
    /// Where its last piece begins; none while nothing leads here.
    start: Option<u32>,
}

/// The model of a `tokenizer.json`, as far as it is one of these.
#[derive(Deserialize)]
struct Model {
    r#type: String,
    vocab: Vec<(String, f64)>,
    unk_id: Option<usize>,
    #[serde(default)]
    byte_fallback: bool,
}

/// A token that the library looks for before it asks the model.
#[derive(Deserialize)]
struct Added {
    id: u32,
}

impl Unigram {
    /// The model of a `tokenizer.json`, and the same file with a list of its words in its place; none where the file has
    /// another model, or one that the library has to judge.
    pub fn of(file: &[u8]) -> Option<(Self, Vec<u8>)> {
        let mut fields: BTreeMap<String, &RawValue> = serde_json::from_slice(file).ok()?;
        let Model { r#type, vocab, unk_id, byte_fallback } = serde_json::from_str(fields.get("model")?.get()).ok()?;
        if r#type != "Unigram" || unk_id.is_some_and(|id| id >= vocab.len()) {
            return None;
        }
        let ids: HashMap<&str, u32> = (0..).zip(&vocab).map(|(id, (piece, _))| (piece.as_str(), id)).collect();
        if ids.len() != vocab.len() || vocab.iter().any(|(piece, score)| piece.is_empty() || !score.is_finite()) {
            return None;
        }
        let unknown = unk_id.and_then(|id| u32::try_from(id).ok());
        let byte = |byte: u8| ids.get(format!("<0x{byte:02X}>").as_str()).copied();
        let bytes: Option<Box<[u32]>> = (0..=u8::MAX).map(byte).collect();
        let worst = vocab.iter().map(|(_, score)| *score).fold(f64::INFINITY, f64::min);
        let own = Self {
            pieces: Pieces::new(vocab.iter().zip(0..).map(|((piece, _), id)| (piece.as_bytes(), id)).collect()),
            scores: vocab.iter().map(|(_, score)| *score).collect(),
            unknown,
            unknown_score: worst - UNKNOWN_PENALTY,
            bytes: bytes.filter(|_| byte_fallback),
        };
        // What it makes of a text does not matter; a word that it does not know must be something, and nothing that the
        // post-processor puts around a text.
        let added: Vec<Added> = match fields.get("added_tokens") {
            Some(added) => serde_json::from_str(added.get()).ok()?,
            None => Vec::new(),
        };
        let is_added = |piece: &str| added.iter().any(|token| Some(&token.id) == ids.get(piece));
        let mut plain = vocab.iter().rev().map(|(piece, _)| piece.as_str());
        let any = plain.find(|piece| !is_added(piece) && ids.get(piece).copied() != unknown)?;
        let words = json!({"type": "WordLevel", "unk_token": any, "vocab": ids});
        let words = serde_json::value::to_raw_value(&words).ok()?;
        fields.insert("model".to_owned(), &words);
        Some((own, serde_json::to_vec(&fields).ok()?))
    }

    /// The library's model when ids are settled: words that nobody asks for any more.
    pub fn placeholder() -> WordLevel {
        WordLevel::default()
    }

    /// The ids of a text, without special tokens around it. `library` was made from the file that [`Self::of`] returned.
    ///
    /// # Errors
    /// Whatever the library says; a character that no piece has, where none stands for the unknown.
    pub fn ids(&self, library: &Tokenizer, text: &str) -> Result<Vec<u32>, String> {
        let mut divided = library.get_added_vocabulary().extract_and_normalize(library.get_normalizer(), text);
        if let Some(splitter) = library.get_pre_tokenizer() {
            splitter.pre_tokenize(&mut divided).map_err(|error| error.to_string())?;
        }
        let (mut ids, mut best) = (Vec::with_capacity(text.len() / TYPICAL_TOKEN_BYTES + 1), Vec::new());
        for (word, _, tokens) in divided.get_splits(OffsetReferential::Original, OffsetType::None) {
            match tokens {
                Some(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
                None => self.word(word, &mut best, &mut ids)?,
            }
        }
        Ok(ids)
    }

    /// Every piece with its id.
    pub fn pieces(&self) -> Vec<(u32, String)> {
        self.pieces.all()
    }

    /// The best path through one word, then its ids.
    fn word(&self, word: &str, best: &mut Vec<Best>, ids: &mut Vec<u32>) -> Result<(), String> {
        best.clear();
        best.resize(word.len() + 1, Best { score: 0.0, id: 0, start: None });
        let bytes = word.as_bytes();
        for (start, character) in word.char_indices() {
            let score = best[start].score;
            let mut has_character = false;
            self.pieces.beginnings(&bytes[start..], |length, id| {
                has_character |= length == character.len_utf8();
                best[start + length].improve(score + self.scores[id as usize], id, start);
            });
            if !has_character {
                let end = &mut best[start + character.len_utf8()];
                let score = score + self.unknown_score;
                if end.is_improved_by(score) {
                    let unknown =
                        self.unknown.ok_or("a character that it does not know, and no token for the unknown")?;
                    end.improve(score, unknown, start);
                }
            }
        }
        let (first, mut end) = (ids.len(), word.len());
        // From its end to its start; unknown characters beside each other are one token.
        let mut unknown_end = None;
        while end > 0 {
            let Best { id, start, .. } = best[end];
            let start = start.map_or(0, |start| start as usize);
            if Some(id) == self.unknown {
                unknown_end.get_or_insert(end);
            } else {
                if let Some(unknown_end) = unknown_end.take() {
                    self.push_unknown(&bytes[end..unknown_end], ids);
                }
                ids.push(id);
            }
            end = start;
        }
        if let Some(unknown_end) = unknown_end {
            self.push_unknown(&bytes[..unknown_end], ids);
        }
        ids[first..].reverse();
        Ok(())
    }

    /// Adds what stands for unknown characters, from the end to the start: the piece that they happen to be together, their
    /// bytes, or the unknown.
    fn push_unknown(&self, characters: &[u8], ids: &mut Vec<u32>) {
        if let Some(id) = self.pieces.get(characters) {
            ids.push(id);
        } else if let Some(bytes) = &self.bytes {
            ids.extend(characters.iter().rev().map(|byte| bytes[usize::from(*byte)]));
        } else {
            ids.extend(self.unknown);
        }
    }
}

/// English has about four.
const TYPICAL_TOKEN_BYTES: usize = 4;

impl Best {
    const fn is_improved_by(&self, score: f64) -> bool {
        self.start.is_none() || score > self.score
    }

    #[expect(clippy::cast_possible_truncation, reason = "texts are far shorter than 4 GiB")]
    const fn improve(&mut self, score: f64, id: u32, start: usize) {
        if self.is_improved_by(score) {
            *self = Self { score, id, start: Some(start as u32) };
        }
    }
}

impl Pieces {
    #[expect(clippy::cast_possible_truncation, reason = "there are fewer nodes than bytes in a file of 64 MiB")]
    fn new(mut pieces: Vec<(&[u8], u32)>) -> Self {
        pieces.sort_unstable();
        let mut tree = Self { first_child: Vec::new(), byte: vec![0], piece: vec![NO_PIECE] };
        // The pieces below a node, and how many bytes lead there.
        let mut waiting = VecDeque::from([(0..pieces.len(), 0)]);
        while let Some((mut below, depth)) = waiting.pop_front() {
            let node = tree.first_child.len();
            tree.first_child.push(tree.byte.len() as u32);
            // The shortest comes first.
            if let Some((piece, id)) = pieces.get(below.start).filter(|(piece, _)| piece.len() == depth) {
                debug_assert!(!piece.is_empty() && !below.is_empty(), "a piece without bytes");
                tree.piece[node] = *id;
                below.start += 1;
            }
            while !below.is_empty() {
                let byte = pieces[below.start].0[depth];
                let n = pieces[below.clone()].partition_point(|(piece, _)| piece[depth] == byte);
                tree.byte.push(byte);
                tree.piece.push(NO_PIECE);
                waiting.push_back((below.start..below.start + n, depth + 1));
                below.start += n;
            }
        }
        tree.first_child.push(tree.byte.len() as u32);
        tree
    }

    fn child(&self, node: usize, byte: u8) -> Option<usize> {
        let (first, end) = (self.first_child[node] as usize, self.first_child[node + 1] as usize);
        let children = &self.byte[first..end];
        let place = if children.len() <= FEW {
            children.iter().position(|child| *child == byte)
        } else {
            children.binary_search(&byte).ok()
        };
        place.map(|place| first + place)
    }

    /// Calls back for every piece that `bytes` begin with, the shortest first: its length and its id.
    fn beginnings(&self, bytes: &[u8], mut found: impl FnMut(usize, u32)) {
        let mut node = 0;
        for (length, byte) in (1..).zip(bytes) {
            let Some(child) = self.child(node, *byte) else { return };
            node = child;
            if self.piece[node] != NO_PIECE {
                found(length, self.piece[node]);
            }
        }
    }

    /// The piece that is exactly this.
    fn get(&self, bytes: &[u8]) -> Option<u32> {
        let node = bytes.iter().try_fold(0, |node, byte| self.child(node, *byte))?;
        Some(self.piece[node]).filter(|piece| *piece != NO_PIECE)
    }

    fn all(&self) -> Vec<(u32, String)> {
        let mut all = Vec::new();
        let mut waiting = vec![(0_usize, Vec::new())];
        while let Some((node, bytes)) = waiting.pop() {
            if self.piece[node] != NO_PIECE {
                // Pieces are text; what lies between them need not be.
                all.push((self.piece[node], String::from_utf8_lossy(&bytes).into_owned()));
            }
            let children = self.first_child[node] as usize..self.first_child[node + 1] as usize;
            waiting.extend(children.map(|child| (child, [&bytes[..], &[self.byte[child]]].concat())));
        }
        all
    }
}

/// Children that are looked through one by one.
const FEW: usize = 8;

#[cfg(test)]
mod tests;
