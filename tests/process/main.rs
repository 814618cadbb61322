//! The executable: exit codes, signals, start-up order, secrets in output.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![expect(dead_code, reason = "the fakes serve the in-process tests too")]
#![expect(
    clippy::disallowed_methods,
    reason = "tests start programs, write files and wait; the product does so in one place each"
)]
#![expect(unreachable_pub, reason = "support modules are public to their siblings")]

mod bench;
mod binary;
mod bundles;
mod command_line;
#[cfg(feature = "cuda")]
mod cuda;
mod downloads;
mod dtype;
mod keys;
mod lifecycle;
mod memory;
#[cfg(feature = "nightly")]
mod nightly;
mod operation;
mod secrets;
mod server;
mod several_models;
mod verify;
mod wire;

/// The in-process tests' fakes, as far as they need no model.
#[path = "../it/support"]
mod support {
    pub mod fake_hub;
    pub mod fake_pip;
    pub mod gate;
    pub mod random;
    pub mod sources;
    pub mod tiny_model;
}
