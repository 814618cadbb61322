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

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use hf_hub::api::RepoInfo;
use http::{Method, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::catalog::id::{Etag, RelPath, Revision};
use crate::source::ModelFolder;
use crate::source::cache::{beside, publish, quarantine, read_small, remove};
use crate::source::client::{Ask, Client, Follow};
use crate::source::error::Cause;
use crate::source::fetch::{Context, Patience, Transfer, download};
use crate::source::hash::{self, Declared};
use crate::source::layout::{self, Listing, MODULES};
use crate::source::origin::parse_url;
use crate::source::repository::{HubModel, Repository};

/// Brings the model here, or finds it in the cache where that needs no network.
pub(super) fn obtain(model: HubModel<'_>, context: &Context<'_>) -> Result<ModelFolder, Cause> {
    let repository = Repository::new(model, context.config);
    if context.config.offline {
        return offline(&repository, context);
    }
    // A commit never moves: what lies verified in the cache is what the Hub would send.
    if model.revision.is_commit()
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
                "the hub cannot be used, serving the complete snapshot in the cache"
            );
            warn_without_modules(&path);
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
            warn_without_modules(&path);
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
    let (commit, names) = resolve(repository, &client, context)?;
    let mut remote = Remote { repository, client: &client, context, commit: &commit, names };
    for file in layout::plan(&mut remote)? {
        remote.ensure(&file)?;
    }
    repository.refer(&commit, context.stop)?;
    Ok(folder(repository, &commit, &repository.snapshot(&commit)))
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
fn warn_without_modules(path: &Path) {
    if !path.join(MODULES).exists() {
        tracing::warn!(
            snapshot = %path.display(),
            "the cached snapshot has no modules.json; if the repository has one, fetch the model again with a network"
        );
    }
}

/// The commit behind the revision, and the names of its files.
fn resolve(
    repository: &Repository<'_>,
    client: &Client,
    context: &Context<'_>,
) -> Result<(Revision, BTreeSet<RelPath>), Cause> {
    let HubModel { repo, revision, .. } = repository.model;
    let what = format!("{repo} at {revision}");
    let ask = Ask {
        method: Method::GET,
        url: parse_url(&format!("{}/api/{}", context.config.endpoint, repository.repo.api_url()))?,
        range: None,
        follow: Follow::All,
        what: what.clone(),
    };
    Patience::for_first_contact(context).retry(&what, context.stop, || {
        let mut answer = client.send(&ask, context.stop)?;
        if answer.status != 200 {
            return Err(answer.status_error());
        }
        let body = answer.bytes(MAX_INFO_BYTES, context.stop)?;
        let info: RepoInfo = serde_json::from_slice(&body)
            .map_err(|_| answer.protocol("its description of the repository cannot be read"))?;
        let commit = Revision::parse(&info.sha)?;
        if !commit.is_commit() || (revision.is_commit() && commit != *revision) {
            return Err(answer.protocol("it names no commit, or another one than was asked for"));
        }
        let names: Result<_, _> = info.siblings.iter().map(|file| RelPath::parse(&file.rfilename)).collect();
        Ok((commit, names?))
    })
}

/// One commit of a repository on the Hub; reading a file fetches it.
struct Remote<'r> {
    repository: &'r Repository<'r>,
    client: &'r Client,
    context: &'r Context<'r>,
    commit: &'r Revision,
    names: BTreeSet<RelPath>,
}

/// What the Hub declares about a file.
#[derive(Debug)]
struct Metadata {
    etag: Etag,
    size: u64,
}

impl Listing for Remote<'_> {
    fn has(&self, file: &RelPath) -> bool {
        self.names.contains(file)
    }

    fn read(&mut self, file: &RelPath) -> Result<Vec<u8>, Cause> {
        self.ensure(file)?;
        read_small(&file.within(&self.repository.snapshot(self.commit)), file.as_str())
    }

    fn names(&self) -> Vec<String> {
        self.names.iter().map(ToString::to_string).collect()
    }
}

impl Remote<'_> {
    /// Makes sure that the snapshot has the file with its right bytes.
    fn ensure(&self, file: &RelPath) -> Result<(), Cause> {
        let Self { repository, context, commit, .. } = *self;
        if repository.has(commit, file) {
            match repository.check(commit, file, context.stop) {
                Ok(()) => return Ok(()),
                Err(Cause::Stopped) => return Err(Cause::Stopped),
                Err(cause) => tracing::warn!(%file, %cause, "cached file is damaged, fetching it again"),
            }
        }
        let metadata = self.metadata(file)?;
        let declared = Declared::of(&metadata.etag);
        self.refuse_early(file, &metadata, &declared)?;
        let _lock = repository.lock(metadata.etag.as_str(), context.stop)?;
        let blob = repository.blob(&metadata.etag);
        if blob.symlink_metadata().is_ok() {
            match self.check_blob(&blob, file, &metadata) {
                Ok(()) => return repository.link(commit, file, &metadata.etag),
                Err(Cause::Stopped) => return Err(Cause::Stopped),
                Err(_) => quarantine(&blob)?,
            }
        }
        self.fetch(file, &metadata, &blob)?;
        repository.link(commit, file, &metadata.etag)
    }

    /// Transfers and verifies; a file with wrong bytes is asked for once more from its beginning.
    fn fetch(&self, file: &RelPath, metadata: &Metadata, blob: &Path) -> Result<(), Cause> {
        let part = beside(blob, "incomplete");
        let transfer = Transfer { url: self.url(file)?, name: file.as_str(), size: metadata.size, part: &part };
        let mut last_chance = false;
        loop {
            download(self.client, &transfer, self.context)?;
            self.context.progress.enter(format!("verifying {file}"), 0);
            match self.check_blob(&part, file, metadata) {
                Ok(()) => return publish(&part, blob),
                Err(Cause::Stopped) => return Err(Cause::Stopped),
                Err(cause) => {
                    remove(&part)?;
                    if last_chance {
                        return Err(cause);
                    }
                    tracing::warn!(%file, %cause, "received wrong bytes, fetching once more");
                    last_chance = true;
                }
            }
        }
    }

    fn check_blob(&self, path: &Path, file: &RelPath, metadata: &Metadata) -> Result<(), Cause> {
        let found = path.metadata().map_err(Cause::io("examine", path))?;
        if !found.is_file() || found.len() != metadata.size {
            return Err(Cause::Size { file: file.to_string(), expected: metadata.size, found: found.len() });
        }
        let pin = self.repository.model.pin(file);
        hash::check(path, file.as_str(), &Declared::of(&metadata.etag), pin, self.context.stop)
    }

    /// What is known to be wrong is not transferred.
    fn refuse_early(&self, file: &RelPath, metadata: &Metadata, declared: &Declared) -> Result<(), Cause> {
        if metadata.size > self.context.max_file_bytes {
            let (size, limit) = (metadata.size, self.context.max_file_bytes);
            return Err(Cause::TooLarge { file: file.to_string(), size, limit });
        }
        if let (Declared::Sha256(found), Some(pin)) = (declared, self.repository.model.pin(file))
            && found != pin
        {
            return Err(Cause::Hash { file: file.to_string(), expected: pin.to_string(), found: found.to_string() });
        }
        Ok(())
    }

    fn metadata(&self, file: &RelPath) -> Result<Metadata, Cause> {
        let ask = Ask {
            method: Method::HEAD,
            url: self.url(file)?,
            range: None,
            // The endpoint itself knows the file; where its bytes lie does not matter yet.
            follow: Follow::SameOrigin,
            what: file.to_string(),
        };
        Patience::for_file(self.context.config).retry(file.as_str(), self.context.stop, || {
            let answer = self.client.send(&ask, self.context.stop)?;
            if answer.status != 200 && !answer.is_redirect() {
                return Err(answer.status_error());
            }
            if answer.header_of_any_hop("x-repo-commit") != Some(self.commit.as_str()) {
                return Err(answer.protocol("it does not say that the file is of the commit asked for"));
            }
            // What a redirect's target would say about itself is not asked: only the endpoint's word counts.
            let own = |name| answer.header(name).filter(|_| answer.status == 200);
            let etag = answer.header_of_any_hop("x-linked-etag").or_else(|| own("etag"));
            let size = answer.header_of_any_hop("x-linked-size").or_else(|| own("content-length"));
            let etag = etag.ok_or_else(|| answer.protocol("it does not name the file's entity tag"))?;
            let size = size
                .and_then(|text| text.parse().ok())
                .ok_or_else(|| answer.protocol("it does not say how large the file is"))?;
            Ok(Metadata { etag: Etag::parse(etag)?, size })
        })
    }

    fn url(&self, file: &RelPath) -> Result<Uri, Cause> {
        let mut url =
            format!("{}/{}/resolve/{}", self.context.config.endpoint, self.repository.repo.url(), self.commit);
        for part in file.as_str().split('/') {
            // Writing to a string cannot fail.
            let _ = write!(url, "/{}", utf8_percent_encode(part, PATH_PART));
        }
        parse_url(&url)
    }
}

/// A listing of tens of thousands of files; a model has dozens.
const MAX_INFO_BYTES: usize = 10 << 20;
const PATH_PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
