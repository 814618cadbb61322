//! Where model files come from: the only outbound sockets, child processes and disk writes of this crate.
//!
//! `obtain` tries a model's sources in the catalogue's order and hands back a folder whose files are all there and all
//! verified. It blocks and belongs on a plain thread; setting `stop` ends it within a second, child processes included.
//! `cached` answers the same question without sockets, child processes or hashing. Nothing is ever fetched because of a
//! request: all are called at start, and by commands. [`notes`] keeps small results from one start to the next.
//!
//! ```text
//! obtain ─► hub ─► remote, conversion ─► repository, client, fetch ─┐
//!        ─► wheel ─► pip, unzip ────────────────────────────────────┼─► cache, hash, layout
//!        ─► local ──────────────────────────────────────────────────┘
//! bundle ─► tar, manifest ─► the same caches, from and to one file
//! ```

pub mod bundle;
mod cache;
mod client;
mod conversion;
mod error;
pub mod fault;
mod fetch;
mod hash;
mod hub;
mod layout;
mod local;
mod meter;
pub mod notes;
mod origin;
mod parallel;
mod pip;
mod remote;
mod repository;
mod unzip;
mod wheel;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::MultiProgress;

use crate::catalog::{ModelSpec, SourceSpec};
use crate::config::SourceConfig;
use crate::observe::progress::LoadProgress;
use crate::source::fetch::Context;
use crate::source::repository::HubModel;
use crate::source::wheel::WheelModel;

pub use crate::source::error::{Attempt, Cause, SourceError};
pub use layout::ENCODER_SETTINGS;

/// For `tests/fuzz` alone: `obtain` unpacks an archive only after its hash has matched a pinned one, so that no public
/// function could be given arbitrary bytes.
#[doc(hidden)]
pub mod fuzzing {
    pub use crate::source::unzip::unpack;
}

/// A complete model on this machine's disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFolder {
    pub path: PathBuf,
    /// `hub`, `wheel` or `directory`.
    pub source: &'static str,
    /// The Hub's commit, or the wheel's version.
    pub revision: Option<String>,
    /// Whether the catalogue fixes the bytes, by a commit or by a hash.
    pub pinned: bool,
}

/// Says of a model, from a folder that holds its small files, whether its weights are worth fetching; or why not.
pub type Judge = fn(&ModelSpec, &Path) -> Result<(), String>;

/// Gets a model's files, from the first of its sources that has them all. A hub is asked for weights only when `judge`
/// has seen the files beside them.
///
/// # Errors
/// `Stopped`, or why each source failed.
pub fn obtain(
    spec: &ModelSpec,
    judge: Judge,
    config: &SourceConfig,
    progress: &LoadProgress,
    stop: &AtomicBool,
) -> Result<ModelFolder, SourceError> {
    let cached = cached(spec, config).is_some();
    let bars = config.progress_bars.then(MultiProgress::new);
    let bars = bars.as_ref();
    let context = Context { config, progress, stop, bars, spec, judge, cached };
    let mut attempts = Vec::new();
    for source in &spec.sources {
        if stop.load(Ordering::Relaxed) {
            return Err(SourceError::Stopped);
        }
        let kind = kind(source);
        match obtain_from(source, &context) {
            Ok(folder) => {
                let (path, revision) = (folder.path.display(), folder.revision.as_deref().unwrap_or("none"));
                tracing::info!(model = spec.id, source = kind, revision, %path, "model files are complete");
                return Ok(folder);
            }
            Err(Cause::Stopped) => return Err(SourceError::Stopped),
            Err(cause) => {
                tracing::warn!(model = spec.id, source = kind, reason = cause.reason(), %cause, "source failed");
                attempts.push(Attempt { source: kind, cause });
            }
        }
    }
    let is_only_on_the_hub = spec.sources.iter().all(|source| matches!(source, SourceSpec::Hub { .. }));
    let is_folder_here = is_only_on_the_hub && Path::new(&spec.id).is_dir();
    Err(SourceError::Unavailable { model: spec.id.clone(), attempts, is_folder_here })
}

/// The folder of a model that is complete on this machine, from the first source that has it; nothing is hashed.
pub fn cached(spec: &ModelSpec, config: &SourceConfig) -> Option<ModelFolder> {
    let (progress, stop) = (LoadProgress::default(), AtomicBool::new(false));
    let (progress, stop) = (&progress, &stop);
    let context = Context { config, progress, stop, bars: None, spec, judge: |_, _| Ok(()), cached: false };
    spec.sources.iter().find_map(|source| match source {
        SourceSpec::Hub { repo, revision, sha256 } => hub::cached(HubModel { repo, revision, pins: sha256 }, &context),
        SourceSpec::Wheel { package, version, sha256, folder, members } => {
            wheel::cached(&WheelModel { package, version, sha256, folder, members }, &context)
        }
        SourceSpec::Directory { .. } => obtain_from(source, &context).ok(),
    })
}

fn obtain_from(source: &SourceSpec, context: &Context<'_>) -> Result<ModelFolder, Cause> {
    match source {
        SourceSpec::Hub { repo, revision, sha256 } => hub::obtain(HubModel { repo, revision, pins: sha256 }, context),
        SourceSpec::Wheel { package, version, sha256, folder, members } => {
            wheel::obtain(&WheelModel { package, version, sha256, folder, members }, context)
        }
        SourceSpec::Directory { path } => {
            let path = local::obtain(path)?;
            Ok(ModelFolder { path, source: "directory", revision: None, pinned: false })
        }
    }
}

const fn kind(source: &SourceSpec) -> &'static str {
    match source {
        SourceSpec::Hub { .. } => "hub",
        SourceSpec::Wheel { .. } => "wheel",
        SourceSpec::Directory { .. } => "directory",
    }
}
