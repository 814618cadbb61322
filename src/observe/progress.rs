//! How far a model's loading has come: written by the loader, read by `/readyz` and by 503 answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Phase and bytes of one model's loading. Cheap to update from any thread.
#[derive(Debug)]
pub struct LoadProgress {
    phase: RwLock<String>,
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    since: Instant,
}

impl Default for LoadProgress {
    fn default() -> Self {
        Self {
            phase: RwLock::new("waiting".to_owned()),
            done_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            since: Instant::now(),
        }
    }
}

impl LoadProgress {
    /// Enters a phase such as `downloading model.safetensors`; `total_bytes` 0 = unknown.
    pub fn enter(&self, phase: String, total_bytes: u64) {
        *self.phase.write().unwrap_or_else(PoisonError::into_inner) = phase;
        self.done_bytes.store(0, Ordering::Relaxed);
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    /// Bytes of the phase that are done.
    pub fn done(&self, bytes: u64) {
        self.done_bytes.store(bytes, Ordering::Relaxed);
    }

    /// One line for people: phase, and percent where it is known.
    pub fn describe(&self) -> String {
        let phase = self.phase.read().unwrap_or_else(PoisonError::into_inner).clone();
        let (done, total) = (self.done_bytes.load(Ordering::Relaxed), self.total_bytes.load(Ordering::Relaxed));
        match total {
            0 if done == 0 => phase,
            0 => format!("{phase} ({done} bytes)"),
            _ => format!("{phase} ({}%)", done.saturating_mul(100) / total),
        }
    }

    /// A guess at the remaining time for `Retry-After`: as long again as has passed, within a second and a minute.
    pub fn expected_wait(&self) -> Duration {
        self.since.elapsed().clamp(Duration::from_secs(1), Duration::from_secs(59))
    }
}
