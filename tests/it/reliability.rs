//! The inventory of the promises: `tests/reliability.toml` lists every row of the design's test tables with the tests that
//! hold it, and in words what of it no test holds. A test names its rows in the comment above it; both must agree.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Rows of each section.
const SECTIONS: [(char, usize); 12] = [
    ('W', 16),
    ('A', 10),
    ('V', 10),
    ('Q', 10),
    ('I', 12),
    ('N', 9),
    ('D', 12),
    ('U', 8),
    ('L', 12),
    ('M', 7),
    ('O', 7),
    ('S', 8),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    when: String,
    expected: String,
    /// Where the design wants it: P every change, N nightly, S soak, G a GPU, C a container.
    tier: String,
    #[serde(default)]
    tests: Vec<String>,
    /// What of the row is not held by these tests, and why.
    #[serde(default)]
    left: Option<String>,
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn inventory() -> BTreeMap<String, Row> {
    toml::from_str(&std::fs::read_to_string(root().join("tests/reliability.toml")).unwrap()).unwrap()
}

/// `W-01` and the like in a comment.
fn ids(comment: &str) -> impl Iterator<Item = String> {
    let words = comment.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    words.filter(|word| is_id(word)).map(str::to_owned)
}

fn is_id(word: &str) -> bool {
    let bytes = word.as_bytes();
    let known = SECTIONS.iter().any(|(section, _)| word.starts_with(*section));
    known && bytes.len() == 4 && bytes[1] == b'-' && bytes[2..].iter().all(u8::is_ascii_digit)
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            rust_files(&entry.path(), found);
        } else if entry.path().extension().is_some_and(|extension| extension == "rs") {
            found.push(entry.path());
        }
    }
}

/// `it::auth` for `tests/it/auth.rs`, `http::auth` for `src/http/auth.rs`.
fn module(path: &Path) -> String {
    let path = path.strip_prefix(root()).unwrap().with_extension("");
    let parts: Vec<&str> = path.iter().map(|part| part.to_str().unwrap()).collect();
    parts[1..].iter().copied().filter(|part| *part != "mod").collect::<Vec<_>>().join("::")
}

/// The function that a line begins.
fn function(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let rest = line.strip_prefix("async fn ").or_else(|| line.strip_prefix("fn "))?;
    rest.split('(').next()
}

/// Every row that a test names, with the tests that name it: in the comment directly above a test function, or in the
/// first lines of a fuzz target.
fn named() -> BTreeMap<String, BTreeSet<String>> {
    let mut files = Vec::new();
    for folder in ["src", "tests/it", "tests/process"] {
        rust_files(&root().join(folder), &mut files);
    }
    let mut named: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in files {
        let (text, module) = (std::fs::read_to_string(&path).unwrap(), module(&path));
        let (mut rows, mut is_test) = (Vec::new(), false);
        for line in text.lines().map(str::trim_start) {
            if line.starts_with("//") && !line.starts_with("//!") {
                rows.extend(ids(line));
            } else if line.starts_with("#[") {
                is_test |= line == "#[test]" || line.starts_with("#[tokio::test");
            } else {
                for row in rows.drain(..).filter(|_| is_test) {
                    let test = format!("{module}::{}", function(line).expect("a test is a function"));
                    named.entry(row).or_default().insert(test);
                }
                is_test = false;
            }
        }
    }
    let entries = root().join("tests/fuzz/src/entries");
    for entry in std::fs::read_dir(entries).unwrap().map(Result::unwrap) {
        let text = std::fs::read_to_string(entry.path()).unwrap();
        let target = format!("fuzz::{}", entry.path().file_stem().unwrap().to_str().unwrap());
        for row in text.lines().filter(|line| line.starts_with("//!")).flat_map(ids) {
            named.entry(row).or_default().insert(target.clone());
        }
    }
    named
}

#[test]
fn every_row_is_held_by_a_test_or_says_why_not() {
    let (inventory, named) = (inventory(), named());
    let all: BTreeSet<String> =
        SECTIONS.iter().flat_map(|(section, n)| (1..=*n).map(move |row| format!("{section}-{row:02}"))).collect();
    assert_eq!(inventory.keys().cloned().collect::<BTreeSet<_>>(), all);
    let unknown: Vec<&String> = named.keys().filter(|row| !all.contains(*row)).collect();
    assert!(unknown.is_empty(), "tests name rows that do not exist: {unknown:?}");
    let mut faults = Vec::new();
    for (id, Row { when, expected, tier, tests, left }) in &inventory {
        let listed: BTreeSet<String> = tests.iter().cloned().collect();
        let found = named.get(id).cloned().unwrap_or_default();
        if listed != found {
            let missing: Vec<&String> = found.difference(&listed).collect();
            let gone: Vec<&String> = listed.difference(&found).collect();
            faults.push(format!("{id}: not listed {missing:?}, listed and not found {gone:?}"));
        }
        if tests.is_empty() && left.is_none() {
            faults.push(format!("{id}: neither a test nor a reason"));
        }
        let words = [when, expected].into_iter().chain(left);
        let tiers = tier.split(", ").all(|tier| ["P", "N", "S", "G", "C"].contains(&tier));
        if !tiers || words.into_iter().any(|words| words.trim().is_empty()) {
            faults.push(format!("{id}: incomplete"));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    for (section, n) in SECTIONS {
        let rows = || inventory.iter().filter(|(id, _)| id.starts_with(section)).map(|(_, row)| row);
        let held = rows().filter(|row| !row.tests.is_empty()).count();
        let whole = rows().filter(|row| !row.tests.is_empty() && row.left.is_none()).count();
        eprintln!("{section}: {n} rows, {held} held by tests, {whole} of them whole");
    }
}
