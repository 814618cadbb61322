//! models.toml -> `Vec<ModelSpec>`.
//!
//! Unknown keys are refused: a misspelt `poolling` must not silently serve other vectors. Every problem is reported at
//! once, with line and column. Text is taken literally: there is no interpolation of variables.

mod reference;
mod source;
mod value;

use std::collections::HashMap;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::catalog::{CatalogError, ModelSpec, Problems, outside_catalogue};
use crate::pool::PoolingMode;
use crate::request::{Side, TokenArrays};
use crate::small_file;

/// Reads an operator's catalogue.
///
/// # Errors
/// A file that cannot be read, and everything `parse` refuses.
pub fn load(path: &Path) -> Result<Vec<ModelSpec>, CatalogError> {
    let unreadable = |source| CatalogError::Unreadable { path: path.to_owned(), source };
    let text = small_file::read_to_string(path, MAX_CATALOGUE_BYTES as u64).map_err(unreadable)?;
    parse(&path.display().to_string(), &text)
}

/// Reads a catalogue's text; `file` is only its name for messages.
///
/// # Errors
/// All problems at once: syntax, or else unknown keys, wrong types, bad values and names used twice.
pub fn parse(file: &str, text: &str) -> Result<Vec<ModelSpec>, CatalogError> {
    let mut reader = Reader { problems: Problems::of(file, text), names: HashMap::new() };
    if text.len() > MAX_CATALOGUE_BYTES {
        reader.problem(0, format!("a catalogue has at most {MAX_CATALOGUE_BYTES} bytes"));
        return Err(reader.problems.into_error());
    }
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        reader.problem(error.span().map_or(0, |span| span.start), error.message().to_owned());
    }
    let models = if reader.problems.is_empty() { reader.document(document.get_ref()) } else { Vec::new() };
    if reader.problems.is_empty() { Ok(models) } else { Err(reader.problems.into_error()) }
}

type Value<'t> = Spanned<DeValue<'t>>;

/// Walks the parsed document and collects problems instead of stopping at the first.
struct Reader<'t> {
    problems: Problems<'t>,
    /// Lower-case ids and aliases, and the byte offset of their first use.
    names: HashMap<String, usize>,
}

impl<'t> Reader<'t> {
    fn document(&mut self, table: &DeTable<'t>) -> Vec<ModelSpec> {
        let mut models = Vec::new();
        for entry in self.tables(table, "model") {
            models.extend(self.model(entry));
        }
        for entry in self.tables(table, "reference") {
            self.reference(entry, &mut models);
        }
        for (key, _) in table {
            if !matches!(key.get_ref().as_ref(), "model" | "reference") {
                self.unknown(key, "model, reference");
            }
        }
        models
    }

    /// The entries of an array of tables.
    fn tables<'v>(&mut self, table: &'v DeTable<'t>, name: &str) -> &'v [Value<'t>] {
        let Some(value) = table.get(name) else { return &[] };
        let Some(entries) = value.get_ref().as_array() else {
            self.problem(value.span().start, format!("write each {name} as [[{name}]]"));
            return &[];
        };
        entries
    }

    fn model(&mut self, value: &Value<'t>) -> Option<ModelSpec> {
        let table = self.table(value)?;
        let mut spec = outside_catalogue(String::new());
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "id" => spec.id = self.name(value).unwrap_or_default(),
                "aliases" => spec.aliases = self.each(value, Self::name),
                "created" => spec.created = self.integer(value).unwrap_or_default(),
                "dtype" => spec.dtype = self.precision(value),
                "pooling" => spec.pooling = self.one_of(value, &POOLING),
                "normalize" => spec.normalize = self.boolean(value),
                "max_tokens" => spec.max_tokens = self.positive(value),
                "architecture" => spec.architecture = self.word(value),
                "matryoshka" => spec.matryoshka = self.boolean(value),
                "matryoshka_dimensions" => spec.matryoshka_dimensions = self.each(value, Self::positive),
                "prompts" => spec.prompts = self.prompts(value),
                "default_prompt_name" => spec.default_prompt_name = self.string(value),
                "include_prompt" => spec.include_prompt = self.boolean(value),
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
        self.check_lengths(&mut spec, table);
        Some(spec)
    }

    /// Lengths that a model was trained to be cut to mean that cutting is allowed, unless the entry says otherwise.
    fn check_lengths(&mut self, spec: &mut ModelSpec, table: &DeTable<'t>) {
        let Some(value) = table.get("matryoshka_dimensions") else { return };
        if spec.matryoshka.is_none() && !spec.matryoshka_dimensions.is_empty() {
            spec.matryoshka = Some(true);
        }
        let native = spec.dimensions.unwrap_or(usize::MAX);
        if spec.matryoshka_dimensions.iter().any(|length| *length > native) {
            self.problem(value.span().start, format!("no length may be above dimensions = {native}"));
        }
    }
}

/// 10 MB: thousands of models. A larger file is not a catalogue.
const MAX_CATALOGUE_BYTES: usize = 10_000_000;

const MODEL_KEYS: &str = "id, aliases, source, created, architecture, dtype, pooling, normalize, max_tokens, \
                          prompts, default_prompt_name, include_prompt, matryoshka, matryoshka_dimensions, truncate, \
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
