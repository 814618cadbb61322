//! The library, driven in process. One binary, because linking candle is slow.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests start programs, write files and wait; the product does so in one place each"
)]
#![expect(clippy::print_stderr, reason = "a test may say what it left out and what it measured")]
#![expect(unreachable_pub, reason = "support modules are public to their siblings")]

mod allocations;
mod auth;
mod blocks;
mod bundle;
mod catalog;
mod chaos;
mod connections;
mod corpus;
mod crowd;
#[cfg(feature = "cuda")]
mod cuda;
mod download;
mod download_cache;
mod download_conversion;
mod dtype;
mod embeddings;
mod errors;
mod health;
mod hostile_texts;
mod int8_gate;
mod invariance;
mod isolation;
mod kernel_bits;
mod kernels;
mod keys;
mod limits;
mod loading;
mod logs;
mod metrics;
mod models;
mod modules;
#[cfg(feature = "nightly")]
mod nightly;
mod overlap;
mod overload;
mod parity;
mod prompts;
mod queue;
mod real;
mod reliability;
mod roles;
mod several_devices;
mod several_models;
mod supply;
mod support;
mod tidy;
mod token_arrays;
mod tokenizer_files;
mod untrusted_files;
mod untrusted_weights;
mod verify;
mod wheel;
