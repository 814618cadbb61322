//! The file of keys with limits, in TOML.
//!
//! As in the catalogue, unknown keys are refused and every problem is reported at once with line and column. Unlike
//! there, a message never quotes what was written: it may be a key.

use std::collections::HashSet;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{ApiKey, KeyPolicy, KeyProof, is_key};
use crate::catalog::{CatalogError, Names, Problems};
use crate::observe::secret::Secret;
use crate::request::known_role;

/// Reads the text of a keys file; `file` is only its name for messages.
///
/// # Errors
/// All problems at once.
pub(super) fn parse(file: &str, text: &str, names: &Names) -> Result<Vec<ApiKey>, CatalogError> {
    let mut reader = Reader { names, problems: Problems::of(file, text), seen: HashSet::new() };
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        reader.problem(error.span().map_or(0, |span| span.start), "not TOML".to_owned());
    }
    let keys = if reader.problems.is_empty() { reader.document(document.get_ref()) } else { Vec::new() };
    if reader.problems.is_empty() { Ok(keys) } else { Err(reader.problems.into_error()) }
}

type Value<'t> = Spanned<DeValue<'t>>;

struct Reader<'t> {
    names: &'t Names,
    problems: Problems<'t>,
    seen: HashSet<String>,
}

impl<'t> Reader<'t> {
    fn document(&mut self, table: &DeTable<'t>) -> Vec<ApiKey> {
        for (key, _) in table {
            if key.get_ref().as_ref() != "key" {
                self.problem(key.span().start, "unknown key, known: key".to_owned());
            }
        }
        let Some(value) = table.get("key") else { return Vec::new() };
        let Some(entries) = value.get_ref().as_array() else {
            self.problem(value.span().start, "write each key as [[key]]".to_owned());
            return Vec::new();
        };
        entries.iter().filter_map(|entry| self.key(entry)).collect()
    }

    fn key(&mut self, whole: &Value<'t>) -> Option<ApiKey> {
        let start = whole.span().start;
        let Some(table) = whole.get_ref().as_table() else {
            self.problem(start, "expected a table".to_owned());
            return None;
        };
        let (mut name, mut proof, mut policy) = (None, None, KeyPolicy::default());
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "name" => name = self.name(value),
                "key" => proof = self.secret(value),
                "key_sha256" => proof = self.digest(value).map(KeyProof::Sha256),
                "key_blake3" => proof = self.digest(value).map(KeyProof::Blake3),
                "requests_per_minute" => policy.requests_per_minute = self.limit(value),
                "tokens_per_minute" => policy.tokens_per_minute = self.limit(value),
                "max_concurrent" => policy.max_concurrent = self.limit(value),
                "models" => policy.models = self.models(value),
                "default_role" => policy.default_role = self.role(value),
                _ => self.problem(key.span().start, format!("unknown key, known: {KNOWN}")),
            }
        }
        if !table.contains_key("name") {
            self.problem(start, "missing key: name".to_owned());
        }
        if PROOFS.iter().filter(|key| table.contains_key(**key)).count() != 1 {
            self.problem(start, format!("expected one of {}", PROOFS.join(", ")));
        }
        Some(ApiKey { name: name?, proof: proof?, policy })
    }

    /// What logs and metrics show of a key.
    fn name(&mut self, value: &Value<'t>) -> Option<String> {
        let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
        let name =
            self.word(value, "a name of 1 to 64 letters, digits, `-`, `_` and `.`; `none` is taken", |text| {
                let fits = (1..=64).contains(&text.len()) && text.bytes().all(plain) && text != NO_KEY;
                fits.then(|| text.to_owned())
            })?;
        if !self.seen.insert(name.clone()) {
            self.problem(value.span().start, "another key has this name".to_owned());
        }
        Some(name)
    }

    fn secret(&mut self, value: &Value<'t>) -> Option<KeyProof> {
        self.word(value, "a key of visible ASCII characters", |text| {
            is_key(text).then(|| KeyProof::Key(Secret::new(text.to_owned())))
        })
    }

    fn digest(&mut self, value: &Value<'t>) -> Option<[u8; 32]> {
        self.word(value, "64 hexadecimal digits", digest)
    }

    fn role(&mut self, value: &Value<'t>) -> Option<&'static str> {
        self.word(value, "a role such as query or passage", known_role)
    }

    fn limit(&mut self, value: &Value<'t>) -> Option<u64> {
        let digits = value.get_ref().as_integer();
        let number = digits.and_then(|digits| u64::from_str_radix(digits.as_str(), digits.radix()).ok());
        let number = number.filter(|number| (1..=MAX_LIMIT).contains(number));
        if number.is_none() {
            self.problem(value.span().start, format!("expected an integer from 1 to {MAX_LIMIT}"));
        }
        number
    }

    /// Names of served models, as canonical ids.
    fn models(&mut self, value: &Value<'t>) -> Option<Vec<String>> {
        let names = self.names;
        let Some(values) = value.get_ref().as_array().filter(|values| !values.is_empty()) else {
            self.problem(value.span().start, "expected an array of names of models, one at least".to_owned());
            return None;
        };
        let id = |text: &str| names.models().get(names.known(text)?).map(|model| model.id.clone());
        let models = values.iter().map(|value| self.word(value, "the name of a model that is served here", id));
        models.collect::<Vec<_>>().into_iter().collect()
    }

    /// A string that `read` understands.
    fn word<T>(&mut self, value: &Value<'t>, expected: &str, read: impl FnOnce(&str) -> Option<T>) -> Option<T> {
        let found = value.get_ref().as_str().and_then(read);
        if found.is_none() {
            self.problem(value.span().start, format!("expected {expected}"));
        }
        found
    }

    fn problem(&mut self, offset: usize, message: String) {
        self.problems.add(offset, message);
    }
}

fn digest(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    for (index, byte) in digest.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(digest)
}

const KNOWN: &str = "name, key, key_sha256, key_blake3, requests_per_minute, tokens_per_minute, max_concurrent, models, \
                     default_role";
const PROOFS: [&str; 3] = ["key", "key_sha256", "key_blake3"];
/// The label of metrics where no key is configured.
const NO_KEY: &str = "none";
/// Far above any machine, and small enough for exact arithmetic.
const MAX_LIMIT: u64 = 1_000_000_000_000;
