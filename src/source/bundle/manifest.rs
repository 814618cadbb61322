//! The first member of a bundle: which models it holds, where they come from, and every file with its size and SHA-256.
//!
//! `Manifest` is what stands in the file. `Manifest::check` turns it into `Model`s, whose every part that becomes a
//! path went through `catalog::id`.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::catalog::id::{Etag, RelPath, RepoId, Revision, Sha256};
use crate::excerpt::excerpt;
use crate::source::bundle::BundleError;
use crate::source::conversion::{self, Conversion};

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    pub format: u32,
    pub made_by: String,
    pub models: Vec<ModelEntry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelEntry {
    pub id: String,
    pub source: SourceEntry,
    pub files: Vec<FileEntry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum SourceEntry {
    Hub { repo: String, revision: String, commit: String, conversion: Option<Conversion> },
    Wheel { package: String, version: String, sha256: String, folder: String },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileEntry {
    pub name: String,
    pub size: u64,
    pub sha256: String,
    /// What the Hub calls the file's bytes; the cache names them so.
    pub etag: Option<String>,
}

/// A model whose description has passed every check.
#[derive(Debug)]
pub(super) struct Model {
    pub id: String,
    pub origin: Origin,
    pub files: Vec<ModelFile>,
}

#[derive(Debug)]
pub(super) enum Origin {
    Hub { repo: RepoId, revision: Revision, commit: Revision, conversion: Option<Conversion> },
    Wheel { package: String, version: String, sha256: Sha256, folder: RelPath },
}

#[derive(Debug)]
pub(super) struct ModelFile {
    pub name: RelPath,
    pub size: u64,
    pub sha256: Sha256,
    pub etag: Etag,
}

// === impl Manifest ===

impl Manifest {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, BundleError> {
        serde_json::from_slice(bytes).map_err(|error| {
            // Category and place only: the parser's own text may quote the file.
            let reason = format!("not the expected JSON at line {} column {}", error.line(), error.column());
            BundleError::refused(NAME, &reason)
        })
    }

    pub(super) fn text(&self) -> Result<Vec<u8>, BundleError> {
        let mut text =
            serde_json::to_vec_pretty(self).map_err(|error| BundleError::refused(NAME, &error.to_string()))?;
        text.push(b'\n');
        Ok(text)
    }

    /// The models, if everything about them is as it must be.
    pub(super) fn check(&self) -> Result<Vec<Model>, BundleError> {
        if self.format != FORMAT {
            return Err(BundleError::Format { found: self.format, by: excerpt(&self.made_by) });
        }
        let refused = |reason: &str| Err(BundleError::refused(NAME, reason));
        if self.models.is_empty() || self.models.len() > MAX_MODELS {
            return refused(&format!("it has {} models, expected 1 to {MAX_MODELS}", self.models.len()));
        }
        let models: Vec<Model> = self.models.iter().map(ModelEntry::check).collect::<Result<_, _>>()?;
        let mut places = BTreeSet::new();
        if models.iter().any(|model| !places.insert(model.origin.place())) {
            return refused("two of its models are the same");
        }
        Ok(models)
    }
}

impl ModelEntry {
    fn check(&self) -> Result<Model, BundleError> {
        let refused = |reason: &str| BundleError::refused(&self.id, reason);
        if self.files.is_empty() || self.files.len() > MAX_FILES {
            return Err(refused(&format!("it has {} files, expected 1 to {MAX_FILES}", self.files.len())));
        }
        let mut names = BTreeSet::new();
        let mut files = Vec::with_capacity(self.files.len());
        for file in &self.files {
            if file.size > MAX_FILE_BYTES {
                return Err(BundleError::refused(&file.name, &format!("it has more than {MAX_FILE_BYTES} bytes")));
            }
            let name = RelPath::parse(&file.name)?;
            // Two names that one file system takes for the same would overwrite each other.
            if !names.insert(name.as_str().to_lowercase()) {
                return Err(BundleError::refused(&file.name, "two files share a name"));
            }
            let sha256 = Sha256::parse(&file.sha256)?;
            let etag = Etag::parse(file.etag.as_deref().unwrap_or(sha256.as_str()))?;
            files.push(ModelFile { name, size: file.size, sha256, etag });
        }
        Ok(Model { id: excerpt(&self.id), origin: self.source.check(&self.id)?, files })
    }
}

impl SourceEntry {
    fn check(&self, id: &str) -> Result<Origin, BundleError> {
        match self {
            Self::Hub { repo, revision, commit, conversion } => {
                let (repo, revision) = (RepoId::parse(repo)?, Revision::parse(revision)?);
                let commit = Revision::parse(commit)?;
                let consistent = !revision.is_commit() || revision == commit;
                let converted = conversion.as_ref().is_none_or(|conversion| {
                    conversion.commit == commit.as_str() && revision.as_str() == conversion::MAIN
                });
                if !commit.is_commit() || !consistent || !converted {
                    return Err(BundleError::refused(id, "its revision and commit contradict each other"));
                }
                Ok(Origin::Hub { repo, revision, commit, conversion: conversion.clone() })
            }
            Self::Wheel { package, version, sha256, folder } => Ok(Origin::Wheel {
                package: package.clone(),
                version: version.clone(),
                sha256: Sha256::parse(sha256)?,
                folder: RelPath::parse(folder)?,
            }),
        }
    }
}

impl Origin {
    /// What tells two models apart on the disk.
    fn place(&self) -> String {
        match self {
            Self::Hub { repo, commit, .. } => format!("hub {repo} {commit}").to_lowercase(),
            Self::Wheel { sha256, folder, .. } => format!("wheel {sha256} {folder}"),
        }
    }
}

/// The first member's name.
pub(super) const NAME: &str = "manifest.json";
/// Of the bundle; a later one that an old program cannot read gets another number.
pub(super) const FORMAT: u32 = 1;
/// A manifest describes files in a few hundred bytes each.
pub(super) const MAX_MANIFEST_BYTES: u64 = 4 << 20;
const MAX_MODELS: usize = 200;
/// Real models have about a dozen files, the largest with a hundred shards.
const MAX_FILES: usize = 1_000;
/// As for downloads: no encoder that fits this server has a larger file.
const MAX_FILE_BYTES: u64 = 16 << 30;
