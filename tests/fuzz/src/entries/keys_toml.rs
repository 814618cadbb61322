//! An operator's file of keys with limits. A-06, L-04

use std::collections::BTreeSet;
use std::io::Write as _;
use std::sync::Arc;

use embedserve::catalog::{self, Names};
use embedserve::config::{KeyProof, KeySources};

use super::Verdict;
use super::message;

/// As many as are listed, and a line that says so.
const MAX_PROBLEMS: usize = 101;

/// Two models, one with a further name.
fn names() -> Names {
    let model = |choice: &str| Arc::new(catalog::resolve(choice, &[]).expect("a folder's name is enough"));
    let aliases = vec![("small".to_owned(), "a".to_owned())];
    Names::new(vec![model("dir:/models/a"), model("dir:/models/b")], aliases, 0, true).expect("three different names")
}

pub fn check(data: &[u8]) -> Verdict {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(data).expect("room for it");
    let sources = KeySources { keys_file: Some(file.path().to_owned()), ..KeySources::default() };
    let keys = match sources.read(&names()) {
        Ok(keys) => keys,
        Err(error) => {
            let text = error.to_string();
            // Every problem on a line of its own.
            for line in text.lines() {
                drop(message::checked(line.to_owned(), data));
            }
            assert!((1..=MAX_PROBLEMS).contains(&text.lines().count()), "{} problems", text.lines().count());
            return Err(text);
        }
    };
    assert!(!keys.is_empty(), "an empty file would open the server");
    let mut taken = BTreeSet::new();
    let shown = format!("{keys:?}");
    for key in &keys {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        assert!((1..=64).contains(&key.name.len()) && key.name.chars().all(plain), "{}", key.name);
        assert!(key.name != "none" && taken.insert(&key.name), "{} is taken", key.name);
        let policy = &key.policy;
        for limit in [policy.requests_per_minute, policy.tokens_per_minute, policy.max_concurrent] {
            assert!(limit.is_none_or(|limit| (1..=1_000_000_000_000).contains(&limit)), "{limit:?}");
        }
        let served = |models: &Vec<String>| !models.is_empty() && models.iter().all(|id| id == "a" || id == "b");
        assert!(policy.models.as_ref().is_none_or(served), "{:?}", policy.models);
        if let KeyProof::Key(secret) = &key.proof {
            let secret = secret.expose();
            assert!(!secret.is_empty() && secret.bytes().all(|byte| byte.is_ascii_graphic()));
            // A short key may occur by chance, in a name or a number.
            assert!(secret.len() < 80 || !shown.contains(secret), "a key is shown");
        }
    }
    Ok(())
}
