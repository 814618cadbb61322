//! What is done with hostile bytes: one function per parser, called by the fuzz targets and, with the files of
//! `tests/corpus`, by every run of `cargo test`.
//!
//! Each takes bytes, gives them to the product the way the outside can, and asserts more than the absence of a panic:
//! what is accepted keeps its limits, what is refused is refused in one bounded line that does not repeat the input.

mod bundle;
mod http_stream;
mod ids;
mod keys_toml;
mod message;
mod model_folder;
mod models_toml;
mod planner;
mod request_json;
mod router;
mod server;
mod token_arrays;
mod tokenizer_json;
mod weights;
mod wheel;

/// `Err`: refused, and why. A broken promise is a panic.
pub type Verdict = Result<(), String>;

/// One parser.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// Of the fuzz target, and of the folder in `tests/corpus`.
    pub name: &'static str,
    pub check: fn(&[u8]) -> Verdict,
}

pub const ENTRIES: [Entry; 13] = [
    Entry { name: "bundle", check: bundle::check },
    Entry { name: "http_stream", check: http_stream::check },
    Entry { name: "ids", check: ids::check },
    Entry { name: "keys_toml", check: keys_toml::check },
    Entry { name: "model_folder", check: model_folder::check },
    Entry { name: "models_toml", check: models_toml::check },
    Entry { name: "planner", check: planner::check },
    Entry { name: "request_json", check: request_json::check },
    Entry { name: "router", check: router::check },
    Entry { name: "tokenizer_json", check: tokenizer_json::check },
    Entry { name: "token_arrays", check: token_arrays::check },
    Entry { name: "weights", check: weights::check },
    Entry { name: "wheel", check: wheel::check },
];
