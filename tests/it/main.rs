//! The library, driven in process. One binary, because linking candle is slow.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![expect(unreachable_pub, reason = "support modules are public to their siblings")]

mod invariance;
mod isolation;
mod kernels;
mod queue;
mod support;
mod untrusted_weights;
