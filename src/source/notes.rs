//! Small results that are worth keeping from one start to the next, in our own cache: never beside a user's files, and
//! never worth failing for. What is read back may be anything; whoever reads it judges it.

use std::path::PathBuf;

use crate::config::SourceConfig;
use crate::source::cache::{beside, read_small, remove, write_atomic};

/// A folder of notes.
#[derive(Debug, Clone)]
pub struct Notes {
    folder: PathBuf,
}

impl Notes {
    /// The notes of this configuration's own cache.
    pub fn new(config: &SourceConfig) -> Self {
        Self::at(config.wheel_cache.join("notes"))
    }

    /// The notes in a folder, which need not exist.
    pub const fn at(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// What was written under this name, if it can be read.
    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        read_small(&self.path(name), name).ok()
    }

    /// Writes a note whole or not at all. A cache that cannot be written to is said and costs time, nothing else.
    pub fn write(&self, name: &str, text: &[u8]) {
        let path = self.path(name);
        // Two processes that write the same note write the same text.
        let part = beside(&path, &format!("{}.incomplete", std::process::id()));
        if let Err(cause) = write_atomic(&part, &path, text) {
            tracing::warn!(%cause, "a result cannot be kept for the next start");
            // What is left of it is of no use; that it may not go either is said above.
            let _ = remove(&part);
        }
    }

    /// A name is ours and plain: digits, letters, hyphens.
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }
}
