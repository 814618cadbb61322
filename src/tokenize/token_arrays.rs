//! How a token array is read. OpenAI's clients send ids of OpenAI's vocabularies; read with the model's own, they
//! would give silently wrong vectors. One array is decided by itself, never by its neighbours, and never by guessing.
//!
//! `auto`: an array *framed* by the model's own special tokens is the model's own; one that is also *textual* (every
//! id is an OpenAI id and the bytes are whole UTF-8) could be either and is refused; everything else is OpenAI's.

use tiktoken_rs::{CoreBPE, cl100k_base_singleton, o200k_base_singleton};

use crate::observe::metrics::ArrayReading;
use crate::request::{InputLocation, RequestError, TokenArrays, TokenEncoding};
use crate::tokenize::load::Frame;

/// What an array turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading {
    /// Text to be tokenised like any other.
    Text(String, OpenAiEncoding),
    /// Complete model ids, special tokens included.
    Ids(Vec<u32>),
}

/// OpenAI's two current vocabularies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenAiEncoding {
    Cl100k,
    O200k,
}

/// Everything but the ids that decides the reading.
#[derive(Debug, Clone)]
pub struct Rules {
    pub policy: TokenArrays,
    /// The request's `token_encoding`, which wins over every policy but `reject`.
    pub encoding: Option<TokenEncoding>,
    /// The name the client asked for: it chooses between OpenAI's vocabularies, as the clients do.
    pub requested_model: String,
}

impl Rules {
    /// Reads one array. `model` is the vocabulary of the model's own ids.
    ///
    /// # Errors
    /// An id outside the vocabulary it is read with, or an array that fits both readings.
    pub fn read(&self, ids: &[i64], place: InputLocation, model: &Vocabulary<'_>) -> Result<Reading, RequestError> {
        match (self.encoding, self.policy) {
            (_, TokenArrays::Reject) => Err(RequestError::TokenArraysRejected),
            (Some(TokenEncoding::Model), _) | (None, TokenArrays::Model) => model.own_ids(ids, place),
            (Some(TokenEncoding::Cl100k), _) => OpenAiEncoding::Cl100k.read(ids, place, false),
            (Some(TokenEncoding::O200k), _) => OpenAiEncoding::O200k.read(ids, place, false),
            (None, TokenArrays::Cl100k) => self.by_name(ids, place, false),
            (None, TokenArrays::Auto) => self.auto(ids, place, model),
        }
    }

    fn auto(&self, ids: &[i64], place: InputLocation, model: &Vocabulary<'_>) -> Result<Reading, RequestError> {
        let Some(own) = model.framed(ids) else { return self.by_name(ids, place, true) };
        match OpenAiEncoding::of_model_name(&self.requested_model) {
            Some(encoding) if encoding.is_text(ids) => {
                Err(RequestError::AmbiguousTokenIds { place, encoding: encoding.name() })
            }
            _ => Ok(Reading::Ids(own)),
        }
    }

    /// Refuses what exceeds the request's limit before anything is decoded: an id of OpenAI's can stand for a hundred
    /// bytes and more, and the ids are what counts. An array of the model's own ids is only cut.
    ///
    /// # Errors
    /// More ids than that, where they may be OpenAI's.
    pub fn check_length(&self, tokens: usize, limit: usize) -> Result<(), RequestError> {
        let own = matches!((self.encoding, self.policy), (Some(TokenEncoding::Model), _) | (None, TokenArrays::Model));
        if !own && tokens > limit { Err(RequestError::TooManyTokens { tokens, limit }) } else { Ok(()) }
    }

    fn by_name(&self, ids: &[i64], place: InputLocation, suggest_model: bool) -> Result<Reading, RequestError> {
        match OpenAiEncoding::of_model_name(&self.requested_model) {
            Some(encoding) => encoding.read(ids, place, suggest_model),
            // The client used a vocabulary that no embedding model of today has; its first id is reported.
            None => Err(RequestError::TokenId {
                place: place.token(0),
                id: ids.first().copied().unwrap_or_default(),
                vocabulary: legacy_encoding(&self.requested_model).to_owned(),
                suggest_model,
            }),
        }
    }
}

/// The model's own vocabulary.
#[derive(Debug)]
pub struct Vocabulary<'a> {
    pub frame: &'a Frame,
    pub rows: usize,
    pub model: &'a str,
}

impl Vocabulary<'_> {
    /// The ids, if the model's special tokens enclose them and all are inside the vocabulary.
    fn framed(&self, ids: &[i64]) -> Option<Vec<u32>> {
        let own: Vec<u32> = ids.iter().map(|id| u32::try_from(*id).ok()).collect::<Option<_>>()?;
        let inside = own.iter().all(|id| (*id as usize) < self.rows);
        (inside && self.frame.encloses(&own)).then_some(own)
    }

    fn own_ids(&self, ids: &[i64], place: InputLocation) -> Result<Reading, RequestError> {
        let mut own = Vec::with_capacity(ids.len() + self.frame.len());
        for (position, &id) in ids.iter().enumerate() {
            match u32::try_from(id) {
                Ok(id) if (id as usize) < self.rows => own.push(id),
                _ => {
                    let (place, vocabulary) = (place.token(position), self.model.to_owned());
                    return Err(RequestError::TokenId { place, id, vocabulary, suggest_model: false });
                }
            }
        }
        if self.frame.encloses(&own) {
            return Ok(Reading::Ids(own));
        }
        let framed = [self.frame.prefix.as_slice(), &own, &self.frame.suffix].concat();
        Ok(Reading::Ids(framed))
    }
}

impl OpenAiEncoding {
    /// The vocabulary that OpenAI's clients use for a model name; `None` for the legacy ones.
    fn of_model_name(name: &str) -> Option<Self> {
        const O200K: [&str; 9] =
            ["gpt-4o", "gpt-4.1", "gpt-4.5", "gpt-5", "o1", "o3", "o4-mini", "chatgpt-4o", "gpt-oss"];
        if O200K.iter().any(|prefix| name.starts_with(prefix)) {
            Some(Self::O200k)
        } else if legacy_encoding(name).is_empty() {
            Some(Self::Cl100k)
        } else {
            None
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Cl100k => "cl100k_base",
            Self::O200k => "o200k_base",
        }
    }

    pub const fn metric(self) -> ArrayReading {
        match self {
            Self::Cl100k => ArrayReading::Cl100k,
            Self::O200k => ArrayReading::O200k,
        }
    }

    /// Whether the id exists. Checked by range, because the tables have gaps only here.
    fn contains(self, id: i64) -> bool {
        match self {
            Self::Cl100k => matches!(id, 0..=100_255 | 100_257..=100_260 | 100_276),
            Self::O200k => matches!(id, 0..=199_997 | 199_999 | 200_018),
        }
    }

    /// The decoding table; built on first use, off the request path's asynchronous threads.
    fn table(self) -> &'static CoreBPE {
        match self {
            Self::Cl100k => cl100k_base_singleton(),
            Self::O200k => o200k_base_singleton(),
        }
    }

    fn bytes(self, ids: &[i64]) -> Option<Vec<u8>> {
        let ids: Vec<u32> = ids.iter().map(|id| u32::try_from(*id).ok()).collect::<Option<_>>()?;
        self.table().decode_bytes(&ids).ok()
    }

    fn is_text(self, ids: &[i64]) -> bool {
        ids.iter().all(|id| self.contains(*id)) && self.bytes(ids).is_some_and(|bytes| String::from_utf8(bytes).is_ok())
    }

    fn read(self, ids: &[i64], place: InputLocation, suggest_model: bool) -> Result<Reading, RequestError> {
        let wrong = |position: usize, id: i64| RequestError::TokenId {
            place: place.token(position),
            id,
            vocabulary: self.name().to_owned(),
            suggest_model,
        };
        if let Some((position, &id)) = ids.iter().enumerate().find(|(_, id)| !self.contains(**id)) {
            return Err(wrong(position, id));
        }
        let bytes = self.bytes(ids).ok_or_else(|| wrong(0, ids.first().copied().unwrap_or_default()))?;
        Ok(Reading::Text(text_of_piece(&bytes), self))
    }
}

/// Clients cut long texts into pieces of ids, sometimes inside a character: up to three continuation bytes at the
/// start and an incomplete sequence at the end are dropped, any other invalid byte becomes U+FFFD, and a piece of
/// which nothing is left becomes one U+FFFD.
fn text_of_piece(bytes: &[u8]) -> String {
    let is_continuation = |byte: &u8| byte & 0xC0 == 0x80;
    let start = bytes.iter().take(3).take_while(|byte| is_continuation(byte)).count();
    let bytes = &bytes[start..];
    let end = bytes.len() - incomplete_tail(bytes);
    let text = String::from_utf8_lossy(&bytes[..end]);
    if text.is_empty() { char::REPLACEMENT_CHARACTER.to_string() } else { text.into_owned() }
}

/// Bytes at the end that begin a character and lack its rest.
fn incomplete_tail(bytes: &[u8]) -> usize {
    for length in 1..=bytes.len().min(3) {
        let needed = match bytes[bytes.len() - length] {
            0xC2..=0xDF => 2,
            0xE0..=0xEF => 3,
            0xF0..=0xF4 => 4,
            0x80..=0xBF => continue,
            _ => return 0,
        };
        return if needed > length { length } else { 0 };
    }
    0
}

/// The vocabulary, of those that we do not decode, to which OpenAI's tiktoken maps this name (`MODEL_TO_ENCODING`); empty for
/// all other names, whatever they begin with: for those clients fall back to cl100k.
fn legacy_encoding(name: &str) -> &'static str {
    match name {
        "text-davinci-003" | "text-davinci-002" | "code-davinci-002" | "code-davinci-001" | "code-cushman-002"
        | "code-cushman-001" | "davinci-codex" | "cushman-codex" => "p50k_base",
        "text-davinci-edit-001" | "code-davinci-edit-001" => "p50k_edit",
        "gpt2" | "gpt-2" => "gpt2",
        "davinci" | "curie" | "babbage" | "ada" => "r50k_base",
        _ => {
            let old = ["davinci", "curie", "babbage", "ada"].into_iter().any(|family| {
                let of_family = |form: &str| name == form.replace('*', family);
                ["text-*-001", "text-similarity-*-001", "text-search-*-doc-001", "code-search-*-code-001"]
                    .into_iter()
                    .any(of_family)
            });
            if old { "r50k_base" } else { "" }
        }
    }
}

#[cfg(test)]
#[path = "token_arrays_tests.rs"]
mod tests;
