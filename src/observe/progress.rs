//! How far a model's loading has come: written by the loader, read by `/readyz` and by 503 answers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant};

/// Phase and bytes of one model's loading. Cheap to update from any thread.
#[derive(Debug)]
pub struct LoadProgress {
    phase: RwLock<Phase>,
    done_bytes: AtomicU64,
    total_bytes: AtomicU64,
    since: Instant,
}

#[derive(Debug, Default)]
struct Phase {
    text: String,
    /// Files under way or done in a phase of downloads.
    n_files: usize,
}

impl Default for LoadProgress {
    fn default() -> Self {
        Self {
            phase: RwLock::new(Phase { text: "waiting".to_owned(), n_files: 0 }),
            done_bytes: AtomicU64::new(0),
            total_bytes: AtomicU64::new(0),
            since: Instant::now(),
        }
    }
}

impl LoadProgress {
    /// Enters a phase such as `downloading model.safetensors`; `total_bytes` 0 = unknown.
    pub fn enter(&self, phase: String, total_bytes: u64) {
        *self.phase.write().unwrap_or_else(PoisonError::into_inner) = Phase { text: phase, n_files: 0 };
        self.done_bytes.store(0, Ordering::Relaxed);
        self.total_bytes.store(total_bytes, Ordering::Relaxed);
    }

    /// One more file is being downloaded. Files of one phase may be under way at once: their bytes are added up.
    pub fn enter_file(&self, name: &str, total_bytes: u64) {
        let mut phase = self.phase.write().unwrap_or_else(PoisonError::into_inner);
        phase.n_files += 1;
        if phase.n_files == 1 {
            phase.text = format!("downloading {name}");
            self.done_bytes.store(0, Ordering::Relaxed);
            self.total_bytes.store(0, Ordering::Relaxed);
        } else {
            phase.text = format!("downloading {} files", phase.n_files);
        }
        self.total_bytes.fetch_add(total_bytes, Ordering::Relaxed);
    }

    /// One of the files has `now` bytes instead of `before`; fewer when it had to be begun anew.
    pub fn file_moved(&self, before: u64, now: u64) {
        // Wraps round to a subtraction where `now` is smaller.
        self.done_bytes.fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Bytes of the phase that are done.
    pub fn done(&self, bytes: u64) {
        self.done_bytes.store(bytes, Ordering::Relaxed);
    }

    /// One line for people: phase, and percent where it is known.
    pub fn describe(&self) -> String {
        let phase = self.phase.read().unwrap_or_else(PoisonError::into_inner).text.clone();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_one_phase_are_added_up() {
        let progress = LoadProgress::default();
        assert_eq!(progress.describe(), "waiting");
        progress.enter("verifying files".to_owned(), 0);
        progress.enter_file("a", 100);
        progress.file_moved(0, 50);
        assert_eq!(progress.describe(), "downloading a (50%)");
        progress.enter_file("b", 300);
        progress.file_moved(0, 150);
        assert_eq!(progress.describe(), "downloading 2 files (50%)");
        progress.file_moved(150, 0);
        assert_eq!(progress.describe(), "downloading 2 files (12%)");
        progress.enter("reading weights".to_owned(), 0);
        assert_eq!(progress.describe(), "reading weights");
    }
}
