//! Safetensors where a repository's `main` has only pickles: the open pull request of the Hub's own conversion bot.
//!
//! Pickles can run code and are never opened. For many older repositories the Hub's bot has offered the same weights as
//! safetensors in a pull request that nobody merged. That request is taken if, and only if: the wanted revision is
//! `main`, which such requests are made against; its author, title and status are the bot's; the pickles in it are
//! still those of `main`; and every other file of the model is byte for byte that of `main`. The choice is written
//! beside the snapshots, so that later starts, offline ones too, serve the same commit without asking again.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use http::Method;
use serde::{Deserialize, Serialize};

use crate::catalog::id::{RelPath, Revision};
use crate::source::client::{Ask, Follow};
use crate::source::error::Cause;
use crate::source::fetch::{Context, Patience};
use crate::source::layout::{self, Files, Listing, WEIGHT_INDEX, is_pickle};
use crate::source::origin::parse_url;
use crate::source::parallel;
use crate::source::remote::{MAX_INFO_BYTES, Remote, resolve};
use crate::source::repository::{HubModel, Repository};

/// Which commit of a pull request serves for which commit of `main`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Conversion {
    /// The commit of `main` that holds only pickles.
    pub base: String,
    /// Of the pull request.
    pub number: u64,
    pub commit: String,
}

#[derive(Debug, Deserialize)]
struct Discussions {
    discussions: Vec<Discussion>,
}

#[derive(Debug, Deserialize)]
struct Discussion {
    num: u64,
    author: Option<Author>,
    title: String,
    status: String,
    #[serde(rename = "isPullRequest", default)]
    is_pull_request: bool,
}

#[derive(Debug, Deserialize)]
struct Author {
    name: String,
}

/// Fetches the conversion of `main`, whose weights are `pickle`, and answers with its commit.
///
/// # Errors
/// `Pickled` with the reason when there is no acceptable one; whatever keeps the Hub from answering.
pub(super) fn obtain(main: &Remote<'_>, pickle: &str) -> Result<Revision, Cause> {
    let HubModel { repo, revision, .. } = main.repository.model;
    let none = |reason: String| Cause::Pickled { repo: repo.to_string(), found: pickle.to_owned(), reason };
    if !is_pickle(pickle) {
        return Err(Cause::Weights { found: pickle.to_owned() });
    }
    if revision.as_str() != MAIN {
        return Err(none(format!("conversions are looked for on {MAIN} only, not at {revision}")));
    }
    if !main.context.config.conversion_revision {
        return Err(none("--no-conversion-revision forbids to look for a conversion".to_owned()));
    }
    let commit = &main.listed.commit;
    if let Some(known) = main.repository.conversion().filter(|known| known.base == commit.as_str()) {
        let known = Revision::parse(&known.commit)?;
        match main.repository.verified(&known, main.context.stop) {
            Ok(_) => return Ok(known),
            Err(Cause::Stopped) => return Err(Cause::Stopped),
            // Fetched again below.
            Err(cause) => tracing::warn!(%repo, %cause, "the cached conversion is damaged"),
        }
    }
    let mut why = "the hub's conversion bot has no open pull request".to_owned();
    for number in requests(main)?.map_err(&none)? {
        match take(main, number) {
            Ok(commit) => return Ok(commit),
            Err(Refusal::Cause(cause)) => return Err(cause),
            Err(Refusal::Unfit(reason)) => why = format!("pull request {number} of the conversion bot {reason}"),
        }
    }
    Err(none(why))
}

/// Why a pull request was not taken: for itself, or because it could not be examined.
#[derive(Debug)]
enum Refusal {
    Unfit(String),
    Cause(Cause),
}

impl From<Cause> for Refusal {
    fn from(cause: Cause) -> Self {
        if matches!(cause, Cause::Weights { .. } | Cause::Missing { .. }) {
            return Self::Unfit(format!("is of no use: {cause}"));
        }
        Self::Cause(cause)
    }
}

/// Numbers of the bot's open requests, the newest first; the inner error says why the Hub does not list them.
fn requests(main: &Remote<'_>) -> Result<Result<Vec<u64>, String>, Cause> {
    let Remote { repository, client, context, .. } = *main;
    let repo = repository.model.repo;
    let query = format!("p=0&type=pull_request&status=open&author={BOT}");
    let ask = Ask {
        method: Method::GET,
        url: parse_url(&format!("{}/api/models/{repo}/discussions?{query}", context.config.endpoint))?,
        range: None,
        follow: Follow::All,
        what: format!("pull requests of {repo}"),
    };
    Patience::for_file(context.config).retry(&ask.what, context.stop, || {
        let mut answer = client.send(&ask, context.stop)?;
        if matches!(answer.status, 400..=407 | 410 | 501) {
            // Mirrors know no discussions, and an owner can switch them off.
            return Ok(Err(format!("the hub does not list pull requests ({})", answer.status)));
        }
        if answer.status != 200 {
            return Err(answer.status_error());
        }
        let body = answer.bytes(MAX_INFO_BYTES, context.stop)?;
        let found: Discussions =
            serde_json::from_slice(&body).map_err(|_| answer.protocol("its list of pull requests cannot be read"))?;
        // The query is a wish; what counts is what each entry says.
        let mut numbers: Vec<u64> =
            found.discussions.iter().filter(|request| request.is_conversion()).map(|request| request.num).collect();
        numbers.sort_unstable_by(|a, b| b.cmp(a));
        numbers.truncate(MAX_REQUESTS);
        Ok(Ok(numbers))
    })
}

/// Examines one request, and fetches its files if it changes nothing but weights.
fn take(main: &Remote<'_>, number: u64) -> Result<Revision, Refusal> {
    let Remote { repository, client, context, listed } = *main;
    let revision = Revision::parse(&format!("refs/pr/{number}")).map_err(Cause::from)?;
    let model = HubModel { revision: &revision, ..repository.model };
    let converted = Repository::new(model, context.config);
    let found = resolve(&converted, client, context)?;
    let request = Remote { repository: &converted, client, context, listed: &found };
    let files = request.plan()?;
    let weights = |file: &&RelPath| file.as_str().ends_with(".safetensors") || file.as_str() == WEIGHT_INDEX;
    let added = files.all().filter(weights).cloned().collect();
    let overlay = layout::plan(&mut Overlay { main: *main, request, added })?;
    if overlay != files {
        return Err(Refusal::Unfit("has other files than main".to_owned()));
    }
    let changed = changed_files(main, &request, &files)?;
    if !changed.is_empty() {
        return Err(Refusal::Unfit(format!("changes {}", changed.join(", "))));
    }
    let commit = &found.commit;
    tracing::warn!(
        repo = %model.repo, main = %listed.commit, %commit,
        "main has no safetensors: taking the conversion bot's open pull request; pin it with --revision {revision}"
    );
    request.fetch(&files)?;
    converted.note_complete(commit, context.stop)?;
    converted.refer(commit, context.stop)?;
    let conversion = Conversion { base: listed.commit.to_string(), number, commit: commit.to_string() };
    repository.remember_conversion(&conversion, context.stop)?;
    Ok(found.commit)
}

/// Files that must not differ from those of `main`, and do: everything but the new weights, and the pickles that these
/// were made from. Only asked about, not transferred.
fn changed_files(main: &Remote<'_>, request: &Remote<'_>, files: &Files) -> Result<Vec<String>, Cause> {
    let folders: BTreeSet<Option<&str>> = files.weights.iter().map(folder).collect();
    let pickles = main.listed.names.iter().filter(|file| is_pickle(file.as_str()) && folders.contains(&folder(file)));
    // The index of sharded weights is new, and so `main` need not have it.
    let small = files.small.iter().filter(|file| main.has(file));
    let compared: Vec<&RelPath> = small.chain(pickles).collect();
    let changed = Mutex::new(Vec::new());
    parallel::each(&compared, main.context.config.parallel_files, main.context.stop, |file, stop| {
        let context = Context { stop, ..*main.context };
        let ours = Remote { context: &context, ..*main }.metadata(file)?;
        let theirs =
            if request.has(file) { Some(Remote { context: &context, ..*request }.metadata(file)?) } else { None };
        if theirs.as_ref() != Some(&ours) {
            changed.lock().unwrap_or_else(PoisonError::into_inner).push(file.to_string());
        }
        Ok(())
    })?;
    let mut changed = changed.into_inner().unwrap_or_else(PoisonError::into_inner);
    changed.sort_unstable();
    Ok(changed)
}

fn folder(file: &RelPath) -> Option<&str> {
    file.as_str().rsplit_once('/').map(|(folder, _)| folder)
}

/// `main` as it would be with the request's weights: what is planned for it must be what is planned for the request.
struct Overlay<'r> {
    main: Remote<'r>,
    request: Remote<'r>,
    added: BTreeSet<RelPath>,
}

impl Listing for Overlay<'_> {
    fn has(&self, file: &RelPath) -> bool {
        self.added.contains(file) || self.main.has(file)
    }

    fn read(&mut self, file: &RelPath) -> Result<Vec<u8>, Cause> {
        if self.main.has(file) { self.main.read(file) } else { self.request.read(file) }
    }

    fn names(&self) -> Vec<String> {
        self.main.names()
    }
}

impl Discussion {
    fn is_conversion(&self) -> bool {
        self.is_pull_request
            && self.status == "open"
            && self.title == TITLE
            && self.author.as_ref().is_some_and(|author| author.name == BOT)
    }
}

pub(in crate::source) const MAIN: &str = "main";
/// The account of the Hub's operators that converts weights, and how it names its requests.
const BOT: &str = "SFconvertbot";
const TITLE: &str = "Adding `safetensors` variant of this model";
/// The bot opens one request per repository; a few tell a repeated one from a flood.
const MAX_REQUESTS: usize = 3;
