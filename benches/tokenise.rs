//! Texts to token ids: the library's `encode_fast`, ours on one thread, and the way a request takes with all workers:
//! `cargo bench --bench compute -- tokenise`. Each line is one JSON object.

use std::time::{Duration, Instant};

use embedserve::observe::metrics::Metrics;
use embedserve::request::{Dimensions, EmbedRequest, Flow, Input, Side, Truncation};
use embedserve::threads;
use embedserve::tokenize::Tokenizer;
use embedserve::tokenize::load::{ids, load};
use embedserve::tokenize::workers::Workers;
use serde_json::json;

use crate::support::texts::{
    FORWARD_128, MAX_TOKENS, SERVER_SHARE, VOCABULARY, english, german, tokenizer, tokenizer_file,
};
use crate::support::{in_turn, median, rounds};

/// Texts of one request, and so of one measurement.
const TEXTS: usize = 256;

pub fn run() {
    let (path, which) = tokenizer_file();
    let (library, _) = load(&path, VOCABULARY).expect("tokenizer");
    let metrics = Metrics::new(&["model".to_owned()]);
    let n_threads = threads::available();
    let ours = tokenizer(Workers::new(n_threads, &metrics).expect("workers"), &metrics);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("runtime");
    println!("{}", json!({"bench": "tokenise", "tokenizer": which, "workers": n_threads}));
    let cases = [
        ("english 16", english(TEXTS, 11)),
        ("english 128", english(TEXTS, 97)),
        ("english 512, cut to 256", english(TEXTS, 395)),
        ("english 4,000, cut to 256", english(TEXTS / 16, 3090)),
        ("german 128", german(TEXTS, 66)),
    ];
    for (name, texts) in cases {
        // What is cut is read all the same.
        let tokens: usize = texts.iter().map(|text| ids(&library, text, true).expect("ids").len()).sum();
        let mut by_library = || by_library(&library, &texts);
        let mut one_thread = || one_thread(&ours, &texts);
        let mut request = || request(&runtime, &ours, &texts);
        let times = in_turn(rounds(), &mut [&mut by_library, &mut one_thread, &mut request]);
        for (way, times) in ["library", "one thread", "request"].into_iter().zip(&times) {
            print(name, way, (tokens, texts.len()), median(times));
        }
    }
}

#[inline(never)]
fn by_library(library: &tokenizers::Tokenizer, texts: &[String]) {
    for text in texts {
        std::hint::black_box(ids(library, text, true).expect("ids"));
    }
}

#[inline(never)]
fn one_thread(ours: &Tokenizer, texts: &[String]) {
    for text in texts {
        std::hint::black_box(ours.encode_probe(text).expect("ids"));
    }
}

#[inline(never)]
fn request(runtime: &tokio::runtime::Runtime, ours: &Tokenizer, texts: &[String]) {
    let request = EmbedRequest {
        requested_model: "model".to_owned(),
        inputs: texts.iter().cloned().map(Input::Text).collect(),
        single: false,
        dimensions: Dimensions::unlimited(),
        truncation: Truncation { side: Some(Side::End), max_tokens: MAX_TOKENS },
        token_encoding: None,
        prompt: String::new(),
        deadline: Instant::now() + Duration::from_mins(1),
        flow: Flow::default(),
    };
    std::hint::black_box(runtime.block_on(ours.encode(request, Duration::MAX)).expect("ids"));
}

fn print(case: &str, way: &str, (tokens, texts): (usize, usize), took: Duration) {
    let per_text = took.as_secs_f64() / texts as f64;
    let per_128 = took.as_secs_f64() / tokens as f64 * 128.0;
    let shares = FORWARD_128.map(|(dtype, seconds)| {
        let budget = seconds * SERVER_SHARE;
        (format!("percent_of_{dtype}_budget"), json!((1e3 * per_128 / budget).round() / 10.0))
    });
    let mut figures = json!({
        "texts": case, "way": way,
        "tokens_per_s": (tokens as f64 / took.as_secs_f64()).round(),
        "us_per_text": (per_text * 1e7).round() / 10.0,
        "us_per_128_tokens": (per_128 * 1e7).round() / 10.0,
    });
    figures.as_object_mut().expect("an object").extend(shares);
    println!("{figures}");
}
