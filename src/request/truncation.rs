//! Whether over-long inputs are cut, at which end, and to how many tokens: the fields of six APIs read as one setting.

use crate::request::{RequestError, RequestLimits, Side, TruncateField, Truncation};

/// The four spellings of truncation that clients use; they must agree.
pub(super) struct TruncationFields {
    pub(super) truncate: Option<TruncateField>,
    pub(super) truncation: Option<bool>,
    pub(super) keep_tokens: Option<i64>,
    pub(super) side: Option<(&'static str, String)>,
}

impl TruncationFields {
    /// The nearest setting wins: the request's fields, then the model's or the operator's default.
    pub(super) fn resolve(self, limits: &RequestLimits) -> Result<Truncation, RequestError> {
        let side = self.side.as_ref().map(|(field, value)| parse_side(field, value)).transpose()?;
        // `truncate` as "on, off, or on with this side".
        let truncate = self.truncate.as_ref().map(parse_truncate).transpose()?;
        if let (Some(Some(wanted)), Some(side)) = (truncate.map(|t| t.and_then(|t| t.side)), side)
            && wanted != side
        {
            let (field, value) = self.side.unwrap_or(("truncation_side", String::new()));
            return Err(contradiction(field, value, "It contradicts 'truncate'"));
        }
        let keep = self.keep_tokens.map(|n| parse_keep_tokens(n, limits)).transpose()?;
        let by_truncate = truncate.map(|t| t.is_some());
        if let (Some(a), Some(b)) = (by_truncate, self.truncation)
            && a != b
        {
            return Err(contradiction("truncation", b.to_string(), "It contradicts 'truncate'"));
        }
        let switched = by_truncate.or(self.truncation);
        if switched == Some(false)
            && let Some(tokens) = self.keep_tokens
        {
            return Err(contradiction("truncate_prompt_tokens", tokens.to_string(), "Truncation is switched off"));
        }
        let chosen = truncate.flatten().and_then(|t| t.side).or(side);
        let on = match switched {
            Some(on) => on,
            None => keep.is_some() || limits.truncate.is_some(),
        };
        let default_side = limits.truncate.unwrap_or(Side::End);
        Ok(Truncation {
            side: on.then(|| chosen.unwrap_or(default_side)),
            max_tokens: keep.unwrap_or(limits.max_tokens),
        })
    }
}

/// `truncate` switched on, with the side if it names one.
#[derive(Debug, Clone, Copy)]
struct SwitchedOn {
    side: Option<Side>,
}

fn parse_truncate(field: &TruncateField) -> Result<Option<SwitchedOn>, RequestError> {
    match field {
        TruncateField::Flag(true) => Ok(Some(SwitchedOn { side: None })),
        TruncateField::Flag(false) => Ok(None),
        TruncateField::Word(word) => match word.to_ascii_uppercase().as_str() {
            "NONE" => Ok(None),
            "START" => Ok(Some(SwitchedOn { side: Some(Side::Start) })),
            "END" => Ok(Some(SwitchedOn { side: Some(Side::End) })),
            _ => {
                Err(contradiction("truncate", word.clone(), "Supported values: [true, false, 'NONE', 'START', 'END']"))
            }
        },
    }
}

fn parse_side(field: &'static str, value: &str) -> Result<Side, RequestError> {
    match value.to_ascii_lowercase().as_str() {
        "left" => Ok(Side::Start),
        "right" => Ok(Side::End),
        _ => Err(contradiction(field, value.to_owned(), "Supported values: ['left', 'right']")),
    }
}

fn parse_keep_tokens(value: i64, limits: &RequestLimits) -> Result<usize, RequestError> {
    if value == -1 {
        return Ok(limits.max_tokens);
    }
    match usize::try_from(value) {
        Ok(n) if (1..=limits.max_tokens).contains(&n) => Ok(n),
        _ => Err(contradiction(
            "truncate_prompt_tokens",
            value.to_string(),
            &format!("Expected -1 or a value from 1 to {}", limits.max_tokens),
        )),
    }
}

fn contradiction(field: &'static str, value: String, allowed: &str) -> RequestError {
    RequestError::InvalidValue { field, value, allowed: allowed.to_owned() }
}
