//! Texts and token arrays to token ids, on bounded worker threads.
//!
//! Every text is tokenised completely (under the byte cap) and cut afterwards, so that errors and `original_tokens`
//! state the true length. A cut keeps the special tokens, as the reference tokenizer's own truncation does.

pub mod load;
pub mod settings;
mod tasks;
pub mod token_arrays;
pub mod word_list;
pub mod word_piece;
pub mod words;
pub mod workers;

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{FuturesOrdered, StreamExt};
use thiserror::Error;

use crate::observe::metrics::{ArrayReading, ModelMetrics};
use crate::request::{EmbedRequest, Input, Measured, Place, RequestError, RequestLimits, Side, TokenRow, Truncation};
use load::{Frame, TokenizerLoadError};
use token_arrays::{Reading, Rules, Vocabulary};
use word_piece::WordPiece;
use words::WholeWords;
use workers::{WorkerFailed, Workers};

/// Tasks that one request brings to the workers at once, for each of them: one to do, one to go on with.
const TASKS_PER_WORKER: usize = 2;

/// Texts of fewer bytes together are tokenised where they arrive: a few microseconds in plain English, and a quarter of a
/// millisecond at the very worst.
const BRIEF_BYTES: usize = 1024;

/// What was cut from an over-long input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Tokens before the cut; unknown when the byte cap kept most of the text from being tokenised.
    pub original_tokens: Option<usize>,
}

/// The token rows of one request.
#[derive(Debug)]
pub struct Encoded {
    /// One row per input, special tokens included.
    pub rows: Vec<TokenRow>,
    pub cuts: Vec<Option<Cut>>,
    pub elapsed: Duration,
}

/// Why a request was not tokenised.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum TokenizeError {
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error(transparent)]
    Worker(#[from] WorkerFailed),
    #[error("deadline passed")]
    Deadline,
}

/// One model's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    model: Arc<Model>,
    workers: Workers,
}

#[derive(Debug)]
struct Model {
    name: String,
    tokenizer: tokenizers::Tokenizer,
    /// The same tokenizer without the library's detours, where it is of a kind that we read ourselves.
    words: Option<WordPiece>,
    frame: Frame,
    vocab_rows: usize,
    include_prompt: bool,
    limits: RequestLimits,
    metrics: Arc<ModelMetrics>,
}

/// What a [`Tokenizer`] is made from.
#[derive(Debug)]
pub struct TokenizerSource<'a> {
    /// The canonical model id, for error messages.
    pub name: &'a str,
    /// `tokenizer.json`; the files that go with it lie beside it.
    pub path: &'a Path,
    /// Rows of the embedding table: no token id may lie outside.
    pub vocab_rows: usize,
    /// All but special tokens is lower-cased first (`do_lower_case` of `sentence_bert_config.json`).
    pub lower_case: bool,
    /// Whether pooling sees the tokens of a request's prompt.
    pub include_prompt: bool,
    pub limits: RequestLimits,
}

/// One input after tokenising.
struct EncodedRow {
    row: TokenRow,
    cut: Option<Cut>,
    /// What counts against the request's total: our tokens for text, ids received for OpenAI's arrays.
    counted: usize,
}

impl Tokenizer {
    /// # Errors
    /// See [`load::load`].
    pub fn load(
        source: TokenizerSource<'_>,
        workers: Workers,
        metrics: Arc<ModelMetrics>,
    ) -> Result<Self, TokenizerLoadError> {
        let TokenizerSource { name, path, vocab_rows, lower_case, include_prompt, limits } = source;
        let (tokenizer, frame) = load::load(path, vocab_rows)?;
        let tokenizer = if lower_case { load::lower_cased(tokenizer, path)? } else { tokenizer };
        let name = name.to_owned();
        let words = WordPiece::of(&tokenizer);
        let model = Model { name, tokenizer, words, frame, vocab_rows, include_prompt, limits, metrics };
        Ok(Self { model: Arc::new(model), workers })
    }

    /// Tokenises every input of a request; the first input that cannot be used fails the request.
    ///
    /// # Errors
    /// See [`TokenizeError`].
    pub async fn encode(&self, request: EmbedRequest) -> Result<Encoded, TokenizeError> {
        let start = Instant::now();
        let left = request.deadline.saturating_duration_since(start);
        let rows =
            tokio::time::timeout(left, self.encode_rows(request)).await.map_err(|_| TokenizeError::Deadline)??;
        let limit = self.model.limits.max_request_tokens;
        let tokens = rows.iter().map(|row| row.counted).sum();
        if tokens > limit {
            return Err(RequestError::TooManyTokens { tokens, limit }.into());
        }
        let elapsed = start.elapsed();
        self.model.metrics.tokenized(elapsed);
        let (rows, cuts) = rows.into_iter().map(|row| (row.row, row.cut)).unzip();
        Ok(Encoded { rows, cuts, elapsed })
    }

    /// Tokenises a text of our own, for warm-up: no limits apply but the model's length.
    ///
    /// # Errors
    /// Whatever the tokenizer library says.
    pub fn encode_probe(&self, text: &str) -> Result<Vec<u32>, String> {
        let model = &self.model;
        let content = model.ids(text)?;
        let truncation = Truncation { side: Some(Side::End), max_tokens: model.limits.max_tokens };
        Ok(model.cut(content, truncation).0)
    }

    /// Words that are one token each, for texts of a known number of tokens; none where the vocabulary has none.
    pub fn whole_words(&self) -> WholeWords {
        words::find(&self.model.tokenizer, &self.model.frame)
    }

    async fn encode_rows(&self, request: EmbedRequest) -> Result<Vec<EncodedRow>, TokenizeError> {
        let inputs = request.inputs;
        let job = Job {
            model: Arc::clone(&self.model),
            rules: Rules {
                policy: self.model.limits.token_arrays,
                encoding: request.token_encoding,
                requested_model: request.requested_model,
            },
            prompt: request.prompt,
            single: request.single,
            truncation: request.truncation,
        };
        if job.is_brief(&inputs) {
            return Ok(self.workers.run_here(|| job.encode(inputs, 0))??);
        }
        let (job, mut rows, mut first) = (Arc::new(job), Vec::with_capacity(inputs.len()), 0);
        let (mut waiting, mut tasks) = (tasks::of(inputs).into_iter(), FuturesOrdered::new());
        loop {
            // Enough for all workers, and no more: others' texts come between those of a large request.
            while tasks.len() < TASKS_PER_WORKER * self.workers.count()
                && let Some(inputs) = waiting.next()
            {
                let (job, place) = (Arc::clone(&job), first);
                first += inputs.len();
                tasks.push_back(self.workers.run(move || job.encode(inputs, place)));
            }
            // In order, so that the first fault is named and ends the rest.
            match tasks.next().await {
                Some(answer) => rows.extend(answer??),
                None => return Ok(rows),
            }
        }
    }
}

/// What all inputs of a request have in common.
struct Job {
    model: Arc<Model>,
    rules: Rules,
    prompt: String,
    single: bool,
    truncation: Truncation,
}

impl Job {
    /// Whether the inputs are tokenised sooner than a worker is awake. The tables that token arrays are read with may
    /// have to be built first.
    fn is_brief(&self, inputs: &[Input]) -> bool {
        let bytes = |input: &Input| match input {
            Input::Text(text) => text.len() + self.prompt.len(),
            Input::Tokens(_) => BRIEF_BYTES,
        };
        inputs.len() < BRIEF_BYTES && inputs.iter().map(bytes).sum::<usize>() < BRIEF_BYTES
    }

    /// Some of the inputs, the first of which is the request's `first`.
    fn encode(&self, inputs: Vec<Input>, first: usize) -> Result<Vec<EncodedRow>, RequestError> {
        let lead = self.model.lead(&self.prompt, self.truncation)?;
        let encode = |(index, input)| {
            let place = Place::input(self.single, first + index);
            self.model.encode(input, place, self.truncation, (&self.rules, &lead))
        };
        inputs.into_iter().enumerate().map(encode).collect()
    }
}

impl Model {
    fn encode(
        &self,
        input: Input,
        place: Place,
        truncation: Truncation,
        (rules, lead): (&Rules, &Lead<'_>),
    ) -> Result<EncodedRow, RequestError> {
        match input {
            Input::Text(text) => self.encode_text(&text, lead, place, truncation),
            Input::Tokens(ids) => {
                rules.check_length(ids.len(), self.limits.max_request_tokens)?;
                let vocabulary = Vocabulary { frame: &self.frame, rows: self.vocab_rows, model: &self.name };
                let reading = rules.read(&ids, place, &vocabulary);
                let metric = match &reading {
                    Ok(Reading::Text(_, encoding)) => encoding.metric(),
                    Ok(Reading::Ids(_)) => ArrayReading::Model,
                    Err(_) => ArrayReading::Refused,
                };
                self.metrics.token_array(metric);
                match reading? {
                    Reading::Text(text, _) => {
                        let row = self.encode_text(&text, lead, place, truncation)?;
                        Ok(EncodedRow { counted: ids.len(), ..row })
                    }
                    Reading::Ids(ids) => {
                        let content = self.unframed(ids);
                        self.fit(content, place, truncation)
                    }
                }
            }
        }
    }

    /// The prompt of a request, measured when pooling must not see it.
    fn lead<'p>(&self, prompt: &'p str, truncation: Truncation) -> Result<Lead<'p>, RequestError> {
        if prompt.is_empty() || self.include_prompt {
            return Ok(Lead { prompt, skip: 0 });
        }
        let content = self.content(prompt, "prompt")?;
        // Measured as sentence-transformers does: the prompt alone, cut like any text, without the special token at
        // its end. Its last token may be another one in front of a text; the count is used all the same.
        let ends_special = !self.frame.suffix.is_empty() || content.last().is_some_and(|id| self.is_special(*id));
        let tokens = (self.frame.len() + content.len()).min(truncation.max_tokens);
        Ok(Lead { prompt, skip: tokens.saturating_sub(usize::from(ends_special)) })
    }

    fn is_special(&self, id: u32) -> bool {
        self.tokenizer.get_added_tokens_decoder().get(&id).is_some_and(|token| token.special)
    }

    fn encode_text(
        &self,
        text: &str,
        lead: &Lead<'_>,
        place: Place,
        truncation: Truncation,
    ) -> Result<EncodedRow, RequestError> {
        let cap = self.limits.max_input_bytes;
        let size_bytes = lead.prompt.len() + text.len();
        let prepared = match truncation.side {
            _ if size_bytes <= cap => lead.before(text),
            None => {
                let (limit, measured) = (self.limits.max_tokens, Measured::Bytes(size_bytes));
                return Err(RequestError::TooLong { place, limit, measured });
            }
            Some(Side::End) if lead.prompt.len() < cap => {
                lead.before(whole_words_before(text, cap - lead.prompt.len()))
            }
            Some(Side::End) => Cow::Borrowed(whole_words_before(lead.prompt, cap)),
            // The start is what is cut, and the prompt lies there.
            Some(Side::Start) => match text.len().checked_sub(cap) {
                Some(excess) => Cow::Borrowed(whole_words_after(text, excess)),
                None => Cow::Owned(whole_words_after(&lead.before(text), size_bytes - cap).to_owned()),
            },
        };
        let mut row = self.fit(self.content(&prepared, "input")?, place, truncation)?;
        row.row.skip = lead.skip;
        if size_bytes > cap {
            row.cut = Some(Cut { original_tokens: None });
        }
        Ok(row)
    }

    /// The ids of a text without special tokens around it.
    fn content(&self, text: &str, field: &'static str) -> Result<Vec<u32>, RequestError> {
        let content = self.ids(text);
        // The library fails only on a tokenizer that was refused at start; reported as the row it happened on.
        let allowed = || "The tokenizer cannot read this text".to_owned();
        content.map_err(|value| RequestError::InvalidValue { field, value, allowed: allowed() })
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, String> {
        match &self.words {
            Some(words) => words.ids(&self.tokenizer, text),
            None => load::ids(&self.tokenizer, text, false),
        }
    }

    /// Frames the content, cutting it when that was asked for.
    fn fit(&self, content: Vec<u32>, place: Place, truncation: Truncation) -> Result<EncodedRow, RequestError> {
        let tokens = content.len() + self.frame.len();
        if tokens > truncation.max_tokens && truncation.side.is_none() {
            let (limit, measured) = (self.limits.max_tokens, Measured::Tokens(tokens));
            return Err(RequestError::TooLong { place, limit, measured });
        }
        let (ids, cut) = self.cut(content, truncation);
        let cut = cut.then_some(Cut { original_tokens: Some(tokens) });
        Ok(EncodedRow { counted: ids.len(), row: ids.into(), cut })
    }

    /// At most `max_tokens` ids with the special tokens around them, and whether content was lost.
    fn cut(&self, mut content: Vec<u32>, truncation: Truncation) -> (Vec<u32>, bool) {
        let room = truncation.max_tokens.saturating_sub(self.frame.len());
        let is_cut = content.len() > room;
        if is_cut && truncation.side == Some(Side::Start) {
            content.drain(..content.len() - room);
        }
        content.truncate(room);
        let mut ids = [self.frame.prefix.as_slice(), &content, &self.frame.suffix].concat();
        // Only a limit below the special tokens themselves can leave too many.
        ids.truncate(truncation.max_tokens);
        (ids, is_cut)
    }

    /// The ids between the special tokens of a complete array.
    fn unframed(&self, mut ids: Vec<u32>) -> Vec<u32> {
        ids.truncate(ids.len() - self.frame.suffix.len());
        ids.drain(..self.frame.prefix.len());
        ids
    }
}

/// What goes before every text of a request.
struct Lead<'p> {
    prompt: &'p str,
    /// Tokens at the start of a row that pooling leaves out.
    skip: usize,
}

impl Lead<'_> {
    fn before<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if self.prompt.is_empty() { Cow::Borrowed(text) } else { Cow::Owned(format!("{}{text}", self.prompt)) }
    }
}

/// At most `cap` bytes from the start; the word at the cut may be incomplete and is left out, if anything precedes it.
fn whole_words_before(text: &str, cap: usize) -> &str {
    let head = &text[..text.floor_char_boundary(cap)];
    head.rfind(char::is_whitespace).filter(|end| *end > 0).map_or(head, |end| &head[..end])
}

/// The mirror image, from byte `start` on.
fn whole_words_after(text: &str, start: usize) -> &str {
    let tail = &text[text.ceil_char_boundary(start)..];
    tail.find(char::is_whitespace).map(|space| &tail[space..]).filter(|rest| !rest.trim().is_empty()).unwrap_or(tail)
}
