//! What a keys file may say, what is refused where, and that no message quotes a key.

use std::sync::Arc;

use super::*;
use crate::catalog;

const KEY: &str = "sk-canary-0123456789";

fn names() -> Names {
    let model = |path: &str| Arc::new(catalog::resolve(path, &[]).unwrap());
    let aliases = vec![("small".to_owned(), "a".to_owned())];
    Names::new(vec![model("dir:/models/a"), model("dir:/models/b")], aliases, 0, true).unwrap()
}

fn read(text: &str) -> Result<Vec<ApiKey>, String> {
    file::parse("keys.toml", text, &names()).map_err(|error| error.to_string())
}

#[test]
fn a_key_says_what_it_may_do() {
    let keys = read(&format!(
        "[[key]]\nname = \"search\"\nkey = \"{KEY}\"\nrequests_per_minute = 60\ntokens_per_minute = 1_000_000\n\
         max_concurrent = 4\nmodels = [\"small\", \"B\"]\ndefault_role = \"search_query\"\n\
         [[key]]\nname = \"all\"\nkey_sha256 = \"{}\"\n[[key]]\nname = \"b3\"\nkey_blake3 = \"{}\"\n",
        "Ab".repeat(32),
        "01".repeat(32)
    ));
    let keys = keys.unwrap();
    let policy = KeyPolicy {
        requests_per_minute: Some(60),
        tokens_per_minute: Some(1_000_000),
        max_concurrent: Some(4),
        models: Some(vec!["a".to_owned(), "b".to_owned()]),
        default_role: Some("search_query"),
    };
    assert_eq!((keys[0].name.as_str(), &keys[0].policy), ("search", &policy));
    assert_eq!(keys[0].proof, KeyProof::Key(Secret::new(KEY.to_owned())));
    assert_eq!((keys[1].proof.clone(), &keys[1].policy), (KeyProof::Sha256([0xab; 32]), &KeyPolicy::default()));
    assert_eq!(keys[2].proof, KeyProof::Blake3([1; 32]));
    assert!(!format!("{keys:?}").contains("canary"));
}

#[test]
fn every_problem_has_its_place_and_quotes_nothing() {
    let entry = format!("[[key]]\nname = \"a\"\nkey = \"{KEY}\"\n");
    for (text, expected) in [
        (format!("{entry}rpm = 5\n"), "keys.toml:4:1: unknown key, known: name, key,"),
        (format!("\"{KEY}\" = 5\n"), "keys.toml:1:1: unknown key, known: key"),
        (format!("key = \"{KEY}\"\n"), "keys.toml:1:7: write each key as [[key]]"),
        (format!("{entry}requests_per_minute = 0\n"), "keys.toml:4:23: expected an integer from 1 to"),
        (format!("{entry}max_concurrent = \"{KEY}\"\n"), "keys.toml:4:18: expected an integer"),
        (format!("{entry}models = []\n"), "keys.toml:4:10: expected an array of names of models"),
        (format!("{entry}models = [\"a\", \"nobody\"]\n"), "keys.toml:4:16: expected the name of a model that is"),
        (format!("{entry}default_role = \"poet\"\n"), "keys.toml:4:16: expected a role"),
        (format!("{entry}key_blake3 = \"{}\"\n", "0".repeat(64)), "keys.toml:1:1: expected one of key, key_sha256"),
        (format!("[[key]]\nname = \"a\"\nkey_sha256 = \"{KEY}\"\n"), "keys.toml:3:14: expected 64 hexadecimal"),
        (format!("[[key]]\nkey = \"{KEY}\"\n"), "keys.toml:1:1: missing key: name"),
        (format!("[[key]]\nname = \"none\"\nkey = \"{KEY}\"\n"), "keys.toml:2:8: expected a name"),
        (format!("[[key]]\nname = \"a\"\nkey = \"{KEY} {KEY}\"\n"), "keys.toml:3:7: expected a key of visible"),
        (format!("{entry}{entry}"), "keys.toml:5:8: another key has this name"),
        (format!("[[key]]\nname = {KEY}\n"), "keys.toml:2:"),
    ] {
        let message = read(&text).map(|_| ()).unwrap_err();
        assert!(message.lines().any(|line| line.starts_with(expected)), "{message}\n{text}");
        assert!(!message.contains("canary"), "{message}");
    }
    let both = read("[[key]]\nname = 1\nkey = 2\n").map(|_| ()).unwrap_err();
    assert_eq!(both.lines().count(), 2, "all problems at once: {both}");
}

#[test]
fn a_name_or_a_key_occurs_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.toml");
    let sources = |typed: &[&str], content: &str| {
        #[expect(clippy::disallowed_methods, reason = "the operator's file")]
        std::fs::write(&path, content).unwrap();
        let typed = typed.iter().map(|key| Secret::new((*key).to_owned())).collect();
        let sources = KeySources { typed, plain_files: Vec::new(), keys_file: Some(path.clone()) };
        sources.read(&names()).map(|keys| keys.len()).map_err(|error| error.to_string())
    };
    let entry = |name: &str, key: &str| format!("[[key]]\nname = \"{name}\"\nkey = \"{key}\"\n");
    let by_digest = |key: &str| format!("[[key]]\nname = \"d\"\nkey_blake3 = \"{}\"\n", blake3::hash(key.as_bytes()));
    assert_eq!(sources(&["x"], &entry("a", "y")), Ok(2));
    assert!(sources(&["x"], &entry("key-1", "y")).unwrap_err().contains("the same name: key-1"));
    assert!(sources(&["x"], &entry("a", "x")).unwrap_err().contains("two names: key-1 and a"));
    assert!(sources(&[], &(entry("a", "x") + &by_digest("x"))).unwrap_err().contains("two names: a and d"));
    assert!(sources(&["x"], "# nothing\n").unwrap_err().contains("it holds no key"));
    assert!(sources(&[], &"#".repeat(2 << 20)).unwrap_err().contains("more than 1048576 bytes"));
}

#[test]
fn a_line_that_is_no_key_is_named_and_not_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys");
    #[expect(clippy::disallowed_methods, reason = "the operator's file")]
    std::fs::write(&path, format!("# ours\n{KEY}\n\n{KEY} with a note\n")).unwrap();
    let sources = KeySources { typed: Vec::new(), plain_files: vec![path.clone()], keys_file: None };
    let message = sources.read(&names()).map(|_| ()).unwrap_err().to_string();
    assert!(message.contains(&path.display().to_string()) && message.contains("line 4: a key is made of"), "{message}");
    assert!(!message.contains("canary"), "{message}");
}
