//! Models in one file, for machines without a network: `export` writes what the caches hold, `import` puts it back.
//!
//! A bundle is an uncompressed tar (weights do not compress) whose first member, `manifest.json`, names every other:
//! `0/config.json` is a file of the first model. Equal models give equal bytes. Both ends check every file's size and
//! SHA-256, and an import gives no file its final name before all of the bundle has passed. Who made a bundle can put
//! anything into it that the Hub could send: trust it like its sender, and compare the printed SHA-256.

mod export;
mod import;
mod manifest;
mod tar;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256 as Sha256State};
use thiserror::Error;

use crate::catalog::id::IdError;
use crate::excerpt::excerpt;
use crate::source::cache::beside;
use crate::source::error::{Cause, SourceError};
use crate::source::hash::hex;

pub use crate::source::bundle::export::export;
pub use crate::source::bundle::import::{Import, import};

/// What was written or read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Of the bundle's own bytes.
    pub sha256: String,
    pub bytes: u64,
    pub models: Vec<BundledModel>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BundledModel {
    pub id: String,
    /// Where it lies on this machine.
    pub path: PathBuf,
}

/// Why a bundle was not written or not accepted.
#[derive(Debug, Error)]
pub enum BundleError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Cause(#[from] Cause),
    #[error("bundle refused, {reason}: {what}")]
    Refused { what: String, reason: String },
    #[error("bundle refused, its format {found} is not known here (written by {by})")]
    Format { found: u32, by: String },
    #[error("bundle refused, it was changed or damaged: its sha256 is {found}, expected {expected}")]
    Changed { expected: String, found: String },
    #[error("{id} lies in a directory and not in a cache: copy the directory instead")]
    Directory { id: String },
    #[error("{} is there already and no regular file", .path.display())]
    Occupied { path: PathBuf },
}

impl From<IdError> for BundleError {
    fn from(error: IdError) -> Self {
        Self::Cause(Cause::Name(error))
    }
}

impl BundleError {
    fn refused(what: &str, reason: &str) -> Self {
        Self::Refused { what: excerpt(what), reason: excerpt(reason) }
    }
}

/// Where the SHA-256 of a bundle is written, in the form that `sha256sum --check` reads.
fn checksum_path(bundle: &Path) -> PathBuf {
    beside(bundle, "sha256")
}

/// Counts and hashes what passes through.
struct Hashed<T> {
    inner: T,
    state: Sha256State,
    bytes: u64,
}

impl<T> Hashed<T> {
    fn new(inner: T) -> Self {
        Self { inner, state: Sha256State::new(), bytes: 0 }
    }

    fn finish(self) -> (String, u64) {
        (hex(&self.state.finalize()), self.bytes)
    }

    fn saw(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.bytes += bytes.len() as u64;
    }
}

impl<T: Read> Read for Hashed<T> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.saw(&buffer[..n]);
        Ok(n)
    }
}

impl<T: Write> Write for Hashed<T> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(buffer)?;
        self.saw(&buffer[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

/// Large enough that system calls cost nothing.
const BLOCK_BYTES: usize = 1 << 20;
