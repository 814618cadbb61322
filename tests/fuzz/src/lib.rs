//! Fuzzing of everything that reads bytes of strangers: clients, model repositories, archives, operators' files.
//!
//! ```sh
//! cargo install cargo-fuzz                       # once
//! tests/fuzz/run.sh 1200                         # every target for 20 minutes, starting from tests/corpus
//! tests/fuzz/run.sh 60 request_json router       # some of them for a minute
//! ```
//!
//! [`entries`] holds one function per parser with the properties that hold for every input; `cargo test` calls the same
//! functions with every committed seed (`tests/it/corpus.rs`). An input that breaks one is written to
//! `target/fuzz/artifacts`: mend the product, then put the input into `tests/corpus/<target>/found-<what>`.

pub mod entries;
pub mod support;

use std::sync::Once;

/// Gives an input to the entry of this name. Panics that the product catches are none of ours; those that nobody catches
/// end the process.
pub fn run(name: &str, data: &[u8]) {
    static QUIET: Once = Once::new();
    // The usual hook of libFuzzer aborts inside every panic, also inside one that is caught.
    QUIET.call_once(|| std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))));
    let entry = entries::ENTRIES.iter().find(|entry| entry.name == name).expect("a target is named like its entry");
    // Refusals are as good as acceptances here: what counts is that the promises hold.
    let _ = (entry.check)(data);
}
