//! The Hugging Face Hub, or whatever speaks its protocol at the configured endpoint.
//!
//! A revision is resolved to a commit once and every file is taken from that commit, so a branch that moves meanwhile
//! cannot mix two versions. A file's size and entity tag are asked first; its bytes come through `fetch` and are
//! accepted by size and by hash (SHA-256 for large files and pinned ones, git's own hash for small ones).
//!
//! From hf-hub come the protocol's types and places: `Repo` (names in URLs and folders), `RepoInfo` (the answer about a
//! repository), `Cache` and `CacheRepo` (the shared cache layout). Its requests are not used: they have no timeouts and
//! cannot be stopped, take no agent of ours, follow a redirect to another host with the token attached, and panic on a
//! redirect without an address. Its downloads check neither size nor hash and do not flush.

use std::path::Path;

use crate::catalog::id::Revision;
use crate::source::ModelFolder;
use crate::source::client::Client;
use crate::source::conversion;
use crate::source::error::Cause;
use crate::source::fetch::Context;
use crate::source::remote::{Remote, resolve};
use crate::source::repository::{HubModel, Repository};

/// Brings the model here, or finds it in the cache where that needs no network.
pub(super) fn obtain(model: HubModel<'_>, context: &Context<'_>) -> Result<ModelFolder, Cause> {
    let repository = Repository::new(model, context.config);
    if context.config.offline {
        return offline(&repository, context);
    }
    // A commit never moves: what lies complete and verified in the cache is what the Hub would send.
    if model.revision.is_commit()
        && repository.is_complete(model.revision)
        && let Ok(path) = repository.verified(model.revision, context.stop)
    {
        return Ok(folder(&repository, model.revision, &path));
    }
    let cause = match online(&repository, context) {
        Ok(folder) => return Ok(folder),
        Err(cause) => cause,
    };
    if !cause.is_outage() {
        return Err(cause);
    }
    let Some(commit) = repository.commit() else { return Err(cause) };
    match repository.verified(&commit, context.stop) {
        Ok(path) => {
            tracing::warn!(
                repo = %model.repo, revision = %model.revision, %commit, %cause,
                "the model cannot be looked for or fetched, serving the complete snapshot in the cache"
            );
            warn_if_partial(&repository, &commit);
            Ok(folder(&repository, &commit, &path))
        }
        Err(Cause::Stopped) => Err(Cause::Stopped),
        Err(_) => Err(cause),
    }
}

/// A complete snapshot in the cache, not verified yet.
pub(super) fn cached(model: HubModel<'_>, context: &Context<'_>) -> Option<ModelFolder> {
    let repository = Repository::new(model, context.config);
    let commit = repository.commit()?;
    repository.files(&commit).ok()?;
    Some(folder(&repository, &commit, &repository.snapshot(&commit)))
}

fn offline(repository: &Repository<'_>, context: &Context<'_>) -> Result<ModelFolder, Cause> {
    let HubModel { repo, revision, .. } = repository.model;
    let Some(commit) = repository.commit() else {
        return Err(Cause::Offline { missing: vec![format!("{repo} at {revision}")] });
    };
    match repository.verified(&commit, context.stop) {
        Ok(path) => {
            warn_if_partial(repository, &commit);
            Ok(folder(repository, &commit, &path))
        }
        Err(Cause::Missing { files }) => Err(Cause::Offline { missing: files }),
        // Left where it is: the next start with a network sets it aside and fetches it again.
        Err(Cause::Hash { file, .. }) => Err(Cause::Damaged { file }),
        Err(cause) => Err(cause),
    }
}

fn online(repository: &Repository<'_>, context: &Context<'_>) -> Result<ModelFolder, Cause> {
    let client = Client::new(context.config)?;
    context.progress.enter(format!("asking about {}", repository.model.repo), 0);
    let listed = resolve(repository, &client, context)?;
    let remote = Remote { repository, client: &client, context, listed: &listed };
    let files = match remote.plan() {
        Ok(files) => files,
        Err(Cause::Weights { found }) => {
            let commit = conversion::obtain(&remote, &found)?;
            return Ok(folder(repository, &commit, &repository.snapshot(&commit)));
        }
        Err(cause) => return Err(cause),
    };
    remote.fetch(&files)?;
    repository.note_complete(&listed.commit, context.stop)?;
    repository.refer(&listed.commit, context.stop)?;
    repository.forget_conversion()?;
    Ok(folder(repository, &listed.commit, &repository.snapshot(&listed.commit)))
}

fn folder(repository: &Repository<'_>, commit: &Revision, path: &Path) -> ModelFolder {
    let HubModel { revision, pins, .. } = repository.model;
    ModelFolder {
        path: path.to_owned(),
        source: "hub",
        revision: Some(commit.to_string()),
        pinned: revision.is_commit() || !pins.is_empty(),
    }
}

/// Without a listing, an optional file that is absent cannot be told from one that another tool did not fetch.
fn warn_if_partial(repository: &Repository<'_>, commit: &Revision) {
    let absent = repository.absent(commit);
    if !absent.is_empty() && !repository.is_complete(commit) {
        tracing::warn!(
            repo = %repository.model.repo, %commit, absent = absent.join(", "),
            "another program filled the cached snapshot; if the repository has one of the absent files, texts are read \
             otherwise than they should be: start once with a network"
        );
    }
}
