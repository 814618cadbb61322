//! What operators see: logs, metrics, progress; and the type that keeps secrets out of all of them.

pub mod log;
pub mod metrics;
pub mod progress;
pub mod secret;
