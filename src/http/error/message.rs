//! What an error says. Change a text only together with its test: clients match on these words.

use std::borrow::Cow;
use std::time::Duration;

use super::{ApiError, Limited, RetryAfter};
use crate::observe::metrics::LimitKind;
use crate::request::{Measured, RequestError};

/// A client's own text is shown up to here.
const ECHO_CHARS: usize = 200;
/// And a method up to here: the longest that is registered has 17.
const METHOD_CHARS: usize = 32;

/// How the paths of other servers end that embed texts: Ollama's, TEI's, Cohere's, llama.cpp's.
const NEAR_MISSES: [&str; 3] = ["embeddings", "embed", "embedding"];
const MEANT: &str = " Did you mean POST /v1/embeddings?";

impl ApiError {
    pub(super) fn message(&self) -> String {
        match self {
            Self::NoKey => "Incorrect API key provided: none. You didn't provide an API key; send it in an \
                            Authorization header as 'Bearer YOUR_KEY'."
                .to_owned(),
            Self::WrongKey { shown } => format!("Incorrect API key provided: {shown}."),
            Self::ModelNotAllowed { model } => {
                format!("This API key does not have access to model `{}`.", echo(model))
            }
            Self::PageNotAllowed { path } => {
                format!("This API key is limited to some models and does not have access to {path}.")
            }
            Self::HostNotAllowed { host } => format!(
                "Host '{}' is not allowed. Without keys this server answers to localhost and --allowed-hosts only; start \
                 it with --api-key to serve others.",
                echo(host)
            ),
            Self::OriginNotAllowed { origin } => format!(
                "Pages from '{}' are not allowed. Without keys, their origin has to be listed with --cors-origins.",
                echo(origin)
            ),
            Self::UnknownModel { model } => format!(
                "The model `{}` does not exist or you do not have access to it. GET /v1/models lists the models \
                 served here.",
                echo(model)
            ),
            Self::NoSuchModel { model } => format!("The model '{}' does not exist", echo(model)),
            Self::UnknownUrl { method, path } => {
                let last = path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
                let hint = if NEAR_MISSES.contains(&last.as_str()) { MEANT } else { "" };
                format!("Invalid URL ({} {}){hint}", cut(method, METHOD_CHARS), echo(path))
            }
            // A client whose base URL is taken for the whole one.
            Self::MethodNotAllowed { method, path, .. } if method == "POST" && path == "/" => {
                format!("Not allowed to POST on /.{MEANT}")
            }
            Self::MethodNotAllowed { method, path, allow } => {
                let usual = allow.split(',').next().unwrap_or(allow);
                format!("Not allowed to {} on {}. (HINT: use {usual}.)", cut(method, METHOD_CHARS), echo(path))
            }
            Self::BodyTimeout { limit } => format!("The request body was not received within {} s.", seconds(*limit)),
            Self::BodyTooLarge { limit } => format!("Maximum request body size {limit} bytes exceeded."),
            Self::MediaType { given } => {
                format!("Unsupported Content-Type '{}': send application/json.", echo(given))
            }
            Self::ContentEncoding { given } => {
                format!("Unsupported Content-Encoding '{}': send the body uncompressed.", echo(given))
            }
            Self::Json { reason } => format!("We could not parse the JSON body of your request: {reason}."),
            Self::BodyBroken => {
                "The request body could not be read: it ended early, or its chunked coding is broken.".to_owned()
            }
            Self::MissingModel => "you must provide a model parameter".to_owned(),
            Self::MissingInput => "Missing required parameter: 'input'.".to_owned(),
            Self::WrongType { place, expected, got } => {
                format!("Invalid type for '{place}': expected {expected}, but got {got} instead.")
            }
            Self::Request(error) => request_message(error),
            Self::EncodingFormat { given } => {
                format!("Invalid value for 'encoding_format' = {}. Supported values: ['float', 'base64'].", echo(given))
            }
            Self::Limited { model, limited: Limited { kind, limit, used, requested, retry } } => {
                let what = match kind {
                    LimitKind::Requests => "requests per min (RPM)",
                    LimitKind::Tokens => "tokens per min (TPM)",
                    LimitKind::Concurrency => "concurrent requests",
                };
                format!(
                    "Rate limit reached for model {} on {what}: Limit {limit}, Used {used}, Requested {requested}. {}",
                    echo(model),
                    again(*retry)
                )
            }
            Self::Internal | Self::RowFailed => "The server had an error while processing your request.".to_owned(),
            Self::NonFinite { place } => format!("The model returned a non-finite vector for '{place}'."),
            Self::Overloaded { retry } => format!("The server is overloaded. {}", again(*retry)),
            Self::Loading { model, retry } => {
                format!("The model `{}` is still loading. {}", echo(model), again(*retry))
            }
            Self::Draining { retry } => format!("The server is shutting down. {}", again(*retry)),
            Self::Unavailable { model, retry } => {
                format!("The model `{}` is not available. {}", echo(model), again(*retry))
            }
            Self::Deadline { after, .. } => {
                format!("The request was not finished within {} s.", seconds(*after))
            }
        }
    }
}

fn request_message(error: &RequestError) -> String {
    match error {
        RequestError::EmptyArray { place } => format!("Invalid '{place}': input cannot be an empty array."),
        RequestError::EmptyString { place } => format!("Invalid '{place}': input cannot be an empty string."),
        RequestError::TooManyInputs { limit } => format!("Invalid 'input': array length must be {limit} or less."),
        RequestError::TooLong { place, limit, measured } => {
            // Satisfies every classifier: the older wording and the newer one, in one text.
            let requested = match measured {
                Measured::Tokens(n) => format!("{n} tokens ({n} in your prompt; 0 for the completion)"),
                Measured::Bytes(n) => format!("more (the text has {n} bytes)"),
            };
            format!(
                "Invalid '{place}': maximum input length is {limit} tokens. This model's maximum context length is \
                 {limit} tokens, however you requested {requested}. Please reduce your prompt, or set \
                 \"truncate\": true."
            )
        }
        RequestError::TooManyTokens { tokens, limit } => {
            format!("Requested {tokens} tokens, max {limit} tokens per request")
        }
        RequestError::TokenId { place, id, vocabulary, suggest_model } => {
            let hint = if *suggest_model {
                " Set \"token_encoding\": \"model\" if these are the model's own ids."
            } else {
                ""
            };
            format!("Invalid '{place}': {id} is not a valid token id ({vocabulary}).{hint}")
        }
        RequestError::AmbiguousTokenIds { place, encoding } => format!(
            "Invalid '{place}': these token ids read both as {encoding} text and as this model's own ids. Set \
             \"token_encoding\" to \"{encoding}\" or \"model\"."
        ),
        RequestError::TokenArraysRejected => "Invalid 'input': this model does not accept token arrays; send text (in \
                                              LangChain: check_embedding_ctx_length=False)."
            .to_owned(),
        RequestError::DimensionsUnsupported { native } => {
            format!("This model does not support specifying dimensions. Its vectors have {native} dimensions.")
        }
        RequestError::DimensionsTooLarge { value, native } => {
            format!("Invalid value for 'dimensions' = {value}. Must be less than or equal to {native}.")
        }
        RequestError::DimensionsTooSmall { value } => format!(
            "Invalid 'dimensions': integer below minimum value. Expected a value >= 1, but got {value} instead."
        ),
        RequestError::InvalidValue { field, value, allowed } => {
            format!("Invalid value for '{field}' = {}. {allowed}.", echo(value))
        }
    }
}

fn again(retry: RetryAfter) -> String {
    format!("Please try again in {}s.", retry.seconds())
}

/// Whole seconds without a fraction, others with one decimal.
fn seconds(duration: Duration) -> String {
    let tenths = (duration.as_secs_f64() * 10.0).round() / 10.0;
    format!("{tenths}")
}

/// A client's own text, cut where a longer one would only fill logs.
pub(super) fn echo(text: &str) -> Cow<'_, str> {
    cut(text, ECHO_CHARS)
}

/// So many characters. JSON escapes the controls of ASCII but for the last one; that and those of Latin-1, which some
/// terminals obey, are shown as what they are: not printable.
fn cut(text: &str, n_chars: usize) -> Cow<'_, str> {
    let cut = text.char_indices().nth(n_chars).map_or(text, |(end, _)| &text[..end]);
    let is_raw = |c: char| matches!(c, '\u{7f}'..='\u{9f}');
    if cut.contains(is_raw) { Cow::Owned(cut.replace(is_raw, "\u{fffd}")) } else { Cow::Borrowed(cut) }
}
