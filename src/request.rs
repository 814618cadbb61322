//! One embeddings request as a value: whatever exists as an [`EmbedRequest`] has passed every check that needs no
//! tokenizer (counts, empty inputs, dimensions, truncation, prompts).
//!
//! Plain types only: no JSON, no status codes, no clocks but the deadline that the caller brings. The wording that
//! clients see lives in `http/error/message.rs`; here a failure is a [`RequestError`] that knows its place and its numbers.

mod prompts;
mod row;
mod truncation;

use std::fmt;
use std::time::Instant;

use thiserror::Error;

pub use prompts::{Prompts, known_role};
pub use row::{RowShape, TokenRow};

use prompts::PromptFields;
use truncation::TruncationFields;

/// What the wire delivered, types checked, values not yet.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RawRequest {
    /// The texts or token arrays, in order.
    pub inputs: RawInputs,
    /// `dimensions` as sent; integers beyond `i64` are saturated by the wire.
    pub dimensions: Option<i64>,
    /// `truncate`: TEI, Jina (bool), NIM, Cohere (word).
    pub truncate: Option<TruncateField>,
    /// `truncation`: Voyage.
    pub truncation: Option<bool>,
    /// `truncate_prompt_tokens`: vLLM.
    pub truncate_prompt_tokens: Option<i64>,
    /// `truncation_side` (vLLM) or `truncation_direction` (TEI): the field's name and its value.
    pub truncation_side: Option<(&'static str, String)>,
    /// `token_encoding`: how to read token arrays.
    pub token_encoding: Option<String>,
    /// `prompt`: the text to put before every input; `""` = none.
    pub prompt: Option<String>,
    /// `prompt_name`: one of the model's prompts (sentence-transformers, TEI).
    pub prompt_name: Option<String>,
    /// `input_type`: a role (Cohere, Voyage, NIM).
    pub input_type: Option<String>,
    /// `task`: a role (Jina).
    pub task: Option<String>,
    /// The role that the model name ended with, or that the caller's key implies.
    pub role_suffix: Option<&'static str>,
}

/// `truncate` is a bool for some clients and a word for others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TruncateField {
    /// `true` = END, `false` = NONE.
    Flag(bool),
    /// `"NONE"`, `"START"`, `"END"` in any case.
    Word(String),
}

/// The four shapes of `input`. `single` remembers whether the outer list was absent, for error messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RawInputs {
    /// One string, or a list of strings.
    Texts { single: bool, texts: Vec<String> },
    /// One flat list of ids, or a list of lists. Ids outside `i64` are saturated by the wire.
    Tokens { single: bool, arrays: Vec<Vec<i64>> },
}

impl RawInputs {
    /// Memory that they take, in bytes.
    pub fn size_bytes(&self) -> usize {
        match self {
            Self::Texts { texts, .. } => texts.iter().map(|text| text.len() + size_of::<String>()).sum(),
            Self::Tokens { arrays, .. } => {
                arrays.iter().map(|ids| size_of_val(ids.as_slice()) + size_of::<Vec<i64>>()).sum()
            }
        }
    }
}

impl Default for RawInputs {
    fn default() -> Self {
        Self::Texts { single: false, texts: Vec::new() }
    }
}

/// What one model and its operator allow; every number is a named setting or comes from the model's own files.
#[derive(Debug, Clone)]
pub struct RequestLimits {
    /// Tokens of one input, special tokens included.
    pub max_tokens: usize,
    /// The model's native vector length.
    pub dimensions: usize,
    /// Whether `dimensions` below the native length is meaningful for this model.
    pub matryoshka: bool,
    /// Inputs of one request.
    pub max_inputs: usize,
    /// Tokens summed over one request.
    pub max_request_tokens: usize,
    /// Bytes of one text that are ever tokenised: cost must be bounded before it is measured.
    pub max_input_bytes: usize,
    /// `""` is embedded as its special tokens instead of being refused.
    pub allow_empty_input: bool,
    /// How token arrays are read when the request does not say.
    pub token_arrays: TokenArrays,
    /// The truncation that applies when the request does not say.
    pub truncate: Option<Side>,
    pub prompts: Prompts,
    /// Bytes of a `prompt` that the request brings along.
    pub max_prompt_bytes: usize,
}

/// The end of an over-long input that is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Cut the end: the first tokens stay.
    End,
    /// Cut the start: the last tokens stay.
    Start,
}

/// How over-long inputs are treated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncation {
    /// `None`: an over-long input is an error.
    pub side: Option<Side>,
    /// Tokens kept at most, special tokens included.
    pub max_tokens: usize,
}

/// The operator's reading of token arrays, `--token-arrays` or `token_arrays` in models.toml.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TokenArrays {
    /// Decide per array by its framing; ambiguity is an error, never a guess.
    #[default]
    Auto,
    /// The model's own ids.
    Model,
    /// OpenAI's encodings, chosen by the requested model name.
    Cl100k,
    /// Refused.
    Reject,
}

/// An explicit `token_encoding`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenEncoding {
    Cl100k,
    O200k,
    Model,
}

impl TokenEncoding {
    /// The name as it appears on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cl100k => "cl100k_base",
            Self::O200k => "o200k_base",
            Self::Model => "model",
        }
    }
}

/// A request that is valid as far as can be known without tokenising.
#[derive(Debug, Clone)]
pub struct EmbedRequest {
    /// The model name as the client wrote it: it chooses the encoding of token arrays.
    pub requested_model: String,
    /// One entry per vector to return, in order.
    pub inputs: Vec<Input>,
    /// Whether the client sent a bare string or a flat token array.
    pub single: bool,
    /// Vector length to return.
    pub dimensions: Dimensions,
    pub truncation: Truncation,
    pub token_encoding: Option<TokenEncoding>,
    /// Put before every text; empty: nothing.
    pub prompt: String,
    /// When the answer stops being useful.
    pub deadline: Instant,
    /// Who it takes turns as.
    pub flow: Flow,
}

/// Callers that take turns with each other: requests of one flow share what that flow gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Flow(pub u32);

/// One text to embed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    Text(String),
    /// Token ids whose encoding is still to be decided. Negative ids survive until they can be reported.
    Tokens(Vec<i64>),
}

/// A vector length the model can give: 1 to native.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dimensions(usize);

impl Dimensions {
    /// The model's own length.
    pub const fn native(limits: &RequestLimits) -> Self {
        Self(limits.dimensions)
    }

    /// Whatever the model gives, for callers that are no client.
    pub const fn unlimited() -> Self {
        Self(usize::MAX)
    }

    /// Checks `requested` against the model.
    ///
    /// # Errors
    /// Below 1, above native, or below native on a model that was not trained for it.
    pub fn parse(requested: i64, limits: &RequestLimits) -> Result<Self, RequestError> {
        if requested < 1 {
            return Err(RequestError::DimensionsTooSmall { value: requested });
        }
        match usize::try_from(requested) {
            Ok(value) if value == limits.dimensions => Ok(Self(value)),
            Ok(value) if value < limits.dimensions && limits.matryoshka => Ok(Self(value)),
            _ if !limits.matryoshka => Err(RequestError::DimensionsUnsupported { native: limits.dimensions }),
            _ => Err(RequestError::DimensionsTooLarge { value: requested, native: limits.dimensions }),
        }
    }

    pub const fn get(self) -> usize {
        self.0
    }
}

/// Where in the request a problem lies; displays as `input`, `input[3]` or `input[3][7]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputLocation {
    single: bool,
    index: usize,
    token: Option<usize>,
}

impl InputLocation {
    /// The input at `index`; a bare string or flat token array has no index to show.
    pub const fn at(single: bool, index: usize) -> Self {
        Self { single, index, token: None }
    }

    /// One id of the token array at this place.
    #[must_use]
    pub const fn token(self, position: usize) -> Self {
        Self { token: Some(position), ..self }
    }
}

impl fmt::Display for InputLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("input")?;
        if !self.single {
            write!(f, "[{}]", self.index)?;
        }
        if let Some(token) = self.token {
            write!(f, "[{token}]")?;
        }
        Ok(())
    }
}

/// How the size of an over-long input is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    /// Counted with the model's tokenizer, special tokens included.
    Tokens(usize),
    /// Refused by the byte cap before tokenising.
    Bytes(usize),
}

/// Everything a request can have wrong with its values.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestError {
    #[error("empty array: {place}")]
    EmptyArray { place: String },
    #[error("empty string: {place}")]
    EmptyString { place: InputLocation },
    #[error("too many inputs, limit: {limit}")]
    TooManyInputs { limit: usize },
    #[error("this model has one vector length: {native}")]
    DimensionsUnsupported { native: usize },
    #[error("dimensions above native {native}: {value}")]
    DimensionsTooLarge { value: i64, native: usize },
    #[error("dimensions below 1: {value}")]
    DimensionsTooSmall { value: i64 },
    #[error("invalid value for {field}: {value}")]
    InvalidValue { field: &'static str, value: String, allowed: String },
    #[error("input too long at {place}, limit: {limit}")]
    TooLong { place: InputLocation, limit: usize, measured: Measured },
    #[error("request of {tokens} tokens, limit: {limit}")]
    TooManyTokens { tokens: usize, limit: usize },
    #[error("not a token id of {vocabulary} at {place}: {id}")]
    TokenId {
        place: InputLocation,
        id: i64,
        vocabulary: String,
        /// Whether the message should point at `token_encoding: "model"`.
        suggest_model: bool,
    },
    #[error("token ids read both ways at {place}")]
    AmbiguousTokenIds { place: InputLocation, encoding: &'static str },
    #[error("token arrays are not accepted")]
    TokenArraysRejected,
}

impl EmbedRequest {
    /// Checks everything that needs no tokenizer.
    ///
    /// # Errors
    /// The first problem found, in the order counts, empty inputs, dimensions, truncation fields, encoding, prompt.
    pub fn parse(
        requested_model: String,
        raw: RawRequest,
        limits: &RequestLimits,
        deadline: Instant,
    ) -> Result<Self, RequestError> {
        let (single, inputs) = parse_inputs(raw.inputs, limits)?;
        let dimensions = match raw.dimensions {
            Some(requested) => Dimensions::parse(requested, limits)?,
            None => Dimensions::native(limits),
        };
        let fields = TruncationFields {
            truncate: raw.truncate,
            truncation: raw.truncation,
            keep_tokens: raw.truncate_prompt_tokens,
            side: raw.truncation_side,
        };
        let truncation = fields.resolve(limits)?;
        let token_encoding = raw.token_encoding.map(parse_token_encoding).transpose()?;
        let fields = PromptFields {
            prompt: raw.prompt,
            prompt_name: raw.prompt_name,
            input_type: raw.input_type,
            task: raw.task,
            suffix: raw.role_suffix,
        };
        let prompt = fields.resolve(limits)?;
        let flow = Flow::default();
        Ok(Self { requested_model, inputs, single, dimensions, truncation, token_encoding, prompt, deadline, flow })
    }
}

fn parse_inputs(raw: RawInputs, limits: &RequestLimits) -> Result<(bool, Vec<Input>), RequestError> {
    let (single, inputs): (bool, Vec<Input>) = match raw {
        RawInputs::Texts { single, texts } => (single, texts.into_iter().map(Input::Text).collect()),
        RawInputs::Tokens { single, arrays } => (single, arrays.into_iter().map(Input::Tokens).collect()),
    };
    if inputs.is_empty() {
        return Err(RequestError::EmptyArray { place: "input".to_owned() });
    }
    if inputs.len() > limits.max_inputs {
        return Err(RequestError::TooManyInputs { limit: limits.max_inputs });
    }
    for (index, input) in inputs.iter().enumerate() {
        let place = InputLocation::at(single, index);
        match input {
            Input::Text(text) if text.is_empty() && !limits.allow_empty_input => {
                return Err(RequestError::EmptyString { place });
            }
            Input::Tokens(ids) if ids.is_empty() => {
                return Err(RequestError::EmptyArray { place: place.to_string() });
            }
            Input::Tokens(_) if limits.token_arrays == TokenArrays::Reject => {
                return Err(RequestError::TokenArraysRejected);
            }
            Input::Text(_) | Input::Tokens(_) => {}
        }
    }
    Ok((single, inputs))
}

fn parse_token_encoding(name: String) -> Result<TokenEncoding, RequestError> {
    [TokenEncoding::Cl100k, TokenEncoding::O200k, TokenEncoding::Model]
        .into_iter()
        .find(|encoding| encoding.name() == name)
        .ok_or_else(|| RequestError::InvalidValue {
            field: "token_encoding",
            value: name,
            allowed: "Supported values: ['cl100k_base', 'o200k_base', 'model']".to_owned(),
        })
}

#[cfg(test)]
mod tests;
