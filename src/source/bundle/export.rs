//! Writing a bundle: what is complete and verified in the caches, or fetched into them first.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest as _, Sha256 as Sha256State};

use crate::catalog::id::{Etag, RelPath};
use crate::catalog::{ModelSpec, SourceSpec};
use crate::config::SourceConfig;
use crate::observe::progress::LoadProgress;
use crate::source::bundle::manifest::{self, FORMAT, FileEntry, Manifest, ModelEntry, SourceEntry};
use crate::source::bundle::{BLOCK_BYTES, Bundle, BundleError, BundledModel, Hashed, checksum_path, tar};
use crate::source::cache::{Folder, beside, create, ensure_file_size, ensure_space, publish, remove, write_atomic};
use crate::source::error::Cause;
use crate::source::hash::{hex, sha256_file};
use crate::source::layout;
use crate::source::repository::{HubModel, Repository};
use crate::source::wheel::WheelModel;
use crate::source::{self, Judge, ModelFolder};

/// Writes `models` to `output` and its SHA-256 beside it. Whatever is not in the caches is fetched first, unless
/// `config` is offline.
///
/// # Errors
/// A model that is not to be had, or a file that cannot be written; `output` is then as it was before.
pub fn export(
    models: &[ModelSpec],
    judge: Judge,
    output: &Path,
    config: &SourceConfig,
    stop: &AtomicBool,
) -> Result<Bundle, BundleError> {
    // A bare name has no parent folder to flush.
    let output = &std::path::absolute(output).map_err(Cause::io("find", output))?;
    let (part, checksum) = (beside(output, "incomplete"), checksum_path(output));
    for path in [output, &part, &checksum] {
        ensure_replaceable(path)?;
    }
    let progress = LoadProgress::default();
    let (mut entries, mut members, mut bundled) = (Vec::new(), Vec::new(), Vec::new());
    for spec in models {
        let folder = source::obtain(spec, judge, config, &progress, stop)?;
        let entry = describe(spec, &folder, config, stop)?;
        let opened = open(spec, &folder, config)?;
        for file in &entry.files {
            let name = RelPath::parse(&file.name)?;
            members.push(Member { path: opened.locate(&name)?, model: entries.len(), file: file.clone() });
        }
        bundled.push(BundledModel { id: spec.id.clone(), path: folder.path });
        entries.push(entry);
    }
    let made_by = concat!("embedserve ", env!("CARGO_PKG_VERSION")).to_owned();
    let manifest = Manifest { format: FORMAT, made_by, models: entries };
    // What import would refuse is not written.
    manifest.check()?;
    let written = write(&manifest, &members, &part, stop);
    let (sha256, bytes) = match written {
        Ok(done) => done,
        Err(error) => {
            if let Err(cause) = remove(&part) {
                tracing::warn!(%cause, "an unfinished bundle remains");
            }
            return Err(error);
        }
    };
    // A crash in between leaves a bundle without a checksum, never with that of another.
    remove(&checksum)?;
    publish(&part, output)?;
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    write_atomic(&beside(&checksum, "incomplete"), &checksum, format!("{sha256}  {name}\n").as_bytes())?;
    Ok(Bundle { sha256, bytes, models: bundled })
}

/// Files are put in place by renaming and cleared away whole: what is none, such as `/dev/null`, a link or a folder, would be
/// lost.
fn ensure_replaceable(path: &Path) -> Result<(), BundleError> {
    match std::fs::symlink_metadata(path) {
        Ok(kind) if !kind.is_file() => Err(BundleError::Occupied { path: path.to_owned() }),
        _ => Ok(()),
    }
}

/// One file on its way into the bundle.
struct Member {
    path: std::path::PathBuf,
    /// Its place in the manifest.
    model: usize,
    file: FileEntry,
}

fn describe(
    spec: &ModelSpec,
    folder: &ModelFolder,
    config: &SourceConfig,
    stop: &AtomicBool,
) -> Result<ModelEntry, BundleError> {
    let origin = origin(spec, folder, config).ok_or_else(|| BundleError::Directory { id: spec.id.clone() })?;
    let mut opened = open(spec, folder, config)?;
    let mut files = Vec::new();
    for name in layout::plan(&mut opened)?.all() {
        let path = opened.locate(name)?;
        let size = path.metadata().map_err(Cause::io("examine", &path))?.len();
        // In the Hub's cache a file's bytes are named by their entity tag.
        let blob = path.parent().is_some_and(|parent| parent.ends_with("blobs"));
        let tag = path.file_name().and_then(|name| name.to_str()).filter(|_| blob);
        let etag = tag.and_then(|tag| Etag::parse(tag).ok()).map(|tag| tag.to_string());
        files.push(FileEntry { name: name.to_string(), size, sha256: sha256_file(&path, stop)?, etag });
    }
    Ok(ModelEntry { id: spec.id.clone(), source: origin, files })
}

/// Which of the model's sources the folder is from; `None` for a directory.
fn origin(spec: &ModelSpec, folder: &ModelFolder, config: &SourceConfig) -> Option<SourceEntry> {
    spec.sources.iter().find_map(|source| match source {
        SourceSpec::Hub { repo, revision, sha256 } => {
            let repository = Repository::new(HubModel { repo, revision, pins: sha256 }, config);
            let commit = repository.commit().filter(|commit| repository.snapshot(commit) == folder.path)?;
            let conversion = repository.conversion().filter(|conversion| conversion.commit == commit.as_str());
            let (repo, revision, commit) = (repo.to_string(), revision.to_string(), commit.to_string());
            Some(SourceEntry::Hub { repo, revision, commit, conversion })
        }
        SourceSpec::Wheel { package, version, sha256, folder: inside, members } => {
            let model = WheelModel { package, version, sha256, folder: inside, members };
            (model.place(&config.wheel_cache) == folder.path).then(|| SourceEntry::Wheel {
                package: package.clone(),
                version: version.clone(),
                sha256: sha256.to_string(),
                folder: inside.to_string(),
            })
        }
        SourceSpec::Directory { .. } => None,
    })
}

fn open(spec: &ModelSpec, folder: &ModelFolder, config: &SourceConfig) -> Result<Folder, Cause> {
    let blobs = spec.sources.iter().filter_map(|source| match source {
        SourceSpec::Hub { repo, revision, sha256 } => {
            Some(Repository::new(HubModel { repo, revision, pins: sha256 }, config).blobs())
        }
        SourceSpec::Wheel { .. } | SourceSpec::Directory { .. } => None,
    });
    Folder::open(&folder.path, &blobs.collect::<Vec<_>>())
}

fn write(
    manifest: &Manifest,
    members: &[Member],
    part: &Path,
    stop: &AtomicBool,
) -> Result<(String, u64), BundleError> {
    let io = || Cause::io("write", part);
    let text = manifest.text()?;
    if text.len() as u64 > manifest::MAX_MANIFEST_BYTES {
        return Err(BundleError::refused(manifest::NAME, "it is too long for one bundle"));
    }
    let total: u64 = members.iter().map(|member| member.file.size).sum();
    let file = create(part)?;
    ensure_space(part.parent().unwrap_or(part), total)?;
    ensure_file_size(part, total)?;
    let mut out = Hashed::new(file);
    let size = text.len() as u64;
    let header = tar::header(manifest::NAME, size).ok_or_else(|| BundleError::refused(manifest::NAME, TOO_LONG))?;
    out.write_all(&header).and_then(|()| out.write_all(&text)).map_err(io())?;
    tar::write_padding(&mut out, size).map_err(io())?;
    tracing::info!(file = %part.display(), bytes = total, "writing a bundle");
    for member in members {
        member.copy(&mut out, part, stop)?;
    }
    out.write_all(&tar::END).map_err(io())?;
    Ok(out.finish())
}

impl Member {
    /// Copies the file, and notices when it is no longer what the manifest says.
    fn copy(&self, out: &mut Hashed<File>, part: &Path, stop: &AtomicBool) -> Result<(), BundleError> {
        let FileEntry { name, size, sha256, .. } = &self.file;
        let name = format!("{}/{name}", self.model);
        let header = tar::header(&name, *size).ok_or_else(|| BundleError::refused(&name, TOO_LONG))?;
        out.write_all(&header).map_err(Cause::io("write", part))?;
        let mut file = File::open(&self.path).map_err(Cause::io("open", &self.path))?;
        let (mut state, mut block, mut copied) = (Sha256State::new(), vec![0; BLOCK_BYTES], 0);
        loop {
            if stop.load(Ordering::Relaxed) {
                return Err(Cause::Stopped.into());
            }
            let n = file.read(&mut block).map_err(Cause::io("read", &self.path))?;
            if n == 0 {
                break;
            }
            state.update(&block[..n]);
            copied += n as u64;
            if copied > *size {
                break;
            }
            out.write_all(&block[..n]).map_err(Cause::io("write", part))?;
        }
        let found = hex(&state.finalize());
        if copied != *size || found != *sha256 {
            let (file, expected) = (self.path.display().to_string(), sha256.clone());
            return Err(Cause::Hash { file, expected, found }.into());
        }
        Ok(tar::write_padding(out, *size).map_err(Cause::io("write", part))?)
    }
}

const TOO_LONG: &str = "its name is too long for a bundle";
