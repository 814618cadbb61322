//! The JSON of an embeddings request, read in one pass without building a tree.
//!
//! Syntax errors, duplicate keys and a body that is no object end it. Of known fields with a wrong type the
//! first one is remembered while the rest is still read, because a syntax error behind it counts first. `null` is
//! absent, unknown fields are skipped at any depth, integers beyond `i64` are saturated.

mod input;
mod scalar;

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::http::error::ApiError;
use crate::request::{RawRequest, RequestError, TruncateField};
use input::InputSeed;
use scalar::Scalar;

/// What a client sent, types checked, values not.
#[derive(Debug, Default)]
pub struct WireRequest {
    pub model: Option<String>,
    pub encoding_format: Option<String>,
    /// `input` was there and not `null`.
    pub has_input: bool,
    pub raw: RawRequest,
    /// A fault that can only be told once the model is known to exist.
    pub refusal: Option<RequestError>,
}

/// How much of an oversized `input` is kept. More is checked and counted, but not stored, so that a body of a few
/// bytes per item cannot take many times its own size.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// One more input than allowed is enough to refuse the request.
    pub max_inputs: usize,
    pub max_request_tokens: usize,
}

/// Reads a body.
///
/// # Errors
/// [`ApiError::Json`] and [`ApiError::WrongType`].
pub fn parse(body: &[u8], caps: Caps) -> Result<WireRequest, ApiError> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let text = std::str::from_utf8(body).map_err(|error| {
        let (line, column) = position(&body[..error.valid_up_to()]);
        ApiError::Json { reason: format!("invalid UTF-8 at line {line} column {column}") }
    })?;
    let mut object = Object { caps, request: WireRequest::default(), seen: Seen::default(), fault: None };
    let mut json = serde_json::Deserializer::from_str(text);
    if text.trim_ascii().is_empty() {
        return Err(ApiError::Json { reason: "it is empty".to_owned() });
    }
    let syntax = |error: serde_json::Error| ApiError::Json { reason: plain(&error) };
    json.deserialize_any(&mut object).map_err(syntax)?;
    json.end().map_err(syntax)?;
    match object.fault {
        Some(Fault { place, expected, got }) => Err(ApiError::WrongType { place, expected, got }),
        None => Ok(object.request),
    }
}

/// What the parser says, in words of JSON where it has words of its own.
fn plain(error: &serde_json::Error) -> String {
    WORDS.iter().fold(error.to_string(), |text, (word, plain)| text.replacen(word, plain, 1))
}

/// Each stands at the beginning of a message, and in no other. The first two are what a client gets that cuts texts in the
/// middle of a character.
const WORDS: [(&str, &str); 3] = [
    ("unexpected end of hex escape", "half of a surrogate pair"),
    ("lone leading surrogate in hex escape", "half of a surrogate pair"),
    ("invalid type: sequence,", "invalid type: array,"),
];

/// Line and column, from 1, of what follows `before`.
fn position(before: &[u8]) -> (usize, usize) {
    let mut lines = before.split(|byte| *byte == b'\n');
    let last = lines.next_back().unwrap_or_default();
    (lines.count() + 1, last.len() + 1)
}

/// A value of the wrong type.
#[derive(Debug)]
struct Fault {
    place: String,
    expected: &'static str,
    got: &'static str,
}

/// The fields we know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Model,
    Input,
    EncodingFormat,
    Dimensions,
    User,
    Truncate,
    Truncation,
    TruncatePromptTokens,
    TruncationSide,
    TruncationDirection,
    TokenEncoding,
    Prompt,
    PromptName,
    InputType,
    Task,
    OutputDimension,
    OutputDtype,
    EmbeddingType,
    EmbedDtype,
    Endianness,
}

impl Field {
    const ALL: [Self; 20] = [
        Self::Model,
        Self::Input,
        Self::EncodingFormat,
        Self::Dimensions,
        Self::User,
        Self::Truncate,
        Self::Truncation,
        Self::TruncatePromptTokens,
        Self::TruncationSide,
        Self::TruncationDirection,
        Self::TokenEncoding,
        Self::Prompt,
        Self::PromptName,
        Self::InputType,
        Self::Task,
        Self::OutputDimension,
        Self::OutputDtype,
        Self::EmbeddingType,
        Self::EmbedDtype,
        Self::Endianness,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Input => "input",
            Self::EncodingFormat => "encoding_format",
            Self::Dimensions => "dimensions",
            Self::User => "user",
            Self::Truncate => "truncate",
            Self::Truncation => "truncation",
            Self::TruncatePromptTokens => "truncate_prompt_tokens",
            Self::TruncationSide => "truncation_side",
            Self::TruncationDirection => "truncation_direction",
            Self::TokenEncoding => "token_encoding",
            Self::Prompt => "prompt",
            Self::PromptName => "prompt_name",
            Self::InputType => "input_type",
            Self::Task => "task",
            Self::OutputDimension => "output_dimension",
            Self::OutputDtype => "output_dtype",
            Self::EmbeddingType => "embedding_type",
            Self::EmbedDtype => "embed_dtype",
            Self::Endianness => "endianness",
        }
    }

    /// What other APIs let a client choose of its vectors' form, and the values that mean what we send: Voyage's and Mistral's,
    /// Jina's, vLLM's. A client that asks for another form would misread ours.
    fn forms(self) -> &'static [&'static str] {
        const FORMS: [(Field, &[&str]); 4] = [
            (Field::OutputDtype, &["float"]),
            (Field::EmbeddingType, &["float", "base64"]),
            (Field::EmbedDtype, &["float32"]),
            (Field::Endianness, &["native", "little"]),
        ];
        FORMS.iter().find(|(field, _)| *field == self).map_or(&[], |(_, forms)| *forms)
    }
}

/// Which fields have been read, to refuse a second occurrence.
#[derive(Debug, Default)]
struct Seen(Vec<Field>);

/// A key: one of ours, or one to skip.
struct Key(Option<Field>);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(KeyVisitor)
    }
}

struct KeyVisitor;

impl Visitor<'_> for KeyVisitor {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Key, E> {
        Ok(Key(Field::ALL.into_iter().find(|field| field.name() == key)))
    }
}

/// The top-level object.
struct Object {
    caps: Caps,
    request: WireRequest,
    seen: Seen,
    fault: Option<Fault>,
}

impl<'de> Visitor<'de> for &mut Object {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    /// The default would repeat the string in its message, however long it is.
    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        Err(E::custom("invalid type: string, expected a JSON object"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(Key(key)) = map.next_key()? {
            let Some(field) = key else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if self.seen.0.contains(&field) {
                return Err(A::Error::custom(format_args!("duplicate field `{}`", field.name())));
            }
            self.seen.0.push(field);
            if field == Field::Input {
                let input = map.next_value_seed(InputSeed { caps: self.caps, fault: &mut self.fault })?;
                if let Some(input) = input {
                    self.request.has_input = true;
                    self.request.raw.inputs = input.inputs;
                    self.request.refusal = self.request.refusal.take().or(input.refusal);
                }
            } else {
                let value = map.next_value::<Scalar>()?;
                self.set(field, value);
            }
        }
        Ok(())
    }
}

impl Object {
    fn set(&mut self, field: Field, value: Scalar) {
        let request = &mut self.request;
        let raw = &mut request.raw;
        let expected = match (field, value) {
            (_, Scalar::Null) | (Field::User, Scalar::Text(_)) => return,
            (Field::Model, Scalar::Text(text)) => return request.model = Some(text),
            (Field::EncodingFormat, Scalar::Text(text)) => return self.set_encoding(text),
            (Field::Dimensions | Field::OutputDimension, Scalar::Integer(value)) => {
                return self.set_dimensions(field.name(), value);
            }
            (Field::OutputDtype | Field::EmbeddingType | Field::EmbedDtype | Field::Endianness, Scalar::Text(form)) => {
                return self.set_form(field, form);
            }
            (Field::Truncate, Scalar::Bool(flag)) => return raw.truncate = Some(TruncateField::Flag(flag)),
            (Field::Truncate, Scalar::Text(word)) => return raw.truncate = Some(TruncateField::Word(word)),
            (Field::Truncation, Scalar::Bool(flag)) => return raw.truncation = Some(flag),
            (Field::TruncatePromptTokens, Scalar::Integer(n)) => return raw.truncate_prompt_tokens = Some(n),
            (Field::TruncationSide | Field::TruncationDirection, Scalar::Text(side)) => {
                return self.set_side(field.name(), side);
            }
            (Field::TokenEncoding, Scalar::Text(name)) => return raw.token_encoding = Some(name),
            (Field::Prompt, Scalar::Text(prompt)) => return raw.prompt = Some(prompt),
            (Field::PromptName, Scalar::Text(name)) => return raw.prompt_name = Some(name),
            // Azure's word for no role, which its clients send with every request; and what others send for none.
            (Field::InputType | Field::Task, Scalar::Text(role)) if ["", "text"].contains(&role.as_str()) => return,
            (Field::InputType, Scalar::Text(role)) => return raw.input_type = Some(role),
            (Field::Task, Scalar::Text(role)) => return raw.task = Some(role),
            (Field::Dimensions | Field::OutputDimension | Field::TruncatePromptTokens, other) => ("an integer", other),
            (Field::Truncation, other) => ("a boolean", other),
            (Field::Truncate, other) => ("a boolean or a string", other),
            (_, other) => ("a string", other),
        };
        let (expected, other) = expected;
        let fault = Fault { place: field.name().to_owned(), expected, got: other.kind() };
        self.fault.get_or_insert(fault);
    }

    fn refuse(&mut self, field: &'static str, value: String, allowed: String) {
        self.request.refusal.get_or_insert(RequestError::InvalidValue { field, value, allowed });
    }

    /// It may have been chosen under another name.
    fn set_encoding(&mut self, text: String) {
        match &self.request.encoding_format {
            Some(set) if *set != text => {
                let allowed = format!("It contradicts 'embedding_type': '{set}'");
                self.refuse("encoding_format", text, allowed);
            }
            _ => self.request.encoding_format = Some(text),
        }
    }

    /// As for [`Self::set_side`].
    fn set_dimensions(&mut self, name: &'static str, value: i64) {
        match self.request.raw.dimensions {
            Some(set) if set != value => {
                self.refuse(name, value.to_string(), format!("The length was given as {set} before"));
            }
            _ => self.request.raw.dimensions = Some(value),
        }
    }

    fn set_form(&mut self, field: Field, form: String) {
        let forms = field.forms();
        if !forms.contains(&form.as_str()) {
            let supported: Vec<String> = forms.iter().map(|form| format!("'{form}'")).collect();
            self.refuse(field.name(), form, format!("Supported values: [{}]", supported.join(", ")));
        } else if field == Field::EmbeddingType {
            match &self.request.encoding_format {
                Some(set) if *set != form => {
                    let allowed = format!("It contradicts 'encoding_format': '{set}'");
                    self.refuse(field.name(), form, allowed);
                }
                _ => self.request.encoding_format = Some(form),
            }
        }
    }

    /// Two clients' names for one setting: both may be sent, if they agree.
    fn set_side(&mut self, name: &'static str, side: String) {
        match &self.request.raw.truncation_side {
            Some((other, set)) if !set.eq_ignore_ascii_case(&side) => {
                let allowed = format!("It contradicts '{other}'");
                self.refuse(name, side, allowed);
            }
            Some(_) => {}
            None => self.request.raw.truncation_side = Some((name, side)),
        }
    }
}

#[cfg(test)]
mod tests;
