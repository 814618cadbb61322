//! Names that only `--accept-any-model` accepts: the first use of each is logged, so that the operator learns which
//! aliases are missing.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::catalog::Names;

/// Names remembered at most; what comes later is served without a line.
const MAX_NAMES: usize = 256;
/// A longer name is no typing error but something else.
const MAX_NAME_CHARS: usize = 200;

/// The foreign names seen so far.
#[derive(Debug, Default)]
pub struct Strangers(Mutex<HashSet<String>>);

impl Strangers {
    /// Logs `requested` unless it is one of `names` or was logged before.
    pub fn note(&self, names: &Names, requested: &str, model: &str) {
        if names.entries().iter().any(|entry| entry.name.eq_ignore_ascii_case(requested)) {
            return;
        }
        let requested: String = requested.chars().take(MAX_NAME_CHARS).collect();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < MAX_NAMES && seen.insert(requested.clone()) {
            drop(seen);
            tracing::info!(requested, model, "a name that is not served was mapped to the default model");
        }
    }
}
