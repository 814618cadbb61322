//! One commit of a repository on the Hub: what it holds, and its files brought into the cache.
//!
//! A file's size and entity tag are asked first; its bytes come through `fetch` and get their final name only when
//! their size and hash are right.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use hf_hub::api::RepoInfo;
use http::{Method, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::catalog::id::{Etag, RelPath, Revision};
use crate::source::cache::{beside, publish, quarantine, read_small, remove};
use crate::source::client::{Ask, Client, Follow};
use crate::source::error::Cause;
use crate::source::fetch::{Context, Patience, Transfer, download};
use crate::source::hash::{self, Declared};
use crate::source::layout::{self, Files, Listing};
use crate::source::origin::parse_url;
use crate::source::parallel;
use crate::source::repository::{HubModel, Repository};

/// What the Hub says about one revision.
#[derive(Debug)]
pub(super) struct Listed {
    pub commit: Revision,
    pub names: BTreeSet<RelPath>,
}

/// One commit, and the means to fetch from it; reading a file fetches it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Remote<'r> {
    pub repository: &'r Repository<'r>,
    pub client: &'r Client,
    pub context: &'r Context<'r>,
    pub listed: &'r Listed,
}

/// What the Hub declares about a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    pub etag: Etag,
    pub size: u64,
}

/// The commit behind the revision, and the names of its files.
pub(super) fn resolve(repository: &Repository<'_>, client: &Client, context: &Context<'_>) -> Result<Listed, Cause> {
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
        // Screenshots and logs have colons in their names, and no file of a model has.
        let honest = info.siblings.iter().map(|file| file.rfilename.as_str()).filter(|name| !name.contains(':'));
        let names: Result<_, _> = honest.map(RelPath::parse).collect();
        Ok(Listed { commit, names: names? })
    })
}

// === impl Remote ===

impl Listing for Remote<'_> {
    fn has(&self, file: &RelPath) -> bool {
        self.listed.names.contains(file)
    }

    fn read(&mut self, file: &RelPath) -> Result<Vec<u8>, Cause> {
        self.ensure(file)?;
        read_small(&file.within(&self.repository.snapshot(&self.listed.commit)), file.as_str())
    }

    fn names(&self) -> Vec<String> {
        self.listed.names.iter().map(ToString::to_string).collect()
    }
}

impl Remote<'_> {
    /// The files that make up the model.
    pub(super) fn plan(&self) -> Result<Files, Cause> {
        layout::plan(&mut { *self })
    }

    /// Makes sure that the snapshot has all of them. The small ones come first: a snapshot with weights counts as
    /// complete, and they tell whether the weights are of any use.
    pub(super) fn fetch(&self, files: &Files) -> Result<(), Cause> {
        self.ensure_all(&files.small)?;
        let Context { spec, judge, .. } = *self.context;
        let snapshot = self.repository.snapshot(&self.listed.commit);
        judge(spec, &snapshot).map_err(|reason| Cause::Useless { reason })?;
        self.ensure_all(&files.weights)
    }

    /// Several at once.
    fn ensure_all(&self, files: &[RelPath]) -> Result<(), Cause> {
        self.context.progress.enter("verifying files".to_owned(), 0);
        parallel::each(files, self.context.config.parallel_files, self.context.stop, |file, stop| {
            let context = Context { stop, ..*self.context };
            Remote { context: &context, ..*self }.ensure(file)
        })
    }

    /// Makes sure that the snapshot has the file with its right bytes.
    fn ensure(&self, file: &RelPath) -> Result<(), Cause> {
        let Self { repository, context, listed: Listed { commit, .. }, .. } = *self;
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
        self.transfer(file, &metadata, &blob)?;
        repository.link(commit, file, &metadata.etag)
    }

    /// Transfers and verifies; a file with wrong bytes is asked for once more from its beginning.
    fn transfer(&self, file: &RelPath, metadata: &Metadata, blob: &Path) -> Result<(), Cause> {
        let part = beside(blob, "incomplete");
        let transfer = Transfer { url: self.url(file)?, name: file.as_str(), size: metadata.size, part: &part };
        let mut last_chance = false;
        loop {
            download(self.client, &transfer, self.context)?;
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
        let (size, limit) = (metadata.size, self.context.spec.max_file_bytes);
        if size > limit {
            return Err(Cause::TooLarge { file: file.to_string(), size, limit });
        }
        if let (Declared::Sha256(found), Some(pin)) = (declared, self.repository.model.pin(file))
            && found != pin
        {
            return Err(Cause::Hash { file: file.to_string(), expected: pin.to_string(), found: found.to_string() });
        }
        Ok(())
    }

    pub(super) fn metadata(&self, file: &RelPath) -> Result<Metadata, Cause> {
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
            if answer.header_of_any_hop("x-repo-commit") != Some(self.listed.commit.as_str()) {
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
            format!("{}/{}/resolve/{}", self.context.config.endpoint, self.repository.repo.url(), self.listed.commit);
        for part in file.as_str().split('/') {
            // Writing to a string cannot fail.
            let _ = write!(url, "/{}", utf8_percent_encode(part, PATH_PART));
        }
        parse_url(&url)
    }
}

/// A listing of tens of thousands of files; a model has dozens.
pub(super) const MAX_INFO_BYTES: usize = 10 << 20;
const PATH_PART: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
