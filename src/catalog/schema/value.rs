//! One value of the catalogue at a time: its type, its range, and what is said when it has neither.

use std::ops::Range;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use toml::Spanned;
use toml::de::{DeFloat, DeInteger, DeString, DeTable};

use crate::catalog::id::{IdError, RelPath, Sha256};
use crate::catalog::schema::{Reader, Value};
use crate::excerpt::excerpt;
use crate::kernel::Precision;

impl<'t> Reader<'t> {
    pub(super) fn table<'v>(&mut self, value: &'v Value<'t>) -> Option<&'v DeTable<'t>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.wrong_type(value, "a table");
        }
        table
    }

    pub(super) fn string(&mut self, value: &Value<'t>) -> Option<String> {
        let text = value.get_ref().as_str().map(str::to_owned);
        if text.is_none() {
            self.wrong_type(value, "a string");
        }
        text
    }

    pub(super) fn boolean(&mut self, value: &Value<'t>) -> Option<bool> {
        let flag = value.get_ref().as_bool();
        if flag.is_none() {
            self.wrong_type(value, "true or false");
        }
        flag
    }

    pub(super) fn integer(&mut self, value: &Value<'t>) -> Option<u64> {
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

    pub(super) fn positive(&mut self, value: &Value<'t>) -> Option<usize> {
        self.integer(value).and_then(|number| usize::try_from(number).ok())
    }

    /// Any finite number.
    pub(super) fn number(&mut self, value: &Value<'t>) -> Option<f64> {
        let value_ref = value.get_ref();
        let whole = value_ref.as_integer().filter(|digits| digits.radix() == 10).map(DeInteger::as_str);
        let digits = value_ref.as_float().map(DeFloat::as_str).or(whole);
        let number = digits.and_then(|digits| digits.parse().ok()).filter(|number: &f64| number.is_finite());
        if number.is_none() {
            self.wrong_type(value, "a number");
        }
        number
    }

    /// A vector: an array of numbers, or base64 of little-endian f32, in which white space means nothing.
    #[expect(clippy::cast_possible_truncation, reason = "published vectors are float32")]
    pub(super) fn floats(&mut self, value: &Value<'t>) -> Option<Vec<f32>> {
        let values = if let Some(text) = value.get_ref().as_str() {
            let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
            STANDARD.decode(text).ok().and_then(|bytes| {
                let (values, rest) = bytes.as_chunks::<4>();
                rest.is_empty().then(|| values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
            })
        } else {
            Some(self.each(value, Self::number).into_iter().map(|number| number as f32).collect())
        };
        let values = values.filter(|values: &Vec<f32>| !values.is_empty() && values.iter().all(|x| x.is_finite()));
        if values.is_none() {
            self.wrong_type(value, "numbers, or base64 of little-endian f32");
        }
        values
    }

    /// `{ query = "...", passage = "..." }`
    pub(super) fn prompts(&mut self, value: &Value<'t>) -> Vec<(String, String)> {
        let Some(table) = self.table(value) else { return Vec::new() };
        let mut prompts = Vec::new();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let plain = name.len() <= 100 && !name.chars().any(|c| c.is_whitespace() || c.is_control());
            if name.is_empty() || !plain {
                self.problem(key.span().start, format!("not a name of a prompt: {}", excerpt(name)));
            }
            if let Some(text) = self.string(value) {
                prompts.push((name.to_owned(), text));
            }
        }
        prompts
    }

    pub(super) fn parsed<T>(&mut self, value: &Value<'t>, parse: fn(&str) -> Result<T, IdError>) -> Option<T> {
        let text = self.string(value)?;
        match parse(&text) {
            Ok(parsed) => Some(parsed),
            Err(error) => {
                self.problem(value.span().start, error.to_string());
                None
            }
        }
    }

    pub(super) fn precision(&mut self, value: &Value<'t>) -> Option<Precision> {
        let text = self.string(value)?;
        match Precision::parse(&text) {
            Ok(precision) => Some(precision),
            Err(error) => {
                self.problem(value.span().start, format!("{error}: {}", excerpt(&text)));
                None
            }
        }
    }

    pub(super) fn one_of<T: Copy>(&mut self, value: &Value<'t>, known: &[(&str, T)]) -> Option<T> {
        let text = self.string(value)?;
        let found = known.iter().find(|(name, _)| *name == text).map(|(_, meaning)| *meaning);
        if found.is_none() {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            self.problem(value.span().start, format!("expected one of {}: {}", names.join(", "), excerpt(&text)));
        }
        found
    }

    pub(super) fn each<T>(
        &mut self,
        value: &Value<'t>,
        mut one: impl FnMut(&mut Self, &Value<'t>) -> Option<T>,
    ) -> Vec<T> {
        let Some(values) = value.get_ref().as_array() else {
            self.wrong_type(value, "an array");
            return Vec::new();
        };
        values.iter().filter_map(|value| one(self, value)).collect()
    }

    /// `{ "file" = "hash", ... }`
    pub(super) fn hashes(&mut self, value: &Value<'t>) -> Vec<(RelPath, Sha256)> {
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
    pub(super) fn word(&mut self, value: &Value<'t>) -> Option<String> {
        let text = self.string(value)?;
        let plain = text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+' | b'!'));
        if plain && text.len() <= 100 && text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            return Some(text);
        }
        self.problem(value.span().start, format!("not a plain package name or version: {}", excerpt(&text)));
        None
    }

    /// An id or alias: printable, without spaces, and nobody else's.
    pub(super) fn name(&mut self, value: &Value<'t>) -> Option<String> {
        let text = self.string(value)?;
        let start = value.span().start;
        let plain = !text.chars().any(|c| c.is_whitespace() || c.is_control());
        if text.is_empty() || text.len() > 200 || !plain {
            self.problem(start, format!("not a name of 1 to 200 visible characters: {}", excerpt(&text)));
            return None;
        }
        if let Some(first) = self.names.insert(text.to_ascii_lowercase(), start) {
            let (line, _) = self.problems.place(first);
            self.problem(start, format!("name is already used in line {line}: {}", excerpt(&text)));
            return None;
        }
        Some(text)
    }

    pub(super) fn require(&mut self, table: &DeTable<'t>, whole: &Value<'t>, key: &str) {
        if !table.contains_key(key) {
            self.problem(whole.span().start, format!("missing key: {key}"));
        }
    }

    pub(super) fn unknown(&mut self, key: &Spanned<DeString<'t>>, known: &str) {
        self.problem(key.span().start, format!("unknown key, known: {known}: {}", excerpt(key.get_ref())));
    }

    pub(super) fn wrong_type(&mut self, value: &Value<'t>, expected: &str) {
        let Range { start, end } = value.span();
        let shown = self.problems.text().get(start..end).unwrap_or_default();
        self.problem(start, format!("expected {expected}: {}", excerpt(shown)));
    }

    pub(super) fn problem(&mut self, offset: usize, message: String) {
        self.problems.add(offset, message);
    }
}
