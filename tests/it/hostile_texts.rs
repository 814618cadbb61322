//! Texts made to cost more than they weigh, in every tokenizer that the families bring, and every plane of Unicode.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use embedserve::tokenize::load;
use embedserve::tokenize::word_piece::WordPiece;
use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::support::app::{Kind, M, TestApp};
use crate::support::device::until;
use crate::support::golden::folder;
use crate::support::random::Random;
use crate::support::tiny_model::TinyModel;

/// WordPiece, byte-level BPE twice, Unigram twice.
const TOKENIZERS: [&str; 5] =
    ["bert-mean-normalize", "roberta-mean-normalize", "modernbert-cls", "xlm-roberta-mean-128", "t5-gated-gelu"];

fn tokenizer_of(model: &str) -> PathBuf {
    folder().join("models").join(model).join("tokenizer.json")
}

/// A hundred characters, none of them together in a vocabulary, the last of a script that is left to the library.
const RARE: &str =
    "qxzjqxzjqxzjqxzjqxzjqxzjqxzjqxzjqxzjqxzjqxzjqxzjqxzjqxzjqxzjqxzjqxzjqxzjqxzjqxzjqxzjqxzjqxzjqxzjqxz\u{e01} ";

/// More than this for four times the text, and the cost does not grow with the length alone.
const FACTOR: u32 = 8;
/// Measurements before that is believed: other tests run beside this one and take turns in its caches.
const ATTEMPTS: usize = 10;

/// Time that this thread has had on a processor: what others take in between does not count.
fn used() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(now).unwrap()
}

/// The quickest of three.
fn time(mut work: impl FnMut()) -> Duration {
    let once = |work: &mut dyn FnMut()| {
        let start = used();
        work();
        used().saturating_sub(start)
    };
    (0..3).map(|_| once(&mut work)).min().unwrap()
}

// V-05: twice the text costs about twice the time. A cost that grew with the square would show as sixteen times.
#[test]
fn the_cost_of_a_text_grows_with_its_length_alone() {
    let texts = [
        ("dots", "."),
        ("no spaces", "abcdefghij"),
        ("one letter", "a"),
        ("joiners", "\u{200d}"),
        ("combining marks", "\u{301}"),
        ("a ligature of 18 letters", "\u{fdfa}"),
        ("spaces", " "),
        ("line feeds", "\n"),
        ("CJK", "中文"),
        ("emoji", "😀"),
        ("special tokens", "[SEP]</s>"),
        // A word at the limit, of which the library looks for every piece from every start.
        ("rare letters", RARE),
    ];
    let mut faults = Vec::new();
    for model in TOKENIZERS {
        let (tokenizer, _) = load::load(&tokenizer_of(model), usize::MAX).unwrap();
        // As a server reads it.
        let words = WordPiece::of(&tokenizer);
        let ids = |text: &str| match &words {
            Some(words) => words.ids(&tokenizer, text),
            None => load::ids(&tokenizer, text, false),
        };
        for (what, piece) in texts {
            let cost = |bytes: usize| {
                let text = piece.repeat(bytes / piece.len());
                time(|| drop(ids(&text).unwrap()))
            };
            let (mut small, mut large) = (cost(25_000), cost(100_000));
            let is_steep = |small: Duration, large| large > FACTOR * small.max(Duration::from_millis(2));
            for _ in 1..ATTEMPTS {
                if is_steep(small, large) {
                    (small, large) = (small.min(cost(25_000)), large.min(cost(100_000)));
                }
            }
            eprintln!("{model:<24} {what:<26} {small:>12.1?} {large:>12.1?}");
            if is_steep(small, large) {
                faults.push(format!("{model}, {what}: {small:?} for 25 kB and {large:?} for 100 kB"));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

// U-04: a pattern that backtracks without end is given up by the engine. It belongs to the model, which the operator
// trusts; a text that triggers it costs its request some time and nobody else any.
#[test]
fn a_pattern_that_backtracks_without_end_has_a_bound() {
    let folder = TinyModel::default().write();
    let path = folder.path().join("tokenizer.json");
    let original: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let triggers = ["a".repeat(4000) + "!", "a".repeat(40) + "!", "ab".repeat(2000), " ".repeat(4000) + "x"];
    for pattern in ["(a+)+$", "(a|a)*$", "(?<=(a+)+)b", "(.*)*x$", "(\\s+)+$"] {
        let mut changed = original.clone();
        changed["pre_tokenizer"] =
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        std::fs::write(&path, changed.to_string()).unwrap();
        let Ok((tokenizer, _)) = load::load(&path, usize::MAX) else { continue };
        for text in &triggers {
            let took = time(|| drop(load::ids(&tokenizer, text, true)));
            eprintln!("{pattern:<14} {:<12} {took:.1?}", &text[..10]);
            assert!(took < Duration::from_secs(2), "{pattern} takes {took:?} over {} bytes", text.len());
        }
    }
    let mut long = original;
    let pattern = "a?".repeat(50_000) + &"a".repeat(50_000);
    long["pre_tokenizer"] =
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    std::fs::write(&path, long.to_string()).unwrap();
    let took = time(|| drop(load::load(&path, usize::MAX)));
    assert!(took < Duration::from_secs(5), "{took:?}");
}

// V-06: tokenising happens beside the threads that answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_and_refusals_do_not_wait_for_tokenisers() {
    let app = TestApp::with(|setup| {
        setup.only(M, Kind::Tiny(TinyModel { positions: 8192, ..TinyModel::default() }));
        setup.key("sk-0123456789abcdef");
    })
    .await;
    // Within the limit of bytes, beyond that of tokens: all of it is tokenised, nothing is computed.
    let body = json!({"model": M, "input": "x ".repeat(200_000)}).to_string();
    let key = [("api-key", "sk-0123456789abcdef")];
    let slow = join_all((0..64).map(|_| app.post("/v1/embeddings", &key, body.clone())));
    let mut delays = Vec::new();
    let quick = async {
        let in_flight = || app.metric("embedserve_http_requests_in_flight", "route=\"/v1/embeddings\"");
        until("many texts wait for a tokeniser", || in_flight() > 15.0).await;
        while in_flight() > 8.0 {
            let start = Instant::now();
            assert_eq!(app.get("/livez").await.status, 200);
            assert_eq!(app.get("/v1/models").await.status, 401);
            delays.push(start.elapsed() / 2);
        }
    };
    let (answers, ()) = tokio::join!(slow, quick);
    for answer in answers {
        answer.refusal(400, Some("context_length_exceeded"), Some("input"));
    }
    delays.sort();
    let n = delays.len();
    let median = delays.get(n / 2).copied().unwrap_or_default();
    assert!(n > 0 && median < Duration::from_millis(50), "{n} probes, half of them in {median:?} at most");
}

// V-09: whatever the plane, one text is one row, however its JSON spells it.
#[tokio::test]
async fn every_plane_of_unicode_is_text() {
    let app = TestApp::start().await;
    let mut random = Random::new(5);
    let letter = |random: &mut Random| loop {
        let plane = u32::try_from(random.below(17)).unwrap();
        let place = u32::try_from(random.below(1 << 16)).unwrap();
        if let Some(letter) = char::from_u32((plane << 16) | place) {
            return letter;
        }
    };
    let texts: Vec<String> = (0..500).map(|_| (0..8).map(|_| letter(&mut random)).collect()).collect();
    let escape = |text: &String| {
        let units: Vec<String> = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        format!("\"{}\"", units.concat())
    };
    let escaped = texts.iter().map(escape).collect::<Vec<_>>().join(",");
    let body = format!("{{\"model\":\"{M}\",\"input\":[{escaped}]}}");
    let raw = app.vectors(json!(texts)).await;
    assert_eq!(raw.len(), texts.len());
    assert_eq!(app.post("/v1/embeddings", &[], body).await.vectors(), raw);
    // A half of a pair is no text.
    for half in ["\\ud800", "\\udc00", "a\\udbff", "\\udc00\\ud800"] {
        let body = format!("{{\"model\":\"{M}\",\"input\":\"{half}\"}}");
        app.post("/v1/embeddings", &[], body).await.refusal(400, None, None);
    }
}
