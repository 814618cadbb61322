//! The reading of one request's inputs, in pieces that workers share.

use std::sync::Arc;

use super::growth;
use super::lead::Lead;
use super::token_arrays::{Reading, Rules, Vocabulary};
use super::{EncodedRow, Model};
use crate::observe::metrics::ArrayReading;
use crate::request::{Input, InputLocation, RequestError, Truncation};

/// Texts of fewer bytes together are tokenised where they arrive: a few microseconds in plain English, and a quarter of a
/// millisecond at the very worst.
const BRIEF_BYTES: usize = 1024;

/// The rows of a request so far.
pub(super) struct Rows {
    pub(super) read: Vec<EncodedRow>,
    pub(super) tokens: usize,
    pub(super) limit: usize,
}

impl Rows {
    /// Ends a request as soon as it has too many tokens: the rest would be read for nothing.
    pub(super) fn add(&mut self, rows: Vec<EncodedRow>) -> Result<(), RequestError> {
        self.tokens += rows.iter().map(|row| row.counted).sum::<usize>();
        self.read.extend(rows);
        let (tokens, limit) = (self.tokens, self.limit);
        if tokens > limit { Err(RequestError::TooManyTokens { tokens, limit }) } else { Ok(()) }
    }
}

/// What all inputs of a request have in common.
pub(super) struct Job {
    pub(super) model: Arc<Model>,
    pub(super) rules: Rules,
    pub(super) prompt: String,
    pub(super) single: bool,
    pub(super) truncation: Truncation,
}

impl Job {
    /// Whether the inputs are tokenised sooner than a worker is awake. The tables that token arrays are read with may
    /// have to be built first.
    pub(super) fn is_brief(&self, inputs: &[Input]) -> bool {
        let bytes = |input: &Input| match input {
            Input::Text(text) => text.len() + self.prompt.len(),
            Input::Tokens(_) => BRIEF_BYTES,
        };
        inputs.len() < BRIEF_BYTES && inputs.iter().map(bytes).sum::<usize>() < BRIEF_BYTES
    }

    /// What is read of these inputs, prompts included, as far as their lengths tell.
    pub(super) fn size_bytes(&self, inputs: &[Input]) -> usize {
        let cap = self.model.limits.max_input_bytes;
        let bytes = |input: &Input| match input {
            Input::Text(text) => (self.prompt.len() + growth::grown_bytes(text, cap)).min(cap),
            Input::Tokens(ids) => ids.len() * 4,
        };
        inputs.iter().map(bytes).sum()
    }

    /// Some of the inputs, the first of which is the request's `first`; fewer when nobody waits for them any more.
    pub(super) fn encode(
        &self,
        inputs: Vec<Input>,
        first: usize,
        has_left: &dyn Fn() -> bool,
    ) -> Result<Vec<EncodedRow>, RequestError> {
        let lead = self.model.lead(&self.prompt, self.truncation)?;
        let encode = |(index, input)| self.encode_input(input, InputLocation::at(self.single, first + index), &lead);
        inputs.into_iter().enumerate().take_while(|_| !has_left()).map(encode).collect()
    }

    fn encode_input(&self, input: Input, place: InputLocation, lead: &Lead<'_>) -> Result<EncodedRow, RequestError> {
        let Self { model, rules, truncation, .. } = self;
        let ids = match input {
            Input::Text(text) => return model.encode_text(&text, lead, place, *truncation),
            Input::Tokens(ids) => ids,
        };
        rules.check_length(ids.len(), model.limits.max_request_tokens)?;
        let vocabulary = Vocabulary { frame: &model.frame, rows: model.vocab_rows, model: &model.name };
        let reading = rules.read(&ids, place, &vocabulary);
        model.metrics.token_array(match &reading {
            Ok(Reading::Text(_, encoding)) => encoding.metric(),
            Ok(Reading::Ids(_)) => ArrayReading::Model,
            Err(_) => ArrayReading::Refused,
        });
        match reading? {
            Reading::Text(text, _) => {
                let row = model.encode_text(&text, lead, place, *truncation)?;
                Ok(EncodedRow { counted: ids.len(), ..row })
            }
            Reading::Ids(ids) => model.fit(model.unframed(ids), place, *truncation),
        }
    }
}
