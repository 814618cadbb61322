//! The tokenizer and the texts of the benches around the engine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Parser;
use embedserve::cli::Cli;
use embedserve::config::{self, Environment};
use embedserve::observe::metrics::Metrics;
use embedserve::request::{Prompts, RequestLimits, TokenArrays};
use embedserve::tokenize::workers::Workers;
use embedserve::tokenize::{Tokenizer, TokenizerSource};
use embedserve::{catalog, source};

use super::Random;

/// Core time of one 128-token text through all-MiniLM-L6-v2, in seconds, as measured in f32 and as designed in int8:
/// the server around it may take a twentieth of that.
pub const FORWARD_128: [(&str, f64); 2] = [("f32", 8e-3), ("int8", 0.44e-3)];
pub const SERVER_SHARE: f64 = 0.05;
/// Rows of BERT's embedding table.
pub const VOCABULARY: usize = 30_522;
/// Tokens that MiniLM reads of a text.
pub const MAX_TOKENS: usize = 256;

/// MiniLM's `tokenizer.json` where it lies on this machine (`EMBEDSERVE_BENCH_MODEL=DIR` names another folder), or
/// the small one of the tests, and which of them it is.
pub fn tokenizer_file() -> (PathBuf, &'static str) {
    let given = std::env::var_os("EMBEDSERVE_BENCH_MODEL").map(PathBuf::from);
    let cached = || {
        let arguments = Cli::parse_from(["embedserve"]).serve;
        let sources = config::source(&arguments.source, &Environment::of_process()).expect("settings");
        let models = catalog::builtin().expect("catalogue");
        let spec = catalog::resolve(config::DEFAULT_MODEL, &models).expect("default model");
        source::cached(&spec, &sources).map(|folder| folder.path)
    };
    if let Some(folder) = given.or_else(cached) {
        return (folder.join("tokenizer.json"), "real");
    }
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models");
    (models.join("bert-mean-normalize/tokenizer.json"), "of the tests")
}

/// The tokenizer as the server has it.
pub fn tokenizer(workers: Workers, metrics: &Metrics) -> Tokenizer {
    let (path, _) = tokenizer_file();
    let source = TokenizerSource {
        name: "model",
        path: &path,
        vocab_rows: VOCABULARY,
        lower_case: false,
        include_prompt: true,
        limits: limits(),
    };
    Tokenizer::load(source, workers, Arc::clone(&metrics.model("model"))).expect("tokenizer")
}

pub fn limits() -> RequestLimits {
    RequestLimits {
        max_tokens: MAX_TOKENS,
        dimensions: 384,
        matryoshka: false,
        max_inputs: 2048,
        max_request_tokens: 1_000_000,
        max_input_bytes: MAX_TOKENS * 64,
        allow_empty_input: false,
        token_arrays: TokenArrays::Auto,
        truncate: None,
        prompts: Prompts::default(),
        max_prompt_bytes: 1024,
    }
}

/// `n` texts of `words` common English words, every twelfth with a comma or a full stop behind it.
pub fn english(n: usize, words: usize) -> Vec<String> {
    texts(n, words, ENGLISH)
}

/// As [`english`], in German: about a third of the words hold a letter that is not ASCII.
pub fn german(n: usize, words: usize) -> Vec<String> {
    texts(n, words, GERMAN)
}

fn texts(n: usize, words: usize, vocabulary: &str) -> Vec<String> {
    let vocabulary: Vec<&str> = vocabulary.split(' ').collect();
    let mut random = Random::new(words as u64);
    let mut text = || {
        let mut text = String::new();
        for index in 0..words {
            let word = vocabulary[random.below(vocabulary.len())];
            let mark = ["", ",", "."][usize::from(index % 12 == 11) * (1 + index % 2)];
            text.push_str(if index == 0 { "" } else { " " });
            text.push_str(word);
            text.push_str(mark);
        }
        text
    };
    (0..n).map(|_| text()).collect()
}

const ENGLISH: &str = "The server reads every request in one pass and answers with vectors of numbers that search engines \
    compare Berlin is older than its walls however tokenization embeddings unquestionably throughput \
    latency 1984 customers return shoes when they do not fit quarterly revenue increased by 12% compared \
    to last year";
const GERMAN: &str = "Der Schlüssel öffnet die Tür zum größten Raum im Haus über dem Fluss wo Bäume stehen und Vögel im \
    Frühling singen Straße müde heute";
