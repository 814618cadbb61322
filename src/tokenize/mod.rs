//! Texts and token arrays to token ids, on bounded worker threads.
//!
//! Every text is tokenised completely (under the byte cap) and cut afterwards, so that errors and `original_tokens`
//! state the true length. A cut keeps the special tokens, as the reference tokenizer's own truncation does.

mod growth;
mod job;
mod lead;
pub mod load;
pub mod settings;
mod tasks;
pub mod token_arrays;
pub mod unigram;
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

use crate::observe::metrics::{ModelMetrics, Refusal};
use crate::request::{EmbedRequest, InputLocation, Measured, RequestError, RequestLimits, Side, TokenRow, Truncation};
use job::{Job, Rows};
use lead::Lead;
use load::{Frame, Loaded, TokenizerLoadError};
use token_arrays::Rules;
use unigram::Unigram;
use word_piece::WordPiece;
use words::WholeWords;
use workers::{WorkerError, Workers};

/// Tasks that one request brings to the workers at once, for each of them: one to do, one to go on with.
const TASKS_PER_WORKER: usize = 2;

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
    Worker(#[from] WorkerError),
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
    lookup: Lookup,
    frame: Frame,
    vocab_rows: usize,
    include_prompt: bool,
    limits: RequestLimits,
    metrics: Arc<ModelMetrics>,
}

/// Who finds the pieces of words: we ourselves where the model is of a kind that we read, without the library's detours.
#[derive(Debug)]
enum Lookup {
    WordPiece(Box<WordPiece>),
    Unigram(Unigram),
    Library,
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
        let Loaded { library: tokenizer, frame, unigram } = load::load_to_serve(path, vocab_rows)?;
        let tokenizer = if lower_case { load::lower_cased(tokenizer, path)? } else { tokenizer };
        let word_piece =
            || WordPiece::of(&tokenizer).map_or(Lookup::Library, |words| Lookup::WordPiece(Box::new(words)));
        let lookup = unigram.map_or_else(word_piece, Lookup::Unigram);
        let name = name.to_owned();
        let model = Model { name, tokenizer, lookup, frame, vocab_rows, include_prompt, limits, metrics };
        Ok(Self { model: Arc::new(model), workers })
    }

    /// Tokenises every input of a request; the first input that cannot be used fails the request. A thread must have time
    /// for it within `patience`.
    ///
    /// # Errors
    /// See [`TokenizeError`].
    pub async fn encode(&self, request: EmbedRequest, patience: Duration) -> Result<Encoded, TokenizeError> {
        let start = Instant::now();
        let left = request.deadline.saturating_duration_since(start);
        let rows = tokio::time::timeout(left, self.encode_rows(request, patience));
        let rows = rows.await.map_err(|_| TokenizeError::Deadline)?;
        let rows = rows.inspect_err(|error| {
            if *error == TokenizeError::Worker(WorkerError::Busy) {
                self.model.metrics.refused(Refusal::Late);
            }
        })?;
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
        let Model { tokenizer, lookup, frame, .. } = &*self.model;
        let entries = match lookup {
            Lookup::Unigram(unigram) => unigram.pieces(),
            Lookup::WordPiece(_) | Lookup::Library => {
                tokenizer.get_vocab(false).into_iter().map(|(entry, id)| (id, entry)).collect()
            }
        };
        words::find(entries, frame.len(), |text| self.model.ids(text))
    }

    async fn encode_rows(&self, request: EmbedRequest, patience: Duration) -> Result<Vec<EncodedRow>, TokenizeError> {
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
        let mut rows = Rows { read: Vec::new(), tokens: 0, limit: self.model.limits.max_request_tokens };
        if job.is_brief(&inputs) {
            rows.add(self.workers.run_here(|| job.encode(inputs, 0, &|| false))??)?;
            return Ok(rows.read);
        }
        let (job, mut first) = (Arc::new(job), 0);
        let (mut waiting, mut tasks) = (tasks::of(inputs, job.prompt.len()).into_iter(), FuturesOrdered::new());
        loop {
            // Enough for all workers, and no more: others' texts come between those of a large request.
            while tasks.len() < TASKS_PER_WORKER * self.workers.count()
                && let Some(inputs) = waiting.next()
            {
                let (job, place) = (Arc::clone(&job), first);
                // Whoever's first text was begun with in time is served to the end.
                let patience = if place == 0 { patience } else { Duration::MAX };
                first += inputs.len();
                let size_bytes = job.size_bytes(&inputs);
                let work = move |has_left: &dyn Fn() -> bool| job.encode(inputs, place, has_left);
                tasks.push_back(self.workers.run(patience, size_bytes, work));
            }
            // In order, so that the first fault is named and ends the rest.
            match tasks.next().await {
                Some(answer) => rows.add(answer??)?,
                None => return Ok(rows.read),
            }
        }
    }
}

impl Model {
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
        place: InputLocation,
        truncation: Truncation,
    ) -> Result<EncodedRow, RequestError> {
        let cap = self.limits.max_input_bytes;
        let prompt_bytes = growth::grown_bytes(lead.prompt, cap);
        let size_bytes = prompt_bytes + growth::grown_bytes(text, cap);
        let prepared = match truncation.side {
            _ if size_bytes <= cap => lead.before(text),
            None => {
                let (limit, measured) = (self.limits.max_tokens, Measured::Bytes(lead.prompt.len() + text.len()));
                return Err(RequestError::TooLong { place, limit, measured });
            }
            Some(Side::End) if prompt_bytes < cap => lead.before(growth::whole_words_before(text, cap - prompt_bytes)),
            Some(Side::End) => Cow::Borrowed(growth::whole_words_before(lead.prompt, cap)),
            // The start is what is cut, and the prompt lies there.
            Some(Side::Start) if size_bytes - prompt_bytes >= cap => {
                Cow::Borrowed(growth::whole_words_after(text, cap))
            }
            Some(Side::Start) => Cow::Owned(growth::whole_words_after(&lead.before(text), cap).to_owned()),
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
        match &self.lookup {
            Lookup::WordPiece(words) => words.ids(&self.tokenizer, text),
            Lookup::Unigram(unigram) => unigram.ids(&self.tokenizer, text),
            Lookup::Library => load::ids(&self.tokenizer, text, false),
        }
    }

    /// Frames the content, cutting it when that was asked for.
    fn fit(&self, content: Vec<u32>, place: InputLocation, truncation: Truncation) -> Result<EncodedRow, RequestError> {
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
