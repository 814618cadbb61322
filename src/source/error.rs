//! Why files could not be obtained: one `Cause` per attempt, and the error that lists every attempt.
//!
//! No message holds a token, an index password or a whole URL with a query: only hosts and file names are shown.

use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::catalog::id::IdError;
use crate::excerpt::excerpt;

/// What `obtain` answers when a model's files are not to be had.
#[derive(Debug, Error)]
pub enum SourceError {
    #[error("stopped while obtaining model files")]
    Stopped,
    #[error("no source of {model} yielded its files: {}{}", list(.attempts), if *is_folder_here { meant(.model) } else { String::new() })]
    Unavailable {
        model: String,
        attempts: Vec<Attempt>,
        /// What was asked for as a repository is a folder, seen from here.
        is_folder_here: bool,
    },
}

fn meant(model: &str) -> String {
    format!("; for the folder of that name, write ./{model}")
}

/// One source that was tried.
#[derive(Debug)]
pub struct Attempt {
    /// `hub`, `wheel` or `directory`.
    pub source: &'static str,
    pub cause: Cause,
}

/// Why one source failed.
#[derive(Debug, Error)]
pub enum Cause {
    #[error("stopped")]
    Stopped,
    #[error("offline, and the cache lacks: {}", names(.missing))]
    Offline { missing: Vec<String> },
    #[error("cannot reach {host}: {reason}")]
    Unreachable { host: String, reason: String },
    #[error("{host} answered {status} for {what}{}", hint(*.status))]
    Status { host: String, status: u16, what: String, retry_after: Option<Duration> },
    #[error("{host} does not answer as a model hub: {reason}: {what}")]
    Protocol { host: String, what: String, reason: String },
    #[error("no byte for {} s: {what}", .after.as_secs())]
    Stalled { what: String, after: Duration },
    #[error("transfer was cut after {received} of {expected} bytes: {what}")]
    Cut { what: String, received: u64, expected: u64 },
    #[error("gave up after {} s: {what}", .after.as_secs())]
    Deadline { what: String, after: Duration },
    #[error("redirect from {from} refused, {reason}: {to}")]
    Redirect { from: String, to: String, reason: &'static str },
    #[error("file has {size} bytes, limit {limit}: {}", excerpt(.file))]
    TooLarge { file: String, size: u64, limit: u64 },
    #[error("size differs, expected {expected}, found {found}: {}", excerpt(.file))]
    Size { file: String, expected: u64, found: u64 },
    #[error("hash differs, expected {expected}, found {found}: {}", excerpt(.file))]
    Hash { file: String, expected: String, found: String },
    #[error("cached file is damaged, and offline it cannot be fetched again: {}", excerpt(.file))]
    Damaged { file: String },
    #[error(transparent)]
    Name(#[from] IdError),
    #[error("files are missing: {}", names(.files))]
    Missing { files: Vec<String> },
    #[error(
        "weights are needed as safetensors; only formats that can run code or are unsupported are offered: {found}; \
         sentence-transformers converts them where the model is trusted: SentenceTransformer(\"...\").save(\"folder\")"
    )]
    Weights { found: String },
    #[error(
        "weights are needed as safetensors and {found} is never opened, since a pickle can run code; {reason}; name a \
         revision that has safetensors (--revision refs/pr/N), or convert where the model is trusted and serve the \
         folder: python3 -c 'from sentence_transformers import SentenceTransformer as S; S(\"{repo}\").save(\"model\")'"
    )]
    Pickled { repo: String, found: String, reason: String },
    #[error("{file} is a Git LFS pointer and not the file itself: run `git lfs pull` in the folder")]
    Pointer { file: String },
    #[error("cannot read {file}: {reason}")]
    Unreadable { file: String, reason: String },
    #[error("{file}: {what}")]
    Unsupported { file: String, what: String },
    #[error("such a model cannot be served, so its weights are not fetched: {reason}")]
    Useless { reason: String },
    #[error("link leaves the model's folder: {}", excerpt(.file))]
    Escape { file: String },
    #[error("cannot {action} {}: {source}", .path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error("not enough space in {}: {needed} bytes are needed, {free} are free", .path.display())]
    Space { path: PathBuf, needed: u64, free: u64 },
    #[error("{} needs {needed} bytes, and this process may write files of {limit} only (ulimit -f)", .path.display())]
    FileLimit { path: PathBuf, needed: u64, limit: u64 },
    #[error("cannot start {program}: {source}")]
    PipStart { program: String, source: std::io::Error },
    #[error("pip failed with {status}: {message}")]
    Pip { status: String, message: String },
    #[error("wheel refused, {reason}: {member}")]
    Archive { member: String, reason: String },
}

// === impl Cause ===

impl Cause {
    /// Wraps an I/O error with what was being done to which path.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// Whether the same request may succeed a moment later.
    pub const fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Status { status: 408 | 416 | 425 | 429 | 500 | 502 | 503 | 504, .. }
                | Self::Unreachable { .. }
                | Self::Stalled { .. }
                | Self::Cut { .. }
        )
    }

    /// Whether nothing is wrong with the files, only with the way to them or with the room for them: an older complete
    /// copy may serve instead. Not where the operator's own spelling or token is refused.
    pub const fn is_outage(&self) -> bool {
        self.is_transient()
            || matches!(
                self,
                Self::Deadline { .. }
                    // Of a proxy, which is not the one that knows repositories.
                    | Self::Status { status: 407, .. }
                    // A page of a captive portal.
                    | Self::Protocol { .. }
                    // A cache that cannot be written, or is full.
                    | Self::Io { .. }
                    | Self::Space { .. }
                    | Self::FileLimit { .. }
            )
    }

    /// A word from a closed set, for metrics.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Offline { .. } => "offline",
            Self::Status { .. } | Self::Protocol { .. } | Self::Unreachable { .. } | Self::Redirect { .. } => "http",
            Self::Stalled { .. } | Self::Cut { .. } | Self::Deadline { .. } => "timeout",
            Self::TooLarge { .. } | Self::Size { .. } | Self::Space { .. } | Self::FileLimit { .. } => "size",
            Self::Hash { .. } | Self::Damaged { .. } => "hash",
            Self::Name(_) | Self::Escape { .. } | Self::Archive { .. } => "unsafe",
            Self::Missing { .. }
            | Self::Pointer { .. }
            | Self::Weights { .. }
            | Self::Pickled { .. }
            | Self::Unreadable { .. }
            | Self::Unsupported { .. }
            | Self::Useless { .. } => "content",
            Self::Io { .. } => "io",
            Self::PipStart { .. } | Self::Pip { .. } => "pip",
        }
    }
}

fn list(attempts: &[Attempt]) -> String {
    if attempts.is_empty() {
        return "the catalogue names none".to_owned();
    }
    let lines: Vec<String> = attempts.iter().map(|a| format!("{}: {}", a.source, a.cause)).collect();
    lines.join("; ")
}

/// The first few names, of long ones fewer; a hostile index of weights has thousands.
fn names(files: &[String]) -> String {
    let mut shown = String::new();
    for (index, file) in files.iter().enumerate() {
        let name = excerpt(file);
        if index > 0 && (index == SHOWN_NAMES || shown.chars().count() + name.chars().count() > SHOWN_NAMES_CHARS) {
            return format!("{shown}, and {} more", files.len() - index);
        }
        shown.push_str(if index == 0 { "" } else { ", " });
        shown.push_str(&name);
    }
    shown
}

const fn hint(status: u16) -> &'static str {
    match status {
        401 | 403 => " (no such repository, or it needs a token that may read it)",
        404 => " (no such repository, revision or file)",
        407 => " (the proxy wants credentials)",
        429 => " (too many requests; a token raises the limit)",
        _ => "",
    }
}

const SHOWN_NAMES: usize = 8;
/// And so many characters of them, unless the first one alone is longer.
const SHOWN_NAMES_CHARS: usize = 240;
