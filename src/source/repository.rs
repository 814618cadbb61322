//! One repository inside the Hub cache, in the layout that every Hugging Face tool shares.
//!
//! `models--owner--name/{blobs,snapshots,refs}`: a blob is named by its entity tag, a snapshot is a folder of links to
//! blobs, a reference is a file that holds a commit. hf-hub's `Cache` says where things lie; what lies there is checked
//! here, since other tools write without hashes and trust what they find.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use crate::catalog::id::{Etag, RelPath, RepoId, Revision, Sha256};
use crate::config::SourceConfig;
use crate::source::cache::{Folder, Lock, create_folder, link_atomic, read_small, remove, write_atomic};
use crate::source::conversion::{self, Conversion};
use crate::source::error::Cause;
use crate::source::fault;
use crate::source::hash::{self, Declared};
use crate::source::layout::{self, Files, Listing as _};

/// What the catalogue says about a Hub repository.
#[derive(Debug, Clone, Copy)]
pub(super) struct HubModel<'m> {
    pub repo: &'m RepoId,
    pub revision: &'m Revision,
    pub pins: &'m [(RelPath, Sha256)],
}

/// Its place in the cache.
#[derive(Debug)]
pub(super) struct Repository<'m> {
    pub model: HubModel<'m>,
    pub repo: Repo,
    cache: CacheRepo,
    root: PathBuf,
    locks: PathBuf,
    /// Whether a conversion may stand in for this revision.
    conversions: bool,
}

// === impl HubModel ===

impl<'m> HubModel<'m> {
    pub(super) fn pin(&self, file: &RelPath) -> Option<&'m Sha256> {
        self.pins.iter().find(|(name, _)| name == file).map(|(_, hash)| hash)
    }
}

// === impl Repository ===

impl<'m> Repository<'m> {
    pub(super) fn new(model: HubModel<'m>, config: &SourceConfig) -> Self {
        let (id, revision) = (model.repo.as_str().to_owned(), model.revision.as_str().to_owned());
        let repo = Repo::with_revision(id, RepoType::Model, revision);
        let folder = repo.folder_name();
        Self {
            model,
            cache: Cache::new(config.hub_cache.clone()).repo(repo.clone()),
            repo,
            root: config.hub_cache.join(&folder),
            // The same files that huggingface_hub locks, and by the same means.
            locks: config.hub_cache.join(".locks").join(&folder),
            conversions: config.conversion_revision && model.revision.as_str() == conversion::MAIN,
        }
    }

    /// The commit that the cache knows for the wanted revision, or for its conversion.
    pub(super) fn commit(&self) -> Option<Revision> {
        if self.model.revision.is_commit() {
            return Some(self.model.revision.clone());
        }
        let converted = self.conversion().and_then(|conversion| Revision::parse(&conversion.commit).ok());
        converted.filter(Revision::is_commit).or_else(|| self.referred())
    }

    /// The pull request that was taken for the wanted revision.
    pub(super) fn conversion(&self) -> Option<Conversion> {
        if !self.conversions {
            return None;
        }
        let bytes = read_small(&self.conversion_path(), CONVERSION).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    pub(super) fn remember_conversion(&self, conversion: &Conversion, stop: &AtomicBool) -> Result<(), Cause> {
        let text = serde_json::to_vec_pretty(conversion)
            .map_err(|error| Cause::Unreadable { file: CONVERSION.to_owned(), reason: error.to_string() })?;
        let _lock = self.lock("refs", stop)?;
        fault::point("before_ref");
        write_atomic(&self.root.join(".conversion.incomplete"), &self.conversion_path(), &text)
    }

    /// The wanted revision has safetensors of its own now.
    pub(super) fn forget_conversion(&self) -> Result<(), Cause> {
        if self.conversions { remove(&self.conversion_path()) } else { Ok(()) }
    }

    fn conversion_path(&self) -> PathBuf {
        self.root.join(CONVERSION)
    }

    /// Notes that the snapshot has whatever its repository has for us. Only then is an optional file that is absent here
    /// absent there too: other tools fetch single files into the same snapshots.
    pub(super) fn note_complete(&self, commit: &Revision, stop: &AtomicBool) -> Result<(), Cause> {
        if self.is_complete(commit) {
            return Ok(());
        }
        let _lock = self.lock("refs", stop)?;
        write_atomic(&self.root.join(".complete.incomplete"), &self.completeness(commit), b"")
    }

    pub(super) fn is_complete(&self, commit: &Revision) -> bool {
        self.completeness(commit).exists()
    }

    fn completeness(&self, commit: &Revision) -> PathBuf {
        self.root.join(format!("{COMPLETE}{commit}"))
    }

    /// Files that models may have and this snapshot lacks.
    pub(super) fn absent(&self, commit: &Revision) -> Vec<&'static str> {
        self.folder(commit).map(|folder| layout::absent(&folder)).unwrap_or_default()
    }

    /// What the cache's own reference says.
    fn referred(&self) -> Option<Revision> {
        let bytes = read_small(&self.reference(), self.model.revision.as_str()).ok()?;
        let commit = Revision::parse(std::str::from_utf8(&bytes).ok()?.trim()).ok()?;
        commit.is_commit().then_some(commit)
    }

    pub(super) fn snapshot(&self, commit: &Revision) -> PathBuf {
        self.cache.pointer_path(commit.as_str())
    }

    pub(super) fn blob(&self, etag: &Etag) -> PathBuf {
        self.cache.blob_path(etag.as_str())
    }

    /// Where the links of a snapshot lead.
    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    /// The snapshot's files, if all are there. Nothing is hashed.
    pub(super) fn files(&self, commit: &Revision) -> Result<Files, Cause> {
        let snapshot = self.snapshot(commit);
        if !snapshot.is_dir() {
            return Err(Cause::Missing { files: vec![format!("the snapshot of {} at {commit}", self.model.repo)] });
        }
        layout::plan(&mut self.folder(commit)?)
    }

    /// The snapshot's files, all there and all with the bytes that their names and pins declare.
    pub(super) fn verified(&self, commit: &Revision, stop: &AtomicBool) -> Result<PathBuf, Cause> {
        for file in self.files(commit)?.all() {
            self.check(commit, file, stop)?;
        }
        Ok(self.snapshot(commit))
    }

    /// Checks one file of a snapshot.
    pub(super) fn check(&self, commit: &Revision, file: &RelPath, stop: &AtomicBool) -> Result<(), Cause> {
        let real = self.folder(commit)?.locate(file)?;
        let blob = real.parent().is_some_and(|parent| parent.ends_with("blobs"));
        let etag =
            real.file_name().and_then(|name| name.to_str()).filter(|_| blob).and_then(|name| Etag::parse(name).ok());
        let declared = etag.map_or(Declared::Nothing, |etag| Declared::of(&etag));
        hash::check(&real, file.as_str(), &declared, self.model.pin(file), stop)
    }

    /// Whether the file is there at all, wherever its link leads.
    pub(super) fn has(&self, commit: &Revision, file: &RelPath) -> bool {
        self.folder(commit).is_ok_and(|folder| folder.has(file))
    }

    /// Waits until nobody else works on this blob.
    pub(super) fn lock(&self, name: &str, stop: &AtomicBool) -> Result<Lock, Cause> {
        create_folder(&self.blobs())?;
        Lock::wait(&self.locks.join(format!("{name}.lock")), stop)
    }

    /// Makes the blob visible under the file's name.
    pub(super) fn link(&self, commit: &Revision, file: &RelPath, etag: &Etag) -> Result<(), Cause> {
        // Out of snapshots/<commit> and out of the file's own folders.
        let target = format!("{}blobs/{etag}", "../".repeat(2 + file.depth()));
        let link = file.within(&self.snapshot(commit));
        if std::fs::read_link(&link).is_ok_and(|present| present == Path::new(&target)) {
            return Ok(());
        }
        if link.is_dir() {
            remove(&link)?;
        }
        link_atomic(Path::new(&target), &link)
    }

    /// Points the branch at the commit, once all of the commit's files are there.
    pub(super) fn refer(&self, commit: &Revision, stop: &AtomicBool) -> Result<(), Cause> {
        if self.model.revision.is_commit() || self.referred().as_ref() == Some(commit) {
            return Ok(());
        }
        let _lock = self.lock("refs", stop)?;
        fault::point("before_ref");
        // Beside `refs` and not inside, where other tools would take it for a branch.
        write_atomic(&self.root.join(".ref.incomplete"), &self.reference(), commit.as_str().as_bytes())
    }

    fn reference(&self) -> PathBuf {
        self.root.join("refs").join(self.model.revision.as_str())
    }

    fn folder(&self, commit: &Revision) -> Result<Folder, Cause> {
        Folder::open(&self.snapshot(commit), &[self.blobs()])
    }
}

/// Beside `refs` and `snapshots`, where other tools do not look.
const CONVERSION: &str = ".embedserve-conversion.json";
/// There as well, with the commit behind it.
const COMPLETE: &str = ".embedserve-complete-";
