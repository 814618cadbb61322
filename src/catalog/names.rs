//! The closed set of names a request may use: canonical ids, aliases, short names.
//!
//! A lookup is exact first, then ASCII case-insensitive; since no two names may differ in case alone, one table of
//! lower-case names answers both.

use std::collections::HashMap;
use std::sync::Arc;

use crate::catalog::{CatalogError, ModelSpec};

/// Every served model and every name it answers to.
#[derive(Debug, Clone)]
pub struct Names {
    models: Vec<Arc<ModelSpec>>,
    /// Canonical ids in order, then aliases in order.
    entries: Vec<NameEntry>,
    /// Lower-case name to model.
    index: HashMap<String, usize>,
    default_index: usize,
    accept_any: bool,
}

/// One line of `/v1/models`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameEntry {
    pub name: String,
    pub model_index: usize,
}

/// The part after the last `/`.
pub fn short_name(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}

/// Catalogue names within a few typing errors of `choice`, nearest first.
pub fn near(choice: &str, catalogue: &[ModelSpec]) -> Vec<String> {
    if choice.is_empty() || choice.len() > MAX_NAME_BYTES {
        return Vec::new();
    }
    let wanted = choice.to_ascii_lowercase();
    let allowed = 1 + wanted.chars().count() / 4;
    let mut found: Vec<(usize, String)> = catalogue
        .iter()
        .flat_map(|spec| {
            let short = short_name(&spec.id).to_owned();
            spec.aliases.iter().cloned().map(|alias| (alias.clone(), alias)).chain([(short, spec.id.clone())])
        })
        .filter_map(|(name, shown)| {
            let name = name.to_ascii_lowercase();
            let distance = if name.contains(&wanted) { 1 } else { edit_distance(&wanted, &name) };
            (distance <= allowed).then_some((distance, shown))
        })
        .collect();
    found.sort();
    found.truncate(3);
    found.into_iter().map(|(_, name)| name).collect()
}

// === impl Names ===

impl Names {
    /// Closes the set. The short name of an id is an alias by itself where only one model has it and nobody took it.
    ///
    /// # Errors
    /// No models, a name that two models would answer to, an alias for a model that is not among `models`.
    pub fn new(
        models: Vec<Arc<ModelSpec>>,
        extra_aliases: Vec<(String, String)>,
        default_index: usize,
        accept_any: bool,
    ) -> Result<Self, CatalogError> {
        if default_index >= models.len() {
            return Err(CatalogError::Empty);
        }
        let mut names =
            Self { models: Vec::new(), entries: Vec::new(), index: HashMap::new(), default_index, accept_any };
        for (position, model) in models.iter().enumerate() {
            if let Some(&other) = names.index.get(&model.id.to_ascii_lowercase()) {
                return Err(clash(&model.id, &models[other], model));
            }
            names.add(&model.id, position);
        }
        for (position, model) in models.iter().enumerate() {
            for alias in &model.aliases {
                names.alias(alias, position, &models)?;
            }
        }
        for (alias, id) in extra_aliases {
            let Some(&position) = names.index.get(&id.to_ascii_lowercase()) else {
                return Err(CatalogError::AliasTarget { alias, id });
            };
            names.alias(&alias, position, &models)?;
        }
        let shorts: Vec<String> = models.iter().map(|model| short_name(&model.id).to_ascii_lowercase()).collect();
        for (position, model) in models.iter().enumerate() {
            let alone = shorts.iter().filter(|short| **short == shorts[position]).count() == 1;
            if alone && !names.index.contains_key(&shorts[position]) {
                names.add(short_name(&model.id), position);
            }
        }
        names.models = models;
        Ok(names)
    }

    pub fn models(&self) -> &[Arc<ModelSpec>] {
        &self.models
    }

    /// The model a request means. A missing or unknown name is nobody's, unless any name is accepted.
    pub fn find(&self, name: Option<&str>) -> Option<usize> {
        if name.is_some_and(|name| name.len() > MAX_NAME_BYTES) {
            return None;
        }
        name.and_then(|name| self.index.get(&name.to_ascii_lowercase()).copied())
            .or(self.accept_any.then_some(self.default_index))
    }

    /// The model that answers to exactly this name; never the default one for lack of another.
    pub fn known(&self, name: &str) -> Option<usize> {
        self.index.get(&name.to_ascii_lowercase()).copied()
    }

    /// A requested name without the role at its end, and that role. A name that is served as it stands has none. A role
    /// behind `-` counts only behind a served name, because unknown names end so too.
    pub fn split_role<'n>(&self, name: &'n str) -> (&'n str, Option<&'static str>) {
        let known = |name: &str| self.index.contains_key(&name.to_ascii_lowercase());
        if name.len() > MAX_NAME_BYTES || known(name) {
            return (name, None);
        }
        for (suffix, role) in ROLE_SUFFIXES {
            let Some(at) = name.len().checked_sub(suffix.len()).filter(|at| name.is_char_boundary(*at)) else {
                continue;
            };
            let (base, end) = name.split_at(at);
            let any = self.accept_any && suffix.starts_with('@');
            if end.eq_ignore_ascii_case(suffix) && (known(base) || any) {
                return (base, Some(role));
            }
        }
        (name, None)
    }

    pub fn default_index(&self) -> usize {
        self.default_index
    }

    pub fn accepts_any(&self) -> bool {
        self.accept_any
    }

    /// Canonical ids, then aliases.
    pub fn entries(&self) -> Vec<NameEntry> {
        self.entries.clone()
    }

    fn add(&mut self, name: &str, model_index: usize) {
        self.index.insert(name.to_ascii_lowercase(), model_index);
        self.entries.push(NameEntry { name: name.to_owned(), model_index });
    }

    fn alias(&mut self, alias: &str, position: usize, models: &[Arc<ModelSpec>]) -> Result<(), CatalogError> {
        match self.index.get(&alias.to_ascii_lowercase()) {
            Some(&taken) if taken == position => Ok(()),
            Some(&taken) => Err(clash(alias, &models[taken], &models[position])),
            None => {
                self.add(alias, position);
                Ok(())
            }
        }
    }
}

fn clash(name: &str, first: &ModelSpec, second: &ModelSpec) -> CatalogError {
    CatalogError::Clash { name: name.to_owned(), first: first.id.clone(), second: second.id.clone() }
}

/// Insertions, deletions and replacements between two words, by the usual two-row table.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut current = vec![i + 1];
        for (j, to) in b.iter().enumerate() {
            let replaced = previous[j] + usize::from(from != *to);
            current.push(replaced.min(previous[j + 1] + 1).min(current[j] + 1));
        }
        previous = current;
    }
    previous.last().copied().unwrap_or(0)
}

/// What a model name may end with, for clients that cannot add a field, and the role it means.
const ROLE_SUFFIXES: [(&str, &str); 5] = [
    ("@query", "query"),
    ("@passage", "passage"),
    ("@document", "document"),
    ("-query", "query"),
    ("-passage", "passage"),
];

/// No name is this long: a longer one is unknown without being looked at, and no answer repeats it.
const MAX_NAME_BYTES: usize = 512;
