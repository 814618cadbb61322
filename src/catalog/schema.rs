//! models.toml -> `Vec<ModelSpec>`.
//!
//! Unknown keys are refused: a misspelt `poolling` must not silently serve other vectors. Every problem is reported at
//! once, with line and column. Text is taken literally: there is no interpolation of variables.

use std::collections::HashMap;
use std::io::Read;
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::catalog::id::{IdError, RelPath, RepoId, Revision, Sha256, printable};
use crate::catalog::{CatalogError, ModelSpec, Problem, SourceSpec, expand_home, outside_catalogue};
use crate::pool::PoolingMode;
use crate::request::{Side, TokenArrays};

/// Reads an operator's catalogue.
///
/// # Errors
/// A file that cannot be read, and everything `parse` refuses.
pub fn load(path: &Path) -> Result<Vec<ModelSpec>, CatalogError> {
    let unreadable = |source| CatalogError::Unreadable { path: path.to_owned(), source };
    let mut text = String::new();
    // One byte more than allowed tells a file at the limit from one above it.
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_CATALOGUE_BYTES as u64 + 1).read_to_string(&mut text).map_err(unreadable)?;
    parse(&path.display().to_string(), &text)
}

/// Reads a catalogue's text; `file` is only its name for messages.
///
/// # Errors
/// All problems at once: syntax, or else unknown keys, wrong types, bad values and names used twice.
pub fn parse(file: &str, text: &str) -> Result<Vec<ModelSpec>, CatalogError> {
    let mut reader = Reader { file, text, problems: Vec::new(), names: HashMap::new() };
    if text.len() > MAX_CATALOGUE_BYTES {
        reader.problem(0, format!("a catalogue has at most {MAX_CATALOGUE_BYTES} bytes"));
        return Err(CatalogError::Invalid { problems: reader.problems });
    }
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        reader.problem(error.span().map_or(0, |span| span.start), error.message().to_owned());
    }
    let models = if reader.problems.is_empty() { reader.document(document.get_ref()) } else { Vec::new() };
    if reader.problems.is_empty() {
        return Ok(models);
    }
    reader.problems.sort_by_key(|problem| (problem.line, problem.column));
    Err(CatalogError::Invalid { problems: reader.problems })
}

type Value<'t> = Spanned<DeValue<'t>>;

/// Walks the parsed document and collects problems instead of stopping at the first.
struct Reader<'t> {
    file: &'t str,
    text: &'t str,
    problems: Vec<Problem>,
    /// Lower-case ids and aliases, and the line of their first use.
    names: HashMap<String, usize>,
}

impl<'t> Reader<'t> {
    fn document(&mut self, table: &DeTable<'t>) -> Vec<ModelSpec> {
        let mut models = Vec::new();
        for (key, value) in table {
            match (key.get_ref().as_ref(), value.get_ref()) {
                ("model", DeValue::Array(entries)) => {
                    for entry in entries {
                        models.extend(self.model(entry));
                    }
                }
                ("model", _) => self.problem(key.span().start, "write each model as [[model]]".to_owned()),
                _ => self.unknown(key, "model"),
            }
        }
        models
    }

    fn model(&mut self, value: &Value<'t>) -> Option<ModelSpec> {
        let table = self.table(value)?;
        let mut spec = outside_catalogue(String::new());
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "id" => spec.id = self.name(value).unwrap_or_default(),
                "aliases" => spec.aliases = self.each(value, Self::name),
                "created" => spec.created = self.integer(value).unwrap_or_default(),
                "pooling" => spec.pooling = self.one_of(value, &POOLING),
                "normalize" => spec.normalize = self.boolean(value),
                "max_tokens" => spec.max_tokens = self.positive(value),
                "matryoshka" => spec.matryoshka = self.boolean(value),
                "truncate" => spec.truncate = self.one_of(value, &TRUNCATE),
                "token_arrays" => spec.token_arrays = self.one_of(value, &TOKEN_ARRAYS),
                "dimensions" => spec.dimensions = self.positive(value),
                "description" => spec.description = self.string(value),
                "license" => spec.license = self.string(value),
                "languages" => spec.languages = self.each(value, Self::string),
                "max_file_bytes" => spec.max_file_bytes = self.integer(value).unwrap_or_default(),
                "source" => spec.sources = self.each(value, Self::source),
                _ => self.unknown(key, MODEL_KEYS),
            }
        }
        self.require(table, value, "id");
        self.require(table, value, "source");
        if matches!(table.get("source").map(Spanned::get_ref), Some(DeValue::Array(sources)) if sources.is_empty()) {
            self.problem(value.span().start, "at least one [[model.source]] is needed".to_owned());
        }
        Some(spec)
    }

    fn source(&mut self, value: &Value<'t>) -> Option<SourceSpec> {
        let table = self.table(value)?;
        let kind = table.get("kind").and_then(|kind| self.string(kind));
        match kind.as_deref() {
            Some("hub") => self.hub(table, value),
            Some("wheel") => self.wheel(table, value),
            Some("directory") => self.directory(table, value),
            Some(other) => {
                let start = table.get("kind").map_or(0, |kind| kind.span().start);
                self.problem(
                    start,
                    format!("unknown kind of source, known: hub, wheel, directory: {}", printable(other)),
                );
                None
            }
            None => {
                self.require(table, value, "kind");
                None
            }
        }
    }

    fn hub(&mut self, table: &DeTable<'t>, whole: &Value<'t>) -> Option<SourceSpec> {
        let (mut repo, mut revision, mut sha256) = (None, None, Vec::new());
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "kind" => {}
                "repo" => repo = self.parsed(value, RepoId::parse),
                "revision" => revision = self.parsed(value, Revision::parse),
                "sha256" => sha256 = self.hashes(value),
                _ => self.unknown(key, "kind, repo, revision, sha256"),
            }
        }
        self.require(table, whole, "repo");
        self.require(table, whole, "revision");
        Some(SourceSpec::Hub { repo: repo?, revision: revision?, sha256 })
    }

    fn wheel(&mut self, table: &DeTable<'t>, whole: &Value<'t>) -> Option<SourceSpec> {
        let (mut package, mut version, mut sha256, mut folder, mut members) = (None, None, None, None, Vec::new());
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "kind" => {}
                "package" => package = self.word(value),
                "version" => version = self.word(value),
                "sha256" => sha256 = self.parsed(value, Sha256::parse),
                "folder" => folder = self.parsed(value, RelPath::parse),
                "members" => members = self.hashes(value),
                _ => self.unknown(key, "kind, package, version, sha256, folder, members"),
            }
        }
        for key in ["package", "version", "sha256", "folder"] {
            self.require(table, whole, key);
        }
        Some(SourceSpec::Wheel { package: package?, version: version?, sha256: sha256?, folder: folder?, members })
    }

    fn directory(&mut self, table: &DeTable<'t>, whole: &Value<'t>) -> Option<SourceSpec> {
        let mut path = None;
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "kind" => {}
                "path" => path = self.string(value).map(|text| (text, value.span().start)),
                _ => self.unknown(key, "kind, path"),
            }
        }
        self.require(table, whole, "path");
        let (text, start) = path?;
        let path = expand_home(&text).filter(|_| !text.is_empty() && !text.contains(['$', '\0']));
        if path.is_none() {
            self.problem(start, format!("not a plain path (variables are not expanded): {}", printable(&text)));
        }
        path.map(|path| SourceSpec::Directory { path })
    }

    // === values ===

    fn table<'v>(&mut self, value: &'v Value<'t>) -> Option<&'v DeTable<'t>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.wrong_type(value, "a table");
        }
        table
    }

    fn string(&mut self, value: &Value<'t>) -> Option<String> {
        let text = value.get_ref().as_str().map(str::to_owned);
        if text.is_none() {
            self.wrong_type(value, "a string");
        }
        text
    }

    fn boolean(&mut self, value: &Value<'t>) -> Option<bool> {
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            self.wrong_type(value, "true or false");
        }
        flag
    }

    fn integer(&mut self, value: &Value<'t>) -> Option<u64> {
        let number = value
            .get_ref()
            .as_integer()
            .and_then(|digits| u64::from_str_radix(digits.as_str(), digits.radix()).ok())
            .filter(|number| *number > 0);
        if number.is_none() {
            self.wrong_type(value, "an integer above 0");
        }
        number
    }

    fn positive(&mut self, value: &Value<'t>) -> Option<usize> {
        self.integer(value).and_then(|number| usize::try_from(number).ok())
    }

    fn parsed<T>(&mut self, value: &Value<'t>, parse: fn(&str) -> Result<T, IdError>) -> Option<T> {
        let text = self.string(value)?;
        match parse(&text) {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.problem(value.span().start, error.to_string());
                None
            }
        }
    }

    fn one_of<T: Copy>(&mut self, value: &Value<'t>, known: &[(&str, T)]) -> Option<T> {
        let text = self.string(value)?;
        let found = known.iter().find(|(name, _)| *name == text).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            self.problem(value.span().start, format!("expected one of {}: {}", names.join(", "), printable(&text)));
        }
        found
    }

    fn each<T>(&mut self, value: &Value<'t>, mut one: impl FnMut(&mut Self, &Value<'t>) -> Option<T>) -> Vec<T> {
        let Some(values) = value.get_ref().as_array() else {
            self.wrong_type(value, "an array");
            return Vec::new();
        };
        values.iter().filter_map(|value| one(self, value)).collect()
    }

    /// `{ "file" = "hash", ... }`
    fn hashes(&mut self, value: &Value<'t>) -> Vec<(RelPath, Sha256)> {
        let Some(table) = self.table(value) else { return Vec::new() };
        let mut hashes = Vec::new();
        for (key, value) in table {
            let file = RelPath::parse(key.get_ref());
            let hash = self.parsed(value, Sha256::parse);
            match (file, hash) {
                (Ok(file), Some(hash)) => hashes.push((file, hash)),
                (Err(error), _) => self.problem(key.span().start, error.to_string()),
                (Ok(_), None) => {}
            }
        }
        hashes
    }

    /// A package or version: what a requirements file takes literally, and nothing it could read as an option.
    fn word(&mut self, value: &Value<'t>) -> Option<String> {
        let text = self.string(value)?;
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+' | b'!'));
        if plain && text.len() <= 100 && text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Some(text);
        }
        self.problem(value.span().start, format!("not a plain package name or version: {}", printable(&text)));
        None
    }

    /// An id or alias: printable, without spaces, and nobody else's.
    fn name(&mut self, value: &Value<'t>) -> Option<String> {
        let text = self.string(value)?;
        let start = value.span().start;
        let plain = !text.chars().any(|c| c.is_whitespace() || c.is_control());
        if text.is_empty() || text.len() > 200 || !plain {
            self.problem(start, format!("not a name of 1 to 200 visible characters: {}", printable(&text)));
            return None;
        }
        let (line, _) = self.place(start);
        if let Some(first) = self.names.insert(text.to_ascii_lowercase(), line) {
            self.problem(start, format!("name is already used in line {first}: {text}"));
            return None;
        }
        Some(text)
    }

    // === problems ===

    fn require(&mut self, table: &DeTable<'t>, whole: &Value<'t>, key: &str) {
        if !table.contains_key(key) {
            self.problem(whole.span().start, format!("missing key: {key}"));
        }
    }

    fn unknown(&mut self, key: &Spanned<DeString<'t>>, known: &str) {
        self.problem(key.span().start, format!("unknown key, known: {known}: {}", printable(key.get_ref())));
    }

    fn wrong_type(&mut self, value: &Value<'t>, expected: &str) {
        let Range { start, end } = value.span();
        let shown = self.text.get(start..end).unwrap_or_default();
        self.problem(start, format!("expected {expected}: {}", printable(shown)));
    }

    fn problem(&mut self, offset: usize, message: String) {
        let (line, column) = self.place(offset);
        self.problems.push(Problem { file: self.file.to_owned(), line, column, message });
    }

    /// Line and column, from 1, of a byte offset.
    fn place(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count();
        (line + 1, before.get(line_start..).map_or(0, |rest| rest.chars().count()) + 1)
    }
}

/// 10 MB: thousands of models. A larger file is not a catalogue.
const MAX_CATALOGUE_BYTES: usize = 10_000_000;

const MODEL_KEYS: &str = "id, aliases, source, created, pooling, normalize, max_tokens, matryoshka, truncate, \
                          token_arrays, dimensions, description, license, languages, max_file_bytes";
const POOLING: [(&str, PoolingMode); 5] = [
    ("cls", PoolingMode::Cls),
    ("mean", PoolingMode::Mean),
    ("max", PoolingMode::Max),
    ("last", PoolingMode::Last),
    ("mean-sqrt-len", PoolingMode::MeanSqrtLen),
];
const TRUNCATE: [(&str, Option<Side>); 3] = [("none", None), ("end", Some(Side::End)), ("start", Some(Side::Start))];
const TOKEN_ARRAYS: [(&str, TokenArrays); 4] = [
    ("auto", TokenArrays::Auto),
    ("model", TokenArrays::Model),
    ("cl100k", TokenArrays::Cl100k),
    ("reject", TokenArrays::Reject),
];
